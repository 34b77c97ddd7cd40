#!/usr/bin/env python3
"""Exported GGUF files in llama.cpp itself (through the package xllamacpp): greedy text of a few prompts against irq_generate.

    python3 tests/parity/llama_cpp.py [--build build-cpu] [MODEL ...]     # a .bin or .irq; without one: the demo's model

Both stop at their own ends of text (irq_generate at BOS too), so the shorter text must begin the longer one. f32 weights on both
sides; llama.cpp sums in another order, so a near tie may go the other way: the prompts here have none. Exit status: 0 all
equal, 1 not, 77 xllamacpp is missing."""
import argparse
import os
import subprocess
import sys
import tempfile

try:
    import xllamacpp
except ImportError as e:
    print(f"llama_cpp: skipped: {e}", file=sys.stderr)
    sys.exit(77)

PROMPTS = ["A violin is a kind of", "The capital of France is", "Water is"]
TOKENS = 24
LEAST = 20  # characters that must agree: an empty text agrees with everything


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["tools/demo/model.bin"])
    parser.add_argument("--build", default="build-cpu")
    args = parser.parse_args()
    failed = 0

    def tool(name, *rest):
        command = [os.path.join(args.build, name), *rest, "--quiet", "--device", "cpu"]
        return subprocess.run(command, check=True, capture_output=True, text=True, encoding="utf-8").stdout

    for model in args.models:
        with tempfile.TemporaryDirectory() as folder:
            gguf = os.path.join(folder, "model.gguf")
            tool("irq_export", model, "--gguf", gguf, "--dtype", "f32")
            params = xllamacpp.CommonParams()
            params.model.path, params.n_ctx, params.n_parallel = gguf, 256, 1
            server = xllamacpp.Server(params)
            for prompt in PROMPTS:
                answer = server.handle_completions({"prompt": prompt, "n_predict": TOKENS, "temperature": 0, "top_k": 1})
                theirs = answer["choices"][0]["text"]
                ours = tool("irq_generate", model, "--prompt", prompt, "--max-tokens", str(TOKENS)).removesuffix("\n")
                shared = min(len(ours), len(theirs))
                good = shared >= LEAST and ours[:shared] == theirs[:shared]
                failed += not good
                print(f"{'ok    ' if good else 'FAILED'} {model}: {prompt!r} -> {ours!r}" + ("" if good else f" instead of {theirs!r}"))
            del server
    print("FAILED" if failed else "all equal")
    sys.exit(1 if failed else 0)


if __name__ == "__main__":
    main()
