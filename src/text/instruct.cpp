#include "src/text/instruct.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <iterator>

#include "src/core/check.h"
#include "src/core/parallel.h"
#include "src/core/rng.h"
#include "src/text/token_file.h"

namespace irq {
namespace {

constexpr const char* kWithInput =
    "Below is an instruction that describes a task, paired with an input that provides further context. "
    "Write a response that appropriately completes the request.";
constexpr const char* kWithoutInput =
    "Below is an instruction that describes a task. Write a response that appropriately completes the request.";
constexpr uint64_t kHoldoutStream = 0x686f6c646f7574;  // "holdout": Rng stream of its own

// One example on its way: ids grow piece by piece.
struct Builder {
  const Tokenizer* tokenizer = nullptr;
  Example example;
  bool source_cut = false, target_cut = false;
  int64_t chars = 0;

  void append(std::vector<int32_t> ids, int64_t limit, bool trainable, bool& cut) {
    if (static_cast<int64_t>(ids.size()) > limit) {
      ids.resize(limit);
      cut = true;
    }
    example.ids.insert(example.ids.end(), ids.begin(), ids.end());
    example.trainable.resize(example.ids.size(), trainable);
  }
  // fidelity.md 6.5: source and target are tokenized separately; "<s>" + prompt is one string, the answer begins another.
  void source(const std::string& prompt, bool first, int64_t limit) {
    const bool bos = first && tokenizer->adds_bos();
    const Before before = bos || !first ? Before::special : Before::nothing;
    append(tokenizer->encode(prompt, bos, before), limit, false, source_cut);
    chars += count_code_points(prompt);
  }
  void target(const std::string& answer, int64_t limit) {
    std::vector<int32_t> ids = tokenizer->encode(answer);
    ids.push_back(tokenizer->eos());
    append(std::move(ids), limit, true, target_cut);
    chars += count_code_points(answer);
  }
};

void build_chat(Builder& b, const Record& record, int64_t limit) {
  const bool has_system = record.messages[0].role == "system";
  const std::string system = has_system ? record.messages[0].content : "";
  for (size_t i = has_system ? 1 : 0; i < record.messages.size(); ++i) {
    const Message& m = record.messages[i];
    if (m.role == "assistant") b.target(m.content, limit);
    else b.source(chat_prompt(system, m.content, b.example.ids.empty()), b.example.ids.empty(), limit);
  }
  if (static_cast<int64_t>(b.example.ids.size()) > limit) {
    b.example.ids.resize(limit);
    b.example.trainable.resize(limit);
    b.target_cut = true;
  }
  b.source_cut = false;  // a cut anywhere is a cut conversation
}

Builder build(const Record& record, DataForm form, const Tokenizer& tokenizer, const DataOptions& o) {
  Builder b;
  b.tokenizer = &tokenizer;
  if (form == DataForm::chat) {
    build_chat(b, record, o.source_len + o.target_len);
  } else {
    b.source(form == DataForm::alpaca ? alpaca_prompt(record.instruction, record.input) : record.input, true,
             o.source_len);
    b.target(record.output, o.target_len);
  }
  return b;
}

int64_t label_count(const Example& e) {
  return e.ids.empty() ? 0
                       : std::count_if(e.trainable.begin() + 1, e.trainable.end(), [](uint8_t t) { return t != 0; });
}

// Adds an example, or counts it as dropped if nothing in it can be scored. What stands behind the last scored id (a user's
// unanswered turn) would only cost time.
void keep(LoadedData& data, Example example, int64_t chars) {
  while (!example.ids.empty() && example.trainable.back() == 0) {
    example.ids.pop_back();
    example.trainable.pop_back();
  }
  const int64_t labels = label_count(example);
  if (labels == 0) {
    ++data.dropped;
    return;
  }
  data.rows += static_cast<int64_t>(example.ids.size()) - 1;
  data.labels += labels;
  data.examples.push_back(std::move(example));
  data.chars.push_back(chars);
}

void load_records(LoadedData& data, const std::string& content, const Tokenizer& tokenizer, const DataOptions& o) {
  if (tokenizer.eos() < 0)
    throw Error(data.path + ": the model's tokenizer has no end-of-text token, which every answer ends with")
        .line("found", tokenizer.describe())
        .line("likely", "tokenizer_config.json, which names it under \"eos_token\", is not beside tokenizer.json");
  const Records records = parse_records(data.path, content);
  data.form = records.form;
  const auto count = static_cast<int64_t>(records.list.size());
  std::vector<Builder> built(records.list.size());
  parallel_for(count, 64, [&](int64_t i) { built[i] = build(records.list[i], records.form, tokenizer, o); });
  for (Builder& b : built) {
    data.truncated_sources += b.source_cut;
    data.truncated_targets += b.target_cut;
    keep(data, std::move(b.example), b.chars);
  }
  const auto warn = [&](int64_t n, const char* what) {
    if (n > 0)
      data.warnings.push_back(strf("%s: %s of %s examples %s", data.path.c_str(), with_commas(n).c_str(),
                                   with_commas(count).c_str(), what));
  };
  if (data.form == DataForm::chat) {
    warn(data.truncated_targets, strf("are cut at %lld tokens (--source-len + --target-len)",
                                      static_cast<long long>(o.source_len + o.target_len))
                                     .c_str());
    warn(data.dropped, "are left out: no assistant's turn to train on");
  } else {
    warn(data.truncated_sources,
         strf("have prompts cut at --source-len %lld tokens", static_cast<long long>(o.source_len)).c_str());
    warn(data.truncated_targets, strf("have answers cut at --target-len %lld tokens; they lose their end-of-text mark",
                                      static_cast<long long>(o.target_len))
                                     .c_str());
    warn(data.dropped, "are left out: no token to train on");
  }
}

void load_stream(LoadedData& data, const std::vector<int32_t>& stream, const DataOptions& o) {
  for (Example& e : cut_windows(stream, o.window, o.stride > 0 ? o.stride : o.window)) {
    const auto length = static_cast<int64_t>(e.ids.size());
    keep(data, std::move(e), length);
  }
}

void check_vocabulary(const LoadedData& data, int64_t vocab, bool token_file) {
  for (const Example& e : data.examples)
    for (const int32_t id : e.ids)
      if (id < 0 || id >= vocab)
        throw Error(data.path + ": token id outside the model's vocabulary")
            .line("expected", strf("ids below %s", with_commas(vocab).c_str()))
            .line("found", with_commas(id))
            .line("likely", token_file ? "the file was made with another model's tokenizer"
                                       : "the tokenizer beside the model is another model's");
}

const Tokenizer& needed(const Tokenizer* tokenizer, const std::string& path, DataForm form) {
  if (tokenizer == nullptr)
    throw Error(path + ": " + (form == DataForm::text ? "plain text" : "instruction") +
                " files need the model's tokenizer")
        .line("likely", "no tokenizer.model or tokenizer.json beside the model; without one only token files work");
  return *tokenizer;
}

std::string read_content(const std::string& path) {
  std::error_code ignored;
  if (std::filesystem::is_directory(path, ignored))
    throw Error(path + ": a folder, not a data file")
        .line("expected", "JSON, JSONL, plain text or an llm.c token file");
  if (std::filesystem::exists(path, ignored) && !std::filesystem::is_regular_file(path, ignored))  // may never end
    throw Error(path + ": is not a regular file").line("try", "write its content to a file first");
  std::ifstream file(path, std::ios::binary);
  if (!file) throw Error(path + ": cannot be read").line("likely", "the name is misspelt or the file is not readable");
  std::string content;
  try {
    content.assign(std::istreambuf_iterator<char>(file), {});
  } catch (const std::ios_base::failure& e) {
    throw Error(path + ": cannot be read: " + e.code().message())
        .line("likely", "its disk fails, or it is a file of the system's that only looks like one")
        .line("try", "copy it, and give the copy");
  }
  if (content.compare(0, 3, "\xEF\xBB\xBF") == 0) content.erase(0, 3);  // a byte order mark
  if (content.find_first_not_of(" \t\r\n") == std::string::npos) throw Error(path + ": the data file is empty");
  return content;
}

}  // namespace

std::string alpaca_prompt(const std::string& instruction, const std::string& input) {
  return std::string(input.empty() ? kWithoutInput : kWithInput) + "\n\n### Instruction:\n" + instruction +
         (input.empty() ? "" : "\n\n### Input:\n" + input) + "\n\n### Response: ";
}

std::string chat_prompt(const std::string& system, const std::string& user, bool first_turn) {
  const std::string head = !first_turn ? "" : system.empty() ? kWithoutInput : system;
  return head + "\n\n### Instruction:\n" + user + "\n\n### Response: ";
}

std::string LoadedData::describe() const {
  std::string text = strf("%s: %s examples (%s), %s tokens, %s scored", path.c_str(),
                          with_commas(static_cast<long long>(examples.size())).c_str(), name_of(form),
                          with_commas(rows).c_str(), with_commas(labels).c_str());
  if (form == DataForm::chat && truncated_targets > 0)
    text += strf("; %s conversations cut", with_commas(truncated_targets).c_str());
  else if (truncated_sources + truncated_targets > 0)
    text += strf("; %s prompts and %s answers cut", with_commas(truncated_sources).c_str(),
                 with_commas(truncated_targets).c_str());
  if (dropped > 0) text += strf("; %s left out", with_commas(dropped).c_str());
  return text;
}

LoadedData load_data(const std::string& path, const Tokenizer* tokenizer, const DataOptions& options) {
  IRQ_CHECK(options.source_len > 0 && options.target_len > 0 && options.window > 0, "%s", "lengths must be positive");
  const std::string content = read_content(path);
  const char first = content[content.find_first_not_of(" \t\r\n")];
  const std::string extension = std::filesystem::path(path).extension().string();
  LoadedData data;
  data.path = path;
  if (is_token_file(content)) {
    data.form = DataForm::tokens;
    load_stream(data, parse_token_file(path, content), options);
  } else if (!is_utf8(content)) {
    throw Error(path + ": neither text nor a token file")
        .line("expected", "JSON, JSONL or plain text in UTF-8, or an llm.c token file (magic 20240520 or 20240801)")
        .line("found",
              strf("%s bytes that are not UTF-8", with_commas(static_cast<long long>(content.size())).c_str()));
  } else if ((first == '[' || first == '{') && extension != ".txt") {
    load_records(data, content, needed(tokenizer, path, DataForm::alpaca), options);
  } else if (extension == ".json" || extension == ".jsonl") {
    throw Error(path + ": line 1: not valid JSON")
        .line("expected", "'[' (a list of records) or '{' (one record per line)")
        .line("found", "'" + content.substr(0, std::min<size_t>(content.find('\n'), 20)) + "'");
  } else {
    data.form = DataForm::text;
    load_stream(data, needed(tokenizer, path, data.form).encode_long(content, tokenizer->adds_bos()), options);
  }
  if (data.labels == 0)
    throw Error(path + ": the file holds no token to train on")
        .line("found", strf("%s (%s), %s left out", with_commas(static_cast<long long>(data.examples.size())).c_str(),
                            name_of(data.form), with_commas(data.dropped).c_str()));
  const int64_t vocab = options.vocab > 0 ? options.vocab : tokenizer != nullptr ? tokenizer->vocab_size() : INT32_MAX;
  check_vocabulary(data, vocab, data.form == DataForm::tokens);
  return data;
}

std::vector<Example> cut_windows(const std::vector<int32_t>& stream, int64_t window, int64_t stride) {
  IRQ_CHECK(window > 0 && stride > 0 && stride <= window, "window %lld, stride %lld", static_cast<long long>(window),
            static_cast<long long>(stride));
  const auto n = static_cast<int64_t>(stream.size());
  std::vector<Example> examples;
  int64_t scored = 1;  // ids before this one are scored already (nothing predicts the first)
  for (int64_t begin = 0; scored < n; begin += stride) {
    const int64_t end = std::min(begin + window + 1, n);  // window rows predict window ids behind the first
    Example e;
    e.ids.assign(stream.begin() + begin, stream.begin() + end);
    e.trainable.assign(e.ids.size(), 1);
    for (int64_t i = begin; i < scored; ++i) e.trainable[i - begin] = 0;
    scored = end;
    examples.push_back(std::move(e));
  }
  return examples;
}

std::pair<LoadedData, LoadedData> split_holdout(const LoadedData& data, int64_t held_out, uint64_t seed) {
  const auto n = static_cast<int64_t>(data.examples.size());
  if (held_out < 1 || held_out >= n)
    throw Error(strf("%s: cannot hold out %s of %s examples", data.path.c_str(), with_commas(held_out).c_str(),
                     with_commas(n).c_str()),
                Exit::usage)
        .line("expected", strf("--holdout between 1 and %s", with_commas(n - 1).c_str()));
  Rng rng(seed, kHoldoutStream);
  std::vector<uint8_t> held(n, 0);  // the first held_out places of a shuffle
  std::vector<int64_t> order(n);
  for (int64_t i = 0; i < n; ++i) order[i] = i;
  for (int64_t i = 0; i < held_out; ++i) {
    std::swap(order[i], order[i + static_cast<int64_t>(rng.below(n - i))]);
    held[order[i]] = 1;
  }
  std::pair<LoadedData, LoadedData> parts;
  for (LoadedData* part : {&parts.first, &parts.second}) {
    part->path = data.path;
    part->form = data.form;
  }
  for (int64_t i = 0; i < n; ++i) keep(held[i] ? parts.second : parts.first, data.examples[i], data.chars[i]);
  return parts;
}

}  // namespace irq
