// The adapter as stock PEFT loads it: plain LoRA, IEC folded in.
#include <nlohmann/json.hpp>

#include "src/io/export.h"
#include "src/io/foreign_names.h"
#include "src/io/output_folder.h"
#include "src/io/safetensors.h"

namespace irq {
namespace {

constexpr const char* kWeights = "adapter_model.safetensors";

// The linears that have an adapter, in the order of the file.
struct Adapted {
  std::string name;  // "layers.3.wq"
  LinearShape shape;
};
std::vector<Adapted> adapted_linears(const ModelConfig& c, uint32_t targets) {
  std::vector<Adapted> list;
  const auto linears = layer_linears(c);
  for (int64_t l = 0; l < c.layers; ++l)
    for (size_t i = 0; i < linears.size(); ++i)
      if (targets >> i & 1u) list.push_back({strf("layers.%ld.%s", l, linears[i].name), linears[i]});
  return list;
}

std::string config_text(const ModelConfig& c, const AdapterFile& a, const std::string& base_name) {
  nlohmann::ordered_json json;
  json["peft_type"] = "LORA";
  json["task_type"] = "CAUSAL_LM";
  json["base_model_name_or_path"] = base_name.empty() ? nlohmann::ordered_json() : nlohmann::ordered_json(base_name);
  json["r"] = a.rank;
  if (a.alpha == static_cast<double>(static_cast<int64_t>(a.alpha))) json["lora_alpha"] = static_cast<int64_t>(a.alpha);
  else json["lora_alpha"] = a.alpha;
  json["lora_dropout"] = a.dropout;
  json["bias"] = "none";
  json["target_modules"] = nlohmann::ordered_json::array();
  const auto linears = layer_linears(c);
  for (size_t i = 0; i < linears.size(); ++i) {
    if (!(a.targets >> i & 1u)) continue;
    const std::string module = hugging_face_module(std::string("layers.0.") + linears[i].name);
    json["target_modules"].push_back(module.substr(module.rfind('.') + 1));
  }
  for (const char* off : {"fan_in_fan_out", "use_rslora", "use_dora"}) json[off] = false;
  for (const char* on : {"init_lora_weights", "inference_mode"}) json[on] = true;
  for (const char* none : {"modules_to_save", "layers_to_transform", "layers_pattern", "revision", "auto_mapping"})
    json[none] = nullptr;
  for (const char* empty : {"rank_pattern", "alpha_pattern"}) json[empty] = nlohmann::ordered_json::object();
  return json.dump(2) + "\n";
}

// Header only: the betas are wanted before the matrices are streamed.
std::string betas_text(AdapterReader& adapter, const std::vector<Adapted>& linears) {
  nlohmann::ordered_json json = nlohmann::ordered_json::object();
  for (const Adapted& l : linears)
    for (const char* beta : {".beta1", ".beta2"})
      if (adapter.layout().find(l.name + beta) != nullptr)
        json[l.name + beta] = static_cast<double>(*adapter.tensor(l.name + beta).as<float>());
  return json.dump();
}

}  // namespace

ExportReport export_peft(ExportSource& source, const std::string& folder, const ExportOptions& options,
                         const ByteProgress& progress) {
  AdapterReader& adapter = *source.adapter();
  const AdapterFile& info = adapter.info();
  if (info.trains_scales())
    throw Error(adapter.file().path() + ": --peft has no form for trained scales")
        .line("why", "PEFT adds a product to a layer's output; PEQA changes the scales of the base itself")
        .line("try", "--irq OUT.irq (the base with these scales), or --hf DIR --merge, --gguf FILE --merge");
  const std::vector<Adapted> linears = adapted_linears(source.config(), info.targets);
  if (linears.empty()) throw Error(adapter.file().path() + ": this adapter is on no linear at all");
  std::vector<SafetensorsEntry> entries;
  int64_t all = 0, done = 0;
  for (const Adapted& l : linears) {
    const std::string prefix = "base_model.model." + hugging_face_module(l.name);
    entries.push_back({prefix + ".lora_A.weight", "F32", {info.rank, l.shape.in}});
    entries.push_back({prefix + ".lora_B.weight", "F32", {l.shape.out, info.rank}});
    all += 4 * info.rank * (l.shape.in + l.shape.out);
  }
  std::map<std::string, std::string> metadata = provenance(source, DType::F32);
  metadata["format"] = "pt";
  metadata["irq.weights"] = "A~ = A + beta1 P, B~ = B + beta2 E in F64, rounded once to F32";
  metadata["irq.betas"] = betas_text(adapter, linears);
  metadata["irq.trained_on"] = strf("%016lx", info.base_hash);

  OutputFolder out(folder, options.overwrite, all);
  SafetensorsWriter writer(out.file(kWeights), entries, metadata);
  for (size_t i = 0; i < linears.size(); ++i) {
    const FoldedAdapter f = fold_adapter(adapter, linears[i].name, linears[i].shape);
    const auto put = [&](const SafetensorsEntry& entry, const std::vector<float>& w) {
      const int64_t bytes = static_cast<int64_t>(4 * w.size());
      writer.write(entry.name, w.data(), bytes);
      if (progress) progress(done += bytes, all);
    };
    put(entries[2 * i], f.a);
    put(entries[2 * i + 1], f.b);
  }
  writer.finish();
  const std::string config = config_text(source.config(), info, options.base_name);
  write_text_file(out.file("adapter_config.json"), config);
  ExportReport report;
  report.files = {{kWeights, MappedFile(out.file(kWeights)).size()},
                  {"adapter_config.json", static_cast<int64_t>(config.size())}};
  out.commit();
  if (source.quantized())
    report.notes.push_back("it belongs on the dequantized base (irq_export " + source.path() +
                           " --hf DIR), not on the 16-bit original");
  return report;
}

}  // namespace irq
