// Regular expressions over UTF-8 with Unicode's properties, through PCRE2: compiled to machine code where it can be, and
// with limits, so that neither a pattern nor a text can hang the program.
#pragma once
#include <memory>
#include <string>
#include <string_view>

namespace irq {

class Regex {
 public:
  // `source` names the file the pattern is from. Throws an Error with the pattern and the reason where PCRE2 refuses it.
  // \s and \S mean Unicode's White_Space (PCRE2's own takes U+180E along, which is none).
  Regex(const std::string& pattern, const std::string& source);
  ~Regex();
  Regex(Regex&&) noexcept;
  Regex& operator=(Regex&&) noexcept;
  const std::string& pattern() const { return pattern_; }

  // The matches in one text after another. Several of these may use one Regex at a time, in several threads.
  class Matches {
   public:
    explicit Matches(const Regex& regex);
    ~Matches();
    Matches(const Matches&) = delete;
    Matches& operator=(const Matches&) = delete;
    void start(std::string_view text);  // valid UTF-8, alive until the last next()
    // The next match that is not empty: text[begin, end). False: no more. Throws an Error where a limit is reached.
    bool next(size_t& begin, size_t& end);

   private:
    struct State;
    const Regex& regex_;
    std::string_view text_;
    size_t at_ = 0;
    std::unique_ptr<State> state_;
  };

 private:
  struct Code;
  std::string pattern_, source_;
  std::unique_ptr<Code> code_;
};

}  // namespace irq
