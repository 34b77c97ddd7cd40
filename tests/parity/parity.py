#!/usr/bin/env python3
"""Compares logits, loss and every gradient of this engine with transformers' LLaMA. See README.md beside this file.

    python3 tests/parity/parity.py [--build build] [--device auto|cpu|cuda] [--verbose] [--keep DIR]

Exit status: 0 all within tolerance, 1 not, 77 torch or transformers are missing here."""
import argparse
import contextlib
import os
import subprocess
import sys
import tempfile

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
try:
    import numpy as np
    import torch

    import reference
except ImportError as e:
    print(f"parity: skipped: {e}", file=sys.stderr)
    sys.exit(77)
import flat_file as ff

# Relative L2. f32: what this engine promises, against transformers in f64. f64: the same with the RoPE tables rounded as
# ours are (reference.exact_rope); nothing else differs but the order of f64 sums, so any error of calculus shows.
TOLERANCE = {"f64": 1e-12, "f32": 1e-5}
LOGITS_F64 = 1e-7  # the engine hands logits out in f32
# bf16: no further from the f64 reference on the same rounded weights than torch's own bf16 run, times a margin for the
# order of the roundings, plus half a unit in the last place of bf16 where torch happens to be exact. A vector of a dozen
# scalars averages little: two such errors of one size differ fourfold once in several hundred cases, not 1.5-fold.
BF16_MARGIN, BF16_SCALARS_MARGIN, BF16_FLOOR = 1.5, 4.0, 2.0**-9

HEADS = dict(dim=256, layers=2, vocab=320, max_seq=256, tied=False, bos=1, eos=2, rope_theta=10000.0, norm_eps=1e-6)
CASES = {
    # Two query heads share a key head; the weights in f32.
    "gqa": dict(config=HEADS | dict(ffn=704, heads=4, kv_heads=2, head_dim=64), dtype=ff.F32, rank=64, alpha=16.0, tile=False,
                targets=0x7F),
    # head_dim 128, other RoPE base and epsilon; weights in bf16.
    "head128": dict(config=HEADS | dict(ffn=704, heads=2, kv_heads=2, head_dim=128, rope_theta=500000.0, norm_eps=1e-5),
                    dtype=ff.BF16, rank=64, alpha=16.0, tile=False, targets=0x7F),
    # Nothing divides: rank 24 (gcd 8 with every width), IEC by tiling, heads narrower than the model, tied head, four
    # adapters of seven; weights in f16.
    "ragged": dict(config=HEADS | dict(ffn=328, heads=4, kv_heads=1, head_dim=32, tied=True), dtype=ff.F16, rank=24, alpha=36.0,
                   tile=True, targets=0x5A),
}
# (case, what is trained, bits of the .irq or 0, options of parity_dump)
RUNS = [
    ("gqa", "adapters", 0, []),
    ("head128", "adapters", 0, ["--recompute", "block"]),
    ("ragged", "adapters", 0, ["--recompute", "gate_up"]),
    ("gqa", "everything", 0, []),
    ("ragged", "everything", 0, []),
    ("gqa", "adapters", 4, ["--residency", "packed"]),
    ("head128", "adapters", 3, ["--residency", "cached"]),
    ("gqa", "adapters", 2, ["--residency", "packed"]),
]
LENGTHS = (2, 7, 40, 131)  # 180 rows: packed, more than one bucket of 128, more than one tile of attention


def make_weights(config, dtype, rng):
    """Random weights as the file will hold them. The norms are bf16 values, so that torch's bf16 model has the same."""
    weights = {}
    for name in ff.tensor_names(config):
        leaf = name.split(".")[-1]
        if "norm" in name:
            weights[name] = ff.to_bf16(1 + 0.1 * rng.standard_normal(config["dim"]))
            continue
        shape = ff.linear_shapes(config).get(leaf, (config["vocab"], config["dim"]))
        weights[name] = ff.round_to((rng.standard_normal(shape) / np.sqrt(shape[1])).astype(np.float32), dtype)
    return weights


def make_adapter(case, rng):
    """Every part random, B and the betas too, so that each gradient is exercised."""
    rank, arrays, names = case["rank"], {}, []
    for n in range(case["config"]["layers"]):
        for i, leaf in enumerate(ff.LINEARS):
            if not case["targets"] >> i & 1:
                continue
            out, width = ff.linear_shapes(case["config"])[leaf]
            name = f"layers.{n}.{leaf}"
            names.append(name)
            arrays[f"{name}.A"] = rng.standard_normal((rank, width)) / np.sqrt(width)
            arrays[f"{name}.B"] = rng.standard_normal((out, rank)) / np.sqrt(rank)
            arrays[f"{name}.beta1"] = 0.5 + rng.random((1, 1))
            arrays[f"{name}.beta2"] = 0.5 + rng.random((1, 1))
    arrays = {k: a.astype(np.float32) for k, a in arrays.items()}
    return {"names": names, "arrays": arrays, "rank": rank, "alpha": case["alpha"], "tile": case["tile"]}


