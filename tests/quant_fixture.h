// A matrix quantized on some backend, with everything brought back to the host.
#pragma once
#include <memory>
#include <vector>

#include "src/quant/quantize.h"

namespace irq {

// Device memory that is released with it.
class DeviceBuffer {
 public:
  DeviceBuffer(Backend& backend, int64_t bytes) : backend_(backend), data_(backend.allocate(bytes > 0 ? bytes : 256)) {}
  ~DeviceBuffer() { backend_.release(data_); }
  DeviceBuffer(const DeviceBuffer&) = delete;
  void* data() const { return data_; }

 private:
  Backend& backend_;
  void* data_;
};

struct Quantized {
  QuantizeStats stats;
  std::vector<uint8_t> codes, scale_codes, tau_codes;
  std::vector<float> scales, scale_groups, tau_groups, tau, absmax, entropy_plain, entropy;
  float offset = 0;
  std::vector<float> dequant;            // F32, with tau
  std::vector<float> dequant_unshifted;  // F32, level * s_hat only
};

inline std::vector<uint8_t> unpack(const std::vector<uint8_t>& codes, int64_t n, int bits) {
  std::vector<uint8_t> out(static_cast<size_t>(n), 0);
  for (int64_t i = 0; i < n * bits; ++i) {
    const int bit = (codes[static_cast<size_t>(i / 8)] >> (7 - i % 8)) & 1;
    uint8_t& code = out[static_cast<size_t>(i / bits)];
    code = static_cast<uint8_t>(code * 2 + bit);
  }
  return out;
}

template <class T>
std::vector<T> download(Backend& backend, Tensor t) {
  std::vector<T> host(static_cast<size_t>(t.data ? t.numel() : 0));
  if (!host.empty()) backend.download(host.data(), t);
  return host;
}

inline Quantized quantize_on(Backend& backend, const std::vector<float>& weights, int64_t rows, int64_t cols,
                             QuantFormat format, const IcqSpec* icq, const float* map_values = nullptr,
                             const float* forced_offset = nullptr) {
  DeviceBuffer weight_memory(backend, rows * cols * 4), map_memory(backend, 1024),
      dequant_memory(backend, rows * cols * 4);
  DeviceBuffer matrix_memory(backend, placed_bytes(rows, cols, format));
  const Tensor w = make_view(weight_memory.data(), DType::F32, rows, cols, "layers.0.wq", backend.device());
  const Tensor map = make_view(map_memory.data(), DType::F32, 1, 256, "map", backend.device());
  const Tensor w_hat = make_view(dequant_memory.data(), DType::F32, rows, cols, "w_hat", backend.device());
  backend.upload(w, weights.data());
  backend.upload(map, map_values ? map_values : dynamic_map().data());
  QuantizedMatrix q = place_quantized(matrix_memory.data(), rows, cols, format, map, backend.device());
  Quantized out;
  Quantizer quantizer(backend);
  out.stats = quantizer.run(q, w, icq, true);
  out.codes = download<uint8_t>(backend, q.codes);
  out.scales = download<float>(backend, q.scales);
  out.scale_codes = download<uint8_t>(backend, q.scale_codes);
  out.scale_groups = download<float>(backend, q.scale_groups);
  out.tau_codes = download<uint8_t>(backend, q.tau_codes);
  out.tau_groups = download<float>(backend, q.tau_groups);
  out.tau = download<float>(backend, quantizer.tau());
  out.absmax = download<float>(backend, quantizer.absmax());
  out.entropy_plain = download<float>(backend, quantizer.entropy_plain());
  out.entropy = download<float>(backend, quantizer.entropy());
  if (q.scale_offset) {
    backend.download(&out.offset, q.scale_offset);
    if (forced_offset) backend.upload(q.scale_offset, forced_offset);
  }
  backend.nfk_dequant(w_hat, q);
  out.dequant = download<float>(backend, w_hat);
  q.format.shift = ShiftKind::none;
  backend.nfk_dequant(w_hat, q);
  out.dequant_unshifted = download<float>(backend, w_hat);
  return out;
}

}  // namespace irq
