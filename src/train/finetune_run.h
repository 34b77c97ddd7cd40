// The stages of a finetuning run, in the order of run(): finetune_options.cpp settles what is asked, finetune_setup.cpp
// gets everything ready, finetune.cpp trains. finetune_init.cpp, finetune_loftq.cpp: the adapter to start from.
// finetune_methods.cpp: what a method asks of its base, and what it trains.
#pragma once
#include <limits>
#include <memory>
#include <optional>
#include <vector>

#include "kernels/device_memory.h"
#include "src/core/file.h"
#include "src/io/initial_adapter.h"
#include "src/io/load_model.h"
#include "src/io/synthetic.h"
#include "src/quant/loftq.h"
#include "src/text/instruct.h"
#include "src/text/loader.h"
#include "src/train/finetune.h"
#include "src/train/memory_plan.h"
#include "src/train/quantize_base.h"
#include "src/train/run_record.h"

namespace irq {

class Finetune {
 public:
  Finetune(CheckedBackend& backend, TrainOptions options)
      : backend_(backend), o_(std::move(options)), method_(find_method(o_.method)) {}
  ~Finetune();
  Finetune(const Finetune&) = delete;
  int run();

 private:
  // One flag of the resolved configuration. `fixed`: a resumed run must have the same value.
  struct Setting {
    std::string flag, value;
    bool fixed = false;
  };
  void note(const std::string& text) const;

  // finetune_options.cpp
  void refuse_ignored_flags() const;  // what can be said so far: before and after the data is read
  void resolve();
  void resolve_format();
  std::vector<Setting> settings() const;
  std::string identity() const;
  std::string command_again() const;
  void require_same_options() const;
  void require_same_base() const;

  // finetune_methods.cpp
  void require_base_of_method() const;
  void resolve_pooling();
  void take_pooling(const AdapterFile& initial);
  ModelPlan model_plan() const;
  AdapterFile result_header() const;

  // finetune_init.cpp
  void open_init_adapter();
  void require_init_base() const;

  // finetune_loftq.cpp
  void open_loftq_pair();
  LoftqSpec loftq_spec() const;
  bool take_loftq_adapter(const std::string& irq_path);  // false, with a note, if it does not fit
  void upload_loftq();

  // finetune_setup.cpp
  void open_base_file();
  void refuse_own_inputs() const;
  void claim_folder();
  std::string find_data() const;
  LoaderOptions loading(int64_t micro_batch) const;
  void load_examples();
  void note_long_examples() const;
  void plan_batches();
  void note_shared_prompts(double tokens, double rows) const;
  void quantize();
  QuantizeOptions quantize_options() const;
  void choose_integers(QuantizeOptions& options) const;

  // finetune_requantize.cpp: --method qlora-gptq, after training
  double requantize();  // returns the held-out loss of what it leaves
  void build();
  void require_disk() const;
  Error with_advice(Error error, const ModelPlan& model, int64_t budget) const;

  // finetune.cpp
  void load_weights();
  void restore_or_init();
  void open_log();
  [[noreturn]] void fail_not_finite(const std::string& when, const std::string& found);
  double held_out_loss();
  double learning_rate(int64_t step) const;
  std::string note_timed_matmuls();
  double flops(const std::vector<Batch>& window) const;  // of one step
  void train();
  void checkpoint(bool finished);
  void save_result();
  // A config.json trained in full is initialised as training from scratch asks for, not read from a base.
  bool from_scratch() const { return method_.full && dynamic_cast<const SyntheticBase*>(base_.get()) != nullptr; }
  std::string out(const char* name) const { return o_.out + "/" + name; }
  const char* result_name() const {
    return method_.full ? "model.bin" : method_.requantize ? "model.irq" : "adapter.lora";
  }
  void claim_memory();    // what plan_ asks for, and a trainer in it
  void release_memory();  // both

  CheckedBackend& backend_;
  TrainOptions o_;
  const Method& method_;
  ModelConfig config_;
  std::vector<std::string> made_folders_;  // for --out, the innermost first
  std::string made_base_;                  // the quantized base, if this run made it
  std::unique_ptr<FileLock> folder_lock_;
  std::unique_ptr<BaseSource> base_;       // a plain base ...
  std::unique_ptr<IrqReader> quantized_;   // ... or a quantized one (base_ too, where it has just been quantized)
  std::optional<InitialAdapter> initial_;  // its tensors only until they are loaded
  std::optional<AdapterFile> loftq_;       // L and R of --method loftq, until they are loaded
  uint64_t base_hash_ = 0, data_hash_ = 0;
  double requantize_seconds_ = 0;                                       // of --method qlora-gptq, at its end
  double quantize_seconds_ = std::numeric_limits<double>::quiet_NaN();  // of this run; NaN: nothing was to be quantized
  int64_t steps_ = 0;
  LoadedData train_, held_out_;
  std::vector<StepShape> train_shapes_;
  std::vector<Batch> eval_batches_;
  Prefixes prefixes_ = Prefixes::own;  // of the training examples
  std::unique_ptr<DataLoader> loader_;
  MemoryPlan plan_;
  DeviceMemory memory_{backend_};
  std::unique_ptr<Arena> arena_;
  std::unique_ptr<Trainer> trainer_;
  std::unique_ptr<RunLog> log_;  // null where a finished run is resumed and nothing is left to do
  OptimizerConfig optimizer_;
  double gemm_rate_ = 0;  // FLOPs per second of a large product on this GPU, 0 = not known (a CPU, no memory left)
  std::optional<TrainState> saved_;  // of the run that is resumed
  TrainState state_;
  bool told_timings_ = false, told_cache_ = false;
};

}  // namespace irq
