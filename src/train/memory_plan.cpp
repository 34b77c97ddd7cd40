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

const char* text(const ModelPlan& model, Residency r) {
  return !model.quantized ? "plain" : r == Residency::packed ? "packed" : "cached";
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

MemoryPlan choose_plan(Device device, Precision precision, ModelPlan model, const std::vector<StepShape>& train,
                       const std::vector<StepShape>& evaluate, int64_t budget_bytes, PlanFreedom freedom) {
  const auto plan_with = [&](Residency residency, Recompute level, int64_t layers) {
    model.residency = residency, model.recompute = level, model.recompute_layers = layers;
    return plan_memory(device, precision, model, train, evaluate);
  };
  const int64_t layers = model.config.layers;
  MemoryPlan best;
  for (const auto& [level, residency] : choices(model, freedom)) {
    best = plan_with(residency, level, layers);
    if (best.peak_bytes > budget_bytes) continue;
    if (level == Recompute::none || !freedom.recompute) return best;
    int64_t fails = 0, fits = layers;  // the fewest layers that must pay for this level
    while (fits - fails > 1) {
      const int64_t middle = (fails + fits) / 2;
      const MemoryPlan p = plan_with(residency, level, middle);
      if (p.peak_bytes <= budget_bytes) fits = middle, best = p;
      else fails = middle;
    }
    return best;
  }
  throw Error(strf("out of memory: the run needs at least %s, %s can be had", memory_text(best.peak_bytes).c_str(),
                   memory_text(budget_bytes).c_str()))
      .line("plan", std::string("already with ") + text(best.model, best.model.residency) + " weights and recompute " +
                        name_of(best.model.recompute))
      .line("largest", best.ledger.empty() ? "" : best.ledger[0].first + ", " + memory_text(best.ledger[0].second));
}

std::string describe(const MemoryPlan& plan) {
  const ModelPlan& m = plan.model;
  std::string levels = m.recompute_layers == m.config.layers || m.recompute == Recompute::none
                           ? name_of(m.recompute)
                           : strf("%s in %ld of %ld layers", name_of(m.recompute), m.recompute_layers, m.config.layers);
  std::string out = strf("memory plan: %s bytes (%s), %s weights, recompute %s\n", with_commas(plan.peak_bytes).c_str(),
                         memory_text(plan.peak_bytes).c_str(), text(m, m.residency), levels.c_str());
  for (const auto& [name, bytes] : plan.ledger) out += strf("  %-34s %18s\n", name.c_str(), with_commas(bytes).c_str());
  return out;
}

}  // namespace irq
