#!/usr/bin/env python3
"""A real model against what transformers answers for it: SmolLM2-135M-Instruct, converted by irq_convert, compared with answers that
were recorded once with transformers 5.17 in F32 from the same GGUF file (no torch is needed here, only numpy).

    python3 tests/parity/smollm2.py MODEL.bin DATA [--build build] [--limit N] [--precision f32|bf16] [--only ids,logits,...] [-- TOOL FLAGS]

DATA holds golden/smollm2_transformers.json, golden/smollm2_rome_logits.npy, commonsense/*.jsonl and mmlu/. What is compared: the ids of
hard strings, logits and loss of a prompt, 200 greedy tokens, every score of every choice of three tasks, every answer of 38
MMLU subjects. transformers' GGUF reader leaves out SmolLM2's rule that each digit is a token of its own from the start, which
changes the ids of white space in front of digits (21 questions of PIQA, all prompts of one MMLU subject): the questions are
therefore encoded as the recorded run encoded them, by a copy of tokenizer.json without that rule. --limit N takes the first N questions of each task (on a CPU). Exit status: 0 all within tolerance, 1 not, 77
numpy or the data are missing."""
import argparse
import json
import math
import os
import subprocess
import sys
import tempfile

try:
    import numpy as np
except ImportError as e:
    print(f"smollm2: skipped: {e}", file=sys.stderr)
    sys.exit(77)

# F32 against transformers' F32, both rounding sums of up to 1,536 terms over 30 layers.
LOGITS_F32 = 1e-4
# A sum of log-probabilities was recorded with four decimals (5e-5), and is a difference of numbers near 20 in F32.
SCORE_F32 = 5e-4
TIE = 1e-4  # of two scores per token: either may be called the larger
TASKS = ("arc_easy", "piqa", "openbookqa")


def as_recorded(model, folder):
    """The model with the tokenizer of the recorded run beside it: byte-level BPE with GPT-2's pattern alone."""
    beside = os.path.dirname(os.path.abspath(model))
    with open(os.path.join(beside, "tokenizer.json"), encoding="utf-8") as f:
        tokenizer = json.load(f)
    steps = tokenizer["pre_tokenizer"]["pretokenizers"]
    tokenizer["pre_tokenizer"] = next(step for step in steps if step["type"] == "ByteLevel")
    with open(os.path.join(folder, "tokenizer.json"), "w", encoding="utf-8") as f:
        json.dump(tokenizer, f)
    for name in (os.path.basename(model), "tokenizer_config.json"):
        os.symlink(os.path.join(beside, name), os.path.join(folder, name))
    return os.path.join(folder, os.path.basename(model))


