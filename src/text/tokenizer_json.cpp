#include "src/text/tokenizer_json.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "src/core/check.h"
#include "src/text/piece_space.h"

namespace irq {
namespace {

using Json = nlohmann::json;

// An exact text as a regular expression.
std::string literal(const std::string& text) {
  std::string pattern;
  for (const char c : text) {
    const auto u = static_cast<unsigned char>(c);
    const bool plain = u >= 0x80 || (u >= '0' && u <= '9') || (u >= 'A' && u <= 'Z') || (u >= 'a' && u <= 'z');
    pattern += plain ? std::string(1, c) : strf("\\x%02x", u);
  }
  return pattern;
}

class Parser {
 public:
  explicit Parser(const std::string& path) : path_(path) {}

  TokenizerJson parse(const std::string& content) {
    const Json json = Json::parse(content, nullptr, /*allow_exceptions=*/false);
    if (json.is_discarded() || !json.is_object())
      throw Error(path_ + ": not a tokenizer.json")
          .line("found", json.is_discarded() ? "no valid JSON" : std::string("a JSON ") + json.type_name())
          .line("likely", "an interrupted download or a Git LFS pointer");
    const Json* model = member(json, "model");
    if (model == nullptr || !model->is_object()) throw broken("an object \"model\"");
    read_vocabulary(*model, member(json, "added_tokens"));
    read_merges(*model);
    bool llama_spaces = false;
    if (const Json* n = member(json, "normalizer")) llama_spaces = read_normalizer(*n);
    bool metaspace = false;
    if (const Json* p = member(json, "pre_tokenizer")) metaspace = read_pre_tokenizer(*p);
    if (result_.byte_level == (llama_spaces || metaspace))
      throw refuse(result_.byte_level ? "a byte-level BPE that also replaces spaces"
                                      : "a BPE that is neither byte-level nor LLaMA's");
    if (const Json* p = member(json, "post_processor")) read_post_processor(*p);
    return std::move(result_);
  }

 private:
  Error refuse(const std::string& reason) const {
    return Error(path_ + ": a tokenizer this engine cannot reproduce exactly").line("reason", reason);
  }
  Error broken(const std::string& expected) const {
    return Error(path_ + ": tokenizer.json cannot be understood").line("expected", expected);
  }
  static const Json* member(const Json& object, const char* key) {  // null where it is absent or null
    const auto it = object.find(key);
    return it == object.end() || it->is_null() ? nullptr : &*it;
  }
  bool flag(const Json& object, const char* key, bool otherwise) const {
    const Json* value = member(object, key);
    if (value == nullptr) return otherwise;
    if (!value->is_boolean()) throw broken(strf("\"%s\" to be true or false", key));
    return value->get<bool>();
  }
  std::string text(const Json& object, const char* key, const std::string& otherwise) const {
    const Json* value = member(object, key);
    if (value == nullptr) return otherwise;
    if (!value->is_string()) throw broken(strf("\"%s\" to be a text", key));
    return value->get<std::string>();
  }
  std::string type_of(const Json& object, const char* what) const {
    if (!object.is_object()) throw broken(strf("%s to be an object with a \"type\"", what));
    return text(object, "type", "");
  }
  // The members of a Sequence, or the one object itself.
  std::vector<const Json*> sequence(const Json& object, const char* what, const char* list) const {
    if (type_of(object, what) != "Sequence") return {&object};
    const Json* all = member(object, list);
    if (all == nullptr || !all->is_array()) throw broken(strf("a Sequence's \"%s\"", list));
    std::vector<const Json*> members;
    for (const Json& m : *all) {
      if (type_of(m, what) == "Sequence") throw refuse(strf("%s: a Sequence within a Sequence", what));
      members.push_back(&m);
    }
    return members;
  }
  int32_t id_of(const Json& value, size_t entries) const {
    // A few ids may be without a token, but a table is not made for one absurd number.
    const auto limit = static_cast<int64_t>(4 * entries + 4096);
    if (!value.is_number_integer() || value.get<int64_t>() < 0 || value.get<int64_t>() >= limit)
      throw broken(strf("token ids from 0 to less than %s (there are %s tokens)", with_commas(limit).c_str(),
                        with_commas(static_cast<long long>(entries)).c_str()));
    return static_cast<int32_t>(value.get<int64_t>());
  }
  void place(int32_t id, const std::string& token) {
    if (static_cast<size_t>(id) >= result_.tokens.size()) result_.tokens.resize(static_cast<size_t>(id) + 1);
    std::string& slot = result_.tokens[static_cast<size_t>(id)];
    if (!slot.empty() && slot != token) throw broken(strf("one token per id; id %d has two", id));
    slot = token;
  }
  int32_t known(const std::string& token, const char* what) const {
    const auto it = result_.ids.find(token);
    if (it != result_.ids.end()) return it->second;
    throw broken(std::string(what) + " to be in the vocabulary: '" + token.substr(0, 60) + "' is not");
  }

