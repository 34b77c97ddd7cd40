#include "src/io/import.h"

#include <algorithm>

#include "src/core/check.h"
#include "src/core/file.h"
#include "src/io/flat_file.h"

namespace irq {

std::unique_ptr<ImportedModel> open_import(const std::string& path) {
  const FileKind kind = sniff(path);
  switch (kind) {
    case FileKind::folder:
    case FileKind::safetensors:
    case FileKind::config_json: return import_hugging_face(path);
    case FileKind::gguf: return import_gguf(path);
    case FileKind::llama2c: return import_llama2c(path);
    case FileKind::llmc: return import_llmc(path);
    default: break;
  }
  Error e(path + ": no model that irq_convert reads");
  e.line("expected", "a Hugging Face folder, a .gguf, a llama2.c or llm.c checkpoint");
  e.line("found", describe(kind));
  if (kind == FileKind::pytorch) e.line("try", "save it as safetensors first (save_pretrained of transformers does)");
  else if (kind == FileKind::lfs_pointer) e.line("try", "git lfs pull");
  else if (kind == FileKind::base)
    e.line("try", "./irq_inspect " + shell_quoted(path) + "    (it is converted already)");
  else if (kind == FileKind::web_page || kind == FileKind::empty) e.line("try", "download it again");
  else if (kind != FileKind::unknown) e.line("try", "./irq_inspect " + shell_quoted(path));
  throw e;
}

}  // namespace irq
