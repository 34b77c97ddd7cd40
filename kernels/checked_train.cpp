// CheckedBackend: the ops of the adapters, the loss, the optimizer and the quantizer.
#include "kernels/checked.h"
#include "kernels/icq_grid.h"

namespace irq {

#define CHECKS const OpChecks check(__func__, device_, precision_)
#define FORWARD(...) Scope::run(*this, __func__, [&](Backend& inner) { inner.__VA_ARGS__; })

// ---- LoRA under dropout -------------------------------------------------------------------------------------------
void OpChecks::masks(const MaskBits& m, int64_t rows, int64_t cols, int64_t ranks) const {
  IRQ_CHECK(m.count >= 1 && m.count <= AdapterMasks::kMax && ranks % m.count == 0,
            "%s: %d adapters of rank %ld together", op_, m.count, ranks);
  IRQ_CHECK(m.p >= 0 && m.p < 1, "%s: probability %g, expected [0, 1)", op_, m.p);
  shape("bits", m.bits, m.count * mask_blocks(cols), mask_bytes(rows), Type::u8);
  vector("positions", m.positions, rows, Type::i32);
}

void OpChecks::scalars(const char* arg, const AdapterScalars& values) const {
  for (const Tensor& t : values)
    if (t) vector(arg, t, 1, Type::master);
}

void CheckedBackend::dropout_masks(Tensor bits, int64_t h, AdapterMasks masks) {
  CHECKS;
  IRQ_CHECK(masks.count >= 1 && masks.count <= AdapterMasks::kMax && h >= 0, "dropout_masks: %d adapters, %ld features",
            masks.count, h);
  IRQ_CHECK(masks.p >= 0 && masks.p < 1, "dropout_masks: probability %g, expected [0, 1)", masks.p);
  const int64_t rows = masks.positions.cols;
  check.shape("bits", bits, masks.count * mask_blocks(h), mask_bytes(rows), Type::u8);
  check.vector("positions", masks.positions, rows, Type::i32);
  check.vector("samples", masks.samples, rows, Type::i32);
  check.params(masks.params);
  FORWARD(dropout_masks(bits, h, masks));
}

void CheckedBackend::lora_dropout_fwd(Tensor u, Tensor px, Tensor x, Tensor a, AdapterScalars beta1, MaskBits masks,
                                      bool tile) {
  CHECKS;
  check.any("x", x, Type::storage);
  check.shape("a", a, u.cols, x.cols, Type::storage);
  check.shape("u", u, x.rows, a.rows, Type::storage);
  check.masks(masks, x.rows, x.cols, u.cols);
  if (px) check.shape("px", px, x.rows, u.cols / masks.count, Type::storage);
  check.scalars("beta1", beta1);
  FORWARD(lora_dropout_fwd(u, px, x, a, beta1, masks, tile));
}

void CheckedBackend::lora_dropout_da(Tensor da, Tensor du, Tensor x, MaskBits masks, double beta) {
  CHECKS;
  check.any("x", x, Type::storage);
  check.shape("du", du, x.rows, da.rows, Type::storage);
  check.shape("da", da, du.cols, x.cols, Type::master);
  check.masks(masks, x.rows, x.cols, du.cols);
  FORWARD(lora_dropout_da(da, du, x, masks, beta));
}

void CheckedBackend::lora_dropout_dx(Tensor dx, Tensor du, Tensor a, MaskBits masks, double beta) {
  CHECKS;
  check.any("dx", dx, Type::storage);
  check.shape("du", du, dx.rows, a.rows, Type::storage);
  check.shape("a", a, du.cols, dx.cols, Type::storage);
  check.masks(masks, dx.rows, dx.cols, du.cols);
  FORWARD(lora_dropout_dx(dx, du, a, masks, beta));
}

void CheckedBackend::lora_dropout_dbeta1(AdapterScalars dbeta1, Tensor du, Tensor px, int count, double beta) {
  CHECKS;
  IRQ_CHECK(count >= 1 && count <= AdapterMasks::kMax, "lora_dropout_dbeta1: %d adapters", count);
  check.shape("du", du, px.rows, px.cols * count, Type::storage);
  check.any("px", px, Type::storage);
  check.scalars("dbeta1", dbeta1);
  FORWARD(lora_dropout_dbeta1(dbeta1, du, px, count, beta));
}

// ---- LoRA + IEC ---------------------------------------------------------------------------------------------------
void CheckedBackend::iec_fold_all(IecTable table) {
  CHECKS;
  check.iec_table(table);
  FORWARD(iec_fold_all(table));
}

void CheckedBackend::iec_dbeta_all(IecTable table) {
  CHECKS;
  check.iec_table(table);
  FORWARD(iec_dbeta_all(table));
}

// ---- loss and optimizer -------------------------------------------------------------------------------------------
void CheckedBackend::cross_entropy(Tensor nll, Tensor logits, Tensor targets, Tensor params, int64_t vocab,
                                   bool want_grad) {
  CHECKS;
  check.any("logits", logits, Type::either);
  check.vector("nll", nll, logits.rows, Type::master);
  check.vector("targets", targets, logits.rows, Type::i32);
  check.params(params);
  IRQ_CHECK(vocab > 0 && vocab <= logits.cols, "cross_entropy: vocabulary of %ld in %ld columns", vocab, logits.cols);
  FORWARD(cross_entropy(nll, logits, targets, params, vocab, want_grad));
}

void CheckedBackend::global_norm(Tensor norm, Tensor g) {
  CHECKS;
  check.vector("norm", norm, 1, Type::master);
  check.vector("g", g, g.cols, Type::master);
  FORWARD(global_norm(norm, g));
}

void CheckedBackend::adamw(Tensor p, Tensor m, Tensor v, Tensor g, Tensor norm, Tensor params, double decay) {
  CHECKS;
  const std::pair<const char*, const Tensor*> flat[] = {{"p", &p}, {"m", &m}, {"v", &v}, {"g", &g}};
  for (const auto& [name, tensor] : flat) check.vector(name, *tensor, p.cols, Type::master);
  check.vector("norm", norm, 1, Type::master);
  check.params(params);
  FORWARD(adamw(p, m, v, g, norm, params, decay));
}

// ---- NF-k quantization ----------------------------------------------------------------------------------------------
void CheckedBackend::icq_search(Tensor tau, Tensor entropy_plain, Tensor entropy_best, Tensor w, int bits,
                                IcqSpec spec) {
  CHECKS;
  check.bits(bits);
  check.vector("w", w, w.cols, Type::f32);
  const int64_t blocks = ceil_ratio(w.cols, kBlock);
  check.vector("tau", tau, blocks, Type::f32);
  check.blocks("entropy_plain", entropy_plain, blocks);
  check.blocks("entropy_best", entropy_best, blocks);
  IRQ_CHECK(spec.n >= 0 && spec.lambda >= 0, "icq_search: n = %d, lambda = %g", spec.n, spec.lambda);
  IRQ_CHECK(!spec.fp32_entropy || is_plain_search(spec),
            "icq_search: the released code's entropy belongs to its own search");
  FORWARD(icq_search(tau, entropy_plain, entropy_best, w, bits, spec));
}

void CheckedBackend::nfk_quantize(Tensor codes, Tensor absmax, Tensor entropy, Tensor w, Tensor tau, int bits) {
  CHECKS;
  check.bits(bits);
  check.vector("w", w, w.cols, Type::f32);
  const int64_t blocks = ceil_ratio(w.cols, kBlock);
  check.vector("codes", codes, ceil_ratio(w.cols * bits, 8), Type::u8);
  check.vector("absmax", absmax, blocks, Type::f32);
  check.blocks("entropy", entropy, blocks);
  check.blocks("tau", tau, blocks);
  FORWARD(nfk_quantize(codes, absmax, entropy, w, tau, bits));
}

void CheckedBackend::double_quantize_scales(Tensor scale_codes, Tensor scale_groups, Tensor scale_offset, Tensor absmax,
                                            Tensor map) {
  CHECKS;
  check.vector("absmax", absmax, absmax.cols, Type::f32);
  check.vector("scale_codes", scale_codes, absmax.cols, Type::u8);
  check.vector("scale_groups", scale_groups, ceil_ratio(absmax.cols, kScaleGroup), Type::f32);
  check.vector("scale_offset", scale_offset, 1, Type::f32);
  check.vector("map", map, 256, Type::f32);
  FORWARD(double_quantize_scales(scale_codes, scale_groups, scale_offset, absmax, map));
}

void CheckedBackend::double_quantize_tau(Tensor tau_codes, Tensor tau_groups, Tensor tau, Tensor map) {
  CHECKS;
  check.vector("tau", tau, tau.cols, Type::f32);
  check.vector("tau_codes", tau_codes, tau.cols, Type::u8);
  check.vector("tau_groups", tau_groups, ceil_ratio(tau.cols, kScaleGroup), Type::f32);
  check.vector("map", map, 256, Type::f32);
  FORWARD(double_quantize_tau(tau_codes, tau_groups, tau, map));
}

void CheckedBackend::dequantize_tau(Tensor tau_hat, Tensor tau_codes, Tensor tau_groups, Tensor map) {
  CHECKS;
  check.vector("tau_hat", tau_hat, tau_hat.cols, Type::f32);
  check.vector("tau_codes", tau_codes, tau_hat.cols, Type::u8);
  check.vector("tau_groups", tau_groups, ceil_ratio(tau_hat.cols, kScaleGroup), Type::f32);
  check.vector("map", map, 256, Type::f32);
  FORWARD(dequantize_tau(tau_hat, tau_codes, tau_groups, map));
}

void CheckedBackend::squared_errors(Tensor errors, Tensor a, Tensor b) {
  CHECKS;
  check.vector("a", a, a.cols, Type::f32);
  check.vector("b", b, a.cols, Type::f32);
  check.vector("errors", errors, ceil_ratio(a.cols, kBlock), Type::f64);
  FORWARD(squared_errors(errors, a, b));
}

void CheckedBackend::nfk_dequant(Tensor w, QuantizedMatrix q) {
  CHECKS;
  check.quantized(q);
  check.shape("w", w, q.rows, q.cols, w.dtype == DType::F32 ? Type::f32 : Type::storage);
  FORWARD(nfk_dequant(w, q));
}

void CheckedBackend::int_dequant(Tensor w, QuantizedMatrix q) {
  CHECKS;
  IRQ_CHECK(q.is_integer() && q.format.scale == ScaleKind::f32, "int_dequant reads integer codes with f32 scales");
  check.quantized(q);
  check.shape("w", w, q.rows, q.cols, w.dtype == DType::F32 ? Type::f32 : Type::storage);
  FORWARD(int_dequant(w, q));
}

void CheckedBackend::dequant_group(Tensor ext, PackedGroup group) {
  CHECKS;
  IRQ_CHECK(group.parts >= 1 && group.parts <= PackedGroup::kParts, "dequant_group: %d parts", group.parts);
  const int64_t in = group.w[0].cols, rank = group.a ? group.a.rows : 0;
  if (group.a) check.shape("a", group.a, rank, in, Type::storage);
  for (size_t i = 0; i < static_cast<size_t>(group.parts); ++i) {
    const QuantizedMatrix& q = group.w[i];
    check.quantized(q);
    IRQ_CHECK(q.cols == in, "dequant_group: part %zu has %ld columns, part 0 %ld", i, q.cols, in);
    const Tensor& b = group.b[i];
    if (!b) continue;
    check.shape("b", b, q.rows, b.cols, Type::storage);
    IRQ_CHECK(group.column[i] >= 0 && group.column[i] + b.cols <= rank, "dequant_group: part %zu has no rank columns",
              i);
  }
  check.shape("ext", ext, group.out() + rank, in + rank, Type::storage);
  FORWARD(dequant_group(ext, group));
}

void CheckedBackend::nfk_matmul(Tensor y, Tensor x, QuantizedMatrix q, double beta) {
  CHECKS;
  check.quantized(q);
  check.shape("x", x, x.rows, q.cols, Type::storage);
  check.shape("y", y, x.rows, q.rows, Type::storage);
  FORWARD(nfk_matmul(y, x, q, beta));
}

void CheckedBackend::nfk_linear(PackedLinear call) {
  CHECKS;
  check.packed_linear(call);
  FORWARD(nfk_linear(call));
}

void CheckedBackend::low_rank(Tensor left, Tensor right, Tensor w) {
  CHECKS;
  check.any("w", w, Type::f32);
  check.shape("left", left, w.rows, right.rows, Type::f32);
  check.shape("right", right, left.cols, w.cols, Type::f32);
  FORWARD(low_rank(left, right, w));
}

void CheckedBackend::nfk_layers(const PackedLayer* layers, int count) {
  CHECKS;
  for (int i = 0; i < count; ++i) check.packed_layer(layers[i]);
  FORWARD(nfk_layers(layers, count));
}

}  // namespace irq
