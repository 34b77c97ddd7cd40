// What the tools that open a model share.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "src/eval/model_session.h"
#include "src/text/tokenizer.h"
#include "tools/cli.h"

namespace irq {

// "1,15043,3186" (commas or spaces) -> ids; a usage Error names `flag` where one is no number or outside the vocabulary.
std::vector<int32_t> parse_ids(const std::string& flag, const std::string& list, int64_t vocab);
// The model's tokenizer, null if there is none beside it.
std::unique_ptr<Tokenizer> find_and_open_tokenizer(const std::string& model_path);
// ModelSession::load with a progress bar and a note on what was loaded into how much memory.
size_t load_session(const Cli& cli, ModelSession& session, const std::vector<Workload>& choices);

}  // namespace irq
