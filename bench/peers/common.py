"""What the peers' scripts share: the shape of LLaMA-7B, CUDA-event timing, the ceiling of this run, one JSON line per result."""
import json
import os
import statistics
import sys

import torch

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
LLAMA_7B = dict(hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32,
                vocab_size=32000, max_position_embeddings=2048)
LINEAR_WEIGHTS = 32 * (4 * 4096 * 4096 + 3 * 4096 * 11008)


def milliseconds(work, repeats=20, warm_up=3):
    """Median over `repeats` of the time between two CUDA events around one call."""
    for _ in range(warm_up):
        work()
    times = []
    for _ in range(repeats):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        work()
        end.record()
        end.synchronize()
        times.append(begin.elapsed_time(end))
    return statistics.median(times)


def graph_milliseconds(work, stream=None, repeats=20):
    """Median time on the device alone: `work` is recorded as a CUDA graph, and before each replay 256 MB are read, which empties
    the L2 cache and gives the host time to launch, as irq_bench does it. `stream`: where what a backward undoes was computed."""
    flush = torch.ones(1 << 26, device="cuda")
    stream = stream or torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            work()
        stream.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=stream):
            work()
        times = []
        for _ in range(repeats + 2):
            flush.sum()
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            graph.replay()
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end))
    return statistics.median(times[2:])


def gemm_tflops(size=8192):
    a = torch.randn(size, size, device="cuda", dtype=torch.bfloat16)
    b = torch.randn(size, size, device="cuda", dtype=torch.bfloat16)
    return 2 * size**3 / milliseconds(lambda: a @ b) / 1e9


def report(**result):
    print(json.dumps({k: round(v, 3) if isinstance(v, float) else v for k, v in result.items()}), flush=True)


def write_peers(path, results):
    """Adds results, each {op, shape, peer, us}, to a file that `irq_bench OP --peers FILE` reads. Older ones of the same op,
    shape and peer go; a file of another GPU is begun anew."""
    device = torch.cuda.get_device_name()
    kept = []
    if os.path.exists(path):
        with open(path) as f:
            old = json.load(f)
        new = {(r["op"], r["shape"], r["peer"]) for r in results}
        if old["device"] == device:
            kept = [r for r in old["results"] if (r["op"], r["shape"], r["peer"]) not in new]
    with open(path + ".tmp", "w") as f:
        json.dump({"device": device, "results": kept + results}, f, indent=1)
    os.replace(path + ".tmp", path)


def device_line():
    print(f"torch {torch.__version__}, {torch.cuda.get_device_name()}, CUDA {torch.version.cuda}", file=sys.stderr)


def train_steps(model, batch, length, steps=12, warm_up=4, autocast=True):
    """Whole optimizer steps on fresh random tokens: forward, backward, clip 0.3, AdamW. Returns what was measured, or None when
    it does not fit into memory. The gradient norm is returned because a step that does not train is fast."""
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    params = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(params, lr=2e-4, fused=True)
    model.train()
    times, norm = [], 0.0
    try:
        for _ in range(steps):
            ids = torch.randint(3, 32000, (batch, length), device="cuda")
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record()
            with torch.autocast("cuda", torch.bfloat16, enabled=autocast):
                loss = model(input_ids=ids, labels=ids).loss
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(params, 0.3)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            end.record()
            end.synchronize()
            times.append(begin.elapsed_time(end))
    except torch.OutOfMemoryError:
        return None
    finally:
        optimizer.zero_grad(set_to_none=True)
    ms = statistics.median(times[warm_up:])
    return dict(ms=ms, tokens_per_s=batch * length / ms * 1e3, peak_gib=torch.cuda.max_memory_allocated() / 2**30,
                loss=float(loss.detach()), grad_norm=float(norm))
