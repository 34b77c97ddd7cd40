#include "src/train/memory_plan.h"

#include <algorithm>
#include <set>

#include "src/core/interrupt.h"
#include "src/io/load_model.h"

namespace irq {

Batch hollow_batch(const StepShape& s) {
  Batch b;
  const auto rows = static_cast<size_t>(s.rows), labels = static_cast<size_t>(s.labels);
  b.tokens.assign(rows, 0), b.label_rows.assign(labels, 0);
  b.seqs.assign(static_cast<size_t>(s.sequences), SeqRange{});
  b.real_rows = b.tokens_read = s.rows, b.real_labels = s.labels, b.examples = s.sequences;
  return b;
}

namespace {

using Choice = std::pair<Recompute, Residency>;
// What may be chosen, the fastest first. Of a step of a 7B on one H100: norms 1.3 % at 8,192 rows, unpacking weights 4 % there and 12 % at 2,048,
// blocks in all layers 38 % on top.
std::vector<Choice> choices(const ModelPlan& model, PlanFreedom freedom) {
  constexpr Residency kCached = Residency::cached, kPacked = Residency::packed;
  const bool any_residency = freedom.residency && model.quantized;
  std::vector<Choice> all;
  for (const Choice& c :
       {Choice{Recompute::none, kCached}, Choice{Recompute::norms, kCached}, Choice{Recompute::none, kPacked},
        Choice{Recompute::norms, kPacked}, Choice{Recompute::gate_up, kCached}, Choice{Recompute::gate_up, kPacked},
        Choice{Recompute::block, kCached}, Choice{Recompute::block, kPacked}}) {
    if (!freedom.recompute && c.first != model.recompute) continue;
    if (!any_residency && c.second != model.residency) continue;
    const bool dear = c.first >= Recompute::gate_up && c.second == kCached;  // packed weights are the smaller loss
    if (!(dear && any_residency && freedom.recompute)) all.push_back(c);
  }
  return all;
}

// What a plan adds to a step's time, as a share of it, measured for a 7B on one H100 (choices, above): for plans that compute at most
// norms again.
double added_time(const ModelPlan& m, const std::vector<StepShape>& train) {
  int64_t rows = 1;
  for (const StepShape& s : train) rows = std::max(rows, s.rows);
  const double unpacking = 250.0 / static_cast<double>(rows), norms = m.recompute == Recompute::norms ? 0.013 : 0;
  return norms + unpacking * m.packed_share();
}

}  // namespace

std::string memory_text(int64_t bytes) {
  const double b = static_cast<double>(bytes);
  return bytes >= 1 << 30
             ? strf("%.2f GiB", b / (1 << 30))
             : strf(bytes >= 1 << 20 ? "%.1f MiB" : "%.1f KiB", bytes >= 1 << 20 ? b / (1 << 20) : b / 1024);
}

StepShape shape_of(const Batch& b) {
  return {b.rows(), static_cast<int64_t>(b.label_rows.size()), static_cast<int64_t>(b.seqs.size())};
}

MemoryPlan plan_memory(Device device, Precision precision, const ModelPlan& model, const std::vector<StepShape>& train,
                       const std::vector<StepShape>& evaluate) {
  MemoryPlan plan{model, 0, 0, {}};
  for (const auto* shapes : {&train, &evaluate})
    for (const StepShape& s : *shapes) plan.max_labels = std::max(plan.max_labels, s.labels);
  CheckedBackend dry(device, precision);
  Arena arena = Arena::planning(device);
  Trainer trainer(dry, arena, model, plan.max_labels);
  stage_largest_matrix(arena, model);
  // Shapes that another one covers cannot set the peak.
  const auto largest = [](const std::vector<StepShape>& shapes) {
    std::set<StepShape> keep;
    for (const StepShape& s : shapes) {
      const auto covers = [&](const StepShape& o) {
        return o != s && o.rows >= s.rows && o.labels >= s.labels && o.sequences >= s.sequences;
      };
      if (std::none_of(shapes.begin(), shapes.end(), covers)) keep.insert(s);
    }
    return keep;
  };
  for (const StepShape& s : largest(train)) {
    throw_if_interrupted();
    trainer.step({hollow_batch(s)}, 1, {});
  }
  for (const StepShape& s : largest(evaluate)) {
    throw_if_interrupted();
    trainer.evaluate(hollow_batch(s));
  }
  plan.peak_bytes = arena.peak();
  plan.ledger = arena.ledger();
  return plan;
}

std::string weights_text(const ModelPlan& m) {
  if (!m.quantized) return "plain weights";
  if (m.residency == Residency::cached) return "cached weights";
  return m.cached_layers == 0 ? "packed weights"
                              : strf("weights cached in %ld of %ld layers", m.cached_layers, m.config.layers);
}

std::string recompute_text(const ModelPlan& m) {
  const char* level = name_of(m.recompute);
  if (m.recompute == Recompute::none || m.recompute_layers == m.config.layers) return level;
  return strf("%s in %ld of %ld layers", level, m.recompute_layers, m.config.layers);
}

MemoryPlan choose_plan(Device device, Precision precision, ModelPlan model, const std::vector<StepShape>& train,
                       const std::vector<StepShape>& evaluate, int64_t budget_bytes, PlanFreedom freedom) {
  const int64_t layers = model.config.layers;
  const auto plan_with = [&](Residency residency, Recompute level, int64_t recomputed, int64_t cached = 0) {
    model.residency = residency, model.recompute = level, model.recompute_layers = recomputed;
    model.cached_layers = cached;
    return plan_memory(device, precision, model, train, evaluate);
  };
  // The largest (or smallest) count of layers for which plan(count) fits, between one that does and one that does not.
  const auto bisect = [&](int64_t fits, int64_t fails, MemoryPlan& best, auto plan) {
    while (std::abs(fits - fails) > 1) {
      const int64_t middle = (fails + fits) / 2;
      const MemoryPlan p = plan(middle);
      if (p.peak_bytes <= budget_bytes) fits = middle, best = p;
      else fails = middle;
    }
  };
  // Weights packed in as few layers as will do, then the level's price paid by as few.
  const auto unpack_some = [&](MemoryPlan& best, Recompute level) {
    const auto packed = [&](int64_t paying, int64_t n) { return plan_with(Residency::packed, level, paying, n); };
    const int64_t paying = best.model.recompute_layers;
    bisect(0, layers, best, [&](int64_t n) { return packed(paying, n); });
    if (level == Recompute::none || !freedom.recompute) return;
    const int64_t cached = best.model.cached_layers;
    bisect(paying, 0, best, [&](int64_t n) { return packed(n, cached); });
  };
  MemoryPlan best;
  for (const auto& [level, residency] : choices(model, freedom)) {
    best = plan_with(residency, level, layers);
    if (best.peak_bytes > budget_bytes) continue;
    const bool any = freedom.residency && best.model.quantized && residency == Residency::packed;
    if (any && (level <= Recompute::norms || !freedom.recompute)) {
      unpack_some(best, level);
      if (level != Recompute::none || !freedom.recompute) return best;
      MemoryPlan other = plan_with(Residency::packed, Recompute::norms, layers);  // more layers' weights for it
      unpack_some(other, Recompute::norms);
      return added_time(other.model, train) < added_time(best.model, train) ? other : best;
    }
    if (level == Recompute::none || !freedom.recompute) return best;
    bisect(layers, 0, best, [&, l = level, r = residency](int64_t n) { return plan_with(r, l, n); });  // few must pay
    if (any) unpack_some(best, level);
    return best;
  }
  throw Error(strf("out of memory: the run needs at least %s, %s can be had", memory_text(best.peak_bytes).c_str(),
                   memory_text(budget_bytes).c_str()))
      .line("plan", "already with " + weights_text(best.model) + " and recompute " + name_of(best.model.recompute))
      .line("largest", best.ledger.empty() ? "" : best.ledger[0].first + ", " + memory_text(best.ledger[0].second));
}

std::string describe(const MemoryPlan& plan) {
  const ModelPlan& m = plan.model;
  std::string out = strf("memory plan: %s bytes (%s), %s, recompute %s\n", with_commas(plan.peak_bytes).c_str(),
                         memory_text(plan.peak_bytes).c_str(), weights_text(m).c_str(), recompute_text(m).c_str());
  for (const auto& [name, bytes] : plan.ledger) out += strf("  %-34s %18s\n", name.c_str(), with_commas(bytes).c_str());
  return out;
}

}  // namespace irq
