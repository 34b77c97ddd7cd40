// ModelSession: a model opened for reading - a .bin, a .irq, or a config.json's random weights - with an adapter on it or
// not. Everything that evaluates or generates runs on one.
//
//   ModelSession session(backend, "llama7b.irq", "adapter.lora");   // files opened and matched, nothing loaded yet
//   session.load({{.logits = {{5, 5, 1}}, .positions = 5}});        // memory planned and taken, weights loaded
//   session.logits(batch);
#pragma once
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "kernels/device_memory.h"
#include "src/eval/decoder.h"
#include "src/io/checkpoint.h"
#include "src/train/memory_plan.h"

namespace irq {

// What a session will be asked to do: the largest batches, and the cache it needs.
struct Workload {
  std::vector<StepShape> evaluate;     // batches whose losses are wanted
  std::vector<StepShape> logits;       // batches whose logits are wanted (with the cache where there is one)
  int64_t positions = 0;               // tokens of the longest sequence
  int64_t cache_tokens = 0;            // rows of the KV cache, of all sequences together, 0 = none
  int64_t decode_rows = 0;             // sequences that decode() takes a token of at a time, 0 = none
  std::vector<StepShape> scores = {};  // batches whose rows' losses are wanted one by one
  int64_t passing_rows = 0;            // the largest of them that goes on from the cache's first rows, 0 = none does
};

class ModelSession {
 public:
  // adapter_path may be ""; seed: of a config.json's random weights. Throws an Error if a file is not what it should be,
  // or if the adapter was trained on another base.
  ModelSession(Backend& backend, const std::string& model_path, const std::string& adapter_path = "",
               uint64_t seed = 42);
  ModelSession(const ModelSession&) = delete;
  ModelSession& operator=(const ModelSession&) = delete;

  const std::string& path() const { return path_; }
  const ModelConfig& config() const;
  std::string describe()
      const;  // "llama7b.irq: LLaMA, 32 layers, ..., NF4 with ICQ; adapter a.lora: ir-qlora, rank 64"

  // Takes the memory and loads the weights, once. choices: ways to do the same work, the best first. The first that fits
  // into budget_bytes (0 = what is free) is taken; returns its index. Weights are unpacked if that fits too, but for
  // decoding on a GPU: it is bound by reading them, and packed ones are a quarter.
  size_t load(const std::vector<Workload>& choices, const ByteProgress& progress = {}, int64_t budget_bytes = 0);
  const MemoryPlan& plan() const { return plan_; }

  // Sum of the losses (natural log) and number of scored tokens.
  std::pair<double, int64_t> evaluate(const Batch& batch);
  // The loss (natural log) of each of the batch's label rows.
  std::vector<double> row_losses(const Batch& batch);
  // The same behind the first `kept` rows of the cache: the key ranges of the batch's seqs count in [those rows | the batch].
  // The cache stays as it is.
  std::vector<double> row_losses(const Batch& batch, int64_t kept);
  // Logits (n, V) row-major of the batch's label rows.
  std::vector<float> logits(const Batch& batch);
  // The same, with keys and values in the cache: writes says where the batch's own go, its seqs count in cache rows.
  std::vector<float> logits(const Batch& batch, std::vector<KvCache::Write> writes);
  // One token more of each sequence: decode_rows entries, logits (decode_rows, V).
  std::vector<float> decode(const std::vector<DecodeRow>& next) { return decoder_->step(next); }
  // The same, but the likeliest token of each alone; -1: the logits are no numbers.
  std::vector<int32_t> decode_greedily(const std::vector<DecodeRow>& next) { return decoder_->choose(next); }
  int64_t decode_rows() const { return decoder_ ? decoder_->rows() : 0; }
  int64_t cache_tokens() const { return cache_.capacity; }

 private:
  ModelPlan model_plan(int64_t positions) const;
  MemoryPlan try_plan(const Workload& work, Residency residency) const;
  std::vector<Residency> residencies(const std::vector<Workload>& choices) const;
  [[noreturn]] void throw_too_large(const MemoryPlan& plan, int64_t budget_bytes) const;

  Backend& backend_;
  std::string path_, adapter_path_;
  std::unique_ptr<BaseSource> base_;  // one of these two
  std::unique_ptr<IrqReader> quantized_;
  std::unique_ptr<AdapterFile> adapter_;  // null without one
  MemoryPlan plan_;
  DeviceMemory memory_{backend_};
  std::unique_ptr<Arena> arena_;
  std::unique_ptr<Trainer> trainer_;  // the forward pass; nothing trains
  KvCache cache_;
  std::unique_ptr<Decoder> decoder_;
};

}  // namespace irq
