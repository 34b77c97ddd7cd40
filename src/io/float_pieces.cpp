#include "src/io/float_pieces.h"

#include <algorithm>
#include <cstring>
#include <type_traits>

namespace irq {
namespace {

constexpr int64_t kStep = int64_t{1} << 16;  // values a thread takes at once

float widen(float x) { return x; }
float widen(F16 x) { return to_float(x); }
float widen(Bf16 x) { return to_float(x); }

template <class To, class From>
void convert_typed(To* out, const From* in, int64_t count) {
#pragma omp parallel for if (count > kStep)
  for (int64_t begin = 0; begin < count; begin += kStep) {
    const int64_t end = std::min(begin + kStep, count);
    for (int64_t i = begin; i < end; ++i) {
      if constexpr (std::is_same_v<To, float>) out[i] = widen(in[i]);
      else if constexpr (std::is_same_v<To, Bf16>) out[i] = to_bf16(widen(in[i]));
      else out[i] = to_f16(widen(in[i]));
    }
  }
}

template <class From>
void convert_from(void* out, DType to, const From* in, int64_t count) {
  if (to == DType::F32) return convert_typed(static_cast<float*>(out), in, count);
  if (to == DType::F16) return convert_typed(static_cast<F16*>(out), in, count);
  convert_typed(static_cast<Bf16*>(out), in, count);
}

// A value is finite unless its exponent has all bits set. A step is scanned without a branch, so that it vectorizes; only a
// step that has a hit is looked at value by value.
template <class Word>
int64_t first_with_exponent(const Word* words, Word exponent, int64_t count) {
  int64_t first = count;
#pragma omp parallel for reduction(min : first) if (count > kStep)
  for (int64_t begin = 0; begin < count; begin += kStep) {
    const int64_t end = std::min(begin + kStep, count);
    Word hits = 0;
    for (int64_t i = begin; i < end; ++i) hits |= static_cast<Word>((words[i] & exponent) == exponent);
    for (int64_t i = begin; hits && i < end; ++i)
      if ((words[i] & exponent) == exponent) {
        first = std::min(first, i);
        break;
      }
  }
  return first < count ? first : -1;
}

}  // namespace

void convert_values(void* out, DType to, const void* in, DType from, int64_t count) {
  const auto is_float = [](DType t) { return t == DType::F32 || t == DType::F16 || t == DType::BF16; };
  IRQ_CHECK(is_float(to) && is_float(from), "convert_values: %s to %s", name_of(from), name_of(to));
  if (count <= 0) return;
  if (to == from) std::memcpy(out, in, static_cast<size_t>(count * size_of(to)));
  else if (from == DType::F32) convert_from(out, to, static_cast<const float*>(in), count);
  else if (from == DType::F16) convert_from(out, to, static_cast<const F16*>(in), count);
  else convert_from(out, to, static_cast<const Bf16*>(in), count);
}

int64_t first_not_finite(const void* values, DType type, int64_t count) {
  if (type == DType::F32)
    return first_with_exponent<uint32_t>(static_cast<const uint32_t*>(values), 0x7f800000u, count);
  IRQ_CHECK(type == DType::F16 || type == DType::BF16, "first_not_finite: %s", name_of(type));
  return first_with_exponent<uint16_t>(static_cast<const uint16_t*>(values), type == DType::F16 ? 0x7c00u : 0x7f80u,
                                       count);
}

int64_t first_not_finite(const Tensor& t) {
  IRQ_CHECK(t.contiguous() && t.device == Device::CPU, "%s is not contiguous host memory", t.name);
  return first_not_finite(t.data, t.dtype, t.numel());
}

}  // namespace irq
