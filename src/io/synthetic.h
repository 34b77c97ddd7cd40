// A model of random weights that needs no file: for synthetic sizes and for training from scratch.
#pragma once
#include <map>
#include <vector>

#include "src/io/checkpoint.h"

namespace irq {

// Every matrix is N(0, 0.02), norms are 1. A tensor's values follow from (seed, its name) alone and are made when asked for.
class SyntheticBase final : public BaseSource {
 public:
  SyntheticBase(const std::string& path, const ModelConfig& config, DType dtype, uint64_t seed);
  uint64_t hash() const override { return hash_; }
  const std::string& path() const override { return path_; }
  const Layout& layout() const override { return layout_; }
  Tensor tensor(const std::string& name) override;
  void dont_need(const std::string& name) override { made_.erase(name); }

 private:
  std::string path_;
  uint64_t seed_, hash_;
  Layout layout_;
  std::map<std::string, std::vector<unsigned char>> made_;
};

inline constexpr uint64_t kSyntheticSeed = 42;  // of a config.json's random weights, where none is given

// BASE of the command line: a .bin, or a config.json (random weights from `seed`). Anything else is an Error.
std::unique_ptr<BaseSource> open_base(const std::string& path, uint64_t seed);

}  // namespace irq
