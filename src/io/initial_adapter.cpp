#include "src/io/initial_adapter.h"

#include <algorithm>
#include <filesystem>
#include <map>
#include <optional>

#include "src/core/hash.h"
#include "src/io/float_pieces.h"
#include "src/io/foreign_names.h"
#include "src/io/safetensors.h"
#include "src/model/method.h"

namespace irq {
namespace {

constexpr const char* kWeights = "adapter_model.safetensors";

// What a key of the safetensors stands for.
struct Meaning {
  std::string linear, part;  // "layers.3.wq", "A"
  int64_t rows = 0, cols = 0;
};

// "base_model.model.model.layers.3.self_attn.q_proj.lora_A.weight"; nothing where it is no part of a LoRA on a linear.
std::optional<Meaning> meaning_of(std::string key, const ModelConfig& c, int64_t rank) {
  for (bool again = true; again;) {
    again = false;
    for (const std::string prefix : {"base_model.", "model."})
      if (key.rfind(prefix, 0) == 0) key.erase(0, prefix.size()), again = true;
  }
  const size_t number_end = key.find('.', 7);
  if (key.rfind("layers.", 0) != 0 || number_end == std::string::npos) return {};
  const std::string layer = key.substr(0, number_end), rest = key.substr(number_end + 1);
  for (const LinearShape& s : layer_linears(c)) {
    const int64_t index = linear_index(c, layer + "." + s.name);
    if (index < 0) return {};  // a layer that the model does not have
    const std::string own = strf("layers.%ld.%s", index / 7, s.name);
    const std::string module = hugging_face_module(std::string("layers.0.") + s.name).substr(15) + ".";
    if (rest.rfind(module, 0) != 0) continue;
    const std::string part = rest.substr(module.size());
    if (part == "lora_A.weight" || part == "lora_A.default.weight") return Meaning{own, "A", rank, s.in};
    if (part == "lora_B.weight" || part == "lora_B.default.weight") return Meaning{own, "B", s.out, rank};
    if (part == "lora_default_A_scale") return Meaning{own, "beta1", 1, 1};
    if (part == "lora_default_B_scale") return Meaning{own, "beta2", 1, 1};
  }
  return {};
}

std::string shape_text(const std::vector<int64_t>& shape) {
  std::string text;
  for (const int64_t n : shape) text += (text.empty() ? "" : ", ") + std::to_string(n);
  return "(" + text + ")";
}

bool has_shape(const SafetensorsEntry& e, const Meaning& m) {
  if (m.rows * m.cols == 1) return e.count() == 1 && e.shape.size() <= 2;
  return e.shape == std::vector<int64_t>{m.rows, m.cols};
}

std::vector<float> values_of(const SafetensorsReader& file, const SafetensorsEntry& e) {
  const std::optional<DType> type = plain_type(e.dtype);
  if (!type)
    throw Error(file.path() + ": " + printable(e.name) + " is " + printable(e.dtype))
        .line("expected", "F32, F16 or BF16");
  const std::vector<unsigned char> bytes(file.data(e), file.data(e) + e.bytes);  // the file's may not be aligned
  std::vector<float> values(static_cast<size_t>(e.count()));
  convert_values(values.data(), DType::F32, bytes.data(), *type, e.count());
  if (first_not_finite(values.data(), DType::F32, e.count()) >= 0)
    throw Error(file.path() + ": a weight of " + printable(e.name) + " is not finite")
        .line("likely", "its training diverged");
  return values;
}

using Parts = std::map<std::string, NamedArray>;  // by "layers.3.wq.A"

void read_parts(const SafetensorsReader& file, const ModelConfig& c, int64_t rank, Parts& parts) {
  std::map<std::string, const SafetensorsEntry*> seen;
  for (const SafetensorsEntry& e : file.entries()) {
    const std::optional<Meaning> m = meaning_of(e.name, c, rank);
    if (!m)
      throw Error(file.path() + ": holds what is no LoRA on a linear of this model")
          .line("found", printable(e.name) + " " + shape_text(e.shape))
          .line("expected", strf("lora_A and lora_B of the seven linears in layers 0 to %ld", c.layers - 1))
          .line("likely", "an adapter of another model, or of other kinds of layers");
    const std::string name = m->linear + "." + m->part;
    if (!has_shape(e, *m))
      throw Error(file.path() + ": this adapter does not fit the model")
          .line("tensor", printable(e.name) + " " + shape_text(e.shape))
          .line("expected", m->part.size() > 1 ? "(1)" : strf("(%ld, %ld)", m->rows, m->cols))
          .line("likely", "an adapter of another model");
    if (const SafetensorsEntry*& first = seen[name]; first == nullptr) {
      first = &e;
    } else {  // under a second prefix: it must say the same
      if (first->dtype != e.dtype || first->bytes != e.bytes ||
          std::memcmp(file.data(*first), file.data(e), static_cast<size_t>(e.bytes)) != 0)
        throw Error(file.path() + ": two keys for one weight that differ")
            .line("found", printable(first->name) + ", " + printable(e.name));
      continue;
    }
    parts[name] = {name, m->rows, m->cols, values_of(file, e)};
  }
}

// The linears of every layer that have parts; an Error if layers differ or a part is missing.
uint32_t targets_of(const Parts& parts, const ModelConfig& c, const std::string& path) {
  uint32_t targets = 0;
  const auto linears = layer_linears(c);
  for (size_t i = 0; i < linears.size(); ++i)
    for (int64_t l = 0; l < c.layers; ++l)
      for (const char* part : {".A", ".B", ".beta1", ".beta2"})
        if (parts.contains(strf("layers.%ld.%s%s", l, linears[i].name, part))) targets |= 1u << i;
  if (targets == 0)
    throw Error(path + ": holds no adapter").line("expected", "keys ...lora_A.weight, ...lora_B.weight");
  for (size_t i = 0; i < linears.size(); ++i)
    for (int64_t l = 0; targets >> i & 1u && l < c.layers; ++l)
      for (const char* part : {".A", ".B"}) {
        const std::string name = strf("layers.%ld.%s", l, linears[i].name);
        if (!parts.contains(name + part))
          throw Error(path + ": a part of the adapter is missing")
              .line("expected", "base_model.model." + hugging_face_module(name) + ".lora_" + (part + 1) + ".weight")
              .line("likely", "an adapter of some layers only, which this engine has no form for, or a cut file");
      }
  return targets;
}

// In layer order; a beta that only some linears have is 0 in the others.
std::vector<NamedArray> in_order(Parts& parts, const ModelConfig& c, uint32_t targets) {
  bool any[2] = {};
  const char* betas[2] = {".beta1", ".beta2"};
  for (const auto& [name, array] : parts)
    for (int i = 0; i < 2; ++i) any[i] |= name.ends_with(betas[i]);
  std::vector<NamedArray> list;
  const auto linears = layer_linears(c);
  for (int64_t l = 0; l < c.layers; ++l)
    for (size_t i = 0; i < linears.size(); ++i) {
      if (!(targets >> i & 1u)) continue;
      const std::string name = strf("layers.%ld.%s", l, linears[i].name);
      list.push_back(std::move(parts.at(name + ".A")));
      list.push_back(std::move(parts.at(name + ".B")));
      for (int b = 0; b < 2; ++b)
        if (any[b])
          list.push_back(parts.contains(name + betas[b]) ? parts.at(name + betas[b])
                                                         : NamedArray{name + betas[b], 1, 1, {0.0f}});
    }
  return list;
}

// This engine's ranks are multiples of 8. Zero rows of A and columns of B add nothing and, having no gradient, stay zero; alpha
// grows with the rank, so that alpha / rank is what it was. Betas would pool over another number of slices: refused.
std::string pad_rank(AdapterFile& a, const std::string& folder) {
  const int64_t rank = a.rank, padded = (rank + 7) / 8 * 8;
  if (rank == padded) return "";
  for (NamedArray& t : a.tensors) {
    if (t.name.ends_with(".A")) {
      t.rows = padded;
      t.data.resize(static_cast<size_t>(padded * t.cols), 0.0f);
    } else if (t.name.ends_with(".B")) {
      std::vector<float> wide(static_cast<size_t>(t.rows * padded), 0.0f);
      for (int64_t row = 0; row < t.rows; ++row) std::copy_n(&t.data[row * rank], rank, &wide[row * padded]);
      t.cols = padded, t.data = std::move(wide);
    } else if (t.data.at(0) != 0) {
      throw Error(folder + ": an adapter with betas has a rank that does not fit")
          .line("expected", "a multiple of 8")
          .line("found", strf("rank %ld", rank));
    }
  }
  a.alpha *= static_cast<double>(padded) / static_cast<double>(rank);
  a.rank = padded;
  return strf(" of rank %ld, padded with zeros to a multiple of 8", rank);
}

void read_folder(const std::string& folder, const ModelConfig& c, InitialAdapter& out) {
  const std::string weights = folder + "/" + kWeights, config = folder + "/adapter_config.json";
  if (!file_exists(weights)) {
    const bool pickled = file_exists(folder + "/adapter_model.bin");
    Error error(folder + ": has no " + std::string(kWeights));
    if (!pickled) throw error.line("likely", "not a PEFT adapter's folder");
    throw error.line("found", "adapter_model.bin, a Python pickle, which can run any program when it is read")
        .line("try", "load it with PEFT once and save_pretrained(DIR): PEFT writes safetensors");
  }
  const PeftConfig peft = parse_peft_config(read_text_file(config, int64_t{16} << 20), config);
  const SafetensorsReader file(weights);
  Parts parts;
  read_parts(file, c, peft.rank, parts);
  AdapterFile& a = out.adapter;
  a.rank = peft.rank, a.alpha = peft.alpha, a.dropout = peft.dropout;
  a.targets = targets_of(parts, c, weights);
  if (peft.targets != 0 && peft.targets != a.targets)
    throw Error(folder + ": its two files do not belong together")
        .line("expected", "adapters on " + targets_text(peft.targets) + ", as target_modules says")
        .line("found", "adapters on " + targets_text(a.targets));
  a.tensors = in_order(parts, c, a.targets);
  if (const auto at = file.metadata().find("irq.trained_on"); at != file.metadata().end() && at->second.size() == 16) {
    char* end = nullptr;
    a.base_hash = std::strtoull(at->second.c_str(), &end, 16);
    out.knows_base = *end == '\0';
  }
  out.description = "a PEFT adapter" + pad_rank(a, folder);
}

}  // namespace

InitialAdapter read_initial_adapter(const std::string& path, const ModelConfig& config) {
  InitialAdapter out;
  AdapterFile& a = out.adapter;
  if (std::error_code ignored; std::filesystem::is_directory(path, ignored)) {
    read_folder(path, config, out);
  } else {
    if (base_name(path) == kWeights)
      throw Error(path + ": name its folder: adapter_config.json is needed too").line("try", parent_path(path));
    a = read_adapter(path);
    out.knows_base = true;
    out.description = "an adapter of " + a.method;
  }
  Hasher hasher;
  const double numbers[] = {static_cast<double>(a.rank), a.alpha, static_cast<double>(a.tile)};
  hasher.update(numbers, sizeof numbers);
  if (a.pool.on()) {
    const int64_t pooling[] = {static_cast<int64_t>(a.pool.kind), a.pool.group, a.pool.aligned};
    hasher.update(pooling, sizeof pooling);
  }
  for (const NamedArray& t : a.tensors) {
    hasher.update(t.name.data(), t.name.size());
    hasher.update(t.data.data(), t.data.size() * sizeof t.data[0]);
    const bool used = std::any_of(t.data.begin(), t.data.end(), [](float x) { return x != 0; });
    out.uses_beta1 |= used && t.name.ends_with(".beta1");
    out.uses_beta2 |= used && t.name.ends_with(".beta2");
  }
  out.hash = hasher.digest();
  if (a.trains_scales()) return out;
  out.description += strf(", rank %ld, alpha %g, on %s", a.rank, a.alpha, targets_text(a.targets).c_str());
  if (out.uses_beta1 || out.uses_beta2) out.description += ", with betas";
  if (a.pool.on()) out.description += ", " + describe(a.pool);
  return out;
}

}  // namespace irq