  void read_vocabulary(const Json& model, const Json* added) {
    const std::string type = text(model, "type", "BPE");  // older files leave the type out
    if (type != "BPE") throw refuse("model type " + type + "; BPE is supported");
    const Json* vocab = member(model, "vocab");
    if (vocab == nullptr || !vocab->is_object() || vocab->empty()) throw broken("\"vocab\": tokens and their ids");
    if (added != nullptr && !added->is_array()) throw broken("\"added_tokens\" to be a list");
    const size_t entries = vocab->size() + (added != nullptr ? added->size() : 0);
    result_.ids.reserve(vocab->size());
    for (const auto& [token, id] : vocab->items()) {
      if (token.empty()) continue;
      result_.ids.emplace(token, id_of(id, entries));
      place(result_.ids[token], token);
    }
    if (added != nullptr)
      for (const Json& a : *added) read_added(a, entries);
    result_.added.prepare();
    if (const Json* d = member(model, "dropout"); d != nullptr && !(d->is_number() && d->get<double>() == 0))
      throw refuse("BPE dropout");
    for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"})
      if (!text(model, key, "").empty()) throw refuse(strf("%s '%s'", key, text(model, key, "").c_str()));
    result_.byte_fallback = flag(model, "byte_fallback", false);
    result_.fuse_unknown = flag(model, "fuse_unk", false);
    result_.ignore_merges = flag(model, "ignore_merges", false);
    if (const std::string unknown = text(model, "unk_token", ""); !unknown.empty())
      result_.unknown = known(unknown, "unk_token");
  }
  void read_added(const Json& a, size_t entries) {
    if (!a.is_object() || member(a, "id") == nullptr) throw broken("added tokens with \"id\" and \"content\"");
    AddedToken token;
    token.content = text(a, "content", "");
    if (token.content.empty()) return;
    token.special = flag(a, "special", false);
    token.normalized = flag(a, "normalized", !token.special);
    token.single_word = flag(a, "single_word", false);
    token.lstrip = flag(a, "lstrip", false);
    token.rstrip = flag(a, "rstrip", false);
    // A token of the vocabulary keeps its id there, whatever is written here.
    const auto own = result_.ids.find(token.content);
    token.id = own != result_.ids.end() ? own->second : id_of(*member(a, "id"), entries);
    place(token.id, token.content);
    result_.added.add(std::move(token));
  }
  void read_merges(const Json& model) {
    const Json* merges = member(model, "merges");
    if (merges == nullptr || !merges->is_array()) throw broken("\"merges\" to be a list");
    result_.merges.reserve(merges->size());
    for (const Json& m : *merges) {
      std::string left, right;
      if (m.is_string()) {
        const auto& both = m.get_ref<const std::string&>();
        const size_t space = both.find(' ');
        if (space == std::string::npos || both.find(' ', space + 1) != std::string::npos)
          throw broken("merges of the form \"a b\"; found '" + both.substr(0, 60) + "'");
        left = both.substr(0, space), right = both.substr(space + 1);
      } else if (m.is_array() && m.size() == 2 && m[0].is_string() && m[1].is_string()) {
        left = m[0].get<std::string>(), right = m[1].get<std::string>();
      } else {
        throw broken("merges of the form \"a b\" or [\"a\", \"b\"]");
      }
      result_.merges.push_back(
          {known(left, "a merge's left part"), known(right, "a merge's right part"), known(left + right, "a merge")});
    }
  }

