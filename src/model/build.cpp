// What memory a model takes and what lies in it; initial values; refresh after an optimizer step.
#include <cmath>

#include "src/model/llama.h"
#include "src/quant/quantize.h"

namespace irq {
namespace {

// Groups in the order of layer_linears(): indices of their parts.
struct GroupShape {
  const char* name;
  int first, count;
};
constexpr GroupShape kGroups[4] = {{"qkv", 0, 3}, {"o", 3, 1}, {"gate_up", 4, 2}, {"down", 6, 1}};

QuantizedMatrix packed_matrix(Arena& arena, const ModelPlan& plan, int64_t rows, int64_t cols, const Tensor& map) {
  QuantizedMatrix q;
  q.rows = rows, q.cols = cols, q.format = plan.format;
  for (const MatrixPart& p : matrix_parts(q)) {
    if (plan.scales && p.tensor == &q.scales) continue;  // a parameter
    const bool shift = p.tensor == &q.tau_codes || p.tensor == &q.tau_groups || p.tensor == &q.zeros;
    const char* label = p.tensor == &q.codes ? "packed codes"
                        : !shift             ? "block scales"
                        : q.has_tau()        ? "block shifts (tau)"
                                             : "zero points";
    *p.tensor = arena.push(label, p.dtype, 1, p.count);
  }
  q.map = map;
  return q;
}

}  // namespace

Llama::Llama(Backend& backend, Arena& arena, const ModelPlan& plan)
    : backend_(backend), arena_(arena), plan_(plan), weights_(std::make_unique<DeviceWeights>(backend, arena)) {
  const ModelConfig& c = config();
  const DType storage = backend.precision().storage, master = backend.precision().master;
  IRQ_CHECK(!(plan.full && (plan.quantized || plan.lora)), "full training has no frozen part");
  IRQ_CHECK(!(plan.first_norm && (plan.full || plan.lora)), "only without adapters");
  IRQ_CHECK(!(plan.full && plan.pad_row), "full training has no [PAD] row");
  IRQ_CHECK(!plan.scales || (plan.quantized && plan.format.kind == QuantKind::integer && !plan.lora),
            "scales train on an integer base, without adapters");
  embed_ = trained_or_stored("embed", "embedding and head", c.tied ? head_rows() : c.vocab, c.dim, storage);
  layers_.resize(static_cast<size_t>(c.layers));
  const auto shapes = layer_linears(c);
  const Tensor map = plan.quantized ? arena.push("dynamic map", DType::F32, 1, 256) : Tensor{};
  for (size_t l = 0; l < layers_.size(); ++l) {
    Layer& layer = layers_[l];
    const std::string prefix = strf("layers.%zu.", l);
    layer.recompute = static_cast<int64_t>(l) < plan.recompute_layers ? plan.recompute : lighter(plan.recompute);
    layer.attn_norm = trained_or_stored(prefix + "attn_norm", "norms", 1, c.dim, master, plan.first_norm && l == 0);
    layer.ffn_norm = trained_or_stored(prefix + "ffn_norm", "norms", 1, c.dim, master);
    const auto groups = layer.groups();
    for (size_t k = 0; k < 4; ++k) {
      LinearGroup& g = *groups[k];
      g.name = kGroups[k].name;
      g.layer = static_cast<int>(l);
      for (int i = 0; i < kGroups[k].count; ++i) {
        const LinearShape& s = shapes[static_cast<size_t>(kGroups[k].first + i)];
        LinearPart part{s.name, g.out, s.out, false, {}};
        if (plan.packs(static_cast<int64_t>(l)) || plan.scales) {
          part.quantized = true;
          part.packed = packed_matrix(arena, plan, s.out, s.in, map);
        }
        if (plan.scales)
          part.param_scales = params_.add(prefix + s.name + ".scales", s.out, part.packed.groups_per_row());
        g.parts.push_back(part);
        g.in = s.in;
        g.out += s.out;
      }
      build_group(g, kGroups[k].first);
    }
  }
  norm_ = trained_or_stored("norm", "norms", 1, c.dim, master);
  head_ = c.tied ? embed_ : trained_or_stored("head", "embedding and head", head_rows(), c.dim, storage);
  cos_ = arena.push("rope tables", master, plan.positions, c.head_dim / 2);
  sin_ = arena.push("rope tables", master, plan.positions, c.head_dim / 2);
  if (params_.size() > 0) params_.allocate(backend, arena, plan.training);
  bind_params();
  if (plan.lora) build_iec_table();
}

int64_t Llama::head_rows() const {
  constexpr int64_t kRows = 64;  // what matrix products like
  return plan_.pad_row ? (config().vocab + 1 + kRows - 1) / kRows * kRows : config().vocab;
}

// A trained weight is a parameter (bound when the store has memory); a frozen one is plain memory.
Weight Llama::trained_or_stored(const std::string& name, const char* label, int64_t rows, int64_t cols, DType type,
                                bool trained) {
  Weight w;
  trained = trained || plan_.full;
  if (trained) w.param = params_.add(name, rows, cols);
  const bool alias = trained && type == backend_.precision().master;
  if (!alias) w.value = arena_.push(label, type, rows, cols);
  return w;
}

void Llama::build_group(LinearGroup& g, int first_linear) {
  const DType storage = backend_.precision().storage;
  if (plan_.full) {
    g.param_weight = params_.add(strf("layers.%d.%s", g.layer, g.name), g.out, g.in);
    if (storage != backend_.precision().master)
      g.resident = arena_.push("trained weights (storage)", storage, g.out, g.in);
    return;
  }
  if (plan_.lora) {
    const LoraConfig& lora = plan_.lora_config;
    g.scale = lora.scale(), g.dropout = lora.dropout, g.tile = lora.tile;
    g.pool = group_pool_of(lora.pool, g.in), g.aligned = lora.pool.aligned;
    for (size_t i = 0; i < g.parts.size(); ++i) {
      const int linear = first_linear + static_cast<int>(i);
      if (!(lora.targets >> linear & 1u)) continue;
      AdapterPart p;
      p.id = g.layer * 7 + linear;
      p.row = g.parts[i].row, p.out = g.parts[i].out;
      p.column = g.rank, p.rank = lora.rank;
      g.rank += lora.rank;
      g.adapters.push_back(p);
    }
    const auto name = [&](const AdapterPart& p, const char* what) {
      return strf("layers.%d.%s.%s", g.layer, g.parts[static_cast<size_t>(p.id % 7 - first_linear)].name, what);
    };
    for (AdapterPart& p : g.adapters)
      p.param_a = params_.add(name(p, "A"), p.rank, g.grouped() ? g.pool.groups() : g.in);
    for (AdapterPart& p : g.adapters) p.param_b = params_.add(name(p, "B"), p.out, p.rank);
    for (AdapterPart& p : g.adapters) {
      if (lora.u1) p.param_beta1 = params_.add(name(p, "beta1"), 1, 1);
      if (lora.u2) p.param_beta2 = params_.add(name(p, "beta2"), 1, 1);
    }
  }
  if (!plan_.packs(g.layer)) g.resident = arena_.push("resident weights", storage, g.out + g.rank, g.in + g.rank);
  if (g.rank > 0) place_folded(g);
}

// Folded adapters live in the resident ext matrix itself; a packed group keeps them apart, to be copied in at each use.
void Llama::place_folded(LinearGroup& g) {
  const DType storage = backend_.precision().storage;
  const Tensor b_columns = g.resident ? g.resident.slice_rows(0, g.out).slice_cols(g.in, g.rank) : Tensor{};
  if (g.resident) backend_.fill(b_columns, 0);  // sB' is block-diagonal: what no adapter writes stays zero
  g.a_folded = g.resident ? g.resident.slice_rows(g.out, g.rank).slice_cols(0, g.in)
                          : arena_.push("folded adapters", storage, g.rank, g.in);
  if (g.dropout > 0) {
    const int64_t width = g.grouped() ? g.pool.groups() : g.in;
    g.a_plain = arena_.push("adapters (storage)", storage, g.rank, width);
    backend_.fill(g.a_folded, 0);  // adapters without beta1 have nothing to fold there
  }
  for (AdapterPart& p : g.adapters)
    p.b_folded = g.resident ? b_columns.slice_rows(p.row, p.out).slice_cols(p.column, p.rank)
                            : arena_.push("folded adapters", storage, p.out, p.rank);
}

void Llama::bind_params() {
  const auto bind = [&](Weight& w) {
    if (w.param >= 0 && !w.value) w.value = params_.value(w.param);
  };
  bind(embed_), bind(norm_), bind(head_);
  for (Layer& layer : layers_) {
    bind(layer.attn_norm), bind(layer.ffn_norm);
    for (LinearGroup* g : layer.groups()) {
      if (g->param_weight >= 0 && !g->resident) g->resident = params_.value(g->param_weight);
      for (LinearPart& part : g->parts)
        if (part.param_scales >= 0) part.packed.scales = params_.value(part.param_scales).flat();
      for (AdapterPart& p : g->adapters) {
        p.a = params_.value(p.param_a), p.b = params_.value(p.param_b);
        if (p.param_beta1 >= 0) p.beta1 = params_.value(p.param_beta1);
        if (p.param_beta2 >= 0) p.beta2 = params_.value(p.param_beta2);
      }
    }
  }
}

void Llama::build_iec_table() {
  IecTableBuilder table(backend_.precision().storage, backend_.precision().master);
  for (Layer& layer : layers_)
    for (const LinearGroup* g : layer.groups()) add_adapters(table, params_, *g);
  const Tensor memory = arena_.push("table of adapters", DType::U8, 1, table.bytes());
  backend_.upload(memory, table.data());  // a dry backend uploads nothing
  iec_ = table.in(memory);
}

void Llama::refresh() {
  const auto round = [&](const Weight& w) {
    if (w.param < 0) return;
    const Tensor master = params_.value(w.param);
    if (master.data != w.value.data) backend_.copy(w.value, master);
  };
  round(embed_), round(norm_);
  if (!config().tied) round(head_);
  for (Layer& layer : layers_) {
    round(layer.attn_norm), round(layer.ffn_norm);
    for (LinearGroup* g : layer.groups()) {
      if (g->param_weight >= 0) round({g->resident, g->param_weight});
      for (const LinearPart& part : g->parts)
        if (g->resident && part.param_scales >= 0)
          dequantize(backend_, g->resident.slice_rows(part.row, part.out), part.packed);
    }
  }
  fold_adapters(backend_, iec_);
}

void Llama::finish_gradients() {
  for (Layer& layer : layers_)
    for (LinearGroup* g : layer.groups()) claim_betas(params_, *g);
  params_.zero_untouched(backend_);
  finish_betas(backend_, iec_);
}

}  // namespace irq
