#include "tools/cli.h"

#include <omp.h>

#include <CLI/CLI.hpp>
#include <algorithm>
#include <charconv>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <new>

#include "kernels/kernel_choice.h"
#include "src/core/bus_error.h"
#include "src/core/interrupt.h"
#include "src/train/dist.h"

namespace irq {

// One option, positional or flag. CLI11 gathers its words; `store` turns them into a value, so that every complaint
// about a value is ours and reads the same.
struct Cli::Entry {
  std::string name, negative;
  int count = 1;  // words that follow: 0 flag, -1 one or more
  bool required = false;
  double lowest = -std::numeric_limits<double>::infinity(), highest = std::numeric_limits<double>::infinity();
  std::function<void(const Entry&, const std::vector<std::string>&)> store;
  std::vector<std::string> words;
  CLI::Option* option = nullptr;
  CLI::Option* negative_option = nullptr;
};

// Help in this project's words: "Usage: ./irq_quantize BASE [OUT] [options]", and no "x 2" behind an option's type.
struct HelpFormatter : CLI::Formatter {
  std::string usage;
  std::string make_usage(const CLI::App*, std::string) const override { return usage + "\n"; }
  std::string make_option_opts(const CLI::Option* option) const override {
    return option->get_type_name().empty() ? "" : " " + option->get_type_name();
  }
  std::string make_group(std::string group, bool positional, std::vector<const CLI::Option*> options) const override {
    return "\n" + group + ":\n" + make_rows(positional, options);
  }
  std::string make_rows(bool positional, const std::vector<const CLI::Option*>& options) const {
    std::string rows;
    for (const CLI::Option* option : options) rows += make_option(option, positional);
    return rows;
  }
};

struct Cli::Parser {
  CLI::App app;
  std::shared_ptr<HelpFormatter> formatter = std::make_shared<HelpFormatter>();
  explicit Parser(const std::string& summary) : app(summary) {
    formatter->column_width(34);
    app.formatter(formatter);
    app.set_help_flag();  // ours, so that every flag is in one table
  }
};

namespace {

template <class T>
std::string show(T value) {
  if constexpr (std::is_floating_point_v<T>) return strf("%g", static_cast<double>(value));
  else return std::to_string(value);
}

// No error, invalid_argument (no number), or result_out_of_range (one that T cannot hold).
template <class T>
std::errc parse_number(const std::string& word, T* value) {
  const char* begin = word.c_str() + (word.size() > 1 && word[0] == '+' ? 1 : 0);
  const auto [end, error] = std::from_chars(begin, word.c_str() + word.size(), *value);
  return end == word.c_str() + word.size() && begin != end ? error : std::errc::invalid_argument;
}

// A limit of a T as people write it: 1048576, not 1.04858e+06; the type's own where none is set.
template <class T>
std::string bound(double limit) {
  if constexpr (!std::is_floating_point_v<T>)
    if (std::isinf(limit)) return show(limit < 0 ? std::numeric_limits<T>::min() : std::numeric_limits<T>::max());
  return strf(limit == std::floor(limit) && std::abs(limit) < 1e15 ? "%.0f" : "%g", limit);
}

template <class T>
std::string join(const std::vector<T>& items) {
  std::string text;
  for (const T& item : items) {
    if (!text.empty()) text += ", ";
    if constexpr (std::is_same_v<T, std::string>) text += item;
    else text += show(item);
  }
  return text;
}

}  // namespace

Error usage_error(const std::string& tool, const std::string& headline) {
  return Error(headline, Exit::usage).line("try", "./" + tool + " --help");
}

Cli::Cli(std::string tool, std::string summary)
    : tool_(std::move(tool)), summary_(std::move(summary)), parser_(std::make_unique<Parser>(tool_ + ": " + summary_)) {
  parser_->app.name("./" + tool_);
}

Cli::~Cli() = default;

Cli::Entry& Cli::entry(const std::string& name) const {
  for (const auto& e : entries_)
    if (e->name == name) return *e;
  check_failed(__FILE__, __LINE__, "declared", tool_ + " has no option " + name);
}

Cli::Entry& Cli::declare(const std::string& name, const std::string& help, int count, const std::string& type,
                         const std::string& shown_default, Store store) {
  entries_.push_back(std::make_unique<Entry>());
  Entry& e = *entries_.back();
  e.name = name;
  e.count = count;
  e.store = std::move(store);
  if (count == 0) {
    e.option = parser_->app.add_flag(name, help)->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
  } else {
    e.option = parser_->app.add_option(name, e.words, help);
    e.option->expected(count == -1 ? 1 : count, count == -1 ? 1 << 20 : count);
    if (count == 1) e.option->multi_option_policy(CLI::MultiOptionPolicy::TakeLast);
    e.option->allow_extra_args(count == -1);
    const bool in_words = help.find("default") != std::string::npos;  // the help text says it better than a number
    e.option->type_name(shown_default.empty() || in_words ? type : type + " [" + shown_default + "]");
  }
  return e;
}

void Cli::positional(const std::string& name, std::string* value, const std::string& help, bool required) {
  Entry& e = declare(name, help, 1, "", "", [value](const Entry&, const auto& words) { *value = words.back(); });
  e.required = required;
}

void Cli::option(const std::string& name, std::string* value, const std::string& help,
                 std::vector<std::string> allowed) {
  std::string type = allowed.empty() ? "TEXT" : "";
  for (const std::string& a : allowed) type += (type.empty() ? "" : "|") + a;
  declare(name, help, 1, type, *value, [this, value, allowed](const Entry& e, const auto& words) {
    const std::string& word = words.back();
    if (!allowed.empty() && std::find(allowed.begin(), allowed.end(), word) == allowed.end()) {
      const std::string near = allowed.size() > 4 ? nearest(word, allowed) : "";  // a short list needs no hint
      Error error = Error(e.name + ": '" + word + "' is not one of " + join(allowed), Exit::usage);
      if (!near.empty()) error.line("nearest", near);
      throw error.line("try", "./" + tool_ + " --help");
    }
    *value = word;
  });
}

template <class T>
void Cli::number(const std::string& name, T* value, const std::string& help, std::vector<T> allowed) {
  std::string type = std::is_floating_point_v<T> ? "X" : "N";
  if (!allowed.empty()) type.clear();
  for (const T& a : allowed) type += (type.empty() ? "" : "|") + show(a);
  declare(name, help, 1, type, show(*value), [this, value, allowed](const Entry& e, const auto& words) {
    const std::string& word = words.back();
    T parsed{};
    const std::errc error = parse_number(word, &parsed);
    if (error == std::errc::result_out_of_range) {  // a number, but not one that T holds
      if constexpr (std::is_floating_point_v<T>) fail(e.name + ": " + word + " is too large or too close to 0");
      else fail(e.name + ": " + word + " is not between " + bound<T>(e.lowest) + " and " + bound<T>(e.highest));
    }
    if (error != std::errc{})
      fail(e.name + ": '" + word + "' is not a " + (std::is_floating_point_v<T> ? "number" : "whole number"));
    if (!allowed.empty() && std::find(allowed.begin(), allowed.end(), parsed) == allowed.end())
      fail(e.name + ": " + word + " is not one of " + join(allowed));
    const double x = static_cast<double>(parsed);
    if (!(x >= e.lowest && x <= e.highest)) {
      const bool open = std::isinf(e.highest);
      fail(e.name + ": " + word + (open ? " is less than " : " is not between ") + bound<T>(e.lowest) +
           (open ? "" : " and " + bound<T>(e.highest)));
    }
    *value = parsed;
  });
}

void Cli::option(const std::string& name, int* value, const std::string& help, std::vector<int> allowed) {
  number(name, value, help, std::move(allowed));
}
void Cli::option(const std::string& name, int64_t* value, const std::string& help) { number(name, value, help, {}); }
void Cli::option(const std::string& name, uint64_t* value, const std::string& help) { number(name, value, help, {}); }
void Cli::option(const std::string& name, double* value, const std::string& help) { number(name, value, help, {}); }

void Cli::option(const std::string& name, std::vector<std::string>* value, const std::string& help, int count) {
  declare(name, help, count,
          count == -1  ? "WORD ..."
          : count == 2 ? "WORD WORD"
                       : "WORD",
          "", [value](const Entry&, const auto& words) { *value = words; });
}

void Cli::size_option(const std::string& name, int64_t* bytes, const std::string& help) {
  declare(name, help, 1, "SIZE", "", [bytes](const Entry& e, const auto& words) {
    try {
      *bytes = parse_size(words.back());
    } catch (const Error& error) { throw Error(e.name + ": " + error.what(), Exit::usage); }
  });
}

void Cli::flag(const std::string& name, bool* value, const std::string& help, const std::string& negative) {
  Entry& e =
      declare(name, help, 0, "", "", [value](const Entry&, const auto& words) { *value = words.back() == "true"; });
  e.negative = negative;
  const std::string opposite = "the opposite of " + name;
  if (!negative.empty()) e.negative_option = parser_->app.add_flag(negative, opposite);
}

void Cli::range(const std::string& name, double lowest, double highest) {
  entry(name).lowest = lowest;
  entry(name).highest = highest;
}

void Cli::footer(const std::string& text) { parser_->app.footer(text); }

bool Cli::given(const std::string& name) const {
  const Entry& e = entry(name);
  return e.option->count() > 0 || (e.negative_option != nullptr && e.negative_option->count() > 0);
}

std::vector<std::string> Cli::given_flags() const {
  std::vector<std::string> names;
  for (const auto& e : entries_)
    if (e->name[0] == '-' && given(e->name)) names.push_back(e->name);
  return names;
}

void Cli::fail(const std::string& headline) const { throw usage_error(tool_, headline); }

// CLI11 would take the word behind an unknown flag for a positional and complain about that one instead.
void Cli::check_flags(const std::vector<std::string>& args) const {
  std::vector<std::string> names;
  for (const auto& e : entries_) {
    if (e->name[0] == '-') names.push_back(e->name);
    if (!e->negative.empty()) names.push_back(e->negative);
  }
  for (size_t i = 0; i < args.size(); ++i) {
    const std::string& arg = args[i];
    if (arg == "--") return;
    if (arg.size() < 2 || arg[0] != '-') continue;
    const size_t equals = arg.find('=');
    const std::string name = arg.substr(0, equals);
    if (std::find(names.begin(), names.end(), name) == names.end()) {
      Error error("unknown flag " + name, Exit::usage);
      if (const std::string near = nearest(name, names); !near.empty()) error.line("nearest", near);
      throw error.line("try", "./" + tool_ + " --help");
    }
    for (const auto& e : entries_) {
      if (e->name != name || e->count == 0) continue;
      const size_t follow = equals != std::string::npos ? 0 : static_cast<size_t>(std::abs(e->count));
      if (i + follow >= args.size())
        fail(name + (follow == 1 ? std::string(" needs a value") : strf(" needs %zu values", follow)));
      i += follow;
    }
  }
}

void Cli::declare_common() {
  const auto common = [&](const char* name) { entry(name).option->group("Every tool"); };
  option("--device", &device_, "where to compute", {"auto", "cpu", "cuda"});
  common("--device");
  option("--kernels", &kernels_,
         "sm80: without the kernels that only a Hopper GPU has (attention, LoRA under dropout, packed products of 17 "
         "to 64 rows)",
         {"auto", "sm80"});
  common("--kernels");
  option("--precision", &precision_, "of activations and unpacked weights; auto: bf16 on a GPU, f32 on a CPU",
         {"auto", "f32", "bf16"});
  common("--precision");
  option("--threads", &threads_, "CPU threads, 0 = all");
  range("--threads", 0, 4096);
  common("--threads");
  flag("--quiet", &quiet_, "no progress, no notes: results and errors only");
  common("--quiet");
  flag("--help", &help_, "this text");
  common("--help");
  flag("--version", &version_, "the version");
  common("--version");
}

void Cli::parse(int argc, const char* const* argv) {
  declare_common();  // last, so that --help lists the tool's own options first
  args_.assign(argv + 1, argv + argc);
  check_flags(args_);
  try {
    parser_->app.parse(argc, argv);
  } catch (const CLI::ExtrasError&) {
    const std::vector<std::string> extra = parser_->app.remaining();
    fail("too many arguments: '" + (extra.empty() ? "?" : extra.front()) + "' is not expected");
  } catch (const CLI::ParseError& error) { fail(error.what()); }
  if (entry("--help").option->count() > 0) {
    std::string usage = "Usage: ./" + tool_;
    for (const auto& e : entries_)
      if (e->name[0] != '-') usage += e->required ? " " + e->name : " [" + e->name + "]";
    parser_->formatter->usage = usage + " [options]";
    std::fputs(parser_->app.help().c_str(), stdout);
    throw Finished{};
  }
  if (entry("--version").option->count() > 0) {
    std::printf("%s %s\n", tool_.c_str(), kVersion);
    throw Finished{};
  }
  for (const auto& e : entries_) {
    if (e->required && e->option->count() == 0) fail(e->name + " is missing");
    if (e->count == 0) {
      const bool on = e->option->count() > 0, off = e->negative_option != nullptr && e->negative_option->count() > 0;
      if (on && off) fail(e->name + " and " + e->negative + " contradict each other");
      if (on || off) e->store(*e, {on ? "true" : "false"});
    } else if (e->option->count() > 0) {
      e->store(*e, e->words);
    }
  }
  if (threads_ > 0) omp_set_num_threads(threads_);
}

int Cli::run(int argc, const char* const* argv, const std::function<int()>& body) {
  const auto complain = [&](const std::string& text) { std::fprintf(stderr, "%s: %s\n", tool_.c_str(), text.c_str()); };
  int status = 0;
  try {
    install_interrupt_handler();
    install_bus_error_handler(tool_.c_str());
    parse(argc, argv);
    status = body();
  } catch (const Finished&) {
  } catch (const Error& error) {
    complain(error.what());
    return static_cast<int>(error.exit_code());
  } catch (const std::bad_alloc&) {
    complain(
        Error("out of memory (host)").line("try", "a smaller --micro-batch, or a machine with more memory").what());
    return static_cast<int>(Exit::run_time);
  } catch (const std::exception& error) {
    complain(std::string("internal error: ") + error.what());
    return static_cast<int>(Exit::run_time);
  }
  if (std::fflush(stdout) != 0 || std::ferror(stdout)) {  // a full disk must not look like success
    complain("the results could not be written to stdout");
    return static_cast<int>(Exit::run_time);
  }
  return status;
}

std::unique_ptr<CheckedBackend> Cli::backend() {
  auto made = make_backend(device_);
  if (precision_ == "bf16" && made->device() == Device::CPU)
    throw Error("--precision bf16 needs a GPU", Exit::usage).line("expected", "f32 or auto on a CPU");
  if (precision_ == "f32" && made->precision().storage != DType::F32)
    made = make_backend(made->device(), Precision{DType::F32, DType::F32});
  use_only_sm80_kernels(kernels_ == "sm80");
  std::string line = tool_ + " " + kVersion;
  const auto add = [&](const std::string& item) {  // on a new line where it does not fit into 80 columns
    const size_t used = line.size() - (line.rfind('\n') + 1);
    line += (used + 3 + item.size() <= 80 ? " | " : "\n  ") + item;
  };
  const std::string no_cuda = cuda_unavailable_reason(), no_nccl = nccl_unavailable_reason();
  add(made->describe() + (precision_ == "f32" && made->device() == Device::CUDA ? ", computing in f32" : ""));
  if (made->device() == Device::CPU) add(no_cuda.empty() ? "the GPU is left alone (--device cpu)" : no_cuda);
  add(no_nccl.empty() ? "NCCL" : no_nccl);
  note(line);
  return made;
}

void Cli::note(const std::string& text) const {
  if (!quiet_) std::fprintf(stderr, "%s\n", text.c_str());
}

std::string Cli::command() const {
  std::string text = "./" + tool_;
  for (const std::string& arg : args_) text += " " + shell_quoted(arg);
  return text;
}

}  // namespace irq
