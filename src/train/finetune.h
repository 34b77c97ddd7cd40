// The main job: a base and a data file in, a finetuned adapter (or a trained model) out. irq_train is its command line.
#pragma once
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "src/model/config.h"
#include "src/quant/icq_options.h"
#include "src/text/records.h"

namespace irq {

// Everything the command line can say. Unset numbers are filled by the recipe (resolve()).
struct TrainOptions {
  std::string base, data, eval_data, method = "ir-qlora", recipe = "paper", out;
  std::optional<int> bits;
  std::optional<std::string> format,
      group;  // of the base: nf | int | gptq; weights per scale of integers, or "channel"
  double lambda = 0.1;
  int n = 100;
  std::string entropy = "exact";
  IcqWords icq;
  int loftq_iters = 5;
  std::string loftq_scaling = "fold";  // fold | peft
  std::optional<int64_t> steps;
  std::optional<double> epochs, lr, dropout, clip;
  std::optional<int64_t> holdout;
  int64_t batch = 16, micro_batch = 0, warmup = 0;
  std::string schedule = "constant";  // constant | cosine
  std::string init_adapter;           // a PEFT folder or a .lora to start from
  std::optional<int64_t> rank;
  std::optional<double> alpha;
  std::optional<std::string> targets, iec_expand, pool, iec_align;
  int64_t source_len = 384, target_len = 128, window = 512;
  std::optional<bool> legacy;  // open_tokenizer()'s; unset: as the tokenizer's files say
  uint64_t seed = 42;
  int64_t memory_limit = 0;  // bytes, 0 = what is free
  std::string recompute = "auto", residency = "auto", dtype = "bf16", tune_matmul = "on", graphs = "on",
              share_prefixes = "auto";
  int64_t eval_every = 0, save_every = 500;
  bool resume = false, overwrite = false, print_tape = false, quiet = false;
  std::string command;             // as typed, for the log
  std::vector<std::string> given;  // the flags typed: one that would have no effect is refused
};

// What fidelity 6.1 says where the command line is silent. "paper": its appendix B.4, the second column for LLaMA-30B and
// larger; "official-script": what the released finetune.sh does for every size. Training in full is this project's own.
struct RecipeDefaults {
  double lr, dropout, clip, alpha;
  int64_t rank;
};
RecipeDefaults recipe_defaults(const std::string& recipe, const ModelConfig& config, bool full);
int64_t default_steps(DataForm form);  // 10,000; 20,000 for input and output (Flan v2)

// Returns the process's exit status. Progress goes to stderr, results (losses before and after, paths) to stdout.
int finetune(CheckedBackend& backend, TrainOptions options);

}  // namespace irq
