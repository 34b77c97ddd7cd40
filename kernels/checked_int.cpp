// CheckedBackend: the ops that make integer codes.
#include <algorithm>

#include "kernels/checked.h"
#include "kernels/int_group.h"

namespace irq {

#define CHECKS const OpChecks check(__func__, device_, precision_)
#define FORWARD(...) Scope::run(*this, __func__, [&](Backend& inner) { inner.__VA_ARGS__; })

namespace {
int64_t groups_of(int64_t cols, int group) { return group == kPerChannel ? 1 : ceil_ratio(cols, group); }
void check_group(const char* op, int64_t cols, int group) {
  IRQ_CHECK(group == kPerChannel || group > 0, "%s: groups of %d", op, group);
  IRQ_CHECK(cols > 0 && std::min<int64_t>(group == kPerChannel ? cols : group, cols) <= kLongestGroup,
            "%s: a group of %d in %ld columns", op, group, cols);
}
}  // namespace

void CheckedBackend::int_params(Tensor scales, Tensor zeros, Tensor entropy_plain, Tensor entropy, Tensor w,
                                IntSpec spec) {
  CHECKS;
  check.bits(spec.bits);
  check.any("w", w, Type::f32);
  check_group("int_params", w.cols, spec.group);
  const int64_t groups = groups_of(w.cols, spec.group);
  check.shape("scales", scales, w.rows, groups, Type::f32);
  check.shape("zeros", zeros, w.rows, groups, zeros.dtype == DType::U8 ? Type::u8 : Type::f32);
  if (entropy_plain) check.shape("entropy_plain", entropy_plain, w.rows, groups, Type::f32);
  if (entropy) check.shape("entropy", entropy, w.rows, groups, Type::f32);
  IRQ_CHECK(spec.n >= 0 && spec.n <= 100000 && spec.range >= 0, "int_params: n = %d, range %g", spec.n, spec.range);
  IRQ_CHECK(spec.search != IntSearch::zero_shift || (zeros.dtype == DType::F32 && !spec.symmetric),
            "int_params: a shift needs zero points in f32 that are free to move");
  FORWARD(int_params(scales, zeros, entropy_plain, entropy, w, spec));
}

void CheckedBackend::int_encode(Tensor codes, Tensor w, Tensor scales, Tensor zeros, int bits, int group) {
  CHECKS;
  check.bits(bits);
  check.any("w", w, Type::f32);
  check_group("int_encode", w.cols, group);
  const int64_t groups = groups_of(w.cols, group);
  check.vector("codes", codes, ceil_ratio(w.numel() * bits, 8), Type::u8);
  check.shape("scales", scales, w.rows, groups, Type::f32);
  check.shape("zeros", zeros, w.rows, groups, zeros.dtype == DType::U8 ? Type::u8 : Type::f32);
  FORWARD(int_encode(codes, w, scales, zeros, bits, group));
}

void CheckedBackend::int_pack(Tensor codes, Tensor entropy, Tensor bytes, int bits, int group) {
  CHECKS;
  check.bits(bits);
  check.any("bytes", bytes, Type::u8);
  check_group("int_pack", bytes.cols, group);
  check.vector("codes", codes, ceil_ratio(bytes.numel() * bits, 8), Type::u8);
  if (entropy) check.shape("entropy", entropy, bytes.rows, groups_of(bytes.cols, group), Type::f32);
  FORWARD(int_pack(codes, entropy, bytes, bits, group));
}

// ---- GPTQ -----------------------------------------------------------------------------------------------------------
void CheckedBackend::gptq_factor(Tensor u, Tensor info, Tensor h) {
  CHECKS;
  check.shape("h", h, h.rows, h.rows, Type::f32);
  check.shape("u", u, h.rows, h.rows, Type::f32);
  check.vector("info", info, 1, Type::i32);
  IRQ_CHECK(h.rows > 0 && h.rows <= 46340 && u.contiguous() && h.contiguous() && u.data != h.data,
            "gptq_factor: %ld rows, or not two contiguous matrices", h.rows);
  FORWARD(gptq_factor(u, info, h));
}

void CheckedBackend::gptq_block(Tensor bytes, Tensor err, Tensor w, Tensor u, Tensor scales, Tensor zeros, Tensor order,
                                int64_t first, int bits, int group) {
  CHECKS;
  check.bits(bits);
  check_group("gptq_block", bytes.cols, group);
  const int64_t groups = groups_of(bytes.cols, group);
  IRQ_CHECK(w.cols >= 1 && w.cols <= 128 && first >= 0 && first + w.cols <= bytes.cols,
            "gptq_block: columns %ld to %ld of %ld, 128 at most", first, first + w.cols, bytes.cols);
  check.any("w", w, Type::f32);
  check.shape("bytes", bytes, w.rows, bytes.cols, Type::u8);
  check.shape("err", err, w.rows, w.cols, Type::f32);
  check.shape("u", u, w.cols, w.cols, Type::f32);
  check.shape("scales", scales, w.rows, groups, Type::f32);
  check.shape("zeros", zeros, w.rows, groups, zeros.dtype == DType::U8 ? Type::u8 : Type::f32);
  if (order) check.vector("order", order, bytes.cols, Type::i32);
  FORWARD(gptq_block(bytes, err, w, u, scales, zeros, order, first, bits, group));
}

void CheckedBackend::permute(Tensor y, Tensor x, Tensor rows, Tensor cols) {
  CHECKS;
  check.any("x", x, Type::f32);
  check.shape("y", y, x.rows, x.cols, Type::f32);
  if (rows) check.vector("rows", rows, x.rows, Type::i32);
  if (cols) check.vector("cols", cols, x.cols, Type::i32);
  IRQ_CHECK(y.data != x.data, "permute: not in place");
  FORWARD(permute(y, x, rows, cols));
}

}  // namespace irq
