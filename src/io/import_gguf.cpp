// GGUF files of LLaMA's architecture. Their wq and wk have interleaved rows (llama.cpp reorders them when it converts from
// Hugging Face); quantization blocks run along a row, so that rows move whole. Shapes are written fastest dimension first.
#include <cstring>
#include <map>
#include <set>

#include "src/core/check.h"
#include "src/io/foreign_names.h"
#include "src/io/ggml_blocks.h"
#include "src/io/gguf_keys.h"
#include "src/io/import.h"
#include "src/io/layout.h"
#include "src/io/printable.h"
#include "src/io/rope_rows.h"

namespace irq {
namespace {

Error refuse(const std::string& path, const std::string& reason) {
  return Error(path + ": not a LLaMA this engine can run: " + reason)
      .line("expected", "LLaMA's architecture: RMSNorm, plain rotary positions, SwiGLU, linears without bias");
}

// What the pairs ask for beyond plain LLaMA. Each of these changes results, so each is refused.
void refuse_other_models(const GgufKeys& keys, const std::string& path) {
  const std::string architecture = keys.text("general.architecture", "");
  if (architecture != "llama")
    throw refuse(path, architecture.empty() ? "the file does not say its architecture"
                                            : "its architecture is " + printable(architecture.substr(0, 60)));
  const std::string type = keys.text("general.type", "model");
  if (type != "model") throw refuse(path, "it is no model but of type " + printable(type.substr(0, 60)));
  if (const int64_t parts = keys.integer("split.count", 1); parts > 1)
    throw Error(path + ": is one part of a model")
        .line("expected", "a whole model in one file")
        .line("found", strf("split.count = %ld", parts))
        .line("try", "llama-gguf-split --merge FIRST_PART.gguf whole.gguf");
  if (const int64_t experts = keys.integer("llama.expert_count", 0); experts > 0)
    throw refuse(path, strf("it is a mixture of %ld experts", experts));
  if (!keys.flag("llama.attention.causal", true)) throw refuse(path, "its attention is not causal");
  for (const char* key : {"llama.attention.clamp_kqv", "llama.logit_scale", "llama.embedding_scale",
                          "llama.residual_scale", "llama.attention.scale"})
    if (keys.has(key)) throw refuse(path, std::string(key) + " is set");
  if (const int64_t window = keys.integer("llama.attention.sliding_window", 0);
      window > 0 && window < keys.integer("llama.context_length"))
    throw refuse(path, strf("its attention sees a window of %ld positions only", window));
}

// Stretched positions. A factor of 1 (or 0, which llama.cpp takes for "not given") stretches nothing.
void refuse_rope_scaling(const GgufKeys& keys, const std::string& path) {
  const std::string type = keys.text("llama.rope.scaling.type", "linear");
  if (type != "none" && type != "linear")
    throw refuse(path, "llama.rope.scaling.type is " + printable(type.substr(0, 60)) +
                           " (stretched positions are not supported)");
  for (const char* key : {"llama.rope.scaling.factor", "llama.rope.scale_linear"})
    if (const double factor = keys.number(key, 1); type != "none" && factor != 1 && factor != 0)
      throw refuse(path, strf("%s is %g (stretched positions are not supported)", key, factor));
}

ModelConfig read_config(const GgufReader& file, const GgufKeys& keys) {
  const std::string& path = file.path();
  ModelConfig c;
  c.dim = keys.integer("llama.embedding_length");
  c.ffn = keys.integer("llama.feed_forward_length");
  c.layers = keys.integer("llama.block_count");
  c.heads = keys.integer("llama.attention.head_count");
  c.kv_heads = keys.integer("llama.attention.head_count_kv", c.heads);
  c.max_seq = keys.integer("llama.context_length");
  if (!keys.has("llama.attention.key_length") && c.heads > 0 && c.dim % c.heads)
    throw refuse(path, strf("its width %ld is not a multiple of %ld heads", c.dim, c.heads));
  c.head_dim = keys.integer("llama.attention.key_length", c.heads > 0 ? c.dim / c.heads : 0);
  if (const int64_t value = keys.integer("llama.attention.value_length", c.head_dim); value != c.head_dim)
    throw refuse(path, strf("its keys have %ld values per head, its values %ld", c.head_dim, value));
  if (const int64_t turned = keys.integer("llama.rope.dimension_count", c.head_dim); turned != c.head_dim)
    throw refuse(path, strf("rotary positions on %ld of %ld values of a head", turned, c.head_dim));
  if (!keys.has("llama.attention.layer_norm_rms_epsilon"))
    throw keys.wrong("llama.attention.layer_norm_rms_epsilon", "a number");
  c.norm_eps = keys.number("llama.attention.layer_norm_rms_epsilon", 0);
  c.rope_theta = keys.number("llama.rope.freq_base", 10000.0);
  c.tied = file.tensor("output.weight") == nullptr;
  const GgufTensor* embed = file.tensor("token_embd.weight");
  if (!embed) throw refuse(path, "there is no tensor token_embd.weight");
  c.vocab = embed->shape.size() == 2 ? embed->shape[1] : 0;
  validate(c, path);
  return c;
}

class GgufModel final : public ImportedModel {
 public:
  explicit GgufModel(const std::string& path) : file_(path) {
    const GgufKeys keys(file_);
    refuse_other_models(keys, path);
    refuse_rope_scaling(keys, path);
    config_ = read_config(file_, keys);
    take_tensors();
    take_vocabulary(keys);
  }

