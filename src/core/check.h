// Errors. A user error says: subject, what was expected, what was found, the likely cause, the command that mends it.
#pragma once
#include <exception>
#include <string>

namespace irq {

std::string strf(const char* format, ...) __attribute__((format(printf, 1, 2)));
std::string with_commas(long long n);               // 13,476,832,256
std::string human_bytes(double bytes);              // "13.5 GB" (powers of ten), "817 B"
std::string shell_quoted(const std::string& word);  // as a POSIX shell reads it back

enum class Exit : int { ok = 0, run_time = 1, usage = 2, interrupted = 130 };

// Thrown for everything a user can cause; main() prints "TOOL: " and what() and exits with exit_code.
//   throw Error("llama7b.bin: checkpoint is cut short")
//       .line("header", "LLaMA, 32 layers ...").line("on disk", ...).line("likely", ...).line("try", ...);
class Error : public std::exception {
 public:
  explicit Error(std::string headline, Exit code = Exit::run_time) : text_(std::move(headline)), code_(code) {}
  Error& line(const char* label, const std::string& text);  // appends "\n  label   : text"
  const char* what() const noexcept override { return text_.c_str(); }
  Exit exit_code() const { return code_; }

 private:
  std::string text_;
  Exit code_;
};

[[noreturn]] void check_failed(const char* file, int line, const char* condition, const std::string& message);

}  // namespace irq

// An invariant of the program itself. If it fails, the program is wrong, not its input.
#define IRQ_CHECK(condition, ...)         \
  (static_cast<bool>(condition) ? void(0) \
                                : ::irq::check_failed(__FILE__, __LINE__, #condition, ::irq::strf(__VA_ARGS__)))
