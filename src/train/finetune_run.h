// The stages of a finetuning run, in the order of run(): finetune_setup.cpp gets everything ready, finetune.cpp trains.
#pragma once
#include <cstdio>
#include <memory>
#include <vector>

#include "src/io/load_model.h"
#include "src/text/instruct.h"
#include "src/text/loader.h"
#include "src/train/finetune.h"
#include "src/train/memory_plan.h"
#include "src/train/run_record.h"

namespace irq {

class Finetune {
 public:
  Finetune(CheckedBackend& backend, TrainOptions options)
      : backend_(backend), o_(std::move(options)), method_(find_method(o_.method)) {}
  ~Finetune() {
    trainer_.reset();
    if (memory_) backend_.release(memory_);
  }
  Finetune(const Finetune&) = delete;
  int run();

 private:
  void note(const std::string& text) const {
    if (!o_.quiet) std::fprintf(stderr, "%s\n", text.c_str());
  }
  void open_base_file();
  void resolve();
  void claim_folder();
  std::string find_data() const;
  void load_examples();
  void quantize();
  ModelPlan model_plan() const;
  void build();
  void restore_or_init();
  double held_out_loss(const char* label);
  double learning_rate(int64_t step) const;
  void train();
  void checkpoint(bool finished);
  void save_result();
  std::string identity() const;
  std::string out(const char* name) const { return o_.out + "/" + name; }

  CheckedBackend& backend_;
  TrainOptions o_;
  const Method& method_;
  ModelConfig config_;
  std::unique_ptr<BaseSource> base_;      // a plain base ...
  std::unique_ptr<IrqReader> quantized_;  // ... or a quantized one
  uint64_t base_hash_ = 0;
  int64_t steps_ = 0;
  LoadedData train_, held_out_;
  std::vector<Batch> eval_batches_;
  std::unique_ptr<DataLoader> loader_;
  MemoryPlan plan_;
  void* memory_ = nullptr;
  std::unique_ptr<Arena> arena_;
  std::unique_ptr<Trainer> trainer_;
  std::unique_ptr<RunLog> log_;
  OptimizerConfig optimizer_;
  TrainState state_;
};

}  // namespace irq