  Tensor tensor(const std::string& name) override {
    const auto found = places_.find(name);
    IRQ_CHECK(found != places_.end(), "%s has no tensor %s", file_.path().c_str(), name.c_str());
    if (last_) file_.dont_need(*last_);  // the former view's pages
    const Place& place = found->second;
    last_ = place.source;
    const GgmlType type = static_cast<GgmlType>(last_->type);
    const unsigned char* data = file_.data(*last_);
    const DType dtype = type == GgmlType::f16 ? DType::F16 : type == GgmlType::bf16 ? DType::BF16 : DType::F32;
    const bool plain = type == GgmlType::f32 || dtype != DType::F32;
    const bool aligned = reinterpret_cast<uintptr_t>(data) % static_cast<uintptr_t>(size_of(dtype)) == 0;
    const char* label = found->first.c_str();
    if (plain && aligned && place.head_dim == 0)
      return make_view(const_cast<unsigned char*>(data), dtype, place.rows, place.cols, label);
    buffer_.resize(static_cast<size_t>(place.rows * place.cols * size_of(dtype)));
    if (!plain)
      decode_ggml_rows(type, data, place.rows, place.cols, reinterpret_cast<float*>(buffer_.data()), place.head_dim);
    else if (place.head_dim > 0)
      copy_half_split(buffer_.data(), data, place.rows, place.cols * size_of(dtype), place.head_dim);
    else std::memcpy(buffer_.data(), data, buffer_.size());
    return make_view(buffer_.data(), dtype, place.rows, place.cols, label);
  }

  std::vector<SideFile> side_files() override {
    return carry_vocabulary_ ? tokenizer_files(gguf_vocabulary(file_), file_.path()) : std::vector<SideFile>();
  }

 private:
  struct Place {
    const GgufTensor* source;
    int64_t rows, cols, head_dim;  // head_dim > 0: rows are interleaved, to be made half-split
  };

  void take_tensors() {
    const std::string& path = file_.path();
    std::set<std::string> wanted;
    const GgufTensor* first_matrix = nullptr;
    bool mixed = false;
    const Layout layout = base_layout(config_, DType::F32, path);
    for (const TensorSpec& spec : layout.tensors()) {
      const std::string name = gguf_module(spec.name) + ".weight";
      const GgufTensor* t = file_.tensor(name);
      if (!t)
        throw refuse(path, "there is no tensor " + name)
            .line("likely", "a damaged file, or one part of a model in several files");
      file_.data(*t);  // an Error unless its type can be decoded
      check_shape(*t, spec);
      places_[spec.name] = {t, spec.rows, spec.cols, is_rotary(spec.name) ? config_.head_dim : 0};
      wanted.insert(name);
      if (spec.rows == 1 && t->shape.size() == 1) continue;
      if (!first_matrix) first_matrix = t;
      mixed = mixed || t->type != first_matrix->type;
    }
    for (const GgufTensor& t : file_.tensors())
      if (t.name != "rope_freqs.weight" && !wanted.count(t.name)) throw unknown_tensor(t.name);
    if (const GgufTensor* factors = file_.tensor("rope_freqs.weight")) check_rope_factors(*factors);
    const GgmlType type = static_cast<GgmlType>(first_matrix->type);
    dtype_ = mixed                    ? DType::F32
             : type == GgmlType::f16  ? DType::F16
             : type == GgmlType::bf16 ? DType::BF16
                                      : DType::F32;
  }

