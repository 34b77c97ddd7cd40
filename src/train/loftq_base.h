// What LoftQ leaves: a quantized base OUT.irq and beside it OUT.lora, the adapter that the codes were made for.
#pragma once
#include "src/train/quantize_base.h"

namespace irq {

// The adapter's method in its file: L and R as found, with alpha = rank, so that Q + L R is the model of the two files.
constexpr const char* kLoftqInit = "loftq-init";

std::string loftq_adapter_path(const std::string& irq_path);  // "a/x.irq" -> "a/x.lora"

// quantize_base() with options.loftq, then the adapter. Each file is whole or absent; an error or Ctrl-C leaves none of the
// two, and an .irq alone (the program was killed in between) does not count: the adapter names the .irq's hash.
QuantizeSummary make_loftq_base(Backend& backend, BaseSource& in, const std::string& irq_path,
                                const QuantizeOptions& options, const QuantizeProgress& progress = {});

// The adapter of irq_path, whose hash is given. An Error that says what helps if it is missing, damaged, not LoftQ's, or
// another base's.
AdapterFile read_loftq_adapter(const std::string& irq_path, uint64_t irq_hash);

// L and R under alpha / rank of a training run: B = L rank / alpha, so that the initial model is Q + L R whatever alpha is;
// with peft, B = L as PEFT leaves it, which scales the correction by alpha / rank.
void set_loftq_scale(AdapterFile& adapter, double alpha, bool peft);

// "LoftQ: relative error of 49 matrices, mean: 0.4636 quantized alone -> 0.2537 after 1 turn -> 0.2774 after 5", and notes
// where some matrix, or all together, had a better turn than the last. The error is ||W - Q - L R|| / ||W||.
std::string describe_loftq(const QuantizeSummary& summary);

}  // namespace irq
