// Initial values: RoPE tables, adapters, and a model trained from scratch. Everything follows from the seed.
#include <cmath>

#include "src/core/rng.h"
#include "src/model/llama.h"
#include "src/model/rope_tables.h"

namespace irq {
namespace {

// Uploads `values` in the tensor's own type (F32 or F64).
void put(Backend& backend, const Tensor& t, const std::vector<double>& values) {
  if (t.dtype == DType::F64) return backend.upload(t, values.data());
  const std::vector<float> narrow(values.begin(), values.end());
  backend.upload(t, narrow.data());
}

}  // namespace

RopeTables rope_tables(const ModelConfig& config, int64_t positions) {
  const int64_t half = config.head_dim / 2;
  RopeTables tables;
  for (int64_t pos = 0; pos < positions; ++pos)
    for (int64_t j = 0; j < half; ++j) {
      // The frequency is rounded to fp32 and the angle taken in fp32, as transformers does it.
      const float frequency = static_cast<float>(
          1.0 / std::pow(config.rope_theta, static_cast<double>(2 * j) / static_cast<double>(config.head_dim)));
      const float angle = static_cast<float>(pos) * frequency;
      tables.cosines.push_back(std::cos(static_cast<double>(angle)));
      tables.sines.push_back(std::sin(static_cast<double>(angle)));
    }
  return tables;
}

void Llama::init_rope() {
  const RopeTables tables = rope_tables(config(), plan_.positions);
  put(backend_, cos_, tables.cosines);
  put(backend_, sin_, tables.sines);
}

void Llama::init_adapters(uint64_t seed) {
  std::vector<AdapterPart> all;
  for (Layer& layer : layers_)
    for (LinearGroup* g : layer.groups()) all.insert(all.end(), g->adapters.begin(), g->adapters.end());
  std::vector<double> values;
  for (const AdapterPart& p : all) {
    Rng rng(seed, static_cast<uint64_t>(p.id) + 1);
    const double bound = plan_.lora_config.pool.on() ? std::sqrt(6 / static_cast<double>(p.a.cols + p.rank))
                                                     : 1 / std::sqrt(static_cast<double>(p.a.cols));
    values.resize(static_cast<size_t>(p.a.numel()));
    for (double& x : values) x = (2 * rng.uniform() - 1) * bound;
    put(backend_, p.a, values);
  }
}

void Llama::init_full(uint64_t seed) {
  const double branch = 0.02 / std::sqrt(2.0 * static_cast<double>(config().layers));
  std::vector<double> values;
  for (size_t i = 0; i < params_.params().size(); ++i) {
    const Param& p = params_.params()[i];
    const bool is_norm = p.rows == 1;
    const bool ends_branch = p.name.ends_with(".o") || p.name.ends_with(".down");
    Rng rng(seed, i + 1);
    values.assign(static_cast<size_t>(p.rows * p.cols), 1.0);
    if (!is_norm)
      for (double& x : values) x = rng.normal() * (ends_branch ? branch : 0.02);
    put(backend_, params_.value(static_cast<int>(i)), values);
  }
}

}  // namespace irq
