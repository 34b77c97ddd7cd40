// irq_convert IN OUT.bin: another program's LLaMA as this engine's base model.
#include <cstdio>
#include <filesystem>

#include "src/core/file.h"
#include "src/io/bitsandbytes.h"
#include "src/io/convert.h"
#include "tools/session.h"

namespace irq {
namespace {

namespace fs = std::filesystem;

struct Arguments {
  std::string in, out, dtype = "source";
};

void check_arguments(const Arguments& a) {
  std::error_code ignored;
  if (!fs::is_directory(a.in, ignored)) refuse_overwriting(a.out, {a.in});
  if (fs::is_directory(a.out, ignored))
    throw Error(a.out + ": is a folder", Exit::usage)
        .line("expected", "the name of the file to write")
        .line("try", "./irq_convert " + shell_quoted(a.in) + " " + shell_quoted(a.out + "/model.bin"));
}

void row(const char* label, const std::string& text) { std::printf("  %-8s: %s\n", label, text.c_str()); }

void print_summary(const Arguments& a, const ModelConfig& config, const ConvertSummary& s, const std::string& what,
                   const Cli& cli) {
  std::printf("%s: %s\n", a.out.c_str(), what.c_str());
  row("model", describe(config) + (config.tied ? ", tied head" : ""));
  row("rope", strf("theta %g, eps %g, %ld positions", config.rope_theta, config.norm_eps, config.max_seq));
  row("size", strf("%ld tensors, %s -> %s bytes", s.tensors, with_commas(s.source_bytes).c_str(),
                   with_commas(s.file_bytes).c_str()));
  row("time", strf("%.2f s, %s", s.seconds, format_rate(static_cast<double>(s.source_bytes) / s.seconds, "B").c_str()));
  for (const std::string& note : s.notes) cli.note(note);
}

void print_notes(const std::vector<std::string>& notes, const std::vector<SideFile>& files, const Cli& cli) {
  for (const std::string& note : notes) cli.note("note: " + note);
  if (files.empty())
    cli.note(
        "warning: no tokenizer.model or tokenizer.json found: only token files and --ids will work with this model");
}

int convert_nf4(const Arguments& a, const Cli& cli) {
  if (a.dtype != "source")
    throw usage_error(cli.tool(), "--dtype " + a.dtype + ": a model in NF4 is taken over as it is, codes and scales");
  BitsandbytesFolder folder(a.in);
  print_notes(folder.notes(), folder.side_files(), cli);
  refuse_replacing(a.out, FileKind::quantized);
  if (!a.out.ends_with(".irq"))
    cli.note("note: " + a.out + " will be a quantized base; such a file is better named .irq");
  ProgressBar bar("convert", 0, "B", cli.quiet());
  const ConvertSummary s = folder.write(a.out, byte_progress(bar));
  bar.finish();
  print_summary(a, folder.config(), s,
                strf("NF4 of bitsandbytes, codes and scales as they are%s; embeddings %s",
                     folder.nested() ? " (double quantization)" : " (scales in f32)", name_of(s.dtype)),
                cli);
  row("entropy", strf("%.4f bits per weight (mean)", s.code_entropy));
  return 0;
}

// The model is there in any case; what is wrong with its tokenizer is said now rather than by the next tool.
void check_tokenizer(const std::string& model, int64_t vocab, const Cli& cli) {
  try {
    const auto tokenizer = find_and_open_tokenizer(model);
    if (tokenizer && tokenizer->vocab_size() > vocab)
      cli.note(strf("note: the tokenizer beside it has %s ids, the model %s rows: ids beyond them cannot be used",
                    with_commas(tokenizer->vocab_size()).c_str(), with_commas(vocab).c_str()));
  } catch (const Error& e) { cli.note(std::string("note: ") + e.what()); }
}

int run(const Arguments& a, const Cli& cli) {
  check_arguments(a);
  if (is_bitsandbytes(a.in)) return convert_nf4(a, cli);
  if (a.out.ends_with(".irq"))
    throw usage_error(cli.tool(), a.out + ": the model is not quantized, so what is written is a .bin")
        .line("try", "./irq_convert " + shell_quoted(a.in) + " model.bin    then    ./irq_quantize model.bin " +
                         shell_quoted(a.out));
  const auto in = open_import(a.in);
  refuse_replacing(a.out, FileKind::base);
  print_notes(in->notes(), in->side_files(), cli);
  std::optional<DType> dtype;
  for (const DType t : {DType::F32, DType::F16, DType::BF16})
    if (a.dtype == name_of(t)) dtype = t;
  ProgressBar bar("convert", 0, "B", cli.quiet());
  const ConvertSummary s = convert(*in, a.out, dtype, byte_progress(bar));
  bar.finish();
  const std::string from = dtype && *dtype != in->dtype() ? std::string(" (from ") + name_of(in->dtype()) + ")" : "";
  check_tokenizer(a.out, in->config().vocab, cli);
  print_summary(a, in->config(), s, std::string("matrices in ") + name_of(s.dtype) + from + ", norms in f32", cli);
  return 0;
}

}  // namespace
}  // namespace irq

int main(int argc, char** argv) {
  using namespace irq;
  Arguments a;
  Cli cli("irq_convert", "make another program's LLaMA this engine's base model");
  cli.positional("IN", &a.in, "a Hugging Face folder, a .gguf, a llama2.c .bin or an llm.c LLaMA .bin");
  cli.positional("OUT.bin", &a.out, "the base model; an OUT.irq for a folder that bitsandbytes quantized to NF4");
  cli.option("--dtype", &a.dtype, "the matrices' type; source: as in IN, f32 where types mix or are quantized",
             {"source", "f32", "f16", "bf16"});
  cli.footer("Example:  ./irq_convert Llama-2-7b-hf llama7b.bin");
  return cli.run(argc, argv, [&] { return run(a, cli); });
}