  // True if it turns spaces into U+2581.
  bool read_normalizer(const Json& normalizer) {
    bool replaces = false;
    for (const Json* n : sequence(normalizer, "the normalizer", "normalizers")) {
      const std::string type = type_of(*n, "the normalizer");
      const Json* pattern = member(*n, "pattern");
      if (type == "Prepend" && text(*n, "prepend", "") == kPieceSpace && !replaces) {
        result_.prefix = SpacePrefix::always;
      } else if (type == "Replace" && pattern != nullptr && pattern->is_object() &&
                 text(*pattern, "String", "") == " " && text(*n, "content", "") == kPieceSpace && !replaces) {
        replaces = true;
      } else {
        throw refuse("its normalizer " + type + ", which would change the text in a way this engine does not know");
      }
    }
    if (result_.prefix != SpacePrefix::none && !replaces) throw refuse("its normalizer Prepend without Replace");
    return replaces;
  }
  // True if it is Metaspace, which turns spaces into U+2581.
  bool read_pre_tokenizer(const Json& pre_tokenizer) {
    bool metaspace = false;
    for (const Json* p : sequence(pre_tokenizer, "the pre-tokenizer", "pretokenizers")) {
      const std::string type = type_of(*p, "the pre-tokenizer");
      if (result_.byte_level || metaspace)
        throw refuse("its pre-tokenizer " + type + " behind " + (metaspace ? "Metaspace" : "ByteLevel"));
      if (type == "Digits") {
        add({Regex(flag(*p, "individual_digits", false) ? "\\p{N}" : "\\p{N}+", path_)});
      } else if (type == "Split") {
        read_split(*p);
      } else if (type == "ByteLevel") {
        result_.byte_level = true;
        const bool space = flag(*p, "add_prefix_space", true), cuts = flag(*p, "use_regex", true);
        if (cuts) add({Regex(kGpt2Pattern, path_), SplitBehavior::isolated, false, space});
        else if (space) add({Regex("(?!)", path_), SplitBehavior::isolated, false, true});
      } else if (type == "Metaspace" && result_.pre_tokenizer.steps().empty()) {
        metaspace = true;
        read_metaspace(*p);
      } else {
        throw refuse("its pre-tokenizer " + type);
      }
    }
    return metaspace;
  }
  void add(SplitStep step) { result_.pre_tokenizer.add(std::move(step)); }
  void read_split(const Json& split) {
    const Json* pattern = member(split, "pattern");
    if (pattern == nullptr || !pattern->is_object()) throw broken("Split's \"pattern\"");
    const std::string regex = text(*pattern, "Regex", ""), exact = text(*pattern, "String", "");
    if (regex.empty() == exact.empty()) throw broken("Split's pattern to be a \"Regex\" or a \"String\"");
    static constexpr std::pair<const char*, SplitBehavior> kBehaviors[] = {
        {"Isolated", SplitBehavior::isolated},
        {"Removed", SplitBehavior::removed},
        {"MergedWithPrevious", SplitBehavior::merged_with_previous},
        {"MergedWithNext", SplitBehavior::merged_with_next},
        {"Contiguous", SplitBehavior::contiguous}};
    const std::string name = text(split, "behavior", "");
    const auto* behavior = std::find_if(std::begin(kBehaviors), std::end(kBehaviors),
                                        [&](const auto& entry) { return name == entry.first; });
    if (behavior == std::end(kBehaviors)) throw refuse("Split's behavior '" + name + "'");
    add({Regex(regex.empty() ? literal(exact) : regex, path_), behavior->second, flag(split, "invert", false)});
  }
  void read_metaspace(const Json& p) {
    if (text(p, "replacement", kPieceSpace) != kPieceSpace)
      throw refuse("Metaspace's replacement '" + text(p, "replacement", "") + "'");
    const std::string scheme = text(p, "prepend_scheme", flag(p, "add_prefix_space", true) ? "always" : "never");
    if (scheme != "always" && scheme != "first" && scheme != "never")
      throw refuse("Metaspace's prepend_scheme " + scheme);
    if (result_.prefix != SpacePrefix::none) throw refuse("a normalizer Prepend with Metaspace");
    result_.prefix = scheme == "always"  ? SpacePrefix::always
                     : scheme == "first" ? SpacePrefix::first
                                         : SpacePrefix::none;
    result_.prefix_only_where_missing = true;
    result_.cut_at_spaces = flag(p, "split", true);
  }
  void read_post_processor(const Json& processor) {
    for (const Json* p : sequence(processor, "the post-processor", "processors")) {
      const std::string type = type_of(*p, "the post-processor");
      if (type == "ByteLevel") continue;  // offsets only
      if (type != "TemplateProcessing") throw refuse("its post-processor " + type);
      const Json* single = member(*p, "single");
      if (single == nullptr || !single->is_array()) throw broken("TemplateProcessing's \"single\"");
      if (single->empty() || !single->front().is_object()) continue;
      const Json* special = member(single->front(), "SpecialToken");
      if (special == nullptr || !special->is_object()) continue;
      const std::string name = text(*special, "id", "");
      result_.template_bos = result_.added.find(name);
      if (result_.template_bos < 0) throw broken("the post-processor's token '" + name + "' to be an added token");
    }
  }

  const std::string& path_;
  TokenizerJson result_;
};

}  // namespace

bool is_tokenizer_json(const std::string& content) {
  const size_t first = content.find_first_not_of(" \t\r\n");
  return first != std::string::npos && content[first] == '{';
}

TokenizerJson parse_tokenizer_json(const std::string& path, const std::string& content) {
  return Parser(path).parse(content);
}

}  // namespace irq
