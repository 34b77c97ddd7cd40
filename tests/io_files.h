// Small files of every format, filled with known random contents, for the tests of src/io.
#pragma once
#include <map>

#include "src/core/rng.h"
#include "src/io/checkpoint.h"
#include "tests/scratch_dir.h"

namespace irq {

inline ModelConfig small_config(bool tied = false) {
  ModelConfig c;
  c.dim = 16, c.ffn = 24, c.layers = 2, c.heads = 2, c.kv_heads = 1, c.head_dim = 8, c.vocab = 50, c.max_seq = 64;
  c.rope_theta = 12345.5, c.norm_eps = 1e-5, c.tied = tied, c.bos = 3, c.eos = 4;
  return c;
}

inline std::string random_string(Rng& rng, int64_t bytes) {
  std::string s(static_cast<size_t>(bytes), '\0');
  for (char& c : s) c = static_cast<char>(rng.next_u32());
  return s;
}

using Contents = std::map<std::string, std::string>;  // tensor -> its bytes

// Random bit patterns, NaNs among them: the formats carry bits, not numbers.
inline Contents write_base(const std::string& path, const ModelConfig& c, DType dtype, uint64_t seed = 1) {
  Rng rng(seed);
  Contents contents;
  BaseWriter w(path, c, dtype);
  while (const TensorSpec* t = w.next()) {
    const std::string name = t->name;
    const std::string& bytes = contents[name] = random_string(rng, t->bytes());
    const int64_t half = static_cast<int64_t>(bytes.size() / 2);  // in two pieces
    w.write(name, bytes.data(), half);
    w.write(name, bytes.data() + half, static_cast<int64_t>(bytes.size()) - half);
  }
  w.finish();
  return contents;
}

inline IrqInfo small_info(int bits = 4, ShiftKind shift = ShiftKind::tau, ScaleKind scale = ScaleKind::dq8) {
  IrqInfo info;
  info.config = small_config();
  info.dtype = DType::F16;
  info.format.bits = bits, info.format.shift = shift, info.format.scale = scale;
  info.icq.lambda = 0.25, info.icq.n = 50, info.icq.fp32_entropy = true;
  info.source_hash = 0x0123456789abcdefull;
  return info;
}

// Codes and 8-bit codes are random bytes, the f32 parts small random numbers.
inline Contents write_irq(const std::string& path, const IrqInfo& info, uint64_t seed = 1) {
  Rng rng(seed);
  Contents contents;
  std::vector<float> map(256);
  for (size_t i = 0; i < 256; ++i) map[i] = (static_cast<float>(i) - 127) / 128;
  IrqWriter w(path, info);
  double entropy = 1;
  while (w.next()->name != "entropy") {
    std::string name = w.next()->name;
    const size_t dot = name.find_last_of('.');
    LinearShape shape{};
    if (dot == std::string::npos || linear_index(info.config, name.substr(0, dot), &shape) < 0) {
      const std::string& bytes = contents[name] = random_string(rng, w.next()->bytes());
      w.write(name, bytes.data(), static_cast<int64_t>(bytes.size()));
      continue;
    }
    name.resize(dot);
    QuantizedMatrix q;
    q.rows = shape.out, q.cols = shape.in, q.format = info.format;
    for (const MatrixPart& part : matrix_parts(q)) {
      std::string& bytes = contents[name + part.suffix] = random_string(rng, part.count * size_of(part.dtype));
      if (part.dtype == DType::F32)
        for (int64_t i = 0; i < part.count; ++i) {
          const float x = static_cast<float>(0.1 * rng.normal());
          std::memcpy(bytes.data() + 4 * i, &x, 4);
        }
      *part.tensor = make_view(bytes.data(), part.dtype, 1, part.count, "");
    }
    q.map = make_view(map.data(), DType::F32, 1, 256, "map");
    w.write_matrix(name, q, entropy, entropy + 0.5);
    entropy += 0.125;
  }
  contents["map"] = std::string(reinterpret_cast<const char*>(map.data()), 1024);
  w.finish();
  return contents;
}

inline AdapterFile small_adapter(uint64_t seed = 1) {
  Rng rng(seed);
  AdapterFile a;
  a.method = "ir-qlora", a.rank = 4, a.alpha = 16, a.dropout = 0.05, a.targets = 0x7f, a.tile = true;
  a.base_hash = 0xfedcba9876543210ull;
  const auto add = [&](const std::string& name, int64_t rows, int64_t cols) {
    NamedArray t{name, rows, cols, {}};
    for (int64_t i = 0; i < rows * cols; ++i) t.data.push_back(static_cast<float>(rng.normal()));
    a.tensors.push_back(t);
  };
  add("layers.0.wq.A", 4, 16), add("layers.0.wq.B", 16, 4), add("layers.0.wq.beta1", 1, 1), add("layers.0.wk.A", 0, 16);
  return a;
}

inline const std::string kStateText = "{\"step\": 12, \"seed\": \"7\"}\n";

inline Contents write_small_state(const std::string& path, uint64_t seed = 1) {
  Rng rng(seed);
  Contents contents;
  std::vector<Tensor> arrays;
  for (const char* name : {"masters", "m", "v"}) {
    std::string& bytes = contents[name] = random_string(rng, 4 * 333);
    arrays.push_back(make_view(bytes.data(), DType::F32, 1, 333, name));
  }
  write_state(path, kStateText, arrays);
  return contents;
}

inline std::string bytes_of(const Tensor& t) {
  return {static_cast<const char*>(t.data), static_cast<size_t>(t.bytes())};
}

// Opens a file of any of the four formats and reads every byte of it.
inline void read_everything(const std::string& path, FileKind kind) {
  if (kind == FileKind::base) BaseReader(path).verify_all();
  if (kind == FileKind::quantized) IrqReader(path).verify_all();
  if (kind == FileKind::adapter) AdapterReader(path).file().verify_all();
  if (kind == FileKind::state) StateReader(path).file().verify_all();
}

// Header slots rewritten and its checksum made to fit again: what somebody hostile, not a broken disk, would send.
inline void forge(const std::string& path, const std::map<size_t, int32_t>& slots) {
  std::string bytes = read_bytes(path);
  for (const auto& [slot, value] : slots) std::memcpy(bytes.data() + 4 * slot, &value, 4);
  const uint64_t hash = hash_bytes(bytes.data(), 4 * 254);
  std::memcpy(bytes.data() + 4 * 254, &hash, 8);
  write_bytes(path, bytes);
}

}  // namespace irq
