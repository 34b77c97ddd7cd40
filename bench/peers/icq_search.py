#!/usr/bin/env python3
"""The search for tau the way a PyTorch user writes it: all blocks at once, one of the 201 candidates at a time, codes by
bucketize and counts by scatter. One 4096 x 4096 matrix, scaled to the weights of LLaMA-7B.
    --json FILE     also for `irq_bench icq_search --peers FILE`, scaled to 11008 x 4096."""
import argparse

import torch

from common import LINEAR_WEIGHTS, device_line, milliseconds, report, write_peers

NF4 = [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
       -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
       0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]
SIGMA = 0.5410872368978237  # one standard deviation of N(0, 1) in units of NF4's absmax


def entropy(codes):
    counts = torch.zeros(codes.shape[0], 16, device="cuda").scatter_add_(1, codes, torch.ones_like(codes, dtype=torch.float))
    p = counts / codes.shape[1]
    return -(p * p.clamp_min(1e-30).log2()).sum(1, keepdim=True)


def search(w, edges, lam=0.1, n=100):
    blocks = w.float().reshape(-1, 64)
    center = blocks.median(1, keepdim=True)[0]
    span = (blocks - center).abs().amax(1, keepdim=True)
    best, factor = torch.full_like(center, -1), torch.zeros_like(center)
    for f in torch.linspace(-lam * SIGMA, lam * SIGMA, 2 * n + 1).tolist():
        shifted = blocks - (f * span + center)
        h = entropy(torch.bucketize(shifted / shifted.abs().amax(1, keepdim=True), edges))
        factor = torch.where(h > best, torch.full_like(factor, f), factor)
        best = torch.maximum(best, h)
    return factor * span + center, best


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json")
    args = parser.parse_args()
    device_line()
    levels = torch.tensor(NF4, device="cuda")
    edges = (levels[1:] + levels[:-1]) / 2
    w = torch.randn(4096, 4096, device="cuda") * 0.02
    _, best = search(w, edges)
    blocks = w.reshape(-1, 64)
    plain = entropy(torch.bucketize(blocks / blocks.abs().amax(1, keepdim=True), edges))
    seconds = milliseconds(lambda: search(w, edges), repeats=5, warm_up=1) / 1e3
    report(what="tau search in torch", seconds_one_matrix=seconds, seconds_llama_7b=seconds * LINEAR_WEIGHTS / w.numel(),
           entropy_plain=float(plain.mean()), entropy_best=float(best.mean()))
    if args.json:
        n = 11008 * 4096
        write_peers(args.json, [dict(op="icq_search", shape=f"bits=4,n={n}", peer="torch", us=seconds * 1e6 * n / w.numel())])


if __name__ == "__main__":
    main()
