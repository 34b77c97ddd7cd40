#include "bench/step_bench.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <functional>

#include "bench/op_bench.h"
#include "bench/random_model.h"
#include "kernels/device_memory.h"
#include "src/model/flops.h"

namespace irq {
namespace {

constexpr double kOverfitRate = 1e-3;

constexpr int kProfiledSteps = 3;

// `sequences` examples of random tokens; a sequence of n processed tokens has n + 1 ids (the last is only predicted).
std::vector<Batch> random_window(const StepBenchOptions& o, Rng& rng, int64_t first_sample) {
  std::vector<Example> examples(static_cast<size_t>(o.sequences));
  for (size_t s = 0; s < examples.size(); ++s) {
    Example& e = examples[s];
    const size_t kind = o.templates.empty() ? 0 : s % o.templates.size();
    const int64_t fixed = o.templates.empty() ? 0 : o.templates[kind];
    for (int64_t i = 0; i <= o.length; ++i) {
      const auto drawn = static_cast<int64_t>(rng.below(static_cast<uint64_t>(o.config.vocab)));
      const int64_t written = (17 * i + 101 * static_cast<int64_t>(kind) + 1) % o.config.vocab;
      const int64_t own = static_cast<int64_t>(s) % o.config.vocab;  // so that nothing else is alike by chance
      e.ids.push_back(static_cast<int32_t>(i < fixed ? written : i == fixed ? own : drawn));
      // The labelled tokens are the last ones, as an answer follows its question.
      e.trainable.push_back(i >= fixed && static_cast<double>(i) > static_cast<double>(o.length) * (1 - o.labelled));
    }
  }
  const int64_t step = o.micro_batch > 0 ? o.micro_batch : o.sequences;
  std::vector<Batch> window;
  for (int64_t begin = 0; begin < o.sequences; begin += step) {
    std::vector<const Example*> chosen;
    std::vector<int32_t> numbers;
    for (int64_t i = begin; i < std::min(o.sequences, begin + step); ++i) {
      chosen.push_back(&examples[static_cast<size_t>(i)]);
      numbers.push_back(static_cast<int32_t>(first_sample + i));
    }
    window.push_back(pack(chosen, numbers, o.share_prefixes ? Prefixes::shared : Prefixes::own));
  }
  return window;
}

MemoryPlan plan_of(CheckedBackend& backend, const StepBenchOptions& o, const Meter& meter,
                   const std::vector<Batch>& window) {
  ModelPlan m;
  m.config = o.config;
  m.quantized = m.training = true;
  m.lora = o.rank > 0, m.first_norm = !m.lora;
  m.format.bits = o.bits;
  if (m.lora) m.lora_config.rank = o.rank;
  m.lora_config.dropout = o.dropout;
  m.lora_config.u1 = m.lora_config.u2 = o.iec;
  m.positions = o.length;
  PlanFreedom freedom{o.residency == "auto", o.recompute == "auto"};
  m.residency = o.residency == "packed" ? Residency::packed : Residency::cached;
  if (o.recompute != "auto") m.recompute = recompute_named(o.recompute);
  m.recompute_layers = o.config.layers;
  std::vector<StepShape> shapes;
  for (const Batch& b : window) shapes.push_back(shape_of(b));
  const int64_t free = backend.free_bytes();
  const int64_t ceiling_gemm = 3 * meter.gemm_size() * meter.gemm_size() * size_of(backend.precision().storage);
  const int64_t spare = (backend.device() == Device::CUDA ? int64_t{256} << 20 : free / 10) + ceiling_gemm;
  const int64_t budget = o.memory_limit > 0 ? std::min(o.memory_limit, free - spare) : free - spare;
  return choose_plan(backend.device(), backend.precision(), m, shapes, {}, budget, freedom);
}

// What a row moves between the products, and what dequantizing packed weights adds to each pass over them.
double predicted_a100_seconds(const StepBenchOptions& o, const MemoryPlan& plan, double flops, double rows) {
  const ModelConfig& c = o.config;
  const double elements = static_cast<double>(41 * c.dim + 13 * c.ffn);  // forward 13 C + 4 F, backward 28 C + 9 F
  double bytes = rows * 2 * elements * static_cast<double>(c.layers);
  const double passes =
      o.micro_batch > 0 ? std::ceil(static_cast<double>(o.sequences) / static_cast<double>(o.micro_batch)) : 1;
  bytes +=
      plan.model.packed_share() * 2 * passes * static_cast<double>(linear_weights(c)) * (2 + o.bits / 8.0 + 2.0 / 64);
  return flops / kA100FlopsPerSecond + bytes / kA100BytesPerSecond;
}

void print_profile(CheckedBackend& backend, int steps) {
  std::vector<OpTime> times = backend.profile();
  std::sort(times.begin(), times.end(), [](const OpTime& a, const OpTime& b) { return a.ms > b.ms; });
  double total = 0;
  for (const OpTime& t : times) total += t.ms;
  std::printf(
      "profile: ms per step of each op, each one waited for (launches and waits are in it: the sum is more than a "
      "step)\n");
  std::printf("  %-22s %10s %10s %8s %10s\n", "op", "calls", "ms", "share", "us each");
  for (const OpTime& t : times)
    std::printf("  %-22s %10.4g %10.3f %6.1f %% %10.1f\n", t.op.c_str(), static_cast<double>(t.calls) / steps,
                t.ms / steps, 100 * t.ms / total, 1e3 * t.ms / static_cast<double>(t.calls));
  std::printf("  %-22s %10s %10.3f\n", "all", "", total / steps);
}

struct Outcome {
  Timing step;
  double gemm_before = 0, gemm_after = 0;
  StepResult first, last;
  double flops = 0, rows = 0;  // of the last step: rows that were computed
  MemoryPlan plan;
  int64_t peak = 0;
};

std::string residency_text(const ModelPlan& m) {
  if (m.residency == Residency::cached) return "cached";
  return m.cached_layers == 0 ? "packed" : strf("%ld/%ld cached", m.cached_layers, m.config.layers);
}

void report(Backend& backend, const StepBenchOptions& o, const Outcome& r) {
  const MemoryPlan& plan = r.plan;
  const int64_t peak = r.peak;
  const double tokens = static_cast<double>(r.last.tokens), seconds = r.step.median_ms / 1e3;
  const double rate = r.flops / seconds, gemm = (r.gemm_before + r.gemm_after) / 2;
  const double a100 = predicted_a100_seconds(o, plan, r.flops, r.rows);
  if (o.csv) {
    std::printf(
        "model,rows,micro_batch,bits,rank,dropout,iec,residency,recompute,ms,min_ms,max_ms,tokens_per_s,tflops,"
        "gemm_before,gemm_after,fraction_of_gemm,planned_bytes,peak_bytes,loss,grad_norm,a100_predicted_ms,computed_"
        "rows\n");
    std::printf(
        "%s,%ldx%ld,%ld,%d,%ld,%g,%d,%s,%s,%.3f,%.3f,%.3f,%.1f,%.5f,%.5f,%.5f,%.4f,%ld,%ld,%.5f,%.5f,%.4g,%.0f\n",
        o.model.c_str(), o.sequences, o.length, o.micro_batch, o.bits, o.rank, o.dropout, o.iec,
        residency_text(plan.model).c_str(), recompute_text(plan.model).c_str(), r.step.median_ms, r.step.min_ms,
        r.step.max_ms, tokens / seconds, rate / 1e12, r.gemm_before / 1e12, r.gemm_after / 1e12, rate / gemm,
        plan.peak_bytes, peak, r.last.loss, r.last.grad_norm, 1e3 * a100, r.rows);
    return;
  }
  const auto row = [](const char* label, const std::string& text) {
    std::printf("  %-15s: %s\n", label, text.c_str());
  };
  std::printf("%s\n", describe(o.config).c_str());
  row("device", backend.describe());
  row("method", o.rank > 0 ? strf("NF%d with shifts, LoRA rank %ld%s on 7 linears, dropout %g, AdamW, clipping", o.bits,
                                  o.rank, o.iec ? " + IEC" : "", o.dropout)
                           : strf("NF%d with shifts, no adapters: forward and backward through the frozen linears; one "
                                  "norm's weight trains",
                                  o.bits));
  row("batch", strf("%ld x %ld = %ld tokens, %ld labelled, micro-batches of %ld", o.sequences, o.length, r.last.tokens,
                    r.last.labels, o.micro_batch > 0 ? o.micro_batch : o.sequences));
  if (r.rows < tokens) row("computed", strf("%.0f rows: what sequences begin alike with is computed once", r.rows));
  row("plan", weights_text(plan.model) + ", recompute " + recompute_text(plan.model));
  row("step",
      strf("%.2f ms, median of %d (%.2f to %.2f)", r.step.median_ms, r.step.repeats, r.step.min_ms, r.step.max_ms));
  row("tokens/s", with_commas(std::llround(tokens / seconds)));
  row("model TFLOP/s", strf("%.4g (%.4g GFLOP a row; recomputing not counted)", rate / 1e12, r.flops / r.rows / 1e9));
  row("GEMM TFLOP/s", strf("%.4g before, %.4g after the steps", r.gemm_before / 1e12, r.gemm_after / 1e12));
  row("of GEMM rate", strf("%.1f %%", 100 * rate / gemm));
  row("memory", strf("%s bytes planned, %s used at the peak%s", with_commas(plan.peak_bytes).c_str(),
                     with_commas(peak).c_str(), peak == plan.peak_bytes ? " (equal)" : " (they differ)"));
  row("loss", strf("%.4f at the first step, %.4f at the last", r.first.loss, r.last.loss));
  row("gradient norm", strf("%.4g at the first step, %.4g at the last", r.first.grad_norm, r.last.grad_norm));
  row("A100, predicted", strf("%.4g ms, %s tokens/s (from bytes and FLOPs, without recomputing)", 1e3 * a100,
                              with_commas(std::llround(tokens / a100)).c_str()));
}

// Calls profile(one), if given, where the model still stands; one() is a step.
Outcome measure(CheckedBackend& backend, const StepBenchOptions& o,
                const std::function<void(Trainer&, const std::function<double()>&)>& profile) {
  const auto start = std::chrono::steady_clock::now();
  RandomData random(o.seed);
  Meter meter(backend, random, 20);
  Rng rng(o.seed, 99);
  std::vector<Batch> window = random_window(o, rng, 0);
  const MemoryPlan plan = plan_of(backend, o, meter, window);
  DeviceMemory memory(backend);
  Arena arena(memory.take(plan.peak_bytes), plan.peak_bytes, backend.device());
  Trainer trainer(backend, arena, plan.model, plan.max_labels);
  fill_model(backend, arena, trainer.model(), random);
  std::fprintf(stderr, "random model ready after %.1f s\n",
               std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count());
  Outcome r;
  r.plan = plan;
  OptimizerConfig optimizer;
  optimizer.seed = o.seed;
  if (o.overfit) optimizer.lr = kOverfitRate;
  std::vector<double> ms;
  int64_t step = 0;
  trainer.use_graphs(o.graphs);
  const std::function<double()> one = [&] {
    if (!o.overfit) window = random_window(o, rng, step * o.sequences);
    ++step;
    const double elapsed = backend.time_ms([&] { r.last = trainer.step(window, step, optimizer); });
    if (step == 1) r.first = r.last;
    return elapsed;
  };
  meter.gemm_rate();  // its algorithms are timed here, not right before the steps: that would heat the GPU
  for (int i = 0; i < o.warmup; ++i) one();
  r.gemm_before = meter.gemm_rate();
  for (int i = 0; i < o.steps; ++i) ms.push_back(one());
  r.gemm_after = meter.gemm_rate();
  r.step = summarize(ms);
  r.flops = model_flops(o.config, o.rank, window);
  for (const Batch& b : window) r.rows += static_cast<double>(b.real_rows);
  r.peak = arena.peak();
  if (!std::isfinite(r.last.loss) || !(r.last.grad_norm > 0))
    throw Error("the steps that were timed did not train: the loss is not finite or the gradient is zero");
  if (o.overfit && r.last.loss >= r.first.loss) throw Error("the loss on one batch did not fall");
  if (profile) profile(trainer, one);
  return r;
}

std::string step_text(const Outcome& r) {
  return strf("%.2f ms (%.2f to %.2f; GEMM %.4g before, %.4g after)", r.step.median_ms, r.step.min_ms, r.step.max_ms,
              r.gemm_before / 1e12, r.gemm_after / 1e12);
}

}  // namespace

void run_step_bench(CheckedBackend& backend, const StepBenchOptions& o) {
  bool profiled = false;
  const auto profile = [&](Trainer& trainer, const std::function<double()>& one) {
    backend.set_profile(true);
    trainer.use_graphs(false);  // each op is waited for
    for (int i = 0; i < kProfiledSteps; ++i) one();
    backend.set_profile(false);
    profiled = true;
  };
  const Outcome r =
      measure(backend, o, o.profile ? profile : std::function<void(Trainer&, const std::function<double()>&)>{});
  report(backend, o, r);
  if (profiled) print_profile(backend, kProfiledSteps);
}

void run_lora_ratio(CheckedBackend& backend, const StepBenchOptions& o) {
  StepBenchOptions bare = o;
  bare.rank = 0, bare.dropout = 0;
  const Outcome first = measure(backend, bare, {}), adapted = measure(backend, o, {}),
                last = measure(backend, bare, {});
  const double frozen = (first.step.median_ms + last.step.median_ms) / 2;
  if (o.csv) {
    std::printf("model,rows,bits,rank,dropout,iec,residency,frozen_ms,frozen_again_ms,adapted_ms,ratio\n");
    std::printf("%s,%ldx%ld,%d,%ld,%g,%d,%s,%.3f,%.3f,%.3f,%.4f\n", o.model.c_str(), o.sequences, o.length, o.bits,
                o.rank, o.dropout, o.iec, residency_text(adapted.plan.model).c_str(), first.step.median_ms,
                last.step.median_ms, adapted.step.median_ms, adapted.step.median_ms / frozen);
    return;
  }
  std::printf("%s\n  device  : %s\n", describe(o.config).c_str(), backend.describe().c_str());
  std::printf("  batch   : %ld x %ld tokens, NF%d with shifts, %s, recompute %s\n", o.sequences, o.length, o.bits,
              weights_text(adapted.plan.model).c_str(), recompute_text(adapted.plan.model).c_str());
  if (adapted.rows < static_cast<double>(adapted.last.tokens))
    std::printf("  computed: %.0f rows: what sequences begin alike with is computed once\n", adapted.rows);
  std::printf("  frozen  : %s\n", step_text(first).c_str());
  std::printf("  adapted : %s, LoRA rank %ld%s, dropout %g\n", step_text(adapted).c_str(), o.rank,
              o.iec ? " + IEC" : "", o.dropout);
  std::printf("  frozen  : %s\n", step_text(last).c_str());
  std::printf("  ratio   : %.3f (a step with adapters over the mean of the two without)\n",
              adapted.step.median_ms / frozen);
  const auto a100 = [&](const StepBenchOptions& s, const Outcome& r) {
    return 1e3 * predicted_a100_seconds(s, r.plan, r.flops, r.rows);
  };
  std::printf("  A100    : %.4g ms predicted with adapters, %.4g without (from bytes and FLOPs)\n", a100(o, adapted),
              a100(bare, first));
}

}  // namespace irq
