// What checked*.cpp share: the argument checks of an op and the call of the inner backend.
#pragma once
#include <chrono>

#include "kernels/backend.h"

namespace irq {

// Which element types an argument may have.
enum class Type { storage, master, either, f32, f64, i32, u8, floating };

// The checks of one call of one op. `arg` is the argument's name in ops.inc.
class OpChecks {
 public:
  OpChecks(const char* op, Device device, Precision precision) : op_(op), device_(device), precision_(precision) {}

  // Device, type and layout.
  void any(const char* arg, const Tensor& t, Type type) const;
  // The same, and the shape.
  void shape(const char* arg, const Tensor& t, int64_t rows, int64_t cols, Type type) const;
  void vector(const char* arg, const Tensor& t, int64_t n, Type type) const { shape(arg, t, 1, n, type); }
  void params(const Tensor& t) const;  // a StepParams in bytes
  void quantized(const QuantizedMatrix& q) const;
  void packed_linear(const PackedLinear& call) const;
  void packed_layer(const PackedLayer& layer) const;
  void masks(const MaskBits& masks, int64_t rows, int64_t cols, int64_t ranks) const;
  void iec_table(const IecTable& table) const;                        // its entries were checked when it was built
  void scalars(const char* arg, const AdapterScalars& values) const;  // each may be absent
  void blocks(const char* arg, const Tensor& t, int64_t n) const {    // one f32 per block, or absent
    if (t) vector(arg, t, n, Type::f32);
  }
  void bits(int bits) const;
  // What the forward and the backward of attention share.
  void rope(const Rope& rope, int64_t rows, int head_dim) const;
  void attention(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& o, const Tensor& lse,
                 const Tensor& seqs, int head_dim) const;
  void heads(const char* arg, const Tensor& t, int head_dim) const;  // columns are whole heads

 private:
  bool type_ok(DType t, Type type) const;
  std::string expected(Type type) const;

  const char* op_;
  Device device_;
  Precision precision_;
};

// Calls the op on the inner backend (not at all when dry) and, when profiling, adds its time.
struct CheckedBackend::Scope {
  template <class F>
  static void run(CheckedBackend& b, const char* op, F&& call) {
    if (!b.inner_) return;
    if (!b.profiling_) return call(*b.inner_);
    b.inner_->synchronize();
    const auto start = std::chrono::steady_clock::now();
    call(*b.inner_);
    b.inner_->synchronize();
    const std::chrono::duration<double, std::milli> elapsed = std::chrono::steady_clock::now() - start;
    add(b, op, elapsed.count());
  }
  static void add(CheckedBackend& b, const char* op, double ms);
};

inline int64_t ceil_ratio(int64_t a, int64_t b) { return (a + b - 1) / b; }

}  // namespace irq
