#!/usr/bin/env python3
"""QLoRA of a LLaMA-7B (NF4, double quantization, LoRA rank 64 on all seven linears) the way a user would run it instead:
    qlora.py bnb          transformers + peft + bitsandbytes
    qlora.py liger        the same with liger-kernel
    qlora.py unsloth TOKENIZER.model      Unsloth (writes a random 13 GB model to --folder first)
Random weights: throughput does not depend on them. One JSON line per setting on stdout.
    --rows 16x512,16x123      batch x length     --checkpointing      --dropout 0.1     --decode"""
import argparse
import json
import os
import shutil
import sys

from common import LINEARS, LLAMA_7B, device_line, gemm_tflops, report, train_steps


def bitsandbytes_model(liger):
    import bitsandbytes as bnb
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    if liger:
        from liger_kernel.transformers import apply_liger_kernel_to_llama
        apply_liger_kernel_to_llama()
    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        model = LlamaForCausalLM(LlamaConfig(**LLAMA_7B, attn_implementation="sdpa"))
    torch.set_default_dtype(torch.float32)

    def quantize(module):
        for name, child in list(module.named_children()):
            if not isinstance(child, torch.nn.Linear) or name == "lm_head":
                quantize(child)
                continue
            packed = bnb.nn.Linear4bit(child.in_features, child.out_features, bias=False, quant_type="nf4",
                                       compute_dtype=torch.bfloat16, compress_statistics=True, device="meta")
            packed.weight = bnb.nn.Params4bit(child.weight.data.cpu(), requires_grad=False, quant_type="nf4",
                                              compress_statistics=True).cuda()
            setattr(module, name, packed)

    quantize(model)
    for p in model.parameters():
        p.requires_grad_(False)
    torch.cuda.empty_cache()
    return model


def with_adapters(model, dropout):
    import torch
    from peft import LoraConfig, get_peft_model

    model = get_peft_model(model, LoraConfig(r=64, lora_alpha=16, lora_dropout=dropout, target_modules=LINEARS))
    for p in model.parameters():
        if p.requires_grad:
            p.data = p.data.to(torch.bfloat16)
    return model


def set_checkpointing(model, on):
    if on:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        model.enable_input_require_grads()
    else:
        model.gradient_checkpointing_disable()
    model.config.use_cache = False


def unsloth_model(folder, tokenizer, dropout):
    os.environ.update(HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", UNSLOTH_DISABLE_STATISTICS="1")
    if not os.path.exists(folder + "/config.json"):  # in a process of its own: Unsloth must be imported before transformers
        child = os.fork()
        if child == 0:
            write_random_model(folder, tokenizer)
            os._exit(0)
        if os.waitpid(child, 0)[1] != 0:
            sys.exit("the random model could not be written")
    from unsloth import FastLanguageModel
    import torch

    model, _ = FastLanguageModel.from_pretrained(folder, max_seq_length=2048, dtype=torch.bfloat16, load_in_4bit=True,
                                                 local_files_only=True)
    return FastLanguageModel.get_peft_model(model, r=64, lora_alpha=16, lora_dropout=dropout, bias="none",
                                            use_gradient_checkpointing=False, target_modules=LINEARS)


def write_random_model(folder, tokenizer):
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.set_default_dtype(torch.bfloat16)
    with torch.device("cuda"):
        LlamaForCausalLM(LlamaConfig(**LLAMA_7B)).save_pretrained(folder)
    shutil.copy(tokenizer, folder + "/tokenizer.model")
    with open(folder + "/tokenizer_config.json", "w") as f:
        json.dump({"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>",
                   "pad_token": "<unk>"}, f)


def decode(model, peer):
    import time
    import torch

    model.eval()
    model.config.use_cache = True
    ids = torch.randint(3, 32000, (1, 128), device="cuda")
    with torch.no_grad():
        for tokens in (8, 64):
            torch.cuda.synchronize()
            began = time.time()
            model.generate(input_ids=ids, max_new_tokens=tokens, min_new_tokens=tokens, do_sample=False, pad_token_id=0)
            torch.cuda.synchronize()
            seconds = time.time() - began
    report(peer=peer, what="decode, batch 1", tokens_per_s=64 / seconds)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=["bnb", "liger", "unsloth"])
    parser.add_argument("tokenizer", nargs="?")
    parser.add_argument("--rows", default="16x512,16x123")
    parser.add_argument("--dropout", type=float, default=0.0)
    parser.add_argument("--checkpointing", action="store_true")
    parser.add_argument("--decode", action="store_true")
    parser.add_argument("--folder", default="/tmp/irq-peer-7b")
    args = parser.parse_args()
    if args.peer == "unsloth":
        if not args.tokenizer:
            parser.error("unsloth needs a tokenizer.model")
        model = unsloth_model(args.folder, args.tokenizer, args.dropout)
    else:
        model = with_adapters(bitsandbytes_model(args.peer == "liger"), args.dropout)
        set_checkpointing(model, args.checkpointing)
    device_line()
    before = gemm_tflops()
    for rows in args.rows.split(","):
        batch, length = map(int, rows.split("x"))
        result = train_steps(model, batch, length) or {"out_of_memory": True}
        report(peer=args.peer, rows=rows, dropout=args.dropout, checkpointing=args.checkpointing, **result)
    if args.decode:
        decode(model, args.peer)
    report(peer=args.peer, gemm_tflops_before=before, gemm_tflops_after=gemm_tflops())


if __name__ == "__main__":
    main()
