// What a quantized weight matrix is made of, on disk and on the device.
#pragma once
#include <algorithm>
#include <vector>

#include "kernels/nf_codebook.h"
#include "src/core/tensor.h"

namespace irq {

enum class QuantKind : int32_t { nf = 0, integer = 1 };
enum class ScaleKind : int32_t { f32 = 0, dq8 = 1 };  // dq8: 8-bit codes + one f32 per 256 + one f32 offset per matrix
// tau: NF codes, added. The zero points belong to integer codes: int_zero u8, float_zero f32 (where QA-LoRA merged into them).
enum class ShiftKind : int32_t { none = 0, tau = 1, int_zero = 2, float_zero = 3 };

constexpr int kPerChannel = 0;  // QuantFormat::group of integers: one scale and zero point for each row of W

struct QuantFormat {
  QuantKind kind = QuantKind::nf;
  int bits = 4;
  int group = kBlock;
  ScaleKind scale = ScaleKind::dq8;
  ShiftKind shift = ShiftKind::tau;
  bool operator==(const QuantFormat&) const = default;
};

// How ICQ searches the shift tau of a block: 2n+1 candidates tau0 + f_i * unit around the lower median tau0, and of those
// with the highest entropy the first. The members behind fp32_entropy go beyond the paper; their first values are its search.
enum class IcqTies : int32_t { first = 0, mse = 1 };  // of equal entropies the first, or the least squared error
enum class IcqSearch : int32_t {
  grid = 0,
  exact = 1
};  // exact: one candidate of every piece of constant codes, no grid
// What a lambda of 1 is: 0.5411 absmax(w - tau0) as in the released code, this absmax, the block's deviation, or 1 itself.
enum class IcqWidth : int32_t { code = 0, absmax = 1, block_std = 2, raw = 3 };
struct IcqSpec {
  double lambda = 0.1;
  int n = 100;
  bool fp32_entropy = false;  // the released code's tie order; 4-bit full blocks only, else exact integers
  IcqTies ties = IcqTies::first;
  IcqSearch search = IcqSearch::grid;
  IcqWidth width = IcqWidth::code;
  bool even = false;        // 2n candidates between the same ends (the paper's text), not 2n+1 (its Algorithm 1)
  bool consistent = false;  // the codes are those of w - tau_hat, the shift that is added back, not of w - tau
  bool operator==(const IcqSpec&) const = default;
};

// How the parameters of a group of integer codes are found (fidelity 5.2, 5.4). Both searches try 2n + 1 candidates and keep
// the first whose codes have the highest entropy.
//   clip        the range is multiplied by 1, 1 + range/n .. 1 + range, 1 - range/n .. 1 - range (the released code)
//   zero_shift  ICQ's shift tau as of NF blocks, folded into a float zero point: zero - tau / scale (the paper's words)
enum class IntSearch : int32_t { none = 0, clip = 1, zero_shift = 2 };
struct IntSpec {
  int bits = 4;
  int group = kPerChannel;
  bool symmetric = false;  // the range is widened to +-max|w|, the zero point is 2^(bits - 1)
  IntSearch search = IntSearch::none;
  double range = 0.1;
  int n = 50;
  bool operator==(const IntSpec&) const = default;
};

// W (rows, cols) row-major.
// NF-k: blocks of `group` consecutive elements of the flattened matrix; the last may be short.
//   w_hat = level[code] * s_hat + tau_hat,  s_hat = map[scale_code] * scale_group + offset,  tau_hat = map[tau_code] * tau_group
// Integers (GPTQ's convention, fidelity 5.2): blocks of `group` consecutive elements of a row; the last of each row may be short.
//   w_hat = scale * (code - zero): the difference and the product rounded to fp32 one after the other
struct QuantizedMatrix {
  int64_t rows = 0, cols = 0;
  QuantFormat format;
  Tensor codes;         // u8 (1, code_bytes()): most-significant-bit-first stream, element 0 in the top bits of byte 0
  Tensor scales;        // f32 (1, blocks()), ScaleKind::f32 only
  Tensor scale_codes;   // u8  (1, blocks())
  Tensor scale_groups;  // f32 (1, groups())
  Tensor scale_offset;  // f32 (1, 1)
  Tensor tau_codes;     // u8  (1, blocks()), ShiftKind::tau only
  Tensor tau_groups;    // f32 (1, groups())
  Tensor map;           // f32 (1, 256): the dynamic map the codes refer to
  Tensor zeros;         // (1, blocks()) u8 (int_zero) or f32 (float_zero)

  int64_t numel() const { return rows * cols; }
  bool is_integer() const { return format.kind == QuantKind::integer; }
  int64_t group_size() const { return is_integer() && format.group == kPerChannel ? cols : format.group; }
  int64_t groups_per_row() const { return (cols + group_size() - 1) / std::max<int64_t>(group_size(), 1); }  // integers
  int64_t blocks() const {
    return is_integer() ? rows * groups_per_row() : (numel() + format.group - 1) / format.group;
  }
  int64_t groups() const { return (blocks() + kScaleGroup - 1) / kScaleGroup; }
  int64_t code_bytes() const { return (numel() * format.bits + 7) / 8; }
  bool has_tau() const { return format.shift == ShiftKind::tau; }
  bool uses_map() const { return format.scale == ScaleKind::dq8 || has_tau(); }
};

// The parts of a quantized matrix, in file order: `tensor` points into `q`, whose rows, cols and format must be set.
struct MatrixPart {
  const char* suffix;  // ".codes"
  DType dtype;
  int64_t count;
  Tensor* tensor;
  int64_t bytes() const { return count * size_of(dtype); }
};
std::vector<MatrixPart> matrix_parts(QuantizedMatrix& q);

}  // namespace irq
