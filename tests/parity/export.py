#!/usr/bin/env python3
"""What irq_export writes, loaded by the programs it is for: transformers, PEFT and the gguf package.

Each case trains an IR-QLoRA adapter for a few steps on the CPU, exports it in every form, and compares the logits that
transformers computes from the files with this engine's own (irq_eval --logits, CPU, F32). Exit status 0: all within
tolerance; 1: not; 77: a package is missing.

    make CUDA=0 irq_train irq_quantize irq_eval irq_export
    python3 tests/parity/export.py --build build-cpu
"""
import argparse
import contextlib
import glob
import json
import os
import shutil
import struct
import subprocess
import sys
import tempfile

try:
    import numpy as np
    import torch
    import transformers
    import peft
    import gguf
    from safetensors import safe_open
except ImportError as missing:
    print(f"export: {missing}: the comparison needs numpy, torch, transformers, peft, gguf and safetensors")
    sys.exit(77)
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

DEMO = os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", "..", "tools", "demo")
# Relative L2 of all logits. Both sides compute in F32 and add in another order; a third of torch's RoPE frequencies differ
# from the rounded ones by one unit in the last place. Measured: below 1e-6.
F32 = 1e-5
# Weights rounded once to this type, arithmetic in F32: half a unit in the last place is 2^-9 (bf16) or 2^-12 (f16) of a
# weight at the most; rounding errors of thousands of independent weights add up to about that much in the logits. Four times it.
ROUNDED = {"bf16": 4 * 2 ** -9, "f16": 4 * 2 ** -12}

CASES = {
    # the demo's model: tied head, as many key heads as heads
    "demo": {"options": ["--rank", "8"], "bits": 4},
    # IEC by tiling, gcd(192, 24) = 24 and gcd(512, 24) = 8, some linears only, alpha that is no whole number
    "tiled": {"options": ["--rank", "24", "--iec-expand", "tile", "--target-modules", "q_proj,v_proj,up_proj,down_proj",
                          "--alpha", "20.5"], "bits": 3},
    # random weights: untied head, 4 heads on 2 key heads of 48 (heads narrower and in sum wider than the model), other theta
    "gqa": {"options": ["--rank", "16"], "bits": 4, "config": {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 128, "intermediate_size": 320,
        "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 48, "vocab_size": 512,
        "max_position_embeddings": 256, "rms_norm_eps": 1e-6, "rope_theta": 500000.0, "hidden_act": "silu",
        "tie_word_embeddings": False, "bos_token_id": 1, "eos_token_id": 2}},
}


def relative_l2(got, want):
    return float(np.linalg.norm(np.asarray(got, np.float64) - want) / np.linalg.norm(want))


class Bench:
    def __init__(self, build):
        self.build, self.failures, self.checks = os.path.abspath(build), [], 0

    def call(self, tool, *args):
        done = subprocess.run([os.path.join(self.build, tool), *args, "--device", "cpu", "--quiet"], capture_output=True,
                              text=True, env={**os.environ, "OMP_WAIT_POLICY": "passive"})
        if done.returncode != 0:
            sys.exit(f"export: {tool} {' '.join(args)}\n{done.stderr}")

    def check(self, what, error, bound, below=True):
        self.checks += 1
        good = error <= bound if below else error >= bound  # false for NaN
        print(f"  {what:58}{error:10.1e}{' <= ' if below else ' >= '}{bound:.1e}  {'ok' if good else 'FAILED'}")
        if not good:
            self.failures.append(what)

    def engine(self, ids, model, *adapter):
        self.call("irq_eval", model, *adapter, "--logits", ",".join(map(str, ids)), "logits.npy")
        return np.load("logits.npy")


def logits(model, ids):
    with torch.no_grad():
        return model(torch.tensor([ids])).logits[0].float().numpy()


def load(path, **options):
    return transformers.AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, **options).eval()


def prepare(case):
    """Writes the base and its data into the current folder; returns (model, arguments that name the data)."""
    if "config" not in case:
        for name in ("model.bin", "tokenizer.model"):
            shutil.copy(os.path.join(DEMO, name), name)
        return "model.bin", ["--data", os.path.join(DEMO, "train.json")]
    with open("config.json", "w") as f:
        json.dump(case["config"], f)
    tokens = np.random.default_rng(1).integers(3, case["config"]["vocab_size"], 4000).astype(np.uint16)
    with open("data.tok", "wb") as f:
        f.write(struct.pack("<256i", 20240520, 1, len(tokens), *[0] * 253) + tokens.tobytes())
    return "config.json", ["--data", "data.tok", "--window", "32"]


