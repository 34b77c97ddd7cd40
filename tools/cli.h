// The command line of every tool: options are declared once with the variable they fill, and one wrapper turns errors
// into "TOOL: text" on stderr and an exit status. CLI11 is seen by cli.cpp only.
//
//   int main(int argc, char** argv) {
//     Cli cli("irq_quantize", "quantize a model to 2-4 bits");
//     std::string base;
//     int bits = 4;
//     cli.positional("BASE", &base, "a .bin file");
//     cli.option("--bits", &bits, "bits per weight", {2, 3, 4});
//     return cli.run(argc, argv, [&] { ...; return 0; });
//   }
#pragma once
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "kernels/backend.h"
#include "src/core/check.h"

namespace irq {

inline constexpr const char* kVersion = "0.1.0";

int64_t parse_size(const std::string& text);  // "10GiB" "10G" (both 2^30), "512MB" (10^6), "1000"; throws a usage Error
int edit_distance(const std::string& a, const std::string& b);  // insert, delete, replace, swap of neighbours: 1 each
// The nearest of `known`, or "" when none is near enough to be meant.
std::string nearest(const std::string& word, const std::vector<std::string>& known);
// A usage error about one flag's value: "--bits: 5 is not one of 2, 3, 4".
Error usage_error(const std::string& tool, const std::string& headline);

class Cli {
 public:
  struct Finished {};  // thrown by parse when --help or --version was all that was asked
  Cli(std::string tool, std::string summary);
  ~Cli();
  Cli(const Cli&) = delete;
  Cli& operator=(const Cli&) = delete;

  // The variable keeps its value when the option is absent; help shows that value as the default.
  void positional(const std::string& name, std::string* value, const std::string& help, bool required = true);
  void option(const std::string& name, std::string* value, const std::string& help,
              std::vector<std::string> allowed = {});
  void option(const std::string& name, int* value, const std::string& help, std::vector<int> allowed = {});
  void option(const std::string& name, int64_t* value, const std::string& help);
  void option(const std::string& name, uint64_t* value, const std::string& help);
  void option(const std::string& name, double* value, const std::string& help);
  // `count` values follow the flag; -1: one or more, up to the next flag. A flag given again adds to the list.
  void option(const std::string& name, std::vector<std::string>* value, const std::string& help, int count = -1);
  void size_option(const std::string& name, int64_t* bytes, const std::string& help);
  // "--icq" sets true; with `negative` = "--no-icq" that one sets false.
  void flag(const std::string& name, bool* value, const std::string& help, const std::string& negative = "");
  // Bounds of the number declared last under this name; both ends belong to the range.
  void range(const std::string& name, double lowest, double highest);
  void footer(const std::string& text);  // examples under --help

  // Was it on the command line? (Presets fill in only what was not.)
  bool given(const std::string& name) const;
  std::vector<std::string> given_flags() const;   // a flag's negative counts under the flag's own name
  void parse(int argc, const char* const* argv);  // throws a usage Error; --help and --version print and throw Finished
  // parse, then body; returns the process's exit status. Nothing is thrown out of it.
  int run(int argc, const char* const* argv, const std::function<int()>& body);

  const std::string& tool() const { return tool_; }
  const std::string& device() const { return device_; }        // auto, cpu, cuda
  const std::string& kernels() const { return kernels_; }      // auto, sm80
  const std::string& precision() const { return precision_; }  // auto, f32, bf16
  bool quiet() const { return quiet_; }
  int threads() const { return threads_; }  // 0: all of them
  // Makes the backend that --device asks for and says on stderr what a run has: device, and why not CUDA or NCCL.
  std::unique_ptr<CheckedBackend> backend();
  void note(const std::string& text) const;  // a line on stderr unless --quiet
  // The command as given, quoted for a shell, for logs that can be run again.
  std::string command() const;

 private:
  struct Entry;
  struct Parser;
  using Store = std::function<void(const Entry&, const std::vector<std::string>& words)>;
  Entry& declare(const std::string& name, const std::string& help, int count, const std::string& type,
                 const std::string& shown_default, Store store);
  Entry& entry(const std::string& name) const;
  template <class T>
  void number(const std::string& name, T* value, const std::string& help, std::vector<T> allowed);
  void declare_common();
  void check_flags(const std::vector<std::string>& args) const;
  [[noreturn]] void fail(const std::string& headline) const;

  std::string tool_, summary_, device_ = "auto", kernels_ = "auto", precision_ = "auto";
  int threads_ = 0;
  bool quiet_ = false, help_ = false, version_ = false;
  std::vector<std::unique_ptr<Entry>> entries_;
  std::unique_ptr<Parser> parser_;
  std::vector<std::string> args_;
};

}  // namespace irq
