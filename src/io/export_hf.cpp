// A folder that Hugging Face transformers and everything built on it loads.
#include <algorithm>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "src/io/export.h"
#include "src/io/foreign_names.h"
#include "src/io/output_folder.h"
#include "src/io/safetensors.h"
#include "src/text/tokenizer.h"

namespace irq {
namespace {

using Json = nlohmann::ordered_json;

const char* torch_name(DType t) { return t == DType::F32 ? "float32" : t == DType::F16 ? "float16" : "bfloat16"; }

std::string config_text(const ModelConfig& c, DType dtype) {
  Json json;
  json["architectures"] = {"LlamaForCausalLM"};
  json["model_type"] = "llama";
  json["hidden_size"] = c.dim;
  json["intermediate_size"] = c.ffn;
  json["num_hidden_layers"] = c.layers;
  json["num_attention_heads"] = c.heads;
  json["num_key_value_heads"] = c.kv_heads;
  json["head_dim"] = c.head_dim;
  json["vocab_size"] = c.vocab;
  json["max_position_embeddings"] = c.max_seq;
  json["rms_norm_eps"] = c.norm_eps;
  json["rope_theta"] = c.rope_theta;
  json["rope_scaling"] = nullptr;
  json["hidden_act"] = "silu";
  json["attention_bias"] = false;
  json["mlp_bias"] = false;
  json["tie_word_embeddings"] = c.tied;
  json["bos_token_id"] = c.bos;
  json["eos_token_id"] = c.eos;
  json["initializer_range"] = 0.02;
  json["use_cache"] = true;
  json["torch_dtype"] = torch_name(dtype);
  return json.dump(2) + "\n";
}

std::string generation_text(const ModelConfig& c) {
  Json json;
  json["_from_model_config"] = true;
  json["bos_token_id"] = c.bos;
  json["eos_token_id"] = c.eos;
  return json.dump(2) + "\n";
}

struct Piece {
  std::string name;  // this engine's
  SafetensorsEntry entry;
};
struct Shard {
  std::string file;
  std::vector<Piece> pieces;
  int64_t bytes = 0;
};

// Tensors in the model's order, as many in a shard as fit (a larger one gets a shard of its own). In a file the wider type
// comes first, so that every element is aligned.
std::vector<Shard> plan_shards(const ModelConfig& c, DType dtype, DType norm_dtype, int64_t limit) {
  std::vector<Shard> shards(1);
  const Layout layout = base_layout(c, dtype, "export");
  for (const TensorSpec& t : layout.tensors()) {
    const bool norm = t.name.ends_with("norm");
    const DType type = norm ? norm_dtype : dtype;
    const int64_t bytes = t.rows * t.cols * size_of(type);
    if (!shards.back().pieces.empty() && shards.back().bytes + bytes > limit) shards.emplace_back();
    const std::vector<int64_t> shape = norm ? std::vector{t.cols} : std::vector{t.rows, t.cols};
    shards.back().pieces.push_back(
        {t.name, {hugging_face_module(t.name) + ".weight", safetensors_name(type), shape, 0, bytes}});
    shards.back().bytes += bytes;
  }
  for (size_t i = 0; i < shards.size(); ++i) {
    Shard& s = shards[i];
    s.file = shards.size() == 1 ? "model.safetensors" : strf("model-%05zu-of-%05zu.safetensors", i + 1, shards.size());
    std::stable_partition(s.pieces.begin(), s.pieces.end(), [](const Piece& p) { return p.entry.dtype == "F32"; });
  }
  return shards;
}

std::string index_text(const std::vector<Shard>& shards, int64_t total) {
  Json json;
  json["metadata"]["total_size"] = total;
  for (const Shard& s : shards)
    for (const Piece& p : s.pieces) json["weight_map"][p.entry.name] = s.file;
  return json.dump(2) + "\n";
}

void write_shard(ExportSource& source, const std::string& path, const Shard& shard, DType dtype,
                 const std::function<void(int64_t)>& wrote) {
  std::map<std::string, std::string> metadata = provenance(source, dtype);
  metadata["format"] = "pt";
  std::vector<SafetensorsEntry> entries;
  for (const Piece& p : shard.pieces) entries.push_back(p.entry);
  SafetensorsWriter writer(path, entries, metadata);
  for (const Piece& p : shard.pieces) {
    const DType type = p.entry.dtype == "F32" ? DType::F32 : dtype;
    source.stream(p.name, type, {}, [&](const void* data, int64_t bytes) {
      writer.write(p.entry.name, data, bytes);
      wrote(bytes);
    });
  }
  writer.finish();
}

// The tokenizer under its plain name, and its configuration.
void copy_tokenizer(const std::string& model, const OutputFolder& out, ExportReport& report) {
  namespace fs = std::filesystem;
  const std::string from = find_tokenizer(model);
  if (from.empty()) {
    report.notes.push_back("no tokenizer beside " + model + ": put the model's own into the folder");
    return;
  }
  const auto put = [&](const std::string& name, const std::string& text) {
    write_text_file(out.file(name), text);
    report.files.emplace_back(name, static_cast<int64_t>(text.size()));
  };
  // The files of this name belong together: "DIR/NAME.tokenizer.model" and "DIR/NAME.tokenizer_config.json".
  const std::string stem = from.substr(0, from.rfind("tokenizer."));
  for (const char* name :
       {"tokenizer.model", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "chat_template.jinja"})
    if (file_exists(stem + name)) put(name, read_text_file(stem + name));
  if (file_exists(out.file("tokenizer_config.json")) || file_exists(out.file("tokenizer.json"))) return;
  Json json;  // what this engine's SentencePiece tokenizer does by default
  json["tokenizer_class"] = "LlamaTokenizer";
  json["legacy"] = true;
  json["add_bos_token"] = true;
  json["add_eos_token"] = false;
  json["bos_token"] = "<s>", json["eos_token"] = "</s>", json["unk_token"] = "<unk>";
  put("tokenizer_config.json", json.dump(2) + "\n");
}

}  // namespace

ExportReport export_hugging_face(ExportSource& source, const std::string& folder, const ExportOptions& options,
                                 const ByteProgress& progress) {
  const DType dtype = export_dtype(source, options);
  const bool norms_fit = source.norms_fit(dtype);
  const std::vector<Shard> shards =
      plan_shards(source.config(), dtype, norms_fit ? dtype : DType::F32, options.shard_bytes);
  int64_t all = 0, done = 0;
  for (const Shard& s : shards) all += s.bytes;
  OutputFolder out(folder, options.overwrite, all);
  ExportReport report;
  for (const Shard& s : shards) {
    write_shard(source, out.file(s.file), s, dtype, [&](int64_t bytes) {
      if (progress) progress(done += bytes, all);
    });
    report.files.emplace_back(s.file, MappedFile(out.file(s.file)).size());
  }
  const auto put = [&](const std::string& name, const std::string& text) {
    write_text_file(out.file(name), text);
    report.files.emplace_back(name, static_cast<int64_t>(text.size()));
  };
  if (shards.size() > 1) put("model.safetensors.index.json", index_text(shards, all));
  put("config.json", config_text(source.config(), dtype));
  put("generation_config.json", generation_text(source.config()));
  copy_tokenizer(source.path(), out, report);
  out.commit();
  append_merge_note(source, dtype, report);
  if (!norms_fit) report.notes.push_back(strf("the norm weights stay F32: they are no %s values", name_of(dtype)));
  return report;
}

}  // namespace irq
