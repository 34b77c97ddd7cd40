#include "src/text/tokenizer.h"

#include <algorithm>
#include <filesystem>

#include "src/core/check.h"
#include "src/core/file.h"

namespace irq {
namespace {

constexpr int64_t kChunkBytes = 64 << 10;  // of encode_long: small enough to keep SentencePiece's queue in cache

// Length of the UTF-8 character that begins at s[0]: 1..4; 0 if s is the beginning of a longer one; -1 if it cannot be one.
int character_length(std::string_view s) {
  const auto at = [&](size_t i) { return static_cast<uint8_t>(s[i]); };
  const uint8_t first = at(0);
  if (first < 0x80) return 1;
  if (first < 0xC2 || first > 0xF4) return -1;  // a continuation byte, an overlong form, or beyond U+10FFFF
  const int length = first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
  // The second byte is restricted further: no overlong forms, no surrogates, nothing beyond U+10FFFF.
  const uint8_t low = first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : 0x80;
  const uint8_t high = first == 0xED ? 0x9F : first == 0xF4 ? 0x8F : 0xBF;
  for (int i = 1; i < length; ++i) {
    if (static_cast<size_t>(i) >= s.size()) return 0;
    if (at(i) < (i == 1 ? low : 0x80) || at(i) > (i == 1 ? high : 0xBF)) return -1;
  }
  return length;
}

constexpr const char* kReplacement = "\xEF\xBF\xBD";  // U+FFFD

}  // namespace

std::vector<int32_t> Tokenizer::encode(std::string_view text, bool add_bos, Before before) const {
  std::vector<int32_t> ids;
  if (!text.empty()) ids = encode_text(text, before);
  if (add_bos) {
    IRQ_CHECK(bos() >= 0, "%s has no BOS", describe().c_str());
    ids.insert(ids.begin(), bos());
  }
  return ids;
}

std::vector<int32_t> Tokenizer::encode_long(std::string_view text, bool add_bos) const {
  if (!splits_at_newline()) return encode(text, add_bos);
  std::vector<std::string_view> chunks;  // each but the first begins with a line break
  for (size_t begin = 0; begin < text.size();) {
    size_t end = begin + kChunkBytes < text.size() ? text.find('\n', begin + kChunkBytes) : std::string_view::npos;
    if (end == std::string_view::npos) end = text.size();
    chunks.push_back(text.substr(begin, end - begin));
    begin = end;
  }
  std::vector<std::vector<int32_t>> parts(chunks.size());
#pragma omp parallel for schedule(dynamic)
  for (size_t i = 0; i < chunks.size(); ++i)
    parts[i] = encode(chunks[i], false, i == 0 ? Before::nothing : Before::text);
  std::vector<int32_t> ids = encode("", add_bos);
  for (const auto& part : parts) ids.insert(ids.end(), part.begin(), part.end());
  return ids;
}

std::string Tokenizer::decode(const std::vector<int32_t>& ids) const {
  StreamDecoder decoder(*this);
  std::string text;
  for (const int32_t id : ids) text += decoder.push(id);
  return text + decoder.finish();
}

std::string StreamDecoder::push(int32_t id) {
  std::string bytes = tokenizer_.bytes_of(id);
  if (bytes.empty()) return "";
  if (!started_ && tokenizer_.has_dummy_space() && bytes[0] == ' ') bytes.erase(0, 1);
  started_ = true;
  pending_ += bytes;
  std::string text;
  size_t at = 0;
  while (at < pending_.size()) {
    const int length = character_length(std::string_view(pending_).substr(at));
    if (length == 0) break;
    if (length < 0) text += kReplacement;
    if (length > 0) text.append(pending_, at, length);
    at += std::max(length, 1);
  }
  pending_.erase(0, at);
  return text;
}

std::string StreamDecoder::finish() {
  std::string text;
  for (size_t i = 0; i < pending_.size(); ++i) text += kReplacement;
  pending_.clear();
  return text;
}

int64_t count_code_points(std::string_view utf8) {
  return std::count_if(utf8.begin(), utf8.end(), [](char c) { return (static_cast<uint8_t>(c) & 0xC0) != 0x80; });
}

bool is_utf8(std::string_view bytes) {
  while (!bytes.empty()) {
    const int length = character_length(bytes);
    if (length <= 0) return false;
    bytes.remove_prefix(length);
  }
  return true;
}

std::string find_tokenizer(const std::string& model_path) {
  namespace fs = std::filesystem;
  const fs::path folder = fs::path(model_path).parent_path();
  const auto found = [&](const std::string& name) {
    std::error_code ignored;
    return fs::is_regular_file(folder / name, ignored) ? (folder / name).string() : std::string();
  };
  // llama7b.bits4.irq: llama7b.bits4.tokenizer.model, llama7b.tokenizer.model, tokenizer.model
  std::string stem = fs::path(model_path).filename().string();
  for (size_t dot = stem.rfind('.'); dot != std::string::npos && dot > 0; dot = stem.rfind('.')) {
    stem.resize(dot);
    if (std::string path = found(stem + ".tokenizer.model"); !path.empty()) return path;
  }
  return found("tokenizer.model");
}

std::unique_ptr<Tokenizer> require_tokenizer(const std::string& model_path, bool legacy) {
  const std::string path = find_tokenizer(model_path);
  if (!path.empty()) return open_tokenizer(path, legacy);
  const std::filesystem::path model(model_path);
  throw Error(model_path + ": no tokenizer beside it")
      .line("expected", "tokenizer.model or " + model.stem().string() + ".tokenizer.model in " +
                            (model.has_parent_path() ? model.parent_path().string() : std::string(".")))
      .line("likely", "the model was converted or copied without its tokenizer")
      .line("try", "put the model's tokenizer.model there; without one only token files and --ids work");
}

std::string carry_tokenizer(const std::string& from_model, const std::string& to_model) {
  const std::string from = find_tokenizer(from_model);
  if (from.empty() || !find_tokenizer(to_model).empty()) return "";
  const std::string to = parent_path(to_model) + "/" + base_name(from);
  std::error_code problem;
  std::filesystem::copy_file(from, to, problem);
  return problem ? "note: " + from + " could not be copied to " + to + ": " + problem.message()
                 : "tokenizer copied to " + to;
}

}  // namespace irq
