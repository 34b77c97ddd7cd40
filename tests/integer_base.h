// A quantized base of integers with random contents, in a file: no quantizer is asked.
#pragma once
#include "tests/eval_fixture.h"

namespace irq {

inline IrqInfo integer_info(const ModelConfig& config, int group, ShiftKind shift = ShiftKind::int_zero) {
  IrqInfo info;
  info.config = config;
  info.dtype = DType::F32;
  info.format = {QuantKind::integer, 4, group, ScaleKind::f32, shift};
  info.source_hash = 77;
  return info;
}

// An integer base with random codes, zero points near the middle, and scales that give weights of N(0, 1/in)'s size.
inline uint64_t write_integer_base(const std::string& path, const IrqInfo& info, float zero_scale_at = -1) {
  const Weights plain = random_weights(info.config, 3);
  IrqWriter w(path, info);
  Rng rng(11, 1);
  while (w.next()->name != "entropy") {
    std::string name = w.next()->name;
    const size_t dot = name.find_last_of('.');
    LinearShape shape{};
    if (dot == std::string::npos || linear_index(info.config, name.substr(0, dot), &shape) < 0) {
      w.write(name, plain.at(name).data(), w.next()->bytes());
      continue;
    }
    name.resize(dot);
    QuantizedMatrix q;
    q.rows = shape.out, q.cols = shape.in, q.format = info.format;
    std::vector<uint8_t> codes(static_cast<size_t>(q.code_bytes())), zeros(static_cast<size_t>(q.blocks()));
    std::vector<float> scales(static_cast<size_t>(q.blocks()));
    for (uint8_t& x : codes) x = static_cast<uint8_t>(rng.below(256));
    for (uint8_t& x : zeros) x = static_cast<uint8_t>(6 + rng.below(4));
    const double size = 0.4 / std::sqrt(static_cast<double>(shape.in));
    for (float& x : scales) x = static_cast<float>(size * (0.5 + rng.uniform()));
    if (zero_scale_at >= 0 && name == "layers.1.wo") scales[static_cast<size_t>(zero_scale_at)] = 0;
    q.codes = make_view(codes.data(), DType::U8, 1, q.code_bytes(), "codes");
    q.zeros = make_view(zeros.data(), DType::U8, 1, q.blocks(), "zeros");
    q.scales = make_view(scales.data(), DType::F32, 1, q.blocks(), "scales");
    w.write_matrix(name, q, 3.5, 3.75);
  }
  return w.finish();
}

}  // namespace irq
