#!/usr/bin/env python3
"""What a training step costs with the layer that the paper's authors released. NOT their code, which is
not copied here: a re-implementation of what their layer computes in each step, in the same order and types:
    W = NF4 codes * scale -> fp16 -> compute type;  + tau (fp32, broadcast) -> compute type;   a whole matrix, at every use
    u = A x + beta1 * pool(x);   v = B u + beta2 * repeat(pool(u));   y = W x + alpha/r * v
inside transformers' LLaMA with gradient checkpointing, as their script trains (so W is made in forward and again in backward).
Scales and shifts are double-quantized. The NF4 kernel, which bitsandbytes has in CUDA, is one Triton kernel here, or torch
operations where Triton is missing (slower; which one ran is in the output).
Timed are steps of models of few layers; the time of 32 layers is extrapolated linearly from two of them, and says so.
    --rows 16x512,16x123      --dtype bfloat16|float32      --layers 2,6      --no-checkpointing"""
import argparse
import math

import torch
import torch.nn.functional as F

from common import LLAMA_7B, device_line, gemm_tflops, report, train_steps
from icq_search import NF4

try:
    import triton
    import triton.language as tl
except ImportError:
    triton = None

BLOCK, GROUP = 64, 256  # weights of a scale, scales of a second-level scale

if triton:
    @triton.jit
    def nf4_kernel(codes, scales, table, out, count, SIZE: tl.constexpr):
        byte = tl.program_id(0) * SIZE + tl.arange(0, SIZE)
        inside = byte < count
        code = tl.load(codes + byte, mask=inside, other=0).to(tl.int32)
        scale = tl.load(scales + byte // 32, mask=inside, other=0)
        first, second = tl.load(table + (code >> 4)) * scale, tl.load(table + (code & 15)) * scale
        place = tl.program_id(0) * 2 * SIZE + tl.arange(0, 2 * SIZE)
        tl.store(out + place, tl.interleave(first, second).to(tl.float16), mask=place < 2 * count)


def nf4_by_triton(codes, scales, table):
    out = torch.empty(2 * codes.numel(), device=codes.device, dtype=torch.float16)
    size = 1024
    nf4_kernel[(triton.cdiv(codes.numel(), size),)](codes, scales, table, out, codes.numel(), SIZE=size)
    return out


def nf4_by_torch(codes, scales, table):
    pairs = torch.stack((codes >> 4, codes & 15), 1).long()
    return (table[pairs].view(-1, BLOCK) * scales.view(-1, 1)).half().view(-1)


class ReleasedLinear(torch.nn.Module):
    dequantize = staticmethod(nf4_by_triton if triton else nf4_by_torch)

    def __init__(self, inputs, outputs, rank, dtype):
        super().__init__()
        blocks, groups = inputs * outputs // BLOCK, inputs * outputs // BLOCK // GROUP
        byte = dict(device="cuda", dtype=torch.uint8)
        self.shape = (outputs, inputs)
        self.rank, self.dtype, self.scaling = rank, dtype, 16 / rank
        self.codes = torch.randint(0, 256, (blocks * BLOCK // 2,), **byte)
        self.scale_codes, self.tau_codes = torch.randint(0, 256, (blocks,), **byte), torch.randint(0, 256, (blocks,), **byte)
        self.scale_groups, self.tau_groups = (torch.rand(groups, 1, device="cuda") * s for s in (0.01, 0.003))
        self.offset = torch.tensor(0.035, device="cuda")
        self.map = torch.linspace(-1, 1, 256, device="cuda")  # of the 8-bit codes; its entries do not matter for the time
        self.table = torch.tensor(NF4, device="cuda")
        self.a = torch.nn.Parameter(torch.randn(rank, inputs, device="cuda", dtype=dtype) / math.sqrt(3 * inputs))
        self.b = torch.nn.Parameter(torch.randn(outputs, rank, device="cuda", dtype=dtype) * 0.01)
        self.beta1 = torch.nn.Parameter(torch.full((1,), 0.01, device="cuda", dtype=dtype))
        self.beta2 = torch.nn.Parameter(torch.full((1,), 0.01, device="cuda", dtype=dtype))

    @torch.no_grad()
    def weight(self):
        scales = (self.map[self.scale_codes.int()].view(-1, GROUP) * self.scale_groups).view(-1) + self.offset
        tau = (self.map[self.tau_codes.int()].view(-1, GROUP) * self.tau_groups).view(-1, 1)
        w = self.dequantize(self.codes, scales, self.table).to(self.dtype)
        return (w.view(-1, BLOCK) + tau).to(self.dtype).view(self.shape)

    def forward(self, x):
        inputs, outputs, r = x.shape[-1], self.shape[0], self.rank
        g, g2 = math.gcd(inputs, r), math.gcd(outputs, r)
        pooled = x.view(*x.shape[:-1], g, inputs // g).mean(-1).repeat_interleave(r // g, -1)
        u = F.linear(x, self.a) + self.beta1 * pooled
        repeated = u.view(*u.shape[:-1], g2, r // g2).mean(-1).repeat_interleave(outputs // g2, -1)
        v = F.linear(u, self.b) + self.beta2 * repeated
        return F.linear(x, self.weight()) + self.scaling * v


def build(layers, dtype, checkpointing):
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(**{**LLAMA_7B, "num_hidden_layers": layers}, attn_implementation="sdpa")
    torch.set_default_dtype(dtype)
    with torch.device("cuda"):
        model = LlamaForCausalLM(config)
    torch.set_default_dtype(torch.float32)
    model.requires_grad_(False)

    def replace(module):
        for name, child in list(module.named_children()):
            if isinstance(child, torch.nn.Linear) and name != "lm_head":
                setattr(module, name, ReleasedLinear(child.in_features, child.out_features, 64, dtype))
            else:
                replace(child)

    replace(model)
    model.config.use_cache = False
    if checkpointing:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    return model


def check_kernel():
    """The Triton kernel gives what the torch operations give."""
    layer = ReleasedLinear(4096, 64 * 5, 64, torch.bfloat16)
    scales = torch.rand(layer.codes.numel() // 32, device="cuda")
    assert torch.equal(layer.dequantize(layer.codes, scales, layer.table), nf4_by_torch(layer.codes, scales, layer.table))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", default="16x512,16x123")
    parser.add_argument("--dtype", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--layers", default="2,6")
    parser.add_argument("--no-checkpointing", action="store_true")
    args = parser.parse_args()
    few, more = map(int, args.layers.split(","))
    dtype = getattr(torch, args.dtype)
    device_line()
    check_kernel()
    before = gemm_tflops()
    measured = {}
    for layers in (few, more):
        model = build(layers, dtype, not args.no_checkpointing)
        for rows in args.rows.split(","):
            batch, length = map(int, rows.split("x"))
            measured[layers, rows] = train_steps(model, batch, length, autocast=False)
        del model
    for rows in args.rows.split(","):
        a, b = measured[few, rows], measured[more, rows]
        if a is None or b is None:
            report(peer="released layer, re-implemented", rows=rows, out_of_memory=True)
            continue
        layer = (b["ms"] - a["ms"]) / (more - few)
        ms = b["ms"] + layer * (LLAMA_7B["num_hidden_layers"] - more)
        batch, length = map(int, rows.split("x"))
        report(peer="released layer, re-implemented", rows=rows, dtype=args.dtype, checkpointing=not args.no_checkpointing,
               nf4="triton" if triton else "torch", ms_few=a["ms"], ms_more=b["ms"], ms_per_layer=layer,
               ms_32_layers_extrapolated=ms, tokens_per_s_extrapolated=batch * length / ms * 1e3, loss=b["loss"],
               grad_norm=b["grad_norm"])
    report(peer="released layer, re-implemented", gemm_tflops_before=before, gemm_tflops_after=gemm_tflops())


if __name__ == "__main__":
    main()
