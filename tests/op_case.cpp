#include "tests/op_case.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <map>

namespace irq {
namespace {

void encode(DType t, const std::vector<double>& values, int64_t rows, int64_t cols, int64_t stride, char* bytes) {
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < cols; ++c) {
      const double x = values[static_cast<size_t>(r * cols + c)];
      char* p = bytes + (r * stride + c) * size_of(t);
      switch (t) {
        case DType::F64: std::memcpy(p, &x, 8); break;
        case DType::F32: {
          const float f = static_cast<float>(x);
          std::memcpy(p, &f, 4);
          break;
        }
        case DType::BF16: {
          const Bf16 b = to_bf16(static_cast<float>(x));
          std::memcpy(p, &b, 2);
          break;
        }
        case DType::F16: {
          const F16 h = to_f16(static_cast<float>(x));
          std::memcpy(p, &h, 2);
          break;
        }
        case DType::I32: {
          const int32_t i = static_cast<int32_t>(x);
          std::memcpy(p, &i, 4);
          break;
        }
        case DType::U8: {
          const uint8_t u = static_cast<uint8_t>(x);
          std::memcpy(p, &u, 1);
          break;
        }
      }
    }
}

std::vector<double> decode(DType t, int64_t rows, int64_t cols, int64_t stride, const char* bytes) {
  std::vector<double> values(static_cast<size_t>(rows * cols));
  for (int64_t r = 0; r < rows; ++r)
    for (int64_t c = 0; c < cols; ++c) {
      double& x = values[static_cast<size_t>(r * cols + c)];
      const char* p = bytes + (r * stride + c) * size_of(t);
      switch (t) {
        case DType::F64: std::memcpy(&x, p, 8); break;
        case DType::F32: {
          float f;
          std::memcpy(&f, p, 4);
          x = f;
          break;
        }
        case DType::BF16: {
          Bf16 b;
          std::memcpy(&b, p, 2);
          x = to_float(b);
          break;
        }
        case DType::F16: {
          F16 h;
          std::memcpy(&h, p, 2);
          x = to_float(h);
          break;
        }
        case DType::I32: {
          int32_t i;
          std::memcpy(&i, p, 4);
          x = i;
          break;
        }
        case DType::U8: {
          uint8_t u;
          std::memcpy(&u, p, 1);
          x = u;
          break;
        }
      }
    }
  return values;
}

void compare(const OpCase& c, const HostArgs& out, const HostArgs& ref, double tolerance) {
  for (size_t i = 0; i < c.args.size(); ++i) {
    if (c.args[i].role == Role::in) continue;
    const double error = relative_l2(out[i], ref[i]);
    EXPECT_LE(error, tolerance) << c.name << ": " << c.args[i].name << ", " << worst_element(c.args[i], out[i], ref[i]);
  }
}

}  // namespace

HostArgs make_inputs(const OpCase& c, uint64_t seed) {
  HostArgs args;
  for (size_t i = 0; i < c.args.size(); ++i) {
    const Arg& a = c.args[i];
    Rng rng(seed, i);
    std::vector<double> values(static_cast<size_t>(a.kind == Kind::params ? 0 : a.rows * a.cols));
    for (size_t j = 0; j < values.size(); ++j)
      values[j] = a.role == Role::out ? (a.kind == Kind::i32 || a.kind == Kind::u8 ? 0x7d : std::nan(""))
                  : a.value           ? a.value(rng, static_cast<int64_t>(j))
                                      : rng.normal();
    args.push_back(std::move(values));
  }
  return args;
}

void round_storage_to_bf16(const OpCase& c, HostArgs& args) {
  for (size_t i = 0; i < args.size(); ++i)
    if (c.args[i].kind == Kind::storage && c.args[i].role != Role::out)
      for (double& x : args[i]) x = to_float(to_bf16(static_cast<float>(x)));
}

