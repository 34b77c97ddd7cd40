#include "src/io/hugging_face.h"

#include <algorithm>
#include <cstring>
#include <filesystem>
#include <nlohmann/json.hpp>

#include "src/core/check.h"
#include "src/io/flat_file.h"
#include "src/text/json_file.h"

namespace irq {
namespace {

namespace fs = std::filesystem;

constexpr int64_t kMaxIndexBytes = int64_t{8} << 20;
constexpr const char* kIndexName = "model.safetensors.index.json";

std::vector<std::string> list_files(const std::string& folder) {
  std::vector<std::string> names;
  std::error_code problem;
  for (fs::directory_iterator it(folder, problem), end; !problem && it != end; it.increment(problem))
    names.push_back(it->path().filename().string());
  if (problem) throw Error(folder + ": this folder cannot be read: " + problem.message());
  std::sort(names.begin(), names.end());
  return names;
}

// tensor -> shard
std::map<std::string, std::string> read_index(const std::string& path) {
  const nlohmann::json json = read_json_file(path, kMaxIndexBytes);
  const bool good = json.is_object() && json.contains("weight_map") && json.at("weight_map").is_object();
  if (!good || json.at("weight_map").empty())
    throw Error(path + ": is not an index of safetensors files")
        .line("expected", "an object {\"weight_map\": {tensor: file, ...}}")
        .line("try", "download it again");
  std::map<std::string, std::string> index;
  for (const auto& [tensor, file] : json.at("weight_map").items()) {
    const std::string name = file.is_string() ? file.get<std::string>() : "";
    if (name.empty() || name.find('/') != std::string::npos || name[0] == '.')
      throw Error(path + ": names no file for " + printable(tensor))
          .line("expected", "the name of a .safetensors file in the same folder")
          .line("found", printable(file.dump()));
    index[tensor] = name;
  }
  return index;
}

// There is no safetensors file: what is there instead?
[[noreturn]] void throw_no_weights(const std::string& folder, const std::vector<std::string>& names) {
  const auto any = [&](auto&& test) { return std::any_of(names.begin(), names.end(), test); };
  Error e(folder + ": has no safetensors file");
  e.line("expected", "config.json and model.safetensors, or model.safetensors.index.json and its shards");
  const bool torch = any([](const std::string& n) { return n.starts_with("pytorch_model") || n.ends_with(".pth"); });
  const bool gguf = any([](const std::string& n) { return n.ends_with(".gguf"); });
  if (torch) {
    e.line("found", "PyTorch's own files (.bin, .pth), which are programs to be executed: they are not read here");
    e.line("try", "python3 -c \"from transformers import AutoModelForCausalLM as A; A.from_pretrained('" + folder +
                      "', torch_dtype='auto').save_pretrained('" + folder + "-safetensors')\"");
    e.line("then", "copy the tokenizer's files there, and ./irq_convert " + shell_quoted(folder + "-safetensors") +
                       " model.bin");
  } else if (any([](const std::string& n) { return n == "adapter_model.safetensors"; })) {
    e.line("found", "adapter_model.safetensors: a PEFT adapter, not a model");
    e.line("try", "./irq_train BASE --init-adapter " + shell_quoted(folder));
  } else if (any([](const std::string& n) { return n.starts_with("consolidated"); })) {
    e.line("found", "consolidated.*: Meta's own layout, which is not read here");
    e.line("try", "take the model in Hugging Face's layout (often the same repository has it)");
  } else if (gguf) {
    e.line("try", "name the .gguf file itself");
  } else {
    e.line("found", names.empty() ? "nothing" : strf("%zu other files", names.size()));
  }
  throw e;
}

}  // namespace

std::string FolderTensor::shape() const {
  std::string text;
  for (const int64_t d : entry->shape) text += (text.empty() ? "" : ", ") + std::to_string(d);
  return entry->dtype + " [" + text + "]";
}

FolderTensors::FolderTensors(const std::string& path) {
  std::error_code ignored;
  const bool is_folder = fs::is_directory(path, ignored);
  folder_ = is_folder ? path : parent_path(path);
  while (folder_.size() > 1 && folder_.back() == '/') folder_.pop_back();
  open_files(choose_files(is_folder || path.ends_with(".json") ? "" : base_name(path)));
}

std::vector<std::string> FolderTensors::choose_files(const std::string& picked) {
  const std::string index_path = folder_ + "/" + kIndexName;
  const bool has_single = file_exists(folder_ + "/model.safetensors"), has_index = file_exists(index_path);
  if (has_index && (picked.empty() ? !has_single : picked != "model.safetensors")) {
    index_ = read_index(index_path);
    std::set<std::string> shards;
    for (const auto& [tensor, file] : index_) shards.insert(file);
    if (picked.empty() || shards.count(picked)) return {shards.begin(), shards.end()};
    index_.clear();
  }
  if (!picked.empty()) return {picked};
  if (!has_single) return choose_unnamed();
  if (has_index) notes_.push_back("model.safetensors is read; " + std::string(kIndexName) + " beside it is not");
  return {"model.safetensors"};
}

// Without the usual names: the only safetensors file, or all of a set that is numbered as shards are.
std::vector<std::string> FolderTensors::choose_unnamed() const {
  const std::vector<std::string> names = list_files(folder_);
  std::vector<std::string> files;
  for (const std::string& n : names)
    if (n.ends_with(".safetensors") && !n.starts_with("adapter_") && !n.starts_with("consolidated")) files.push_back(n);
  if (files.empty()) throw_no_weights(folder_, names);
  const auto is_shard = [](const std::string& n) { return n.find("-of-") != std::string::npos; };
  if (files.size() == 1 || std::all_of(files.begin(), files.end(), is_shard)) return files;
  std::string list;
  for (size_t i = 0; i < files.size() && i < 4; ++i) list += (i ? ", " : "") + printable(files[i]);
  throw Error(folder_ + ": has several safetensors files and no " + kIndexName)
      .line("found", list + (files.size() > 4 ? ", ..." : ""))
      .line("try", "name the one that holds the model, or download " + std::string(kIndexName));
}

void FolderTensors::open_files(const std::vector<std::string>& names) {
  std::string missing;
  int64_t absent = 0;
  for (const std::string& n : names) {
    if (file_exists(folder_ + "/" + n)) continue;
    if (absent++ == 0) missing = n;
  }
  if (absent > 0 && !index_.empty())
    throw Error(folder_ + "/" + missing + ": this shard is missing")
        .line("expected", strf("the %zu files that %s lists", names.size(), kIndexName))
        .line("found", strf("%ld of them missing", absent))
        .line("likely", "interrupted download")
        .line("try", "download the missing files into " + folder_);
  for (const std::string& n : names) {
    files_.push_back(std::make_unique<SafetensorsReader>(folder_ + "/" + n));
    const SafetensorsReader* file = files_.back().get();
    for (const SafetensorsEntry& e : file->entries()) {
      const auto [at, is_new] = tensors_.emplace(e.name, FolderTensor{file, &e});
      if (!is_new)
        throw Error(file->path() + ": tensor " + printable(e.name) + " is in two files")
            .line("found", base_name(at->second.file->path()) + " and " + n)
            .line("likely", "files of two models, or of two downloads, in one folder");
    }
  }
  for (const auto& [tensor, file] : index_) {
    const FolderTensor* t = find(tensor);
    if (t && base_name(t->file->path()) == file) continue;
    throw Error(folder_ + "/" + file + ": has no tensor " + printable(tensor))
        .line("expected", "it there, by " + std::string(kIndexName))
        .line("likely", "the index and the shards come from different models")
        .line("try", "download the folder again");
  }
}

const FolderTensor* FolderTensors::find(const std::string& name) const {
  const auto found = tensors_.find(name);
  return found == tensors_.end() ? nullptr : &found->second;
}

const FolderTensor& FolderTensors::require(const std::string& name) const {
  if (const FolderTensor* t = find(name)) return *t;
  throw Error(folder_ + ": tensor " + name + " is missing")
      .line("expected", "it, for the model that config.json describes")
      .line("found", strf("%zu tensors in %zu files", tensors_.size(), files_.size()))
      .line("likely", "a config.json of another model, or files missing from the download");
}

int64_t FolderTensors::refuse_unknown(const std::set<std::string>& known) const {
  int64_t ignored = 0;
  for (const auto& [name, tensor] : tensors_) {
    if (known.count(name)) continue;
    if (name.ends_with(".rotary_emb.inv_freq")) {  // theta^(-2j/D): computed from rope_theta here
      ++ignored;
      continue;
    }
    Error e(tensor.where() + " has no place in LLaMA");
    e.line("found", tensor.shape());
    if (name.ends_with(".bias")) e.line("likely", "another architecture: LLaMA's linears have no bias");
    else if (name.find("lora_") != std::string::npos)
      e.line("likely", "an adapter saved into the model: merge it first");
    else if (name.find("rotary") != std::string::npos) e.line("likely", "stretched positions, which are not supported");
    else e.line("likely", "another architecture, or a config.json of another model (num_hidden_layers)");
    throw e;
  }
  return ignored;
}

// Compared in pieces whose pages are let go, so that two large tables need no memory.
bool same_values(const FolderTensor& a, const FolderTensor& b) {
  constexpr int64_t kPiece = int64_t{8} << 20;
  if (a.entry->dtype != b.entry->dtype || a.entry->shape != b.entry->shape) return false;
  for (int64_t begin = 0; begin < a.entry->bytes; begin += kPiece) {
    const int64_t bytes = std::min(kPiece, a.entry->bytes - begin);
    const bool same = std::memcmp(a.data() + begin, b.data() + begin, static_cast<size_t>(bytes)) == 0;
    a.file->dont_need(*a.entry, begin, bytes);
    b.file->dont_need(*b.entry, begin, bytes);
    if (!same) return false;
  }
  return true;
}

void resolve_head(const FolderTensors& folder, ModelConfig& config, std::vector<std::string>& notes) {
  const FolderTensor* head = folder.find("lm_head.weight");
  const FolderTensor* embed = folder.find("model.embed_tokens.weight");
  if (!head && !config.tied)
    throw Error(folder.folder() + ": tensor lm_head.weight is missing")
        .line("expected", "it, because tie_word_embeddings is false or not given in config.json")
        .line("likely", "a model with tied embeddings, or files missing from the download")
        .line("try", "if it is tied, write \"tie_word_embeddings\": true into " + folder.config_path());
  if (!head || !config.tied || !embed) return;
  if (same_values(*head, *embed)) {
    notes.push_back("lm_head.weight equals model.embed_tokens.weight and is stored once (tie_word_embeddings)");
    return;
  }
  config.tied = false;
  notes.push_back(
      "config.json ties the embeddings, but lm_head.weight differs from model.embed_tokens.weight: both are kept, as "
      "an untied model");
}

DType float_type(const FolderTensor& t) {
  if (const std::optional<DType> type = plain_type(t.entry->dtype)) return *type;
  Error e(t.where() + " is of a type that is not read here");
  e.line("expected", "F32, F16 or BF16").line("found", t.shape());
  if (t.entry->dtype == "U8" || t.entry->dtype[0] == 'I')
    e.line("likely", "a quantized model").line("try", "take the 16-bit original instead");
  throw e;
}

void check_shape(const FolderTensor& t, int64_t rows, int64_t cols) {
  const std::vector<int64_t> want = rows == 1 ? std::vector<int64_t>{cols} : std::vector<int64_t>{rows, cols};
  if (t.entry->shape == want || (rows == 1 && t.entry->shape == std::vector<int64_t>{1, cols})) return;
  throw Error(t.where() + " has the wrong shape")
      .line("expected",
            rows == 1 ? strf("[%ld], by config.json", cols) : strf("[%ld, %ld], by config.json", rows, cols))
      .line("found", t.shape())
      .line("likely", "config.json belongs to another model");
}

std::vector<SideFile> folder_side_files(const std::string& folder) {
  constexpr int64_t kMaxTokenizerBytes = int64_t{256} << 20;
  std::vector<SideFile> files;
  for (const char* name : kSideFiles) {
    const std::string path = folder + "/" + name;
    if (!file_exists(path)) continue;
    if (files.empty() && std::string(name) == "chat_template.jinja") continue;  // alone it is no tokenizer
    const FileKind kind = sniff(path);
    if (kind == FileKind::lfs_pointer || kind == FileKind::web_page || kind == FileKind::empty)
      throw Error(path + ": not a tokenizer's file")
          .line("found", describe(kind))
          .line("try", kind == FileKind::lfs_pointer ? "git lfs pull" : "download it again, or remove it");
    files.push_back({name, read_text_file(path, kMaxTokenizerBytes)});
  }
  return files;
}

std::string eos_note(const std::string& folder, const ModelConfig& config) {
  const std::string path = folder + "/generation_config.json";
  if (!file_exists(path)) return "";
  const nlohmann::json json = read_json_file(path, int64_t{1} << 20);
  if (!json.is_object() || !json.contains("eos_token_id") || json.at("eos_token_id").is_null()) return "";
  const nlohmann::json& eos = json.at("eos_token_id");
  if (eos == config.eos || (eos.is_array() && eos.size() == 1 && eos.front() == config.eos)) return "";
  return strf("generation_config.json ends a text at eos_token_id %s; the model's file keeps config.json's first, %d",
              printable(eos.dump()).c_str(), config.eos);
}

}  // namespace irq
