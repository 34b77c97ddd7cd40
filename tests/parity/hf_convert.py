#!/usr/bin/env python3
"""irq_convert against transformers: random LLaMAs saved by save_pretrained (one file and shards; F32, F16, BF16; grouped
heads, tied embeddings, a head_dim of its own, other theta and eps) are converted, and `irq_eval --logits` of the .bin on the
CPU in F32 is compared with transformers reading the same folder in F32.

    make irq_convert irq_eval
    python3 tests/parity/hf_convert.py --build build

Exit status 0: all within tolerance, 1: not, 77: torch or transformers are missing here."""
import argparse
import os
import subprocess
import sys
import tempfile

try:
    import numpy as np
    import torch
    import transformers
    from transformers import LlamaConfig, LlamaForCausalLM
except ImportError as e:
    print(f"hf_convert: skipped: {e}", file=sys.stderr)
    sys.exit(77)

# Relative L2 over all positions. The weights are the same bits on both sides; what differs is the order of F32 sums, and
# torch's RoPE frequencies, a third of which are off by one unit in the last place (README.md): up to 5e-6 there.
TOLERANCE = 1e-5

BASE = dict(hidden_size=256, intermediate_size=704, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=4, vocab_size=512,
            max_position_embeddings=256, rms_norm_eps=1e-6, rope_theta=10000.0, bos_token_id=1, eos_token_id=2)
CASES = {
    "llama1": (BASE, torch.float16, "50GB"),
    "llama1 sharded": (BASE, torch.bfloat16, "2MB"),
    "grouped heads": (BASE | dict(num_key_value_heads=1, rms_norm_eps=1e-5, rope_theta=1e6), torch.float32, "3MB"),
    "tied": (BASE | dict(num_key_value_heads=2, tie_word_embeddings=True, rope_theta=100000.0), torch.bfloat16, "50GB"),
    "head_dim": (BASE | dict(head_dim=32, num_key_value_heads=2), torch.float16, "2MB"),
}


def save_model(folder, config, dtype, shard_size, seed):
    torch.manual_seed(seed)
    model = LlamaForCausalLM(LlamaConfig(**config, attn_implementation="eager"))
    with torch.no_grad():
        for name, p in model.named_parameters():  # far from the initial values, norms too
            p.copy_(1 + 0.1 * torch.randn_like(p) if p.dim() == 1 else torch.randn_like(p) / p.shape[1]**0.5)
    model.to(dtype).save_pretrained(folder, max_shard_size=shard_size)


def run(program, *args):
    done = subprocess.run([program, *map(str, args)], capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"hf_convert: {program}: {done.stderr}")


def compare(build, work, name, case, seed):
    config, dtype, shard_size = case
    folder = os.path.join(work, name.replace(" ", "_"))
    save_model(folder, config, dtype, shard_size, seed)
    shards = sum(f.endswith(".safetensors") for f in os.listdir(folder))
    run(f"{build}/irq_convert", folder, f"{folder}.bin", "--quiet")
    ids = np.random.default_rng(seed).integers(0, config["vocab_size"], 100)
    run(f"{build}/irq_eval", f"{folder}.bin", "--logits", ",".join(map(str, ids)), f"{folder}.npy", "--device", "cpu", "--quiet")
    ours = np.load(f"{folder}.npy").astype(np.float64)
    model = LlamaForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    with torch.no_grad():
        theirs = model(torch.tensor(ids)[None]).logits[0].double().numpy()
    error = np.linalg.norm(ours - theirs) / np.linalg.norm(theirs)
    same = int((ours.argmax(-1) == theirs.argmax(-1)).sum())
    # Control: rows of q in another order (interleaved RoPE) must be far off, or the comparison sees nothing.
    with torch.no_grad():
        w = model.model.layers[0].self_attn.q_proj.weight
        w.copy_(w.view(w.shape[0] // 2, 2, -1).transpose(0, 1).reshape(w.shape))
        control = model(torch.tensor(ids)[None]).logits[0].double().numpy()
    far = np.linalg.norm(ours - control) / np.linalg.norm(control)
    good = error < TOLERANCE and far > 1e-2
    print(f"{name:16} {str(dtype)[6:]:9} {shards} file(s): logits {ours.shape} relative L2 {error:.2e}, "
          f"{same} of {len(ids)} argmax equal; control {far:.2e}  {'ok' if good else 'FAILED'}")
    return good


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", default="build")
    args = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    with tempfile.TemporaryDirectory() as work:
        results = [compare(args.build, work, name, case, i) for i, (name, case) in enumerate(CASES.items())]
    print(f"hf_convert: {len(results)} models, {results.count(False)} failed (tolerance {TOLERANCE:g})")
    return 0 if all(results) else 1


if __name__ == "__main__":
    sys.exit(main())
