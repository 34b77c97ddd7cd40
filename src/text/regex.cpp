#define PCRE2_CODE_UNIT_WIDTH 8
#include "src/text/regex.h"

#include <pcre2.h>

#include <algorithm>
#include <new>

#include "src/core/check.h"

namespace irq {
namespace {

constexpr size_t kLongestPattern = 16 << 10;
constexpr uint32_t kMatchBase = 100000, kMatchPerByte = 16;  // steps of one match: room for runs given back one by one
constexpr uint32_t kHeapKiB = 256 << 10;
constexpr size_t kJitStackBytes = 1 << 20;

std::string message_of(int code) {
  unsigned char buffer[256];
  pcre2_get_error_message(code, buffer, sizeof buffer);
  return reinterpret_cast<const char*>(buffer);
}

// \s -> \p{White_Space}, \S -> \P{White_Space}; both may stand in a class as well.
std::string with_unicode_space(const std::string& pattern) {
  std::string result;
  for (size_t i = 0; i < pattern.size(); ++i) {
    const char after = i + 1 < pattern.size() ? pattern[i + 1] : '\0';
    if (pattern[i] != '\\' || after == '\0') {
      result += pattern[i];
      continue;
    }
    if (after == 's') result += "\\p{White_Space}";
    else if (after == 'S') result += "\\P{White_Space}";
    else result += {'\\', after};
    ++i;
  }
  return result;
}

}  // namespace

struct Regex::Code {
  pcre2_code* code = nullptr;
  ~Code() { pcre2_code_free(code); }
};

Regex::Regex(const std::string& pattern, const std::string& source)
    : pattern_(pattern), source_(source), code_(std::make_unique<Code>()) {
  const auto refuse = [&](const std::string& reason) {
    return Error(source_ + ": a regular expression of its pre-tokenizer cannot be used")
        .line("found", pattern_.substr(0, 200))
        .line("reason", reason);
  };
  if (pattern.size() > kLongestPattern) throw refuse("it is longer than 16 KiB");
  const std::string text = with_unicode_space(pattern);
  int error = 0;
  PCRE2_SIZE at = 0;
  code_->code = pcre2_compile(reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(),
                              PCRE2_UTF | PCRE2_UCP | PCRE2_NEVER_BACKSLASH_C, &error, &at, nullptr);
  if (code_->code == nullptr) throw refuse(strf("PCRE2: %s (at byte %zu)", message_of(error).c_str(), at));
  // Where machine code cannot be had (a hardened system), the interpreter gives the same matches.
  static_cast<void>(pcre2_jit_compile(code_->code, PCRE2_JIT_COMPLETE));
}

Regex::~Regex() = default;
Regex::Regex(Regex&&) noexcept = default;
Regex& Regex::operator=(Regex&&) noexcept = default;

struct Regex::Matches::State {
  pcre2_match_data* data = nullptr;
  pcre2_match_context* context = nullptr;
  pcre2_jit_stack* stack = nullptr;
  ~State() {
    pcre2_jit_stack_free(stack);
    pcre2_match_context_free(context);
    pcre2_match_data_free(data);
  }
};

Regex::Matches::Matches(const Regex& regex) : regex_(regex), state_(std::make_unique<State>()) {
  state_->data = pcre2_match_data_create_from_pattern(regex.code_->code, nullptr);
  state_->context = pcre2_match_context_create(nullptr);
  if (state_->data == nullptr || state_->context == nullptr) throw std::bad_alloc();
  pcre2_set_heap_limit(state_->context, kHeapKiB);
}

Regex::Matches::~Matches() = default;

void Regex::Matches::start(std::string_view text) {
  text_ = text, at_ = 0;
  const uint64_t steps = kMatchBase + kMatchPerByte * uint64_t{text.size()};
  pcre2_set_match_limit(state_->context, static_cast<uint32_t>(std::min<uint64_t>(steps, UINT32_MAX)));
}

bool Regex::Matches::next(size_t& begin, size_t& end) {
  const auto* subject = reinterpret_cast<PCRE2_SPTR>(text_.data());
  while (at_ <= text_.size()) {
    const auto match = [&](uint32_t options) {
      // The caller has checked the UTF-8, once: PCRE2 would check the rest of the text anew at every match.
      return pcre2_match(regex_.code_->code, subject, text_.size(), at_, PCRE2_NO_UTF_CHECK | options, state_->data,
                         state_->context);
    };
    int status = match(0);
    if (status == PCRE2_ERROR_JIT_STACKLIMIT && state_->stack == nullptr) {
      // The 32 KiB of machine stack are enough for nearly every text; a stack of its own is made for the rest only.
      state_->stack = pcre2_jit_stack_create(32 << 10, kJitStackBytes, nullptr);
      pcre2_jit_stack_assign(state_->context, nullptr, state_->stack);
      status = match(0);
    }
    if (status == PCRE2_ERROR_JIT_STACKLIMIT)
      status = match(PCRE2_NO_JIT);  // the interpreter keeps its state on the heap
    if (status == PCRE2_ERROR_NOMATCH) break;
    if (status < 0)
      throw Error(regex_.source_ + ": its pre-tokenizer's regular expression fails on a text")
          .line("found", regex_.pattern_.substr(0, 200))
          .line("reason", "PCRE2: " + message_of(status))
          .line("likely",
                "the pattern tries too many ways to match; it is not the one that its model was trained with");
    const PCRE2_SIZE* place = pcre2_get_ovector_pointer(state_->data);
    begin = place[0], end = place[1];
    if (begin < end && begin >= at_) {
      at_ = end;
      return true;
    }
    // An empty match: go on behind the next character.
    at_ = std::max(at_, end) + 1;
    while (at_ < text_.size() && (static_cast<unsigned char>(text_[at_]) & 0xC0) == 0x80) ++at_;
  }
  at_ = text_.size() + 1;
  return false;
}

}  // namespace irq
