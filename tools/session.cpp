#include "tools/session.h"

#include <algorithm>
#include <charconv>

#include "src/core/interrupt.h"

namespace irq {

std::vector<int32_t> parse_ids(const std::string& flag, const std::string& list, int64_t vocab) {
  std::vector<int32_t> ids;
  const auto between = [](char c) { return c == ',' || c == ' ' || c == '\n' || c == '\t'; };
  bool needed = false;  // a comma stands on one side only
  const auto refuse_empty = [&] {
    throw Error(flag + ": an empty element in the list", Exit::usage)
        .line("expected", "a list such as 1,15043,3186")
        .line("found", list.size() > 60 ? list.substr(0, 60) + "..." : list);
  };
  for (size_t at = 0; at < list.size();) {
    if (between(list[at])) {
      if (list[at] == ',') {
        if (needed || ids.empty()) refuse_empty();
        needed = true;
      }
      ++at;
      continue;
    }
    needed = false;
    const size_t end =
        static_cast<size_t>(std::find_if(list.begin() + static_cast<int64_t>(at), list.end(), between) - list.begin());
    const std::string word = list.substr(at, end - at);
    int32_t id = -1;
    const auto [stop, error] = std::from_chars(word.data(), word.data() + word.size(), id);
    if (error != std::errc() || stop != word.data() + word.size())
      throw Error(flag + ": '" + word + "' is not a token id", Exit::usage)
          .line("expected", "a list such as 1,15043,3186");
    if (id < 0 || id >= vocab)
      throw Error(flag + ": token id outside the model's vocabulary", Exit::usage)
          .line("expected", strf("ids from 0 to %s", with_commas(vocab - 1).c_str()))
          .line("found", word);
    ids.push_back(id);
    at = end;
  }
  if (needed) refuse_empty();
  if (ids.empty())
    throw Error(flag + ": the list is empty", Exit::usage).line("expected", "a list such as 1,15043,3186");
  return ids;
}

void declare_legacy(Cli& cli, std::string* value) {
  cli.option("--legacy", value,
             "LLaMA-1's space in front of text behind BOS or EOS: auto = as the tokenizer's own files say",
             {"auto", "on", "off"});
}

std::optional<bool> legacy_of(const std::string& value) {
  return value == "auto" ? std::nullopt : std::optional<bool>(value == "on");
}

std::unique_ptr<Tokenizer> find_and_open_tokenizer(const std::string& model_path, std::optional<bool> legacy) {
  const std::string path = find_tokenizer(model_path);
  return path.empty() ? nullptr : open_tokenizer(path, legacy);
}

std::vector<std::string> model_files(const std::string& model, const std::string& adapter) {
  std::vector<std::string> files = tokenizer_paths(model);
  for (const std::string& path : {model, adapter})
    if (!path.empty()) files.push_back(path);
  return files;
}

ByteProgress byte_progress(ProgressBar& bar) {
  return [&bar](int64_t done, int64_t all) {
    throw_if_interrupted();
    bar.set_total(all);
    bar.update(done);
  };
}

size_t load_session(const Cli& cli, ModelSession& session, const std::vector<Workload>& choices) {
  ProgressBar bar("load", 100, "%", cli.quiet());
  const size_t chosen =
      session.load(choices, [&](int64_t done, int64_t all) { bar.update(100 * done / std::max<int64_t>(all, 1)); });
  const MemoryPlan& plan = session.plan();
  const char* weights = !plan.model.quantized                       ? ""
                        : plan.model.residency == Residency::packed ? ", weights packed"
                                                                    : ", weights unpacked";
  bar.finish(strf("%s; memory %s%s", session.describe().c_str(),
                  human_bytes(static_cast<double>(plan.peak_bytes)).c_str(), weights));
  return chosen;
}

}  // namespace irq
