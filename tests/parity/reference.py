"""The reference: transformers' LlamaForCausalLM as it is, its linears wrapped by LoRA with IEC in the dense form of the
paper (P and E as matrices, no folding), gradients by torch.autograd."""
import contextlib
import math

import numpy as np
import torch
import transformers
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

HF = {"wq": "self_attn.q_proj", "wk": "self_attn.k_proj", "wv": "self_attn.v_proj", "wo": "self_attn.o_proj",
      "w_gate": "mlp.gate_proj", "w_up": "mlp.up_proj", "w_down": "mlp.down_proj",
      "attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
GROUPS = {"qkv": ("wq", "wk", "wv"), "o": ("wo",), "gate_up": ("w_gate", "w_up"), "down": ("w_down",)}


class Wide(torch.overrides.TorchFunctionMode):
    """transformers' code asks for f32 by name in RMSNorm and softmax, whatever the model's type. Under this mode it gets
    f64 instead, so that the f64 run is one. The RoPE tables stay f32: there f32 is part of what the model is."""

    def __init__(self, model):
        super().__init__()
        self.on = True
        model.model.rotary_emb.register_forward_pre_hook(lambda *_: self.set(False))
        model.model.rotary_emb.register_forward_hook(lambda *_: self.set(True))

    def set(self, on):
        self.on = on

    def __torch_function__(self, func, types, args=(), kwargs=None):
        swap = lambda x: torch.float64 if self.on and x is torch.float32 else x
        return func(*map(swap, args), **{k: swap(v) for k, v in (kwargs or {}).items()})


def exact_rope(model, config):
    """RoPE tables with each step rounded once: frequencies to f32, angles to f32, then cos and sin in f64. transformers
    takes theta ** x in f32, whose last bit is torch's own affair (a third of the frequencies differ by one unit)."""
    d = config["head_dim"]
    frequencies = torch.tensor(config["rope_theta"] ** (-np.arange(0, d, 2) / d), dtype=torch.float32)
    stock = model.model.rotary_emb.inv_freq
    assert torch.all((frequencies - stock).abs() <= 1.2e-7 * stock), "more than the last bit differs"

    def forward(x, position_ids):
        angles = (position_ids[..., None].float() * frequencies).double()
        angles = torch.cat((angles, angles), dim=-1)
        return angles.cos(), angles.sin()

    model.model.rotary_emb.forward = forward


def pooling(rank, width, tile):
    """P (rank, width): slot j is the mean of one of g = gcd slices of the input; interleaved m1 m1 .. mg mg, or tiled."""
    g = math.gcd(rank, width)
    p = np.zeros((rank, width))
    for j in range(rank):
        s = j % g if tile else j // (rank // g)
        p[j, s * (width // g):(s + 1) * (width // g)] = g / width
    return p


def expansion(width, rank, tile):
    """E (width, rank): output j is the mean of one of g' slices of the rank vector."""
    return pooling(width, rank, tile)


class LoraIec(nn.Module):
    """y = x W^T + s v,  u = x A^T + beta1 x P^T,  v = u B^T + beta2 u E^T.  The adapter's masters may be wider than the
    arithmetic, as under autocast."""

    def __init__(self, base, a, b, beta1, beta2, scale, tile, dtype, master):
        super().__init__()
        (rank, width), out = a.shape, b.shape[0]
        self.base, self.scale, self.dtype = base, scale, dtype
        self.A, self.B, self.beta1, self.beta2 = (nn.Parameter(torch.tensor(np.asarray(x), dtype=master)) for x in (a, b, beta1, beta2))
        self.P = torch.tensor(pooling(rank, width, tile), dtype=dtype)
        self.E = torch.tensor(expansion(out, rank, tile), dtype=dtype)

    def forward(self, x):
        a, b, beta1, beta2 = (t.to(self.dtype) for t in (self.A, self.B, self.beta1, self.beta2))
        u = x @ a.T + beta1 * (x @ self.P.T)
        v = u @ b.T + beta2 * (u @ self.E.T)
        return self.base(x) + self.scale * v


def module_of(model, name):
    """The module that holds the engine's tensor `name`."""
    if name == "embed":
        return model.model.embed_tokens
    if name == "norm":
        return model.model.norm
    if name == "head":
        return model.lm_head
    _, layer, leaf = name.split(".")
    return model.model.layers[int(layer)].get_submodule(HF[leaf])


def build(config, weights, adapter, dtype):
    """dtype: of weights and arithmetic. Without an adapter every parameter trains."""
    theta = config["rope_theta"]
    newer = int(transformers.__version__.split(".")[0]) >= 5
    rope = {"rope_parameters": {"rope_type": "default", "rope_theta": theta}} if newer else {"rope_theta": theta}
    model = LlamaForCausalLM(LlamaConfig(
        vocab_size=config["vocab"], hidden_size=config["dim"], intermediate_size=config["ffn"],
        num_hidden_layers=config["layers"], num_attention_heads=config["heads"], num_key_value_heads=config["kv_heads"],
        head_dim=config["head_dim"], max_position_embeddings=config["max_seq"], rms_norm_eps=config["norm_eps"],
        tie_word_embeddings=config["tied"], attn_implementation="eager", use_cache=False, **rope))
    inv_freq = model.model.rotary_emb.inv_freq.clone()
    assert abs(float(inv_freq[1]) * theta ** (2 / config["head_dim"]) - 1) < 1e-6, "transformers took another rope_theta"
    model = model.to(dtype).eval()
    model.model.rotary_emb.inv_freq = inv_freq  # .to() would leave it in bf16, which no real use of the model does
    model.requires_grad_(adapter is None)
    with torch.no_grad():
        for name, w in weights.items():
            target = module_of(model, name).weight
            assert target.shape == w.shape, (name, target.shape, w.shape)
            target.copy_(torch.tensor(w).to(dtype))
    if adapter:
        master = torch.float32 if dtype == torch.bfloat16 else dtype
        for name in adapter["names"]:
            parts = [adapter["arrays"][f"{name}.{p}"] for p in ("A", "B", "beta1", "beta2")]
            scale = adapter["alpha"] / adapter["rank"]
            _, layer, leaf = name.split(".")
            block, attribute = HF[leaf].split(".")
            parent = model.model.layers[int(layer)].get_submodule(block)
            setattr(parent, attribute, LoraIec(getattr(parent, attribute), *parts, scale, adapter["tile"], dtype, master))
    return model


def run(config, weights, adapter, sequences, dtype, rope="stock"):
    """Each sequence alone, without padding. Returns logits of every position, the mean loss over all labels, gradients."""
    model = build(config, weights, adapter, dtype)
    if rope == "exact":
        exact_rope(model, config)
    labels = sum(int(np.sum(mask[1:])) for _, mask in sequences)
    logits, loss = [], 0
    widened = Wide(model) if dtype == torch.float64 else contextlib.nullcontext()
    for ids, mask in sequences:
        with widened:
            out = model(input_ids=torch.tensor(ids)[None]).logits[0]
        assert out.dtype == dtype
        logits.append(out.detach().double().numpy())
        wide = out.float() if dtype == torch.bfloat16 else out
        scored = torch.tensor(mask[1:], dtype=torch.bool)
        loss = loss + nn.functional.cross_entropy(wide[:-1][scored], torch.tensor(ids[1:])[scored], reduction="sum")
    loss = loss / labels
    loss.backward()

    grads = {}
    take = lambda p: p.grad.double().numpy()
    if adapter:
        for name in adapter["names"]:
            module = module_of(model, name)
            for part in ("A", "B", "beta1", "beta2"):
                grads[f"{name}.{part}"] = take(getattr(module, part))
        return np.concatenate(logits), loss.item(), grads
    for name in ["embed", "norm"] + ([] if config["tied"] else ["head"]):
        grads[name] = take(module_of(model, name).weight)
    for n in range(config["layers"]):
        for norm in ("attn_norm", "ffn_norm"):
            grads[f"layers.{n}.{norm}"] = take(module_of(model, f"layers.{n}.{norm}").weight)
        for group, leaves in GROUPS.items():
            grads[f"layers.{n}.{group}"] = np.concatenate([take(module_of(model, f"layers.{n}.{w}").weight) for w in leaves])
    return np.concatenate(logits), loss.item(), grads
