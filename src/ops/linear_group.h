// LinearGroup: the linears that share one input (q|k|v, o, gate|up, down), run as one matrix product, with their LoRA +
// IEC adapters extending it in both dimensions (all products below are single GEMMs, but for u and dx under dropout):
//
//   ext = [ W  sB' ]  (out + R) x (in + R)      y  = [x | u] [W | sB']^T,   u = x A'^T
//         [ A'  -  ]                            dx = [dy | du] [W ; A'],    du = dy sB'
//
// Dropout masks what A sees, and not the pooled branch beside it. Then A' is beta1 P alone, A stands apart in a_plain, and
// the lora_dropout ops add its share: u_m = s drop_m(x) A_m^T + beta1_m P x and dx += s sum_m mask_m * (du_m A_m).
//
// QA-LoRA's A is (r, groups): u = A pool(x). Pooling is linear, so A' repeats c(g) A[j, g] in the columns of group g and the
// products above stay as they are; dA is du^T pool(x). Dropout masks pool(x).
//
// W stacks the group's weights, A' = A + beta1 P and B' = B + beta2 E are the folded adapters (fidelity 4.3), sB' is
// block-diagonal, R is the sum of the ranks.
#pragma once
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "src/autograd/params.h"
#include "src/core/arena.h"

namespace irq {

// One linear's adapter inside its group. Indices point into the ParamStore; -1 = not trained (and zero).
struct AdapterPart {
  int id = 0;                    // number of the adapter in the model: dropout masks differ by it
  int64_t row = 0, out = 0;      // its output rows within the group
  int64_t column = 0, rank = 0;  // its place among the R rank columns
  int param_a = -1, param_b = -1, param_beta1 = -1, param_beta2 = -1;
  Tensor a, b, beta1, beta2;  // masters: (r, in or groups of the input) (out, r) (1, 1) (1, 1)
  Tensor b_folded;            // (out, r) S: scale * (B + beta2 E); inside `resident` where there is one
};

struct LinearPart {
  const char* name = "";
  int64_t row = 0, out = 0;
  bool quantized = false;
  QuantizedMatrix packed;
  int param_scales = -1;  // PEQA: packed.scales is this parameter's master
};

struct LinearGroup {
  const char* name = "";
  int layer = 0;
  int64_t in = 0, out = 0, rank = 0;  // rank = R
  std::vector<LinearPart> parts;
  std::vector<AdapterPart> adapters;
  Tensor a_folded;       // (R, in) S, A': A + beta1 P without dropout, beta1 P with it
  Tensor a_plain;        // (R, in) S: A, with dropout only; on a pooled input (R, groups)
  GroupPool pool;        // of what A sees; cols = 0: the input itself
  bool aligned = false;  // beta1's branch averages the groups' means
  double scale = 0;      // alpha / r
  double dropout = 0;
  bool tile = false;
  bool grouped() const { return pool.cols > 0; }  // QA-LoRA
  bool trains_scales() const { return !parts.empty() && parts[0].param_scales >= 0; }
  bool pooled() const {  // has an adapter its pooled branch (beta1 P)?
    for (const AdapterPart& p : adapters)
      if (p.param_beta1 >= 0) return true;
    return false;
  }
  Tensor
      resident;  // W in storage type if it stays on the device unpacked: (out + R) x (in + R) ext, or (out, in) if R = 0
  int param_weight = -1;  // --method full: the stacked weight is trained
};

// The only way to a frozen weight. acquire() gives ext (rows out + R, cols in + R; with R = 0 just W); release() ends its
// use. What lies behind (packed on the device, cached, streamed from the host, sharded) is the implementation's affair.
class WeightProvider {
 public:
  virtual ~WeightProvider() = default;
  virtual Tensor acquire(const LinearGroup& group) = 0;
  virtual void release(const LinearGroup& group, const Tensor& ext) = 0;
};

// Residency on the device: packed groups are dequantized into scratch for each use, resident ones are returned as they are.
class DeviceWeights final : public WeightProvider {
 public:
  DeviceWeights(Backend& backend, Arena& arena) : backend_(backend), arena_(arena) {}
  Tensor acquire(const LinearGroup& group) override;
  void release(const LinearGroup& group, const Tensor& ext) override;

 private:
  Backend& backend_;
  Arena& arena_;
};

// The group's part of the table of all adapters of a model.
void add_adapters(IecTableBuilder& table, const ParamStore& params, const LinearGroup& group);
// Recomputes every a_folded and b_folded from the masters; once per optimizer step.
void fold_adapters(Backend& backend, const IecTable& table);
// Every dbeta1 and dbeta2 from dA and dB. claim_betas() tells the store before that those need no zeros.
void finish_betas(Backend& backend, const IecTable& table);
void claim_betas(ParamStore& params, const LinearGroup& group);

}  // namespace irq
