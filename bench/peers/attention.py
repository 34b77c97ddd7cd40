#!/usr/bin/env python3
"""torch's scaled_dot_product_attention on the shapes that `irq_bench attention_fwd` and `attention_bwd` time: head width 128,
32 heads, causal, 8,192 rows in sequences of one length. One JSON line per length and backend; FLOPs are counted as there
(2 products forward, 5 backward, half of each by causality).
    --json FILE     also for `irq_bench attention_fwd --peers FILE`; backward is forward + backward less forward."""
import argparse

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from common import device_line, milliseconds, report, write_peers

ROWS, HEADS, WIDTH = 8192, 32, 128


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json")
    args = parser.parse_args()
    device_line()
    results = []
    for name, backend in (("flash", SDPBackend.FLASH_ATTENTION), ("cudnn", SDPBackend.CUDNN_ATTENTION)):
        for length in (128, 512, 1024, 2048, 4096):
            batch = ROWS // length
            q, k, v = (torch.randn(batch, HEADS, length, WIDTH, device="cuda", dtype=torch.bfloat16, requires_grad=True)
                       for _ in range(3))
            dout = torch.randn_like(q)

            def forward():
                return F.scaled_dot_product_attention(q, k, v, is_causal=True)

            def both():
                forward().backward(dout)
                q.grad = k.grad = v.grad = None

            try:
                with sdpa_kernel(backend):
                    fwd, fwd_bwd = milliseconds(forward), milliseconds(both)
            except RuntimeError as error:
                report(backend=name, length=length, error=str(error)[:80])
                continue
            flops = 4 * batch * HEADS * length**2 * WIDTH / 2
            report(backend=name, length=length, fwd_us=fwd * 1e3, fwd_bwd_us=fwd_bwd * 1e3, fwd_tflops=flops / fwd / 1e9,
                   fwd_bwd_tflops=3.5 * flops / fwd_bwd / 1e9)
            shape = f"N={ROWS},s={length}"
            results.append(dict(op="attention_fwd", shape=shape, peer=f"torch {name}", us=fwd * 1e3))
            results.append(dict(op="attention_bwd", shape=shape, peer=f"torch {name}", us=(fwd_bwd - fwd) * 1e3))
    if args.json:
        write_peers(args.json, results)


if __name__ == "__main__":
    main()