  void check_shape(const GgufTensor& t, const TensorSpec& spec) const {
    const bool vector = spec.rows == 1 && t.shape.size() == 1 && t.shape[0] == spec.cols;
    if (vector || (t.shape.size() == 2 && t.shape[0] == spec.cols && t.shape[1] == spec.rows)) return;
    std::string found;
    for (const int64_t n : t.shape) found = std::to_string(n) + (found.empty() ? "" : " x " + found);
    throw Error(file_.path() + ": " + t.name + " has the wrong shape")
        .line("expected", spec.rows == 1 ? std::to_string(spec.cols) : strf("%ld x %ld", spec.rows, spec.cols))
        .line("found", found)
        .line("likely", "a damaged file, or a model of another architecture");
  }

  Error unknown_tensor(const std::string& name) const {
    const std::string shown = printable(name.substr(0, 80));
    if (name.find(".bias") != std::string::npos) return refuse(file_.path(), "it has a bias, " + shown);
    if (name.find("_exps") != std::string::npos || name.find("ffn_gate_inp") != std::string::npos)
      return refuse(file_.path(), "it is a mixture of experts: " + shown);
    return refuse(file_.path(), "it has a tensor that LLaMA does not have, " + shown);
  }

  // One divisor for each of a head's frequencies: LLaMA 3.1's stretched positions, unless all are 1.
  void check_rope_factors(const GgufTensor& t) const {
    const int64_t count = config_.head_dim / 2;
    bool identity = t.type == static_cast<uint32_t>(GgmlType::f32) && t.shape.size() == 1 && t.shape[0] == count;
    for (int64_t i = 0; identity && i < count; ++i) {
      float factor;
      std::memcpy(&factor, file_.data(t) + 4 * i, 4);
      identity = factor == 1.0f;
    }
    if (!identity)
      throw refuse(file_.path(),
                   "rope_freqs.weight stretches its positions, as LLaMA 3.1 and later do (not supported)");
  }

  void take_vocabulary(const GgufKeys& keys) {
    const Vocabulary v = gguf_vocabulary(file_);
    const int64_t tokens = static_cast<int64_t>(v.tokens.size());
    if (tokens > config_.vocab)
      throw refuse(file_.path(), strf("it has %ld tokens but only %ld rows of embedding", tokens, config_.vocab));
    carry_vocabulary_ = v.model == "llama" || v.model == "gpt2";
    if (v.model.empty()) notes_.push_back("the file has no vocabulary: a tokenizer must come from elsewhere");
    else if (!carry_vocabulary_)
      notes_.push_back("its tokenizer is of a kind that is not supported (" + printable(v.model.substr(0, 40)) +
                       "): left out");
    const auto special = [&](const char* name, int32_t found, int32_t otherwise) {
      if (found >= 0) return found;
      if (otherwise >= config_.vocab) throw keys.wrong(name, "the id of a token");
      notes_.push_back(strf("%s is not in the file: %d is assumed", name, otherwise));
      return otherwise;
    };
    config_.bos = special("tokenizer.ggml.bos_token_id", v.bos, 1);
    config_.eos = special("tokenizer.ggml.eos_token_id", v.eos, 2);
  }

  GgufReader file_;
  std::map<std::string, Place> places_;
  const GgufTensor* last_ = nullptr;
  bool carry_vocabulary_ = false;
  std::vector<unsigned char> buffer_;
};

}  // namespace

std::unique_ptr<ImportedModel> import_gguf(const std::string& path) { return std::make_unique<GgufModel>(path); }

}  // namespace irq
