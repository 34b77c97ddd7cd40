// irq_export MODEL: a model or its adapter for other programs.
#include <algorithm>
#include <cstdio>

#include "src/core/file.h"
#include "src/core/ignored_flags.h"
#include "src/io/export.h"
#include "tools/session.h"

namespace irq {
namespace {

struct Arguments {
  std::string model, adapter, peft, hf, gguf, irq, dtype;
  bool merge = false;
  ExportOptions options;
  const std::string& out() const { return !peft.empty() ? peft : !hf.empty() ? hf : !irq.empty() ? irq : gguf; }
  bool one_file() const { return !gguf.empty() || !irq.empty(); }
};

void check_arguments(const Arguments& a, const Cli& cli) {
  const auto wrong = [&](const std::string& text) { return usage_error(cli.tool(), text); };
  const int outputs = cli.given("--peft") + cli.given("--hf") + cli.given("--gguf") + cli.given("--irq");
  if (outputs != 1)
    throw wrong(outputs == 0 ? "nothing to write: one of --peft DIR, --hf DIR, --gguf FILE, --irq FILE is needed"
                             : "--peft, --hf, --gguf and --irq are written one at a time");
  if (a.out().empty()) throw wrong("the name of the output is empty");
  const bool peft = cli.given("--peft"), irq = cli.given("--irq"), adapter = cli.given("--adapter");
  if (peft && !adapter) throw wrong("--peft writes an adapter: --adapter FILE is missing");
  if (irq && !adapter) throw wrong("--irq merges an adapter into the base: --adapter FILE is missing");
  if (a.merge && !adapter) throw wrong("--merge needs --adapter FILE");
  refuse_ignored(cli.given_flags(),
                 {{peft, {"--merge"}, "--peft writes the adapter alone"},
                  {peft, {"--dtype"}, "an adapter is always written in f32"},
                  {irq, {"--merge"}, "--irq always merges"},
                  {irq, {"--dtype"}, "--irq keeps the base's codes"},
                  {!irq, {"--nearest"}, "--nearest belongs to --irq"},
                  {!peft && !irq && !a.merge, {"--adapter"}, "add --merge, or write it with --peft DIR"},
                  {!peft, {"--base-name"}, "--base-name belongs to --peft"}});
  const std::vector<std::string> inputs = model_files(a.model, a.adapter);
  if (!a.one_file()) refuse_overwriting_folder(a.out(), inputs);
  refuse_overwriting(a.out(), inputs);
  if (!a.gguf.empty() && a.options.overwrite) refuse_replacing(a.gguf, FileKind::gguf);
  if (!a.irq.empty() && a.options.overwrite) refuse_replacing(a.irq, FileKind::quantized);
}

// How the result is loaded, as lines of Python or a command.
std::string usage_text(const Arguments& a) {
  const auto python = [](const std::string& path) { return "\"" + path + "\""; };
  if (!a.peft.empty())
    return "from peft import PeftModel; PeftModel.from_pretrained(BASE, " + python(a.peft) +
           ")    BASE: the model that ./irq_export " + a.model + " --hf DIR writes";
  if (!a.hf.empty())
    return "from transformers import AutoModelForCausalLM; AutoModelForCausalLM.from_pretrained(" + python(a.hf) +
           ", dtype=\"auto\")";
  if (!a.irq.empty())
    return "./irq_eval " + shell_quoted(a.irq) + " --loss DATA    or ./irq_generate, without --adapter";
  return "llama-cli -m " + shell_quoted(a.gguf) + " -p \"...\"";
}

int run_export(Arguments& a, const Cli& cli) {
  check_arguments(a, cli);
  if (!a.dtype.empty()) a.options.dtype = a.dtype == "f32" ? DType::F32 : a.dtype == "f16" ? DType::F16 : DType::BF16;
  ExportSource source(a.model, a.adapter, a.merge || !a.irq.empty());
  ProgressBar bar("export", 0, "B", cli.quiet());
  const ByteProgress progress = byte_progress(bar);
  const ExportReport report = !a.peft.empty()  ? export_peft(source, a.peft, a.options, progress)
                              : !a.hf.empty()  ? export_hugging_face(source, a.hf, a.options, progress)
                              : !a.irq.empty() ? export_irq(source, a.irq, a.options, progress)
                                               : export_gguf(source, a.gguf, a.options, progress);
  bar.finish();
  for (const std::string& note : report.notes) cli.note(note);
  int64_t bytes = 0;
  size_t width = 0;
  for (const auto& [name, size] : report.files) bytes += size, width = std::max(width, name.size());
  const std::string what = !a.peft.empty() ? std::string("a PEFT adapter, IEC folded in, f32")
                           : !a.irq.empty()
                               ? std::string(source.adapter()->info().trains_scales()
                                                 ? "the quantized base with the adapter's scales"
                                                 : "the quantized base, adapter merged into float zero points")
                               : strf("%s in %s%s%s", !a.hf.empty() ? "a Hugging Face model" : "a GGUF model",
                                      name_of(export_dtype(source, a.options)),
                                      source.quantized() ? ", dequantized" : "", a.merge ? ", adapter merged" : "");
  std::printf("%s: %s, %s\n", a.out().c_str(), what.c_str(), human_bytes(static_cast<double>(bytes)).c_str());
  if (!a.one_file())
    for (const auto& [name, size] : report.files)
      std::printf("  %-*s %15s bytes\n", static_cast<int>(width), name.c_str(), with_commas(size).c_str());
  std::printf("  load it: %s\n", usage_text(a).c_str());
  return 0;
}

}  // namespace
}  // namespace irq

int main(int argc, char** argv) {
  using namespace irq;
  Arguments a;
  Cli cli("irq_export", "write a model or an adapter for other programs");
  cli.positional("MODEL", &a.model, "the base: a .bin, a .irq, or a config.json (random weights)");
  cli.option("--adapter", &a.adapter, "a .lora that was trained on MODEL");
  cli.option("--peft", &a.peft, "DIR: the adapter for PEFT, IEC folded into A and B");
  cli.option("--hf", &a.hf, "DIR: the model for Hugging Face transformers");
  cli.option("--gguf", &a.gguf, "FILE: the model for llama.cpp");
  cli.option("--irq", &a.irq,
             "FILE: an integer base with the adapter merged into its zero points (qa-lora) or scales (peqa)");
  cli.flag("--nearest", &a.options.nearest,
           "with --irq: where zero points cannot hold the adapter exactly, the nearest");
  cli.flag("--merge", &a.merge, "with the adapter merged into the weights, before they are rounded");
  cli.option("--dtype", &a.dtype, "type of the matrices (default: a .bin's own; bf16 for a .irq)",
             {"bf16", "f16", "f32"});
  cli.option("--base-name", &a.options.base_name, "what adapter_config.json names as its base model");
  cli.flag("--overwrite", &a.options.overwrite, "replace a former export");
  cli.footer(
      "./irq_export llama7b.irq --adapter adapter.lora --hf merged --merge\n"
      "./irq_export llama7b.irq --adapter adapter.lora --peft adapter --base-name base\n"
      "./irq_export llama7b-int4.irq --adapter qa.lora --irq merged.irq");
  return cli.run(argc, argv, [&] { return run_export(a, cli); });
}
