// An adapter's matrices as plain LoRA: IEC folded into A and B (paper Eq. 16).
#pragma once
#include <string>
#include <vector>

#include "src/io/checkpoint.h"

namespace irq {

// A~ = A + beta1 P (R, in),  B~ = B + beta2 E (out, R): computed in f64, rounded once to f32. The adapter's output is
// s * B~ (A~ x) with s = alpha / R, exactly what it was with IEC (without dropout). QA-LoRA's A is expanded: c(g) A[j, g] in
// every column of group g.
struct FoldedAdapter {
  int64_t rank = 0;
  std::vector<float> a, b;
  float beta1 = 0, beta2 = 0;  // as they were
};

// Of one linear, "layers.3.wq". An Error that names the tensor if A or B is missing or has another shape.
FoldedAdapter fold_adapter(AdapterReader& adapter, const std::string& linear, const LinearShape& shape);

// Row `row` of s B~ A~ into out (in): for each column the sum over the ranks in ascending order, in F32. s: alpha / R.
void product_row(const FoldedAdapter& f, int64_t row, int64_t in, float scale, float* out);

// The same with A~ per group of L = `group` features of the base: a~ (R, groups), what each feature of a group is multiplied by.
// An Error unless A~ is constant within every group, that is unless IEC's slices are whole numbers of them (fidelity 5.6);
// with `nearest` its mean over the group instead, the nearest such matrix.
struct GroupedAdapter {
  int64_t rank = 0, groups = 0;
  std::vector<double> a, b;  // (R, groups), (out, R): F64
  bool exact = true;
};
GroupedAdapter fold_into_groups(AdapterReader& adapter, const std::string& linear, const LinearShape& shape,
                                bool nearest);

// PEQA's scales of one linear, (out, groups) f32; an Error that names the tensor if they are missing or do not fit the base.
Tensor trained_scales(AdapterReader& adapter, const std::string& linear, const QuantizedMatrix& q);

}  // namespace irq
