#include "bench/random_model.h"

#include <cmath>

#include "src/quant/quantize.h"

namespace irq {
namespace {

constexpr double kWeightDeviation = 0.02,
                 kMeanScale = 0.035;  // uniform codes of scale s have a deviation of about 0.56 s

void fill_packed(Backend& backend, const QuantizedMatrix& q, RandomData& random) {
  random.bytes(backend, q.codes);
  if (q.format.scale == ScaleKind::f32) {
    random.normals(backend, q.scales, kMeanScale, 0.1 * kMeanScale);
  } else {
    random.bytes(backend, q.scale_codes);
    random.normals(backend, q.scale_groups, 0.2 * kMeanScale, 0.02 * kMeanScale);
    random.normals(backend, q.scale_offset, kMeanScale, 0);
  }
  if (q.has_tau()) {
    random.bytes(backend, q.tau_codes);
    random.normals(backend, q.tau_groups, 0.05 * kMeanScale, 0.005 * kMeanScale);
  }
  backend.upload(q.map, dynamic_map().data());
}

void fill_part(Backend& backend, Arena& arena, const ModelPlan& plan, LinearGroup& g, const LinearPart& part,
               RandomData& random) {
  if (part.quantized) return fill_packed(backend, part.packed, random);
  const Tensor resident = g.resident.slice_rows(part.row, part.out).slice_cols(0, g.in);
  const Tensor map = arena.take("matrix being made", DType::F32, 1, 256);
  const Tensor memory = arena.take("matrix being made", DType::U8, 1, placed_bytes(part.out, g.in, plan.format));
  const QuantizedMatrix q = place_quantized(memory.data, part.out, g.in, plan.format, map, backend.device());
  fill_packed(backend, q, random);
  backend.nfk_dequant(resident, q);
  backend.synchronize();
  arena.give(memory);
  arena.give(map);
}

}  // namespace

void fill_model(Backend& backend, Arena& arena, Llama& model, RandomData& random) {
  IRQ_CHECK(!model.plan().full, "the bench model is quantized");
  random.normals(backend, model.embed().value, 0, kWeightDeviation);
  if (!model.config().tied) random.normals(backend, model.head().value, 0, kWeightDeviation);
  backend.fill(model.norm().value, 1);
  for (Layer& layer : model.layers()) {
    backend.fill(layer.attn_norm.value, 1);
    backend.fill(layer.ffn_norm.value, 1);
    for (LinearGroup* g : layer.groups()) {
      for (const LinearPart& part : g->parts) fill_part(backend, arena, model.plan(), *g, part, random);
      for (const AdapterPart& p : g->adapters) {
        random.normals(backend, p.a, 0, 1 / std::sqrt(3.0 * static_cast<double>(g->in)));  // as deviates init_adapters
        random.normals(backend, p.b, 0, 0.01);
        for (const Tensor& beta : {p.beta1, p.beta2})
          if (beta) backend.fill(beta, 0.01);
      }
    }
  }
  model.init_rope();
  model.refresh();
}

}  // namespace irq
