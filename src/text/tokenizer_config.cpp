#include "src/text/tokenizer_config.h"

#include <nlohmann/json.hpp>

#include "src/core/check.h"
#include "src/core/file.h"
#include "src/text/json_file.h"
#include "src/text/tokenizer.h"

namespace irq {
namespace {

using Json = nlohmann::json;
constexpr int64_t kMostBytes = 64 << 20;  // a tokenizer_config.json with thousands of added tokens has a few MB

class Reader {
 public:
  Reader(const std::string& path, Json json) : path_(path), json_(std::move(json)) {
    if (!json_.is_object()) throw Error(path_ + ": not a tokenizer_config.json").line("expected", "a JSON object");
  }
  std::optional<bool> flag(const char* key) const {
    const auto it = json_.find(key);
    if (it == json_.end() || it->is_null()) return {};
    if (!it->is_boolean()) throw wrong_type(key, "true or false");
    return it->get<bool>();
  }
  // A token: its spelling, or an object with its "content".
  std::string token(const char* key) const {
    const auto it = json_.find(key);
    if (it == json_.end() || it->is_null()) return "";
    if (it->is_string()) return it->get<std::string>();
    if (it->is_object() && it->contains("content") && it->at("content").is_string()) return it->at("content");
    throw wrong_type(key, "a token");
  }
  // A template, or a list of {"name", "template"}, of which "default" is meant.
  std::string chat_template() const {
    const auto it = json_.find("chat_template");
    if (it == json_.end()) return "";
    if (it->is_string()) return it->get<std::string>();
    if (it->is_array())
      for (const Json& entry : *it)
        if (entry.is_object() && entry.value("name", Json()) == "default" && entry.contains("template") &&
            entry.at("template").is_string())
          return entry.at("template");
    return "";
  }

 private:
  Error wrong_type(const char* key, const char* expected) const {
    return Error(path_ + ": cannot be understood")
        .line("expected", strf("\"%s\" to be %s", key, expected))
        .line("found", std::string("a JSON ") + json_.at(key).type_name());
  }
  const std::string& path_;
  Json json_;
};

Json parse(const std::string& path) {
  const std::string content = read_text_file(path, kMostBytes);
  try {
    return parse_shallow_json(content, path);
  } catch (const Json::exception&) {
    throw Error(path + ": not valid JSON").line("likely", "an interrupted download or a Git LFS pointer");
  }
}

}  // namespace

TokenizerConfig read_tokenizer_config(const std::string& tokenizer_path) {
  TokenizerConfig config;
  const std::string path = tokenizer_config_path(tokenizer_path);
  if (!path.empty() && file_exists(path)) {
    config.path = path;
    const Reader reader(path, parse(path));
    config.legacy = reader.flag("legacy");
    config.add_bos = reader.flag("add_bos_token");
    config.bos = reader.token("bos_token");
    config.eos = reader.token("eos_token");
    config.unknown = reader.token("unk_token");
    config.padding = reader.token("pad_token");
    config.chat_template = reader.chat_template();
  }
  // Of the tokenizer's own name: the folder's is no answer for a tokenizer that is named after its model.
  const std::string jinja = chat_template_path(tokenizer_path);
  if (config.chat_template.empty() && !jinja.empty() && file_exists(jinja))
    config.chat_template = read_text_file(jinja, kMostBytes);
  return config;
}

}  // namespace irq