def make_sequences(vocab, rng):
    """(ids, 1 where predicting this token counts): nothing on the first third, then most tokens."""
    sequences = []
    for length in LENGTHS:
        mask = (rng.random(length) < 0.8) & (np.arange(length) >= length // 3)
        mask[-1] = True
        sequences.append((rng.integers(0, vocab, length).tolist(), mask.astype(int).tolist()))
    return sequences


def relative_l2(got, want):
    return float(np.linalg.norm(np.asarray(got) - want) / np.linalg.norm(want))


def comparisons(got, want, own, tile):
    """Yields (what, the engine's error, torch's own in the engine's precision, the margin on it in bf16)."""
    flat = lambda x: np.asarray(x, np.float64).reshape(-1)
    error = lambda x, w, size=None: float(np.linalg.norm(flat(x) - flat(w)) / (np.linalg.norm(w) if size is None else size))
    for i, what in enumerate(("logits", "loss")):
        yield what, error(got[i], want[i]), error(own[i], want[i]), BF16_MARGIN
    scalars = {"beta1": [], "beta2": []}
    for name, w in want[2].items():
        g, o, leaf = got[2][name], own[2][name], name.split(".")[-1]
        if leaf not in scalars:
            yield "d " + name, error(g, w), error(o, w), BF16_MARGIN
            continue
        # One number, the sum of a matrix that cancels: dbeta1 = <dA, P>, dbeta2 = <dB, E>. It is as exact as its terms: its
        # error is relative to the sum of their sizes, and in bf16 what torch's error of the terms allows it.
        source = name[:-len(leaf)] + ("A" if leaf == "beta1" else "B")
        terms = want[2][source] * reference.pooling(*want[2][source].shape, tile)
        size = np.abs(terms).sum()
        assert abs(terms.sum() - w.item()) <= 1e-12 * size
        yield "d " + name, error(g, w, size), error(own[2][source], want[2][source]), BF16_MARGIN
        scalars[leaf].append((flat(g), flat(w), flat(o)))
    for leaf, triples in scalars.items():
        if triples:  # ... and plainly relative to themselves all together
            g, w, o = (np.concatenate(side) for side in zip(*triples))
            yield f"d {leaf} of all linears", error(g, w), error(o, w), BF16_SCALARS_MARGIN


class Bench:
    """One case at a time: its files in a folder, references kept until the weights change."""

    def __init__(self, folder, build, verbose):
        self.folder, self.build, self.verbose = folder, build, verbose
        self.failures, self.checks, self.references, self.prepared = [], 0, {}, {}

    def tool(self, name):
        path = os.path.join(self.build, name)
        return path if os.path.exists(path) else None

    def call(self, *command):
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode != 0:
            sys.exit(f"parity: {' '.join(command)}\n{done.stderr}")
        return done.stdout.strip()

    def prepare(self, name, bits):
        """Writes model, adapter and tokens; returns (model path, adapter path, weights, adapter, sequences)."""
        case, rng = CASES[name], np.random.default_rng(sum(name.encode()))
        weights = make_weights(case["config"], case["dtype"], rng)
        adapter, sequences = make_adapter(case, rng), make_sequences(case["config"]["vocab"], rng)
        model = os.path.join(self.folder, name + ".bin")
        base_hash = ff.write_base(model, case["config"], case["dtype"], weights)
        if bits:
            source_hash, plain = base_hash, model
            model = os.path.join(self.folder, f"{name}.{bits}.irq")
            self.call(self.tool("irq_quantize"), plain, model, "--bits", str(bits), "--device", "cpu", "--quiet")
            base_hash, source, found_bits, quantized = ff.read_irq(model)
            assert (source, found_bits) == (source_hash, bits), f"{model}: made of another base"
            for key, w in quantized.items():
                limit = {4: 0.15, 3: 0.3, 2: 0.6}[bits] if key.split(".")[-1] in ff.LINEARS else 0
                assert relative_l2(w, weights[key]) <= limit, f"{key}: quantization moved it by {relative_l2(w, weights[key])}"
            weights = quantized
        lora = os.path.join(self.folder, os.path.basename(model) + ".lora")
        ff.write_adapter(lora, "ir-qlora", case["rank"], case["alpha"], case["targets"], case["tile"], base_hash, adapter["arrays"])
        tokens = os.path.join(self.folder, name + ".tokens")
        with open(tokens, "w") as f:
            for ids, mask in sequences:
                f.write(" ".join(f"{i}:{m}" for i, m in zip(ids, mask)) + "\n")
        return case, model, lora, tokens, weights, adapter, sequences

    def reference(self, key, *what):
        key += what[-2:]
        if key not in self.references:
            self.references[key] = reference.run(*what)
        return self.references[key]

    def engine(self, command, out, names):
        print("  " + self.call(*command))
        load = lambda n: np.load(os.path.join(out, n + ".npy"))
        written = {n[:-4] for n in os.listdir(out)} - {"logits", "loss"}
        if written != set(names):
            sys.exit(f"parity: gradients of {sorted(written ^ set(names))} are on one side only")
        return load("logits"), load("loss"), {n: load(n) for n in names}

    def run(self, name, trained, bits, options, device, precision):
        title = f"{name}, {f'{bits}-bit base' if bits else 'plain base'}, {trained} trained, {device} {precision} {' '.join(options)}"
        print(f"\n{title}")
        if bits and not self.tool("irq_quantize"):
            print(f"  SKIPPED: {self.build}/irq_quantize is not built")
            return
        if (name, bits) not in self.prepared:
            self.prepared[name, bits] = self.prepare(name, bits)
        case, model, lora, tokens, weights, adapter, sequences = self.prepared[name, bits]
        adapter = adapter if trained == "adapters" else None
        if precision == "bf16":
            weights = {k: ff.to_bf16(w) for k, w in weights.items()}  # the norms are bf16 values already
        key, config = (name, trained, bits, precision == "bf16"), case["config"]
        dtype = {"f64": torch.float64, "f32": torch.float32, "bf16": torch.bfloat16}[precision]
        rope = "exact" if precision == "f64" else "stock"
        want = self.reference(key, config, weights, adapter, sequences, torch.float64, rope)
        own = self.reference(key, config, weights, adapter, sequences, dtype, "stock")
        with tempfile.TemporaryDirectory(dir=self.folder) as out:
            command = [self.tool("parity_dump"), model, tokens, out, "--device", device, "--storage", precision, "--quiet"]
            got = self.engine(command + options + (["--adapter", lora] if adapter else []), out, want[2])
        self.compare(title, got, want, own, precision, case["tile"])
        if precision == "f32" and adapter and not case["tile"]:
            # The test must be able to fail: a reference that expands the rank vector the other way.
            other = reference.run(config, weights, adapter | {"tile": True}, sequences, torch.float32)
            error = max(relative_l2(got[2][n], other[2][n]) for n in want[2])
            print(f"  control: against IEC by tiling the worst gradient is off by {error:.1e}")
            if error < 100 * TOLERANCE["f32"]:
                self.failures.append(f"{title}: the control run went unnoticed")

    def compare(self, title, got, want, own, precision, tile):
        worst = {}
        for row, error, other, margin in comparisons(got, want, own, tile):
            bound = margin * other + BF16_FLOOR if precision == "bf16" else TOLERANCE[precision]
            if row == "logits" and precision == "f64":
                bound = LOGITS_F64
            good = error <= bound  # false for NaN
            self.checks += 1
            if not good:
                self.failures.append(f"{title}: {row}: {error:.2e} > {bound:.2e}")
            kind = row if self.verbose or not row.startswith("d layers") else row.split(".")[-1]
            worst.setdefault(kind, []).append((error / bound if error == error else float("inf"), row, error, other, bound, good))
        print(f"  {'worst of its kind':34}{'engine':>10}{'torch ' + precision:>12}{'bound':>10}")
        for entries in worst.values():
            _, row, error, other, bound, good = max(entries)
            print(f"  {row:34}{error:10.1e}{other:12.1e}{bound:10.1e}  {'ok' if good else 'FAILED'}")


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--build", default="build", help="folder of parity_dump and irq_quantize")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--verbose", action="store_true", help="a line for every tensor")
    parser.add_argument("--keep", help="write the files here and leave them")
    args = parser.parse_args()
    torch.set_grad_enabled(True)
    devices = [args.device] if args.device != "auto" else ["cpu"] + (["cuda"] if torch.cuda.is_available() else [])
    if args.keep:
        os.makedirs(args.keep, exist_ok=True)
    with contextlib.nullcontext(args.keep) if args.keep else tempfile.TemporaryDirectory() as folder:
        bench = Bench(folder, args.build, args.verbose)
        if not bench.tool("parity_dump"):
            sys.exit(f"parity: no {args.build}/parity_dump    try: make {args.build}/parity_dump")
        print(f"reference: torch {torch.__version__}, transformers {reference.transformers.__version__}; errors are relative L2 "
              "against its f64 run")
        for name, trained, bits, options in RUNS:
            for device in devices:
                for precision in (("f64", "f32") if device == "cpu" else ("f32", "bf16")):
                    if trained == "everything" and precision == "bf16":
                        continue  # its masters are f32, the reference's weights bf16: not the same model
                    bench.run(name, trained, bits, options, device, precision)
    print(f"\n{bench.checks} comparisons, {len(bench.failures)} failed")
    for f in bench.failures:
        print("  " + f)
    return 1 if bench.failures else 0


if __name__ == "__main__":
    sys.exit(main())
