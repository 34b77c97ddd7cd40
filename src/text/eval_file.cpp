#include "src/text/eval_file.h"

#include <cstring>

#include "src/core/check.h"

namespace irq {
namespace {

constexpr size_t kHeaderBytes = 256 * 4;
constexpr int32_t kMagic = 20240522, kVersion = 1;
constexpr uint16_t kStart = 65535;
constexpr size_t kMostChoices = 64;

int32_t header_field(const std::string& content, size_t index) {
  int32_t value;
  std::memcpy(&value, content.data() + index * 4, 4);
  return value;
}

class Reader {
 public:
  Reader(const std::string& path, const std::string& content) : path_(path), content_(content) {}
  bool at_end() const { return at_ == content_.size(); }
  size_t at() const { return at_; }

  EvalQuestion question(int64_t number) {
    number_ = number;
    const size_t begin = at_;
    if (next("the mark of an example, 65535") != kStart) throw wrong("the mark of an example, 65535", begin);
    const size_t bytes = next("its bytes");
    EvalQuestion q;
    q.index = next("its index");
    q.label = next("the right choice");
    const size_t choices = next("the number of choices");
    if (choices < 1 || choices > kMostChoices) throw wrong("1 to 64 choices", at_ - 2);
    if (q.label >= static_cast<int32_t>(choices)) throw wrong("a right choice below the number of choices", begin + 6);
    q.context = ids("the context");
    for (size_t i = 0; i < choices; ++i) {
      q.choices.push_back(ids("a choice"));
      if (q.choices.back().empty()) throw wrong("a choice of at least one token", at_ - 2);
    }
    if (at_ - begin != bytes) throw wrong(strf("an example of %zu bytes, as its head says", bytes), begin + 2);
    return q;
  }

 private:
  uint16_t next(const std::string& what) {
    if (content_.size() - at_ < 2) throw cut(what);
    uint16_t value;
    std::memcpy(&value, content_.data() + at_, 2);
    at_ += 2;
    return value;
  }
  std::vector<int32_t> ids(const std::string& what) {
    const size_t count = next("the length of " + what);
    if (content_.size() - at_ < count * 2) throw cut(strf("%s of %zu ids", what.c_str(), count));
    std::vector<int32_t> list(count);
    for (int32_t& id : list) id = next(what);
    return list;
  }
  Error wrong(const std::string& expected, size_t byte) const {
    return Error(strf("%s: example %lld cannot be understood", path_.c_str(), static_cast<long long>(number_)))
        .line("expected", expected)
        .line("found", strf("at byte %s: %d", with_commas(static_cast<long long>(byte)).c_str(), value_at(byte)))
        .line("likely", "the file is damaged, or no evaluation file of version 1");
  }
  Error cut(const std::string& what) const {
    return Error(strf("%s: evaluation file is cut short", path_.c_str()))
        .line("expected", strf("example %lld: %s", static_cast<long long>(number_), what.c_str()))
        .line("on disk", with_commas(static_cast<long long>(content_.size())) + " bytes");
  }
  int value_at(size_t byte) const {
    uint16_t value = 0;
    if (byte + 2 <= content_.size()) std::memcpy(&value, content_.data() + byte, 2);
    return value;
  }

  const std::string& path_;
  const std::string& content_;
  size_t at_ = kHeaderBytes;
  int64_t number_ = 0;
};

}  // namespace

bool is_eval_file(const std::string& content) { return content.size() >= 4 && header_field(content, 0) == kMagic; }

std::vector<EvalQuestion> parse_eval_file(const std::string& path, const std::string& content) {
  const auto on_disk = static_cast<long long>(content.size());
  if (!is_eval_file(content))
    throw Error(path + ": not an llm.c evaluation file").line("expected", strf("magic %d at its beginning", kMagic));
  if (content.size() < kHeaderBytes)
    throw Error(path + ": evaluation file is cut short")
        .line("expected", "a header of 1,024 bytes")
        .line("on disk", with_commas(on_disk) + " bytes");
  if (header_field(content, 1) != kVersion)
    throw Error(path + ": evaluation file of an unknown version")
        .line("expected", strf("version %d", kVersion))
        .line("found", strf("version %d", header_field(content, 1)));
  const int32_t count = header_field(content, 2);
  if (count < 1) throw Error(path + ": evaluation file without an example").line("found", strf("%d examples", count));
  Reader reader(path, content);
  std::vector<EvalQuestion> questions;  // grows with what is really there, whatever the header claims
  for (int64_t i = 0; i < count; ++i) questions.push_back(reader.question(i));
  if (!reader.at_end())
    throw Error(path + ": evaluation file is longer than its header says")
        .line("header", strf("%s examples -> %s bytes", with_commas(count).c_str(),
                             with_commas(static_cast<long long>(reader.at())).c_str()))
        .line("on disk", with_commas(on_disk) + " bytes");
  return questions;
}

}  // namespace irq
