// CheckedBackend: memory, transfers and the checks themselves. Its ops are in checked_model.cpp and checked_train.cpp.
#include "kernels/checked.h"

#include <limits>

namespace irq {
namespace {

const char* device_name(Device d) { return d == Device::CPU ? "CPU" : "CUDA"; }

std::string describe_tensor(const Tensor& t) {
  return strf("'%s' (%ld, %ld) %s on %s, row stride %ld", t.name, t.rows, t.cols, name_of(t.dtype),
              device_name(t.device), t.stride);
}

}  // namespace

// ---- checks -------------------------------------------------------------------------------------------------------
bool OpChecks::type_ok(DType t, Type type) const {
  switch (type) {
    case Type::storage: return t == precision_.storage;
    case Type::master: return t == precision_.master;
    case Type::either: return t == precision_.storage || t == precision_.master;
    case Type::f32: return t == DType::F32;
    case Type::f64: return t == DType::F64;
    case Type::i32: return t == DType::I32;
    case Type::u8: return t == DType::U8;
    case Type::floating: return t != DType::I32 && t != DType::U8;
  }
  return false;
}

std::string OpChecks::expected(Type type) const {
  switch (type) {
    case Type::storage: return strf("%s (storage)", name_of(precision_.storage));
    case Type::master: return strf("%s (master)", name_of(precision_.master));
    case Type::either:
      return strf("%s (storage) or %s (master)", name_of(precision_.storage), name_of(precision_.master));
    case Type::f32: return "f32";
    case Type::f64: return "f64";
    case Type::i32: return "i32";
    case Type::u8: return "u8";
    case Type::floating: return "a floating-point type";
  }
  return "?";
}

void OpChecks::any(const char* arg, const Tensor& t, Type type) const {
  IRQ_CHECK(t.data || t.numel() == 0, "%s: %s is missing: %s", op_, arg, describe_tensor(t).c_str());
  IRQ_CHECK(t.device == device_, "%s: %s is on the wrong device: %s, expected %s", op_, arg, describe_tensor(t).c_str(),
            device_name(device_));
  IRQ_CHECK(type_ok(t.dtype, type), "%s: %s has the wrong type: %s, expected %s", op_, arg, describe_tensor(t).c_str(),
            expected(type).c_str());
  IRQ_CHECK(t.rows >= 0 && t.cols >= 0 && (t.stride >= t.cols || t.rows <= 1), "%s: %s is not a matrix: %s", op_, arg,
            describe_tensor(t).c_str());
}

void OpChecks::shape(const char* arg, const Tensor& t, int64_t rows, int64_t cols, Type type) const {
  IRQ_CHECK(t.rows == rows && t.cols == cols, "%s: %s has the wrong shape: %s, expected (%ld, %ld)", op_, arg,
            describe_tensor(t).c_str(), rows, cols);
  any(arg, t, type);
}

void OpChecks::params(const Tensor& t) const {
  any("params", t, Type::u8);
  IRQ_CHECK(t.contiguous() && t.bytes() >= static_cast<int64_t>(sizeof(StepParams)),
            "%s: params holds %ld bytes, StepParams has %zu", op_, t.bytes(), sizeof(StepParams));
}

void OpChecks::iec_table(const IecTable& table) const {
  vector("table", table.entries, table.count() * static_cast<int64_t>(sizeof(IecEntry)), Type::u8);
  IRQ_CHECK(table.storage == precision_.storage && table.master == precision_.master,
            "%s: the table is for %s and %s, expected %s (storage) and %s (master)", op_, name_of(table.storage),
            name_of(table.master), name_of(precision_.storage), name_of(precision_.master));
}

void OpChecks::bits(int bits) const { IRQ_CHECK(bits >= 2 && bits <= 4, "%s: %d bits, expected 2, 3 or 4", op_, bits); }

void OpChecks::heads(const char* arg, const Tensor& t, int head_dim) const {
  IRQ_CHECK(head_dim > 0 && t.cols % head_dim == 0, "%s: %s has no whole number of heads of %d: %s", op_, arg, head_dim,
            describe_tensor(t).c_str());
}

void OpChecks::quantized(const QuantizedMatrix& q) const {
  bits(q.format.bits);
  IRQ_CHECK(q.rows >= 0 && q.cols >= 0 && (q.is_integer() || q.format.group > 0),
            "%s: quantized matrix (%ld, %ld) in groups of %d", op_, q.rows, q.cols, q.format.group);
  vector("q.codes", q.codes, q.code_bytes(), Type::u8);
  if (q.format.scale == ScaleKind::f32) {
    const bool trained = q.is_integer() && q.scales.dtype == precision_.master;  // PEQA's, F64 in a proof
    vector("q.scales", q.scales, q.blocks(), trained ? Type::master : Type::f32);
  } else {
    vector("q.scale_codes", q.scale_codes, q.blocks(), Type::u8);
    vector("q.scale_groups", q.scale_groups, q.groups(), Type::f32);
    vector("q.scale_offset", q.scale_offset, 1, Type::f32);
  }
  if (q.has_tau()) {
    vector("q.tau_codes", q.tau_codes, q.blocks(), Type::u8);
    vector("q.tau_groups", q.tau_groups, q.groups(), Type::f32);
  }
  if (q.uses_map()) vector("q.map", q.map, 256, Type::f32);
  if (q.format.shift == ShiftKind::int_zero) vector("q.zeros", q.zeros, q.blocks(), Type::u8);
  if (q.format.shift == ShiftKind::float_zero) vector("q.zeros", q.zeros, q.blocks(), Type::f32);
}

void OpChecks::packed_linear(const PackedLinear& c) const {
  using Finish = PackedLinear::Finish;
  const int64_t rows = c.x.rows;
  any("x", c.x, Type::storage);
  IRQ_CHECK(c.parts >= 1 && c.parts <= PackedLinear::kParts, "%s: %d parts", op_, c.parts);
  if (c.norm) vector("norm", c.norm, c.x.cols, Type::master);
  if (c.a) shape("a", c.a, c.a.rows, c.x.cols, Type::storage);
  for (size_t i = 0; i < static_cast<size_t>(c.parts); ++i) {
    quantized(c.w[i]);
    IRQ_CHECK(c.w[i].cols == c.x.cols, "%s: part %zu reads %ld columns, x has %ld", op_, i, c.w[i].cols, c.x.cols);
    if (!c.b[i]) continue;
    shape("b", c.b[i], c.w[i].rows, c.b[i].cols, Type::storage);
    IRQ_CHECK(c.a && c.column[i] >= 0 && c.column[i] + c.b[i].cols <= c.a.rows, "%s: part %zu has no rank columns", op_,
              i);
  }
  const bool swiglu = c.finish == Finish::swiglu, rope = c.finish == Finish::rope;
  IRQ_CHECK(!swiglu || (c.parts == 2 && c.w[0].rows == c.w[1].rows), "%s: swiglu takes two parts of one width", op_);
  IRQ_CHECK(!rope || c.parts == 3, "%s: rope takes q, k and v", op_);
  shape("y", c.y, rows, swiglu || rope ? c.w[0].rows : c.width(), Type::storage);
  IRQ_CHECK(!c.residual || c.finish == Finish::add, "%s: a residual is added to z", op_);
  if (c.residual) shape("residual", c.residual, rows, c.width(), Type::storage);
  if (!rope) return;
  heads("y", c.y, c.head_dim);
  shape("cos_table", c.cos_table, c.cos_table.rows, c.head_dim / 2, Type::master);
  shape("sin_table", c.sin_table, c.cos_table.rows, c.head_dim / 2, Type::master);
  vector("positions", c.positions, rows, Type::i32);
  vector("cache_rows", c.cache_rows, rows, Type::i32);
  heads("keys", c.keys, c.head_dim);
  shape("keys", c.keys, c.keys.rows, c.w[1].rows, Type::storage);
  shape("values", c.values, c.keys.rows, c.w[2].rows, Type::storage);
  IRQ_CHECK(c.w[1].rows == c.w[2].rows, "%s: %ld columns of keys, %ld of values", op_, c.w[1].rows, c.w[2].rows);
}

void OpChecks::packed_layer(const PackedLayer& c) const {
  using Finish = PackedLinear::Finish;
  for (const PackedLinear* call : {&c.qkv, &c.o, &c.gate_up, &c.down}) packed_linear(*call);
  IRQ_CHECK(c.qkv.finish == Finish::rope && c.o.finish == Finish::add && c.gate_up.finish == Finish::swiglu &&
                c.down.finish == Finish::add,
            "%s: a layer is q|k|v, o, gate|up and down", op_);
  attention(c.qkv.y, c.qkv.keys, c.qkv.values, c.o.x, c.lse, c.seqs, c.qkv.head_dim);
}

// ---- CheckedBackend: everything but the ops -------------------------------------------------------------------------
CheckedBackend::CheckedBackend(std::unique_ptr<Backend> inner)
    : Backend(inner->precision()), inner_(std::move(inner)), device_(inner_->device()) {}
CheckedBackend::CheckedBackend(Device device, Precision precision) : Backend(precision), device_(device) {}
CheckedBackend::~CheckedBackend() = default;

void CheckedBackend::set_profile(bool on) {
  profiling_ = on;
  if (on) times_.clear();
}
const std::vector<OpTime>& CheckedBackend::profile() const { return times_; }

void CheckedBackend::Scope::add(CheckedBackend& b, const char* op, double ms) {
  for (OpTime& t : b.times_)
    if (t.op == op) {
      ++t.calls;
      t.ms += ms;
      return;
    }
  b.times_.push_back({op, 1, ms});
}

Device CheckedBackend::device() const { return device_; }
std::string CheckedBackend::describe() const {
  return inner_ ? inner_->describe() : strf("%s, dry run", device_name(device_));
}

// A dry backend hands out an address that is never read: the same for all, so that nothing can depend on it.
void* CheckedBackend::allocate(int64_t bytes) {
  IRQ_CHECK(bytes >= 0, "allocation of %ld bytes", bytes);
  return inner_ ? inner_->allocate(bytes) : reinterpret_cast<void*>(uintptr_t{1} << 40);
}
void CheckedBackend::release(void* memory) {
  if (inner_) inner_->release(memory);
}
int64_t CheckedBackend::free_bytes() const {
  return inner_ ? inner_->free_bytes() : std::numeric_limits<int64_t>::max();
}
void CheckedBackend::synchronize() {
  if (inner_) inner_->synchronize();
}

double CheckedBackend::time_ms(const std::function<void()>& work) {
  if (inner_) return inner_->time_ms(work);
  work();
  return 0;
}
// Recording through the checks: `work` calls this backend, which checks and passes on.
std::unique_ptr<Recorded> CheckedBackend::capture(const std::function<void()>& work) {
  return inner_ ? inner_->capture(work) : Backend::capture(work);
}
void CheckedBackend::copy_bytes(void* dst, const void* src, int64_t bytes) {
  if (inner_) inner_->copy_bytes(dst, src, bytes);
}

void CheckedBackend::tune_matmul(bool on) {
  if (inner_) inner_->tune_matmul(on);
}
std::vector<MatmulTiming> CheckedBackend::take_matmul_timings() {
  return inner_ ? inner_->take_matmul_timings() : std::vector<MatmulTiming>{};
}
std::string CheckedBackend::matmul_choices(bool met_only) const {
  return inner_ ? inner_->matmul_choices(met_only) : "";
}
bool CheckedBackend::restore_matmul_choices(const std::string& text) {
  return inner_ && inner_->restore_matmul_choices(text);
}

namespace {
void check_transfer(const char* what, const Tensor& t, const void* host, Device device) {
  IRQ_CHECK(t.numel() == 0 || (t.data && host), "%s: null memory for %s", what, describe_tensor(t).c_str());
  IRQ_CHECK(t.device == device, "%s: %s, expected it on %s", what, describe_tensor(t).c_str(), device_name(device));
  IRQ_CHECK(t.rows >= 0 && t.cols >= 0 && (t.stride >= t.cols || t.rows <= 1), "%s: not a matrix: %s", what,
            describe_tensor(t).c_str());
}
}  // namespace

void CheckedBackend::upload(Tensor dst, const void* host) {
  check_transfer("upload", dst, host, device_);
  if (inner_) inner_->upload(dst, host);
}
void CheckedBackend::download(void* host, Tensor src) {
  check_transfer("download", src, host, device_);
  if (inner_) inner_->download(host, src);
}

}  // namespace irq
