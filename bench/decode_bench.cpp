#include "bench/decode_bench.h"

#include <algorithm>
#include <chrono>
#include <cstdio>

#include "bench/op_bench.h"
#include "bench/random_model.h"
#include "kernels/device_memory.h"
#include "src/eval/decoder.h"
#include "src/io/load_model.h"

namespace irq {
namespace {

constexpr int kProfiledSteps = 3;

ModelPlan model_plan(const DecodeBenchOptions& o, int64_t positions) {
  ModelPlan m;
  m.config = o.config;
  m.quantized = true;
  m.format.bits = o.bits;
  m.lora = o.rank > 0;
  if (m.lora) m.lora_config.rank = o.rank;
  m.residency = o.residency == "cached" ? Residency::cached : Residency::packed;
  m.positions = positions;
  return m;
}

KvCache push_cache(Arena& arena, const ModelConfig& c, DType storage, int64_t capacity) {
  KvCache cache;
  cache.capacity = capacity;
  for (int64_t l = 0; l < c.layers; ++l) {
    cache.keys.push_back(arena.push("KV cache", storage, capacity, c.kv_width()));
    cache.values.push_back(arena.push("KV cache", storage, capacity, c.kv_width()));
  }
  return cache;
}

int64_t planned_bytes(const Backend& backend, const DecodeBenchOptions& o, const ModelPlan& plan) {
  CheckedBackend dry(backend.device(), backend.precision());
  Arena arena = Arena::planning(backend.device());
  Trainer trainer(dry, arena, plan, 0);
  const KvCache cache = push_cache(arena, o.config, backend.precision().storage, plan.positions * o.sequences);
  Decoder(dry, arena, trainer.model(), cache, o.sequences).enqueue();
  if (plan.residency == Residency::cached) stage_largest_matrix(arena, plan);  // fill_model makes one at a time
  return arena.peak();
}

// The next tokens are the likeliest ones, as in greedy generation.
std::vector<DecodeRow> next_rows(const DecodeBenchOptions& o, const std::vector<int32_t>& likeliest, int64_t position,
                                 int64_t capacity) {
  std::vector<DecodeRow> rows;
  for (int64_t i = 0; i < o.sequences; ++i) {
    const int32_t token = likeliest.empty() ? static_cast<int32_t>(1 + i) : likeliest[static_cast<size_t>(i)];
    if (token < 0) throw Error("the steps that were timed gave no numbers");
    rows.push_back({token, static_cast<int32_t>(position), static_cast<int32_t>(i * capacity)});
  }
  return rows;
}

struct Outcome {
  double seconds_per_step = 0;  // what a user waits: upload, step with the choice of the token, its download
  Timing graph, plain;          // the device's share, as a recording and op by op
  double copy = 0;
};

void print_profile(CheckedBackend& backend) {
  std::vector<OpTime> times = backend.profile();
  std::sort(times.begin(), times.end(), [](const OpTime& a, const OpTime& b) { return a.ms > b.ms; });
  std::printf("profile: ms per step of each op, each one waited for (launches and waits are in it)\n");
  for (const OpTime& t : times)
    std::printf("  %-22s %8.4g calls %10.3f ms %10.1f us each\n", t.op.c_str(),
                static_cast<double>(t.calls) / kProfiledSteps, t.ms / kProfiledSteps,
                1e3 * t.ms / static_cast<double>(t.calls));
}

void report(Backend& backend, const DecodeBenchOptions& o, const Outcome& r, int64_t planned, int64_t peak) {
  const double bytes = decode_bytes(o, backend.precision().storage), tokens = static_cast<double>(o.sequences);
  const double rate = tokens / r.seconds_per_step, graph = r.graph.median_ms / 1e3;
  if (o.csv) {
    std::printf(
        "model,bits,rank,residency,sequences,context,tokens_per_s,ms,graph_ms,plain_ms,bytes,copy_gbs,fraction_of_copy,"
        "planned_bytes,peak_bytes\n%s,%d,%ld,%s,%ld,%ld,%.1f,%.4f,%.4f,%.4f,%.6g,%.5g,%.4f,%ld,%ld\n",
        o.model.c_str(), o.bits, o.rank, o.residency.c_str(), o.sequences, o.context, rate, 1e3 * r.seconds_per_step,
        r.graph.median_ms, r.plain.median_ms, bytes, r.copy / 1e9, bytes / r.seconds_per_step / r.copy, planned, peak);
    return;
  }
  const auto row = [](const char* label, const std::string& text) {
    std::printf("  %-15s: %s\n", label, text.c_str());
  };
  std::printf("%s\n", describe(o.config).c_str());
  row("device", backend.describe());
  row("method", strf("NF%d with shifts, %s weights%s, %ld sequence%s from %ld keys on", o.bits, o.residency.c_str(),
                     o.rank > 0 ? strf(", adapter of rank %ld not merged", o.rank).c_str() : "", o.sequences,
                     o.sequences == 1 ? "" : "s", o.context));
  row("tokens/s",
      strf("%.1f: %.3f ms a step with upload, choice of the token and its download", rate, 1e3 * r.seconds_per_step));
  row("on the device", strf("%.3f ms as a recording (%.3f to %.3f), %.3f ms op by op", r.graph.median_ms,
                            r.graph.min_ms, r.graph.max_ms, r.plain.median_ms));
  row("bytes", strf("%s a step at the least", with_commas(std::llround(bytes)).c_str()));
  row("copy GB/s", strf("%.4g", r.copy / 1e9));
  row("of copy rate", strf("%.1f %% (the recording alone %.1f %%)", 100 * bytes / r.seconds_per_step / r.copy,
                           100 * bytes / graph / r.copy));
  row("memory", strf("%s bytes planned, %s used at the peak%s", with_commas(planned).c_str(), with_commas(peak).c_str(),
                     peak == planned ? " (equal)" : " (they differ)"));
  row("A100, predicted", strf("%.4g ms, %.1f tokens/s (from bytes alone)", 1e3 * bytes / kA100BytesPerSecond,
                              tokens * kA100BytesPerSecond / bytes));
}

}  // namespace

double decode_bytes(const DecodeBenchOptions& o, DType storage) {
  const ModelConfig& c = o.config;
  const double element = static_cast<double>(size_of(storage)), rows = static_cast<double>(o.sequences);
  const double weight = o.residency == "cached" ? element : o.bits / 8.0 + 2.0 / 64 + 8.0 / 64 / kScaleGroup;
  double bytes = static_cast<double>(linear_weights(c)) * weight + element * static_cast<double>(c.vocab * c.dim);
  for (const LinearShape& s : layer_linears(c))
    bytes += element * static_cast<double>(c.layers * o.rank * (s.in + s.out));
  const double keys = static_cast<double>(o.context) + o.steps / 2.0;
  return bytes + rows * element * 2 * keys * static_cast<double>(c.layers * c.kv_width());
}

void run_decode_bench(CheckedBackend& backend, const DecodeBenchOptions& o) {
  RandomData random(o.seed);
  Meter meter(backend, random, 20);
  const int64_t capacity = (o.context + o.steps + o.warmup + 64 + 63) / 64 * 64;
  const ModelPlan plan = model_plan(o, capacity);
  const int64_t planned = planned_bytes(backend, o, plan);
  DeviceMemory memory(backend);
  Arena arena(memory.take(planned), planned, backend.device());
  Trainer trainer(backend, arena, plan, 0);
  const KvCache cache = push_cache(arena, o.config, backend.precision().storage, capacity * o.sequences);
  for (const auto* side : {&cache.keys, &cache.values})
    for (const Tensor& t : *side) random.normals(backend, t, 0, 1);
  Decoder decoder(backend, arena, trainer.model(), cache, o.sequences);
  fill_model(backend, arena, trainer.model(), random);

  Outcome r;
  int64_t position = o.context;
  std::vector<int32_t> likeliest;
  const auto one = [&] { likeliest = decoder.choose(next_rows(o, likeliest, position++, capacity)); };
  for (int i = 0; i < o.warmup; ++i) one();
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < o.steps; ++i) one();
  r.seconds_per_step =
      std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count() / std::max(o.steps, 1);
  next_rows(o, likeliest, position, capacity);  // the last tokens are numbers too
  r.graph = meter.time([&] { decoder.repeat(); });
  r.plain = meter.time([&] { decoder.enqueue(); });
  r.copy = meter.copy_rate();
  report(backend, o, r, planned, arena.peak());
  if (!o.profile) return;
  backend.set_profile(true);
  for (int i = 0; i < kProfiledSteps; ++i) decoder.enqueue();
  backend.set_profile(false);
  print_profile(backend);
}

}  // namespace irq
