#include "src/text/tokenizer.h"

#include <algorithm>

#include "src/core/check.h"
#include "src/core/parallel.h"

namespace irq {
namespace {

constexpr int64_t kChunkBytes = 64 << 10;  // of encode_long: small enough to keep SentencePiece's queue in cache

constexpr const char* kReplacement = "\xEF\xBF\xBD";  // U+FFFD

}  // namespace

int utf8_length(std::string_view s) {
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

std::vector<int32_t> Tokenizer::encode(std::string_view text, bool add_bos, Before before) const {
  std::vector<int32_t> ids;
  if (!text.empty()) ids = encode_text(text, before);
  if (add_bos) {
    IRQ_CHECK(bos() >= 0, "%s has no BOS", describe().c_str());
    ids.insert(ids.begin(), bos());
  }
  return ids;
}

std::vector<int32_t> Tokenizer::encode_with_specials(std::string_view text, Before before) const {
  return text.empty() ? std::vector<int32_t>{} : encode_special_text(text, before);
}

std::vector<int32_t> Tokenizer::end_ids() const {
  std::vector<int32_t> ids;
  if (eos() >= 0) ids.push_back(eos());
  for (const char* end : {"<|im_end|>", "<|eot_id|>", "<|end_of_text|>", "<|endoftext|>"})
    if (const int32_t id = special_id(end); id >= 0 && id != eos()) ids.push_back(id);
  return ids;
}

std::vector<int32_t> Tokenizer::encode_long(std::string_view text, bool add_bos) const {
  std::vector<std::string_view> chunks;  // each but the first begins with a line break
  for (size_t begin = 0; begin < text.size();) {
    size_t end = begin + kChunkBytes < text.size() ? text.find('\n', begin + kChunkBytes) : std::string_view::npos;
    while (end != std::string_view::npos && !splits_before(text, end)) end = text.find('\n', end + 1);
    if (end == std::string_view::npos) end = text.size();
    chunks.push_back(text.substr(begin, end - begin));
    begin = end;
  }
  std::vector<std::vector<int32_t>> parts(chunks.size());
  parallel_for(static_cast<int64_t>(chunks.size()), 1, [&](int64_t i) {
    const auto c = static_cast<size_t>(i);
    parts[c] = encode(chunks[c], false, c == 0 ? Before::nothing : Before::text);
  });
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
    const int length = utf8_length(std::string_view(pending_).substr(at));
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
    const int length = utf8_length(bytes);
    if (length <= 0) return false;
    bytes.remove_prefix(length);
  }
  return true;
}

}  // namespace irq
