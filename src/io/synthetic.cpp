#include "src/io/synthetic.h"

#include <cmath>
#include <mutex>
#include <numbers>

#include "src/core/hash.h"
#include "src/core/rng.h"
#include "src/io/config_json.h"

namespace irq {
namespace {

constexpr float kStandardDeviation = 0.02f;

// values[i] of stream `id`: pairs of normals by Box-Muller from one Philox call per four values.
void fill_normal(float* out, int64_t count, uint64_t seed, uint64_t id, int64_t first) {
  for (int64_t i = 0; i < count; i += 4) {
    const uint64_t block = static_cast<uint64_t>((first + i) / 4);
    const Philox4 r = philox({static_cast<uint32_t>(block), static_cast<uint32_t>(block >> 32),
                              static_cast<uint32_t>(id), static_cast<uint32_t>(id >> 32)},
                             static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32));
    const auto unit = [](uint32_t x) { return (static_cast<float>(x >> 8) + 0.5f) * 0x1p-24f; };
    const float radius[2] = {std::sqrt(-2 * std::log(unit(r.x))), std::sqrt(-2 * std::log(unit(r.z)))};
    const float angle[2] = {2 * std::numbers::pi_v<float> * unit(r.y), 2 * std::numbers::pi_v<float> * unit(r.w)};
    const float four[4] = {radius[0] * std::cos(angle[0]), radius[0] * std::sin(angle[0]),
                           radius[1] * std::cos(angle[1]), radius[1] * std::sin(angle[1])};
    for (int64_t j = 0; j < 4 && i + j < count; ++j) out[i + j] = kStandardDeviation * four[j];
  }
}

}  // namespace

SyntheticBase::SyntheticBase(const std::string& path, const ModelConfig& config, DType dtype, uint64_t seed)
    : path_(path), seed_(seed), layout_(base_layout(config, dtype, path)) {
  config_ = config;
  dtype_ = dtype;
  const std::string identity = strf("synthetic %s %s %lu %a %a %d", describe(config).c_str(), name_of(dtype), seed,
                                    config.rope_theta, config.norm_eps, config.tied);
  hash_ = hash_bytes(identity.data(), static_cast<int64_t>(identity.size()));
}

Tensor SyntheticBase::tensor(const std::string& name) {
  const TensorSpec* spec = layout_.find(name == "head" && config_.tied ? "embed" : name);
  IRQ_CHECK(spec != nullptr, "no tensor %s", name.c_str());
  std::vector<unsigned char>& bytes = made_[name];
  if (bytes.empty()) {
    bytes.resize(static_cast<size_t>(spec->bytes()));
    const int64_t count = spec->rows * spec->cols;
    const uint64_t id = hash_bytes(spec->name.data(), static_cast<int64_t>(spec->name.size()));
    constexpr int64_t kPiece = 1 << 14;
#pragma omp parallel for
    for (int64_t begin = 0; begin < count; begin += kPiece) {
      const int64_t n = std::min(kPiece, count - begin);
      std::vector<float> values(static_cast<size_t>(n), 1.0f);
      if (spec->rows > 1) fill_normal(values.data(), n, seed_, id, begin);
      unsigned char* to = bytes.data() + begin * size_of(spec->dtype);
      if (spec->dtype == DType::F32) std::memcpy(to, values.data(), static_cast<size_t>(n) * 4);
      for (int64_t i = 0; i < n && spec->dtype != DType::F32; ++i) {
        const uint16_t half = spec->dtype == DType::F16 ? to_f16(values[static_cast<size_t>(i)]).bits
                                                        : to_bf16(values[static_cast<size_t>(i)]).bits;
        std::memcpy(to + 2 * i, &half, 2);
      }
    }
  }
  return make_view(bytes.data(), spec->dtype, spec->rows, spec->cols, spec->name.c_str());
}

std::unique_ptr<BaseSource> open_base(const std::string& path, uint64_t seed) {
  const FileKind kind = sniff(path);
  if (kind == FileKind::base) return std::make_unique<BaseReader>(path);
  if (kind == FileKind::config_json)
    return std::make_unique<SyntheticBase>(path, model_config_from_json(path), DType::F16, seed);
  throw_wrong_kind(path, FileKind::base);
}

}  // namespace irq
