// What kind of file a path is, and what to say when it is another kind than expected.
#include <sys/stat.h>

#include <cstring>

#include "src/core/check.h"
#include "src/io/flat_file.h"
#include "src/io/import.h"

namespace irq {

FileKind sniff(const std::string& path) {
  struct stat s;
  if (stat(path.c_str(), &s) == 0 && S_ISDIR(s.st_mode)) return FileKind::folder;
  const MappedFile file(path);
  const size_t size = static_cast<size_t>(file.size());
  if (size == 0) return FileKind::empty;
  const char* p = reinterpret_cast<const char*>(file.data());
  const auto starts = [&](const void* text, size_t n) { return size >= n && std::memcmp(p, text, n) == 0; };
  const auto starts_with = [&](const char* text) { return starts(text, std::strlen(text)); };
  if (starts_with("IRQB")) return FileKind::base;
  if (starts_with("IRQQ")) return FileKind::quantized;
  if (starts_with("IRQA")) return FileKind::adapter;
  if (starts_with("IRQS")) return FileKind::state;
  if (starts_with("GGUF")) return FileKind::gguf;
  if (is_llama2c_v0(file)) return FileKind::llama2c;  // before PyTorch's: a dim of 640 begins like a pickle
  if (starts("PK\x03\x04", 4) || starts("\x80\x02", 2)) return FileKind::pytorch;
  if (starts_with("24ka")) return FileKind::llama2c;  // llama2.c, versions 1 and 2: 0x616b3432
  int32_t word = 0;
  if (size >= 4) std::memcpy(&word, p, 4);
  if (word == 20240326 || word == 20240520 || word == 20240803) return FileKind::llmc;
  uint64_t length = 0;
  if (size > 8) std::memcpy(&length, p, 8);
  if (length >= 2 && length <= size - 8 && p[8] == '{') return FileKind::safetensors;
  if (starts_with("version https://git-lfs")) return FileKind::lfs_pointer;
  size_t at = 0;
  while (at < size && at < 64 && (p[at] == ' ' || p[at] == '\n' || p[at] == '\r' || p[at] == '\t')) ++at;
  if (at < size && p[at] == '{') return FileKind::config_json;
  if (at < size && p[at] == '<') return FileKind::web_page;
  return FileKind::unknown;
}

const char* describe(FileKind kind) {
  switch (kind) {
    case FileKind::base: return "a base model (.bin)";
    case FileKind::quantized: return "a quantized base model (.irq)";
    case FileKind::adapter: return "an adapter (.lora)";
    case FileKind::state: return "a training state (.state)";
    case FileKind::config_json: return "a JSON file";
    case FileKind::safetensors: return "a safetensors file";
    case FileKind::gguf: return "a GGUF file";
    case FileKind::pytorch: return "a PyTorch file";
    case FileKind::llama2c: return "a llama2.c checkpoint";
    case FileKind::llmc: return "an llm.c checkpoint";
    case FileKind::lfs_pointer: return "a Git LFS pointer, not the file itself";
    case FileKind::web_page: return "a web page";
    case FileKind::folder: return "a folder";
    case FileKind::empty: return "an empty file";
    case FileKind::unknown: break;
  }
  return "a file of no kind known here";
}

void refuse_replacing(const std::string& out, FileKind kind) {
  if (!file_exists(out)) return;
  const FileKind found = sniff(out);
  if (found == kind || found == FileKind::empty) return;
  Error e(out + ": is there already, and is not " + describe(kind), Exit::usage);
  e.line("found", describe(found));
  if (found != FileKind::folder) e.line("try", "rm " + shell_quoted(out) + "    if nobody needs it, or another name");
  else
    e.line("try", "a name in it: " + out + (out.ends_with('/') ? "" : "/") + "model" +
                      (kind == FileKind::quantized ? ".irq"
                       : kind == FileKind::gguf    ? ".gguf"
                                                   : ".bin"));
  throw e;
}

namespace {

// What to do with a model of another program that was given where `expected` should be.
void advise_conversion(Error& e, const std::string& source, FileKind expected) {
  const std::string convert = "./irq_convert " + shell_quoted(source) + " model.bin";
  if (expected == FileKind::adapter || expected == FileKind::state) {
    e.line("likely", "a model of another program given in its place");
    e.line("try", expected == FileKind::adapter ? "the adapter.lora that irq_train wrote" : "the train.state in --out");
    return;
  }
  e.line("likely", "the model has not been converted yet");
  e.line("try", convert + (expected == FileKind::quantized ? "    then    ./irq_quantize model.bin model.irq" : ""));
}

void advise_unknown(Error& e, const std::string& path, FileKind expected) {
  e.line("likely", "data, or a file of another program");
  if (expected == FileKind::safetensors) {
    e.line("try", "download it again");
    return;
  }
  if (expected == FileKind::adapter || expected == FileKind::state) return advise_conversion(e, path, expected);
  e.line("try", "./irq_convert " + shell_quoted(path) + " model.bin    if it is a model of llama2.c, llm.c or GGUF");
}

}  // namespace

void throw_wrong_kind(const std::string& path, FileKind expected) {
  const FileKind found = sniff(path);
  const bool any = expected == FileKind::unknown;
  Error e(path + ": not " + (any ? "a model, adapter or training state of these tools" : describe(expected)));
  e.line("found", describe(found));
  switch (found) {
    case FileKind::safetensors:
    case FileKind::pytorch: advise_conversion(e, parent_path(path), expected); break;
    case FileKind::gguf:
    case FileKind::llama2c:
    case FileKind::llmc:
    case FileKind::folder: advise_conversion(e, path, expected); break;
    case FileKind::lfs_pointer:
      e.line("likely", "the repository was cloned without its large files");
      e.line("try", "git lfs pull");
      break;
    case FileKind::web_page:
      e.line("likely", "a download that answered with an error or a login page");
      e.line("try", "open it in a browser, then download the file again");
      break;
    case FileKind::empty:
      e.line("likely", "a download or copy that failed at once");
      e.line("try", "download or copy it again");
      break;
    case FileKind::adapter:
      e.line("likely", "an adapter given in the model's place");
      e.line("try", "give the base model first, then --adapter " + shell_quoted(path));
      break;
    case FileKind::state:
      e.line("likely", "a training state: it is found by itself");
      e.line("try", "./irq_train BASE --out " + shell_quoted(parent_path(path)) + " --resume");
      break;
    case FileKind::base:
      if (expected == FileKind::quantized) e.line("try", "./irq_quantize " + shell_quoted(path) + " model.irq");
      break;
    case FileKind::quantized:
      if (expected == FileKind::base) {
        e.line("likely", "it is quantized already");
        e.line("try", "./irq_train " + shell_quoted(path) + "    or the .bin that it was made from");
      }
      break;
    case FileKind::config_json:
      e.line("likely", "a model's config.json holds no tensors");
      e.line("try", "./irq_inspect " + shell_quoted(path) + " alone, or the model itself");
      break;
    case FileKind::unknown: advise_unknown(e, path, expected); break;
  }
  throw e;
}

}  // namespace irq
