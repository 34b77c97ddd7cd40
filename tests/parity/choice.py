#!/usr/bin/env python3
"""Compares irq_eval's scores of multiple-choice questions with transformers' in F32, sum by sum. See README.md beside this
file.

    python3 tests/parity/choice.py [--build build-cpu] [MODEL.bin] [--data shared/data] [--limit 50] [--device cpu|cuda]

transformers reads the same .bin; without MODEL it is the demo's. The questions are built in here; --data names a folder whose
commonsense/arc_easy.jsonl adds some. (smollm2.py compares a real model with sums that transformers left in a file.) Every sequence runs alone here, without cache, prefix or packing; token ids come from the tokenizer's own package.
Exit status: 0 all within tolerance, 1 not, 77 something is missing here."""
import argparse
import json
import os
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
# A sum of up to some dozen log-probabilities, each of two F32 forwards of another order of summation: 1e-4 of its size and
# 1e-4 beside zero.
RELATIVE, ABSOLUTE = 1e-4, 1e-4

QUESTIONS = [  # (query, choices, gold)
    ("The opposite of stable is", ["unstable.", "a dog.", "unstable, not firm or fixed."], 0),
    ("A dog is ", ["an animal.", "a number."], 0),  # white space at the end counts to the continuation
    ("Question: What is ice?\nAnswer:", ["frozen water", "frozen water in a lake", "a kind of dog", "frozen water"], 0),
    ("", ["A text of its own.", "Another text."], 1),
    ("Café — naïve: é", ["oui", "non é"], 0),
]


def skip(reason):
    print(f"choice: skipped: {reason}", file=sys.stderr)
    sys.exit(77)


def irq_eval(args, *options):
    program = os.path.join(args.build, "irq_eval")
    if not os.path.exists(program):
        skip(f"no {program}    try: make {program}")
    with tempfile.TemporaryDirectory() as folder:
        out = os.path.join(folder, "out.json")
        command = [program, args.model, *options, "--json", out, "--device", args.device, "--quiet"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"choice: {' '.join(command)}\n{done.stderr}")
        print(done.stdout.rstrip())
        with open(out) as f:
            return json.load(f)


class Comparison:
    def __init__(self):
        self.count, self.worst, self.failures = 0, 0.0, []

    def sums(self, what, got, want):
        for i, (g, w) in enumerate(zip(got, want, strict=True)):
            for c, (a, b) in enumerate(zip(g, w, strict=True)):
                error = abs(a - b) / (RELATIVE * abs(b) + ABSOLUTE)
                self.count, self.worst = self.count + 1, max(self.worst, error)
                if not error <= 1:  # NaN fails
                    self.failures.append(f"{what}, question {i + 1}, choice {c}: {a} here, {b} there")

    def finish(self):
        print(f"{self.count:,} comparisons, {len(self.failures)} failed; the worst sum took {self.worst:.2f} of its tolerance")
        for failure in self.failures[:20]:
            print("  " + failure)
        return 1 if self.failures else 0


def read_model(path):
    """The .bin as transformers' LLaMA in F32."""
    import flat_file as ff
    import reference
    config, weights = ff.read_base(path)
    model = reference.build(config, weights, None, reference.torch.float32)
    return config, model.requires_grad_(False)


def against_transformers(args, comparison):
    try:
        import sentencepiece
        import torch

        config, model = read_model(args.model)
    except ImportError as e:
        skip(e)
    tokenizer = os.path.join(os.path.dirname(args.model), "tokenizer.model")
    if not os.path.exists(tokenizer):
        skip(f"no {tokenizer}: only SentencePiece models are compared this way")
    encode = sentencepiece.SentencePieceProcessor(model_file=tokenizer).encode

    def score(query, choice):
        end = len(query) - len(query.rstrip())
        context, continuation = query.rstrip(), query[len(query) - end:] + " " + choice
        front, whole = encode(context), encode(context + continuation)
        if not context:  # the end-of-text token stands before it
            whole, front = [config["eos"]] + whole, [config["eos"]]
        whole, scored = whole[-config["max_seq"] - 1:], len(whole) - len(front)
        logits = model(input_ids=torch.tensor(whole)[None]).logits[0].double()
        logp = torch.log_softmax(logits, -1)
        return sum(float(logp[i - 1, whole[i]]) for i in range(len(whole) - scored, len(whole)))

    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "questions.jsonl")
        questions = QUESTIONS
        if args.data:
            with open(os.path.join(args.data, "commonsense", "arc_easy.jsonl")) as f:
                lines = [json.loads(line) for line, _ in zip(f, range(args.limit))]
            questions = QUESTIONS + [(q["query"], q["choices"], q["gold"]) for q in lines]
        with open(path, "w") as f:
            for query, choices, gold in questions:
                f.write(json.dumps({"query": query, "choices": choices, "gold": gold}) + "\n")
        report = irq_eval(args, "--choice", path)["tasks"]["questions"]["questions"]
    want = [[score(query, choice) for choice in choices] for query, choices, _ in questions]
    comparison.sums("questions", [q["scores"] for q in report], want)
    # The comparison must be able to fail: the same sums with the query's last character missing.
    other = [[score(query[:-1], choice) for choice in choices] for query, choices, _ in questions[2:3]]
    control = Comparison()
    control.sums("control", [report[2]["scores"]], other)
    if not control.failures:
        comparison.failures.append("the control, another query, went unnoticed")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=os.path.join(ROOT, "tools/demo/model.bin"), metavar="MODEL.bin")
    parser.add_argument("--build", default="build", help="folder of irq_eval")
    parser.add_argument("--device", default="cpu", help="cpu is F32; on cuda (bf16) the sums differ by more than the tolerance")
    parser.add_argument("--data", help="folder with commonsense/")
    parser.add_argument("--limit", type=int, default=50, help="the first N questions of --data")
    args = parser.parse_args()
    comparison = Comparison()
    against_transformers(args, comparison)
    return comparison.finish()


if __name__ == "__main__":
    sys.exit(main())
