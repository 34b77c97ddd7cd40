#include "src/io/gguf_keys.h"

#include <algorithm>
#include <functional>

#include "src/io/decimal.h"
#include "src/io/printable.h"

namespace irq {
namespace {

bool is_integer(GgufType t) {
  return t != GgufType::f32 && t != GgufType::f64 && t != GgufType::string && t != GgufType::array;
}

std::string shown(const GgufValue& v) {
  if (v.is_array) return strf("an array of %zu", std::max({v.integers.size(), v.numbers.size(), v.texts.size()}));
  if (v.type == GgufType::string) return "'" + printable(v.text.substr(0, 60)) + "'";
  if (v.type == GgufType::f32 || v.type == GgufType::f64) return strf("%g", v.number);
  if (v.type == GgufType::boolean) return v.integer ? "true" : "false";
  return v.type == GgufType::u64 ? strf("%lu", static_cast<uint64_t>(v.integer)) : std::to_string(v.integer);
}

}  // namespace

Error GgufKeys::wrong(const std::string& key, const std::string& expected) const {
  const GgufValue* v = file_.find(key);
  return Error(file_.path() + ": cannot be understood")
      .line("expected", key + " to be " + expected)
      .line("found", v ? shown(*v) : "no such key");
}

int64_t GgufKeys::integer(const std::string& key) const {
  const GgufValue* v = file_.find(key);
  if (!v || !is_integer(v->type)) throw wrong(key, "a whole number");
  if (v->type == GgufType::u64 && v->integer < 0) throw wrong(key, "a sensible number");
  if (!v->is_array) return v->integer;
  if (v->integers.empty() ||
      std::adjacent_find(v->integers.begin(), v->integers.end(), std::not_equal_to<>()) != v->integers.end())
    throw wrong(key, "one number, the same in every layer");
  return v->integers.front();
}

int64_t GgufKeys::integer(const std::string& key, int64_t fallback) const { return has(key) ? integer(key) : fallback; }

double GgufKeys::number(const std::string& key, double fallback) const {
  const GgufValue* v = file_.find(key);
  if (!v) return fallback;
  if (v->is_array || (v->type != GgufType::f32 && v->type != GgufType::f64)) throw wrong(key, "a number");
  return v->type == GgufType::f64 ? v->number : decimal_of(static_cast<float>(v->number));
}

std::string GgufKeys::text(const std::string& key, const std::string& fallback) const {
  const GgufValue* v = file_.find(key);
  if (!v) return fallback;
  if (v->is_array || v->type != GgufType::string) throw wrong(key, "a text");
  return v->text;
}

bool GgufKeys::flag(const std::string& key, bool fallback) const {
  const GgufValue* v = file_.find(key);
  if (!v) return fallback;
  if (v->is_array || v->type != GgufType::boolean) throw wrong(key, "true or false");
  return v->integer != 0;
}

const GgufValue* GgufKeys::array(const std::string& key, GgufType type) const {
  const GgufValue* v = file_.find(key);
  if (!v) return nullptr;
  if (!v->is_array || v->type != type)
    throw wrong(key, type == GgufType::string ? "an array of texts"
                     : type == GgufType::f32  ? "an array of f32"
                                              : "an array of i32");
  return v;
}

Vocabulary gguf_vocabulary(const GgufReader& file) {
  const GgufKeys keys(file);
  const std::string prefix = "tokenizer.ggml.";
  Vocabulary v;
  const GgufValue* tokens = keys.array(prefix + "tokens", GgufType::string);
  if (!tokens || tokens->texts.empty()) return v;
  v.model = keys.text(prefix + "model", "");
  v.pre = keys.text(prefix + "pre", "");
  v.tokens = tokens->texts;
  const size_t n = v.tokens.size();
  if (const GgufValue* scores = keys.array(prefix + "scores", GgufType::f32)) {
    if (scores->numbers.size() != n) throw keys.wrong(prefix + "scores", strf("one number for each of %zu tokens", n));
    v.scores.assign(scores->numbers.begin(), scores->numbers.end());
  }
  if (const GgufValue* types = keys.array(prefix + "token_type", GgufType::i32)) {
    if (types->integers.size() != n)
      throw keys.wrong(prefix + "token_type", strf("one number for each of %zu tokens", n));
    v.types.assign(types->integers.begin(), types->integers.end());
  }
  if (const GgufValue* merges = keys.array(prefix + "merges", GgufType::string)) v.merges = merges->texts;
  const bool sentencepiece = v.model == "llama";
  const auto token = [&](const std::string& name, int32_t fallback) {
    const int64_t id = keys.integer(prefix + name, fallback);
    // Files without one say so by leaving the key out, or by an id that no token has (all bits set).
    return id >= 0 && id < static_cast<int64_t>(n) ? static_cast<int32_t>(id) : -1;
  };
  v.bos = token("bos_token_id", sentencepiece ? 1 : -1);
  v.eos = token("eos_token_id", sentencepiece ? 2 : -1);
  v.unknown = token("unknown_token_id", sentencepiece ? 0 : -1);
  v.padding = token("padding_token_id", -1);
  // llama.cpp's own defaults for files without these two keys.
  v.add_bos = keys.flag(prefix + "add_bos_token", sentencepiece || v.pre == "llama-bpe");
  v.add_space_prefix = keys.flag(prefix + "add_space_prefix", sentencepiece);
  v.chat_template = keys.text("tokenizer.chat_template", "");
  return v;
}

}  // namespace irq
