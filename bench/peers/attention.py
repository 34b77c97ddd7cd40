#!/usr/bin/env python3
"""torch's scaled_dot_product_attention on the shapes that `irq_bench attention_fwd` and `attention_bwd` time: head width 128,
32 heads, causal, 8,192 rows in sequences of one length. Both directions are timed on the device alone, each as a CUDA graph. One
JSON line per length and backend; FLOPs are counted as there (2 products forward, 5 backward, half of each by causality).
    --json FILE     also for `irq_bench attention_fwd --peers FILE`."""
import argparse

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from common import device_line, graph_milliseconds, report, write_peers

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

            try:
                with sdpa_kernel(backend):
                    fwd = graph_milliseconds(forward)
                    # The backward alone: the graph of operations stays, so it can run again.
                    stream = torch.cuda.Stream()
                    stream.wait_stream(torch.cuda.current_stream())
                    with torch.cuda.stream(stream):
                        out = forward()
                    torch.cuda.current_stream().wait_stream(stream)
                    bwd = graph_milliseconds(lambda: torch.autograd.grad(out, (q, k, v), dout, retain_graph=True), stream)
            except RuntimeError as error:
                report(backend=name, length=length, error=str(error)[:80])
                continue
            flops = 4 * batch * HEADS * length**2 * WIDTH / 2
            report(backend=name, length=length, fwd_us=fwd * 1e3, bwd_us=bwd * 1e3, fwd_tflops=flops / fwd / 1e9,
                   bwd_tflops=2.5 * flops / bwd / 1e9)
            shape = f"N={ROWS},s={length}"
            results.append(dict(op="attention_fwd", shape=shape, peer=f"torch {name}", us=fwd * 1e3))
            results.append(dict(op="attention_bwd", shape=shape, peer=f"torch {name}", us=bwd * 1e3))
    if args.json:
        write_peers(args.json, results)


if __name__ == "__main__":
    main()