class Comparison:
    def __init__(self, args, recorded):
        self.args, self.recorded, self.failed = args, recorded, 0
        with open(os.path.join(args.data, "golden", "smollm2_transformers.json"), encoding="utf-8") as f:
            self.golden = json.load(f)

    def check(self, name, good, text):
        print(f"{'ok    ' if good else 'FAILED'} {name:<22} {text}", flush=True)
        self.failed += not good

    def tool(self, name, *args, own=()):
        command = [os.path.join(self.args.build, name), *args, "--quiet", *own]
        result = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
        if result.returncode != 0:
            sys.exit(f"{' '.join(command)[:300]}\n{result.stderr}")
        return result.stdout

    def model_tool(self, name, *args):  # one that computes
        return self.tool(name, *args, own=["--precision", self.args.precision, *self.args.flags])

    def ids(self):
        wrong = []
        for text, expected in zip(self.golden["strings"], self.golden["ids"]):
            out = self.tool("irq_inspect", self.args.model, "--encode", text, "--specials")
            found = [int(x) for x in out.replace(",", " ").split()]
            if found != expected:
                wrong.append(f"{text!r}: {found} instead of {expected}")
        self.check("token ids", not wrong, f"{len(self.golden['strings'])} strings" + "".join("\n    " + w for w in wrong))

    def logits(self):
        ids = self.golden["rome_ids"]
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "logits.npy")
            self.model_tool("irq_eval", self.args.model, "--logits", ",".join(map(str, ids)), path)
            logits = np.load(path).astype(np.float64)
        last = np.load(os.path.join(self.args.data, "golden", "smollm2_rome_logits.npy")).astype(np.float64).reshape(-1)
        error = np.linalg.norm(logits[-1] - last) / np.linalg.norm(last)
        bound = LOGITS_F32 if self.args.precision == "f32" else 3e-2  # bf16: 30 layers of roundings of 2^-9
        self.check("last logits", error <= bound, f"relative L2 {error:.2e} (at most {bound:.0e})")
        top = logits.max(axis=1, keepdims=True)
        log_p = logits - top - np.log(np.exp(logits - top).sum(axis=1, keepdims=True))
        nll = -np.mean([log_p[i, ids[i + 1]] for i in range(len(ids) - 1)])
        bound = 1e-4 if self.args.precision == "f32" else 2e-2
        self.check("loss of the prompt", abs(nll - self.golden["rome_nll"]) <= bound,
                   f"{nll:.6f}, transformers {self.golden['rome_nll']:.6f}")
        same = int((logits.argmax(axis=1) == np.array(self.golden["rome_argmax"])).sum())
        self.check("likeliest tokens", same == len(ids) or self.args.precision != "f32", f"{same} of {len(ids)} equal")

    def greedy(self):
        prompt = self.tool("irq_inspect", self.args.model, "--encode", self.golden["chat"], "--specials")
        out = self.model_tool("irq_generate", self.args.model, "--ids", ",".join(prompt.replace(",", " ").split()),
                              "--max-tokens", str(len(self.golden["greedy"])))
        found = [int(x) for x in out.replace(",", " ").split()]
        expected = self.golden["greedy"][: len(found)]
        same = next((i for i, (a, b) in enumerate(zip(found, expected)) if a != b), len(found))
        # What stands behind the first end-of-text is not generated here.
        good = same == len(found) and len(found) > 0
        self.check("greedy tokens", good or self.args.precision != "f32", f"{same} of {len(found)} equal, of {len(self.golden['greedy'])} recorded")

    def evaluate(self, *args):
        with tempfile.TemporaryDirectory() as folder:
            path = os.path.join(folder, "out.json")
            limit = ["--limit", str(self.args.limit)] if self.args.limit else []
            self.model_tool("irq_eval", self.recorded, *args, *limit, "--json", path)
            with open(path, encoding="utf-8") as f:
                return json.load(f)

    def choice(self):
        for task in TASKS:
            golden = self.golden[task]
            path = os.path.join(self.args.data, "commonsense", task + ".jsonl")
            with open(path, encoding="utf-8") as f:
                lines = [json.loads(line) for line in f]
            found = self.evaluate("--choice", path)["tasks"][task]
            worst, other = 0.0, []
            for i, question in enumerate(found["questions"]):
                expected = golden["sums"][i]
                worst = max(worst, max(abs(a - b) for a, b in zip(question["scores"], expected)))
                theirs = max(range(len(expected)), key=lambda c: expected[c])
                if question["pred"] != theirs and abs(expected[theirs] - expected[question["pred"]]) > TIE * 10:
                    other.append(i)
            count = len(found["questions"])
            if self.args.precision == "f32":
                self.check(task, worst <= SCORE_F32 and not other,
                           f"{count} questions, worst score off by {worst:.1e}, {len(other)} other answers, acc {found['acc']:.4f}")
            else:
                distance = abs(found["acc"] - golden["acc"]) / math.sqrt(golden["acc"] * (1 - golden["acc"]) / count)
                self.check(task, distance <= 1 or bool(self.args.limit),
                           f"{count} questions, acc {found['acc']:.4f}, transformers in F32 {golden['acc']:.4f}, {distance:.2f} standard errors apart")

    def mmlu(self):
        found = self.evaluate("--mmlu", os.path.join(self.args.data, "mmlu"))["mmlu"]
        questions = other = right = ties = 0
        for subject, golden in self.golden["mmlu"].items():
            mine = found["subjects"][subject]
            questions += mine["n"]
            for a, b, scores in zip(mine["pred"], golden["pred"], mine["scores"]):
                best = sorted(scores)[-2:]
                ties += a != b and best[1] - best[0] <= TIE
                other += a != b and best[1] - best[0] > TIE
            right += round(mine["acc"] * mine["n"])
        # The recorded letters come without their scores: another letter is a tie where this engine's two best are as close.
        allowed = 0 if self.args.precision == "f32" else questions
        self.check("MMLU", other <= allowed,
                   f"{questions} questions, {other} other answers, {ties} ties, micro-average {right / questions:.4f}, transformers {self.golden['mmlu_micro']:.4f}")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("data")
    parser.add_argument("--build", default="build")
    parser.add_argument("--limit", type=int, default=0)
    parser.add_argument("--precision", default="f32", choices=["f32", "bf16"])
    parser.add_argument("--only", default="ids,logits,greedy,choice,mmlu")
    parser.add_argument("flags", nargs="*")
    args = parser.parse_args()
    if not os.path.exists(os.path.join(args.data, "golden", "smollm2_transformers.json")):
        print(f"smollm2: skipped: {args.data}/golden/smollm2_transformers.json is not there", file=sys.stderr)
        sys.exit(77)
    with tempfile.TemporaryDirectory() as folder:
        comparison = Comparison(args, as_recorded(args.model, folder))
        for part in args.only.split(","):
            getattr(comparison, part)()
    print(f"{'FAILED' if comparison.failed else 'all within tolerance'}: {args.model}, {args.precision}")
    sys.exit(1 if comparison.failed else 0)


if __name__ == "__main__":
    main()