def check_gguf(bench, path, title):
    """The file as the format's own reader sees it."""
    reader = gguf.GGUFReader(path)
    field = lambda key: reader.fields[key].contents()
    tokens = reader.fields.get("tokenizer.ggml.tokens")
    rows = next(t for t in reader.tensors if t.name == "token_embd.weight").shape[1]
    good = field("general.architecture") == "llama" and field("llama.block_count") > 0
    good &= tokens is None or len(tokens.data) == rows
    good &= all(t.data_offset % 32 == 0 for t in reader.tensors)
    bench.check(f"{title}: gguf package, {len(reader.tensors)} tensors, {'no' if tokens is None else len(tokens.data)} tokens",
                0.0 if good else 1.0, 0.5)


def run(bench, name, case):
    print(f"\n{name}: {case['bits']}-bit base, {' '.join(case['options'])}")
    plain, data = prepare(case)
    bench.call("irq_train", plain, *data, "--bits", str(case["bits"]), "--steps", "3", "--batch", "4", "--lr", "0.02",
               "--holdout", "0", "--out", "run", *case["options"])
    irq, lora = glob.glob("*.irq")[0], ["--adapter", "run/adapter.lora"]
    vocab = 512 if "config" in case else 4096
    ids = [1] + np.random.default_rng(2).integers(3, vocab, 47).tolist()
    base, adapted = bench.engine(ids, irq), bench.engine(ids, irq, *lora)
    bench.check("control: what the adapter changes", relative_l2(base, adapted), 100 * F32, below=False)

    bench.call("irq_export", irq, "--hf", "base", "--dtype", "f32")
    bench.call("irq_export", irq, *lora, "--peft", "peft")
    model = load("base")
    bench.check("base folder (f32), transformers", relative_l2(logits(model, ids), base), F32)
    with safe_open("peft/adapter_model.safetensors", "np") as f:
        betas = json.loads(f.metadata()["irq.betas"])
    bench.check("control: the median beta that was folded in", float(np.median(np.abs(list(betas.values())))), 1e-3, below=False)
    model = peft.PeftModel.from_pretrained(model, "peft").eval()
    bench.check("base folder + PEFT adapter, stock PEFT", relative_l2(logits(model, ids), adapted), F32)
    bench.check("... merged by PEFT", relative_l2(logits(model.merge_and_unload(), ids), adapted), F32)

    for dtype in ("f32", "bf16", "f16"):
        bound = ROUNDED.get(dtype, F32)
        bench.call("irq_export", irq, *lora, "--hf", "merged-" + dtype, "--merge", "--dtype", dtype)
        bench.check(f"merged folder ({dtype}), transformers", relative_l2(logits(load("merged-" + dtype), ids), adapted), bound)
        bench.call("irq_export", irq, *lora, "--gguf", dtype + ".gguf", "--merge", "--dtype", dtype)
        check_gguf(bench, dtype + ".gguf", f"merged GGUF ({dtype})")
        own = load(".", gguf_file=dtype + ".gguf")
        bench.check(f"merged GGUF ({dtype}), transformers", relative_l2(logits(own, ids), adapted), bound)
    if plain.endswith(".bin"):
        bench.call("irq_export", plain, "--hf", "plain")
        bench.check("plain base folder in its own type, transformers",
                    relative_l2(logits(load("plain"), ids), bench.engine(ids, plain)), F32)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", default="build", help="folder of irq_train, irq_eval and irq_export")
    parser.add_argument("--keep", help="write the files here and leave them")
    args = parser.parse_args()
    bench = Bench(args.build)
    print(f"torch {torch.__version__}, transformers {transformers.__version__}, peft {peft.__version__}; relative L2 of the logits "
          "against irq_eval --device cpu")
    with contextlib.nullcontext(args.keep) if args.keep else tempfile.TemporaryDirectory() as folder:
        for name, case in CASES.items():
            where = os.path.join(folder, name)
            os.makedirs(where)
            with contextlib.chdir(where):
                run(bench, name, case)
    print(f"\n{bench.checks} comparisons, {len(bench.failures)} failed")
    return 1 if bench.failures else 0


if __name__ == "__main__":
    sys.exit(main())
