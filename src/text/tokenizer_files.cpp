// Which file is a model's tokenizer, and what kind it is of.
#include <filesystem>

#include "src/core/check.h"
#include "src/core/file.h"
#include "src/text/tokenizer_json.h"
#include "src/text/tokenizer_kinds.h"

namespace irq {
namespace {

namespace fs = std::filesystem;
constexpr int64_t kMostBytes = 256 << 20;  // the largest tokenizer.json in use have some 20 MB
constexpr const char* kEndings[] = {"tokenizer.model", "tokenizer.json"};

bool is_file(const fs::path& path) {
  std::error_code ignored;
  return fs::is_regular_file(path, ignored);
}

std::string copy_beside(const std::string& from, const std::string& to) {
  std::error_code problem;
  fs::copy_file(from, to, problem);
  return problem ? "note: " + from + " could not be copied to " + to + ": " + problem.message() : "";
}

}  // namespace

std::unique_ptr<Tokenizer> open_tokenizer(const std::string& path, std::optional<bool> legacy) {
  if (!is_file(path))
    throw Error(path + ": cannot be read")
        .line("expected", "a SentencePiece model (tokenizer.model) or a tokenizer.json");
  const std::string content = read_text_file(path, kMostBytes);
  const TokenizerConfig config = read_tokenizer_config(path);
  return is_tokenizer_json(content) ? open_tokenizer_json(path, content, legacy, config)
                                    : open_sentencepiece(path, content, legacy, config);
}

std::string find_tokenizer(const std::string& model_path) {
  const fs::path folder = fs::path(model_path).parent_path();
  const auto found = [&](const std::string& stem) {
    for (const char* ending : kEndings)
      if (is_file(folder / (stem + ending))) return (folder / (stem + ending)).string();
    return std::string();
  };
  // llama7b.bits4.irq: llama7b.bits4.tokenizer.model, llama7b.tokenizer.model, tokenizer.model
  std::string stem = fs::path(model_path).filename().string();
  for (size_t dot = stem.rfind('.'); dot != std::string::npos && dot > 0; dot = stem.rfind('.')) {
    stem.resize(dot);
    if (std::string path = found(stem + "."); !path.empty()) return path;
  }
  return found("");
}

std::string tokenizer_config_path(const std::string& tokenizer_path) {
  for (const std::string ending : kEndings)
    if (tokenizer_path.ends_with(ending))
      return tokenizer_path.substr(0, tokenizer_path.size() - ending.size()) + "tokenizer_config.json";
  return "";
}

std::vector<std::string> tokenizer_paths(const std::string& model_path) {
  const std::string tokenizer = find_tokenizer(model_path);
  std::vector<std::string> paths;
  if (tokenizer.empty()) return paths;
  for (const std::string& path : {tokenizer, tokenizer_config_path(tokenizer), chat_template_path(tokenizer)})
    if (is_file(path)) paths.push_back(path);
  return paths;
}

std::string chat_template_path(const std::string& tokenizer_path) {
  const std::string config = tokenizer_config_path(tokenizer_path), ending = "tokenizer_config.json";
  return config.empty() ? "" : config.substr(0, config.size() - ending.size()) + "chat_template.jinja";
}

std::unique_ptr<Tokenizer> require_tokenizer(const std::string& model_path, std::optional<bool> legacy) {
  const std::string path = find_tokenizer(model_path);
  if (!path.empty()) return open_tokenizer(path, legacy);
  const fs::path model(model_path);
  const std::string stem = model.stem().string();
  throw Error(model_path + ": no tokenizer beside it")
      .line("expected", "tokenizer.model, tokenizer.json, " + stem + ".tokenizer.model or " + stem +
                            ".tokenizer.json in " +
                            (model.has_parent_path() ? model.parent_path().string() : std::string(".")))
      .line("likely", "the model was converted or copied without its tokenizer")
      .line("try",
            "put the model's tokenizer.model, or its tokenizer.json and tokenizer_config.json, there; "
            "without one only token files and --ids work");
}

std::string carry_tokenizer(const std::string& from_model, const std::string& to_model) {
  const std::string from = find_tokenizer(from_model);
  if (from.empty() || !find_tokenizer(to_model).empty()) return "";
  const std::string to = parent_path(to_model) + "/" + base_name(from);
  const std::string config = tokenizer_config_path(from), config_to = tokenizer_config_path(to);
  std::string problem;
  // The configuration first: a tokenizer without it would be taken for one that has none.
  if (is_file(config) && !file_exists(config_to)) problem = copy_beside(config, config_to);
  const std::string jinja = chat_template_path(from), jinja_to = chat_template_path(to);
  if (problem.empty() && is_file(jinja) && !file_exists(jinja_to)) problem = copy_beside(jinja, jinja_to);
  if (problem.empty()) problem = copy_beside(from, to);
  return !problem.empty() ? problem : "tokenizer copied to " + to;
}

}  // namespace irq
