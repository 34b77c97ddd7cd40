// irq_inspect FILE: what a model, adapter or training state holds, and whether every byte of it is right.
#include <cstdio>

#include "src/core/file.h"
#include "src/core/ignored_flags.h"
#include "src/core/interrupt.h"
#include "src/core/progress.h"
#include "src/io/inspect.h"
#include "tools/session.h"

namespace irq {
namespace {

struct Arguments {
  std::string file, text, legacy = "auto";
  std::vector<std::string> dump;
  bool tensors = false, entropy = false, specials = false;
};

// The text's token ids in one line, as --ids takes them. FILE is a model or a tokenizer itself.
void print_encoded(const Arguments& a) {
  const bool itself = base_name(a.file).find("tokenizer") != std::string::npos;
  const std::optional<bool> legacy = legacy_of(a.legacy);
  const auto tokenizer = itself ? open_tokenizer(a.file, legacy) : require_tokenizer(a.file, legacy);
  std::string line;
  for (const int32_t id : a.specials ? tokenizer->encode_with_specials(a.text) : tokenizer->encode(a.text))
    line += (line.empty() ? "" : ",") + std::to_string(id);
  std::printf("%s\n", line.c_str());
}

// Each of these is an output of its own.
void check_arguments(const Arguments& a, const Cli& cli) {
  refuse_ignored(cli.given_flags(),
                 {{cli.given("--encode"), {"--dump", "--tensors", "--entropy"}, "--encode prints token ids only"},
                  {!a.dump.empty(), {"--tensors", "--entropy"}, "--dump writes a file only"},
                  {!cli.given("--encode"), {"--specials", "--legacy"}, "only --encode reads a text"},
                  {a.tensors, {"--entropy"}, "--tensors lists tensors only"}});
}

int inspect(const Arguments& a, const Cli& cli) {
  check_arguments(a, cli);
  if (cli.given("--encode")) {
    print_encoded(a);
    return 0;
  }
  if (!a.dump.empty()) {
    refuse_overwriting(a.dump[1], model_files(a.file));
    dump_tensor(a.file, a.dump[0], a.dump[1]);
    cli.note("wrote " + a.dump[1]);
    return 0;
  }
  ProgressBar bar("check", 0, "B", cli.quiet());
  const ByteProgress progress = [&](int64_t done, int64_t all) {
    throw_if_interrupted();
    bar.set_total(all);
    bar.update(done);
  };
  const std::string text = a.tensors   ? inspect_tensors(a.file)
                           : a.entropy ? inspect_entropy(a.file, progress)
                                       : inspect_summary(a.file, progress);
  bar.finish();
  std::fputs(text.c_str(), stdout);
  return 0;
}

}  // namespace
}  // namespace irq

int main(int argc, char** argv) {
  using namespace irq;
  Arguments a;
  Cli cli("irq_inspect", "say what a file holds and check every byte of it");
  cli.positional("FILE", &a.file, "a .bin, .irq, .lora or .state");
  cli.flag("--tensors", &a.tensors, "one line per tensor");
  cli.flag("--entropy", &a.entropy, "one line per quantized matrix: entropy as recorded and as recomputed");
  cli.option("--dump", &a.dump, "write tensor NAME (NAME.codes, NAME.dequant, ...) as .npy: NAME OUT.npy", 2);
  cli.option("--encode", &a.text, "the text's token ids by the model's tokenizer");
  cli.flag("--specials", &a.specials, "--encode: special tokens spelled out in the text are these tokens");
  declare_legacy(cli, &a.legacy);
  return cli.run(argc, argv, [&] { return inspect(a, cli); });
}
