// What the tools that open a model share.
#pragma once
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "src/core/progress.h"
#include "src/eval/model_session.h"
#include "src/text/tokenizer.h"
#include "tools/cli.h"

namespace irq {

// "1,15043,3186" (commas or spaces) -> ids; a usage Error names `flag` where one is no number or outside the vocabulary.
std::vector<int32_t> parse_ids(const std::string& flag, const std::string& list, int64_t vocab);
// The flag --legacy auto|on|off of the tools that encode text, and what open_tokenizer() is told for its value.
void declare_legacy(Cli& cli, std::string* value);
std::optional<bool> legacy_of(const std::string& value);
// The model's tokenizer, null if there is none beside it.
std::unique_ptr<Tokenizer> find_and_open_tokenizer(const std::string& model_path, std::optional<bool> legacy = {});
// Every file that is read for a model and its adapter ("": none), the tokenizer's included: what no output may replace.
std::vector<std::string> model_files(const std::string& model, const std::string& adapter = "");
// Shows bytes done of all on `bar`, and ends the work where Ctrl-C was pressed.
ByteProgress byte_progress(ProgressBar& bar);
// ModelSession::load with a progress bar and a note on what was loaded into how much memory.
size_t load_session(const Cli& cli, ModelSession& session, const std::vector<Workload>& choices);

}  // namespace irq