HostArgs run_case(const OpCase& c, Backend& backend, const HostArgs& args) {
  std::vector<Tensor> tensors;
  std::vector<std::vector<char>> host;
  for (size_t i = 0; i < c.args.size(); ++i) {
    const Arg& a = c.args[i];
    const DType t = dtype_for(a.kind, backend.precision());
    const bool is_params = a.kind == Kind::params;
    const int64_t rows = is_params ? 1 : a.rows, cols = is_params ? int64_t{sizeof(StepParams)} : a.cols;
    const int64_t stride = cols + a.spare_cols;
    std::vector<char> bytes(static_cast<size_t>(rows * stride * size_of(t)), '\x7f');
    if (is_params) std::memcpy(bytes.data(), &a.params, sizeof(StepParams));
    else encode(t, args[i], rows, cols, stride, bytes.data());
    Tensor whole = make_view(backend.allocate(std::max<int64_t>(static_cast<int64_t>(bytes.size()), 256)), t, rows,
                             stride, a.name, backend.device());
    backend.upload(whole, bytes.data());
    whole.cols = cols;
    tensors.push_back(whole);
    host.push_back(std::move(bytes));
  }
  if (c.prepare) c.prepare(backend, tensors);
  c.run(backend, tensors);
  backend.synchronize();
  HostArgs out = args;
  for (size_t i = 0; i < c.args.size(); ++i) {
    Tensor whole = tensors[i];
    whole.cols = whole.stride;
    if (c.args[i].role != Role::in) {
      const std::vector<char> before = host[i];
      backend.download(host[i].data(), whole);
      out[i] = decode(whole.dtype, whole.rows, tensors[i].cols, whole.stride, host[i].data());
      // The spare columns belong to somebody else: no op may write there.
      const int64_t w = size_of(whole.dtype);
      for (int64_t r = 0; r < whole.rows; ++r)
        EXPECT_EQ(0, std::memcmp(&before[static_cast<size_t>((r * whole.stride + tensors[i].cols) * w)],
                                 &host[i][static_cast<size_t>((r * whole.stride + tensors[i].cols) * w)],
                                 static_cast<size_t>(c.args[i].spare_cols * w)))
            << c.name << ": " << c.args[i].name << " row " << r << " wrote behind its columns";
    }
    backend.release(tensors[i].data);
  }
  return out;
}

double relative_l2(const std::vector<double>& out, const std::vector<double>& ref) {
  double difference = 0, scale = 0;
  for (size_t i = 0; i < ref.size(); ++i) {
    if (std::isnan(out[i]) != std::isnan(ref[i])) return std::numeric_limits<double>::infinity();
    if (std::isnan(ref[i]) || out[i] == ref[i]) {
      if (std::isfinite(ref[i])) scale += ref[i] * ref[i];
      continue;
    }
    difference += (out[i] - ref[i]) * (out[i] - ref[i]);
    scale += ref[i] * ref[i];
  }
  return difference == 0 ? 0 : std::sqrt(difference / std::max(scale, 1e-300));
}

std::string worst_element(const Arg& arg, const std::vector<double>& out, const std::vector<double>& ref) {
  size_t worst = 0;
  double largest = -1;
  for (size_t i = 0; i < ref.size(); ++i) {
    const double d = std::isnan(out[i]) != std::isnan(ref[i]) ? INFINITY : std::abs(out[i] - ref[i]);
    if (d > largest) largest = d, worst = i;
  }
  const long cols = static_cast<long>(arg.cols), at = static_cast<long>(worst);
  return strf("worst at (%ld, %ld): %.9g, expected %.9g", at / cols, at % cols, out[worst], ref[worst]);
}

void check_cpu_f32(const OpCase& c) {
  const HostArgs in = make_inputs(c);
  HostArgs rounded = in;  // both sides see what F32 can hold
  for (auto& values : rounded)
    for (double& x : values) x = static_cast<double>(static_cast<float>(x));
  compare(c, run_case(c, cpu_backend(DType::F32), rounded), run_case(c, cpu_backend(DType::F64), rounded),
          c.tolerance_f32);
}

void check_cuda_f32(const OpCase& c) {
  if (const std::string reason = cuda_unavailable_reason(); !reason.empty()) GTEST_SKIP() << reason;
  const HostArgs in = make_inputs(c, 2);
  compare(c, run_case(c, cuda_backend(DType::F32), in), run_case(c, cpu_backend(DType::F32), in), c.tolerance_f32);
}

void check_cuda_bf16(const OpCase& c) {
  if (const std::string reason = cuda_unavailable_reason(); !reason.empty()) GTEST_SKIP() << reason;
  HostArgs in = make_inputs(c, 3);
  round_storage_to_bf16(c, in);
  compare(c, run_case(c, cuda_backend(DType::BF16), in), run_case(c, cpu_backend(DType::F64), in), c.tolerance_bf16);
}

Backend& cpu_backend(DType storage) {
  static std::map<DType, std::unique_ptr<Backend>> made;
  auto& backend = made[storage];
  if (!backend) backend = make_backend(Device::CPU, {storage, storage});
  return *backend;
}

Backend& cuda_backend(DType storage) {
  static std::map<DType, std::unique_ptr<Backend>> made;
  auto& backend = made[storage];
  if (!backend) backend = make_backend(Device::CUDA, {storage, DType::F32});
  return *backend;
}

}  // namespace irq
