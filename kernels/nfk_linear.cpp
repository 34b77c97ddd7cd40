// A packed group for few rows, made of the ops it fuses: specification, CPU path, and the general path of the GPU.
#include "kernels/nfk_linear.h"

#include "kernels/common.h"

namespace irq {
namespace {

int64_t ranks(const PackedLinear& c) { return c.a ? c.a.rows : 0; }
bool direct(const PackedLinear& c) { return c.finish == PackedLinear::Finish::add; }  // z is y

}  // namespace

int64_t packed_linear_scratch(const PackedLinear& c) {
  return c.x.rows * ((c.norm ? c.x.cols : 0) + ranks(c) + (direct(c) ? 0 : c.width())) + 3 * 64;
}

void packed_linear_by_ops(Backend& backend, const PackedLinear& c, void* scratch, void* rstd) {
  const DType type = c.x.dtype;
  int64_t used = 0;
  const auto take = [&](int64_t cols, const char* name) {
    const Tensor t =
        make_view(static_cast<char*>(scratch) + used * size_of(type), type, c.x.rows, cols, name, c.x.device);
    used += (c.x.rows * cols + 63) / 64 * 64;  // aligned as the kernels like it
    return t;
  };
  Tensor n = c.x;
  if (c.norm) {
    n = take(c.x.cols, "normalized rows");
    backend.rmsnorm_fwd(n, make_view(rstd, backend.precision().master, 1, c.x.rows, "rstd", c.x.device), c.x, c.norm,
                        c.eps);
  }
  const Tensor u = c.a ? take(c.a.rows, "rank-r activations") : Tensor{};
  const Tensor z = direct(c) ? c.y : take(c.width(), "packed linear");
  if (c.a) backend.matmul(u, n, false, c.a, true, 1, 0, {});
  int64_t row = 0;
  for (size_t i = 0; i < static_cast<size_t>(c.parts); ++i) {
    const Tensor part = z.slice_cols(row, c.w[i].rows);
    row += c.w[i].rows;
    const Tensor base = c.residual ? c.residual.slice_cols(row - part.cols, part.cols) : Tensor{};
    double beta = base ? 1 : 0;
    if (c.b[i]) backend.matmul(part, u.slice_cols(c.column[i], c.b[i].cols), false, c.b[i], true, 1, beta, base);
    else if (base && base.data != part.data) backend.copy(part, base);
    if (c.b[i]) beta = 1;
    backend.nfk_matmul(part, n, c.w[i], beta);
  }
  if (c.finish == PackedLinear::Finish::swiglu) return backend.swiglu_fwd(c.y, z);
  if (c.finish != PackedLinear::Finish::rope) return;
  const int64_t q = c.w[0].rows, k = c.w[1].rows;
  backend.rope(z.slice_cols(0, q + k), c.cos_table, c.sin_table, c.positions, c.head_dim, false);
  backend.copy(c.y, z.slice_cols(0, q));
  backend.scatter_rows(c.keys, z.slice_cols(q, k), c.cache_rows);
  backend.scatter_rows(c.values, z.slice_cols(q + k, c.w[2].rows), c.cache_rows);
}

void CpuBackend::nfk_linear(PackedLinear call) {
  thread_local std::vector<std::byte> memory;
  const int64_t element = size_of(precision_.storage), rstd = (call.x.rows * element + 255) / 256 * 256;
  const size_t bytes = static_cast<size_t>(rstd + packed_linear_scratch(call) * element);
  if (memory.size() < bytes) memory.resize(bytes);
  packed_linear_by_ops(*this, call, memory.data() + rstd, memory.data());
}

}  // namespace irq
