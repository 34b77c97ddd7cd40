// Llama: weights on the device and the forward pass. Building (what memory holds what) is in build.cpp, filling it from
// files in src/io/load_model.cpp.
#pragma once
#include <algorithm>
#include <array>
#include <memory>
#include <string_view>
#include <vector>

#include "src/model/config.h"
#include "src/model/method.h"
#include "src/ops/ops.h"

namespace irq {

// What backward computes again instead of reading it from memory, each level with those before it: nothing; what RMSNorm and
// SwiGLU made; gate|up; whole layers.
enum class Recompute { none, norms, gate_up, block };
constexpr std::array<const char*, 4> kRecomputeNames = {"none", "norms", "gate_up", "block"};
inline Recompute recompute_named(std::string_view name) {
  return static_cast<Recompute>(std::find(kRecomputeNames.begin(), kRecomputeNames.end(), name) -
                                kRecomputeNames.begin());
}
inline const char* name_of(Recompute r) { return kRecomputeNames[static_cast<size_t>(r)]; }
inline Recompute lighter(Recompute r) {
  return r == Recompute::none ? r : static_cast<Recompute>(static_cast<int>(r) - 1);
}
enum class Residency { packed, cached };

struct Layer {
  Weight attn_norm, ffn_norm;  // (1, C)
  LinearGroup qkv, o, gate_up, down;
  Recompute recompute = Recompute::none;
  std::array<LinearGroup*, 4> groups() { return {&qkv, &o, &gate_up, &down}; }
};

// Keys and values of every layer for `slots` sequences of up to `capacity` tokens: (slots * capacity, kv_width) each.
struct KvCache {
  std::vector<Tensor> keys, values;
  int64_t capacity = 0;
  struct Write {
    int64_t row, cache_row, count;  // batch rows [row, +count) go to cache rows [cache_row, +count)
  };
  std::vector<Write> writes;  // of the batch about to run
  // For batches that go on from the cache's first rows and leave nothing behind: attention reads one layer's keys and values
  // [the first `kept` rows of the cache | the batch's own], gathered here. kept = -1: the batch is written, as above.
  Tensor passing_keys, passing_values;  // (rows, kv_width)
  int64_t kept = -1;
  Tensor rows;  // (1, N) i32, decoding: instead of `writes`, where each row goes, known on the device only
};

// What a model is built for.
struct ModelPlan {
  ModelConfig config;
  bool quantized = false;
  QuantFormat format;
  Residency residency = Residency::packed;
  int64_t cached_layers = 0;  // packed: the first layers, whose weights are cached all the same
  bool packs(int64_t layer) const { return quantized && residency == Residency::packed && layer >= cached_layers; }
  double packed_share() const {  // of the layers
    return packs(config.layers) ? 1 - static_cast<double>(cached_layers) / static_cast<double>(config.layers) : 0;
  }
  bool full = false;  // every parameter trains
  bool lora = false;
  LoraConfig lora_config;
  bool scales = false;    // PEQA: the scales of an integer base are the parameters
  bool training = false;  // gradients and Adam's state are wanted
  // For measuring a step without any adapter: the first layer's attn_norm alone trains, so that gradients pass every frozen
  // linear.
  bool first_norm = false;
  // The [PAD] token that the authors' script adds (fidelity 6.5, --recipe official-script): its logit enters the softmax of
  // the loss, in training and in the held-out loss beside it, and nowhere else. Its row of the head (of embed, where that
  // is the head) is the mean of the others; zero rows follow to a multiple of 64, and their logits are masked. A packed batch
  // holds no padding, so its embedding is never looked up and embed does not grow. The row is not part of the adapter:
  // irq_eval and irq_generate see the model's own vocabulary, where [PAD] cannot be drawn; the loss there is lower than
  // the run's held-out loss by the mean of -log(1 - p([PAD])).
  bool pad_row = false;
  int64_t positions = 0;  // rows of the RoPE table
  Recompute recompute =
      Recompute::none;  // of the first `recompute_layers` layers; the others use the next lighter level
  int64_t recompute_layers = 0;
};

class Llama {
 public:
  // Takes the memory of everything that stays from the arena; contents are undefined until loaded.
  Llama(Backend& backend, Arena& arena, const ModelPlan& plan);

  const ModelPlan& plan() const { return plan_; }
  const ModelConfig& config() const { return plan_.config; }
  ParamStore& params() { return params_; }
  std::vector<Layer>& layers() { return layers_; }
  Weight& embed() { return embed_; }
  Weight& norm() { return norm_; }
  Weight& head() { return head_; }
  WeightProvider& weights() { return *weights_; }

  void init_rope();  // fills the cos and sin tables
  // A ~ U(-1/sqrt(in), 1/sqrt(in)), QA-LoRA's A Xavier-uniform (fidelity 5.5), B = 0, betas = 0
  void init_adapters(uint64_t seed);
  void init_full(uint64_t seed);  // N(0, 0.02), outputs of residual branches scaled by 1/sqrt(2 layers)
  // After a change of the masters: folds the adapters, rounds trained weights to their storage copies, or dequantizes cached
  // weights whose scales train.
  void refresh();
  void finish_gradients();  // dbeta from dA and dB, zeros where nothing arrived

  // The residual stream of the label rows after the last layer, (L, C). What the last layer does behind its attention is
  // done for these rows alone: nobody reads the others.
  Var hidden(Tape& t, const DeviceBatch& batch, const KvCache* cache = nullptr);
  // Next-token loss of every label row into nll (1, L).
  void loss(Tape& t, const DeviceBatch& batch, Tensor nll);
  // The same without gradients, from logits in master precision: each row's loss counts for itself, none is averaged.
  void row_losses(Tape& t, const DeviceBatch& batch, Tensor nll, const KvCache* cache = nullptr);
  // Logits (n, V) of the batch's label rows, master precision, and the likeliest token of each (1, n), unless null: -1 where
  // the logits are no numbers.
  void logits(Tape& t, const DeviceBatch& batch, Tensor out, const KvCache* cache = nullptr, Tensor choice = {});

 private:
  // `last`: only the label rows of the result are wanted.
  Var block(Tape& t, Layer& layer, size_t index, Var x, const DeviceBatch& all, const KvCache* cache, bool last);
  Var packed_block(Tape& t, Layer& layer, size_t index, Var x, const DeviceBatch& batch, const KvCache& cache);
  bool packed_layers(Tape& t, Var x, const DeviceBatch& batch, const KvCache& cache);
  Var attend(Tape& t, Layer& layer, size_t index, Var qkv, const DeviceBatch& batch, const KvCache* cache);
  void gather_passing(const KvCache& cache, size_t index, const Tensor& keys, const Tensor& values);
  void build_group(LinearGroup& g, int first_linear);
  void place_folded(LinearGroup& g);
  void build_iec_table();
  int64_t head_rows() const;  // what the head's memory has, [PAD] and its zero rows included
  Weight trained_or_stored(const std::string& name, const char* label, int64_t rows, int64_t cols, DType stored_type,
                           bool trained = false);
  void bind_params();

  Backend& backend_;
  Arena& arena_;
  ModelPlan plan_;
  std::unique_ptr<WeightProvider> weights_;
  ParamStore params_;
  Weight embed_, norm_, head_;
  std::vector<Layer> layers_;
  IecTable iec_;  // all adapters
  Tensor cos_, sin_;
};

}  // namespace irq
