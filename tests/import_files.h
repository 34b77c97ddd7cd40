// One small model written as other programs write theirs, and the checks of what comes out of the importers.
#pragma once
#include <functional>

#include "src/io/import.h"
#include "tests/eval_fixture.h"
#include "tests/gguf_files.h"

namespace irq {

// What llama2.c assumes (theta 10000, epsilon 1e-5); grouped-query heads.
inline ModelConfig import_config(bool tied) {
  ModelConfig c = eval_config();
  c.norm_eps = 1e-5, c.tied = tied;
  return c;
}

// As f32, whatever the reader gave.
inline std::vector<float> values_of(const Tensor& t) {
  std::vector<float> v(static_cast<size_t>(t.numel()));
  for (size_t i = 0; i < v.size(); ++i) {
    if (t.dtype == DType::F32) v[i] = t.as<float>()[i];
    else if (t.dtype == DType::BF16) v[i] = to_float(t.as<Bf16>()[i]);
    else v[i] = to_float(t.as<F16>()[i]);
  }
  return v;
}

inline void expect_tensors(ImportedModel& model, const Weights& expected) {
  const Layout layout = base_layout(model.config(), DType::F32, "test");
  for (const TensorSpec& spec : layout.tensors()) {
    const Tensor t = model.tensor(spec.name);
    EXPECT_EQ(t.rows, spec.rows) << spec.name;
    EXPECT_EQ(t.cols, spec.cols) << spec.name;
    EXPECT_EQ(values_of(t), expected.at(spec.name)) << spec.name;
  }
  EXPECT_EQ(layout.tensors().size(), expected.size());
}

// LLaMA in double, rotating neighbours (2j, 2j + 1) of `w`'s interleaved rows: the other programs' model, computed plainly.
class PlainLlama {
 public:
  PlainLlama(const ModelConfig& c, const Weights& w) : c_(c), w_(w) {}

  std::vector<double> logits(const std::vector<int32_t>& ids) const {
    const size_t dim = static_cast<size_t>(c_.dim), n = ids.size();
    std::vector<std::vector<double>> x(n);
    for (size_t t = 0; t < n; ++t) {
      const float* row = &w_.at("embed")[static_cast<size_t>(ids[t]) * dim];
      x[t].assign(row, row + dim);
    }
    for (int64_t l = 0; l < c_.layers; ++l) layer(strf("layers.%ld.", l), x);
    std::vector<double> all;
    for (size_t t = 0; t < n; ++t) {
      const std::vector<double> row = times(c_.tied ? "embed" : "head", norm("norm", x[t]));
      all.insert(all.end(), row.begin(), row.end());
    }
    return all;
  }

 private:
  using Row = std::vector<double>;
  Row times(const std::string& name, const Row& x) const {
    const std::vector<float>& w = w_.at(name);
    Row y(w.size() / x.size());
    for (size_t r = 0; r < y.size(); ++r)
      for (size_t i = 0; i < x.size(); ++i) y[r] += w[r * x.size() + i] * x[i];
    return y;
  }
  Row norm(const std::string& name, const Row& x) const {
    double sum = 0;
    for (const double v : x) sum += v * v;
    const double scale = 1 / std::sqrt(sum / static_cast<double>(x.size()) + c_.norm_eps);
    Row y = x;
    for (size_t i = 0; i < y.size(); ++i) y[i] *= scale * w_.at(name)[i];
    return y;
  }
  void rotate(Row& x, size_t position) const {
    const size_t d = static_cast<size_t>(c_.head_dim);
    for (size_t i = 0; i < x.size(); i += 2) {
      const double angle =
          static_cast<double>(position) * std::pow(c_.rope_theta, -static_cast<double>(i % d) / static_cast<double>(d));
      const double a = x[i], b = x[i + 1];
      x[i] = a * std::cos(angle) - b * std::sin(angle);
      x[i + 1] = a * std::sin(angle) + b * std::cos(angle);
    }
  }
  void layer(const std::string& p, std::vector<Row>& x) const {
    const size_t d = static_cast<size_t>(c_.head_dim), share = static_cast<size_t>(c_.heads / c_.kv_heads);
    std::vector<Row> k, v;
    for (size_t t = 0; t < x.size(); ++t) {
      const Row h = norm(p + "attn_norm", x[t]);
      Row q = times(p + "wq", h);
      k.push_back(times(p + "wk", h)), v.push_back(times(p + "wv", h));
      rotate(q, t), rotate(k[t], t);
      Row out(q.size());
      for (size_t head = 0; head < static_cast<size_t>(c_.heads); ++head) {
        const size_t kv = head / share * d;
        Row weight(t + 1);
        double sum = 0;
        for (size_t s = 0; s <= t; ++s) {
          double dot = 0;
          for (size_t i = 0; i < d; ++i) dot += q[head * d + i] * k[s][kv + i];
          sum += weight[s] = std::exp(dot / std::sqrt(static_cast<double>(d)));
        }
        for (size_t s = 0; s <= t; ++s)
          for (size_t i = 0; i < d; ++i) out[head * d + i] += weight[s] / sum * v[s][kv + i];
      }
      add(x[t], times(p + "wo", out));
    }
    for (Row& row : x) {
      const Row h = norm(p + "ffn_norm", row);
      Row gate = times(p + "w_gate", h), up = times(p + "w_up", h);
      for (size_t i = 0; i < gate.size(); ++i) gate[i] = gate[i] / (1 + std::exp(-gate[i])) * up[i];
      add(row, times(p + "w_down", gate));
    }
  }
  static void add(Row& x, const Row& y) {
    for (size_t i = 0; i < x.size(); ++i) x[i] += y[i];
  }
  ModelConfig c_;
  const Weights& w_;
};

// The imported model as a .bin gives, in this engine, the logits of the other program's model.
inline void expect_logits(ImportedModel& model, const Weights& interleaved, const TempFolder& folder) {
  Weights imported;
  const Layout layout = base_layout(model.config(), DType::F32, "test");
  for (const TensorSpec& spec : layout.tensors()) imported[spec.name] = values_of(model.tensor(spec.name));
  const std::string path = folder.name("imported.bin");
  write_weights(path, model.config(), imported);
  const std::vector<int32_t> ids = random_ids(12, model.config().vocab, 4);
  const auto backend = eval_backend();
  ModelSession session(*backend, path);
  const Batch batch = every_position(ids);
  session.load({{.evaluate = {}, .logits = {shape_of(batch)}, .positions = 12, .cache_tokens = 0}});
  const std::vector<float> found = session.logits(batch);
  const std::vector<double> expected = PlainLlama(model.config(), interleaved).logits(ids);
  ASSERT_EQ(found.size(), expected.size());
  double difference = 0, size = 0;
  for (size_t i = 0; i < found.size(); ++i) {
    difference += (found[i] - expected[i]) * (found[i] - expected[i]);
    size += expected[i] * expected[i];
  }
  // F32 rounding of sums of at most 96 terms, two layers deep. Rows in the wrong order give about 1.
  EXPECT_LT(std::sqrt(difference / size), 1e-5);
}

inline bool notes_say(const ImportedModel& model, const std::string& part) {
  for (const std::string& note : model.notes())
    if (note.find(part) != std::string::npos) return true;
  return false;
}

class Formats : public ::testing::Test {
 protected:
  std::string save(const std::string& bytes) const { return folder_.write("m", bytes); }
  // What is said, without the file's own path.
  template <class Import>
  std::string error(Import import, const std::string& bytes) const {
    const std::string path = save(bytes), e = error_of([&] { import(path); });
    return e.compare(0, path.size(), path) == 0 ? e.substr(path.size() + 2) : "no path: " + e;
  }
  ModelConfig config_ = import_config(false), tied_ = import_config(true);
  Weights weights_ = random_weights(config_, 1), tied_weights_ = random_weights(tied_, 2);
  TempFolder folder_;
};

// ---- writers ---------------------------------------------------------------------------------------------------------
inline bool is_rotary(const std::string& name) { return name.ends_with(".wq") || name.ends_with(".wk"); }

// Row 2j + p of a head gets row j + p D/2: what the other programs hold.
inline Weights interleaved(const ModelConfig& c, Weights weights) {
  const size_t cols = static_cast<size_t>(c.dim), d = static_cast<size_t>(c.head_dim);
  for (auto& [name, w] : weights) {
    if (!is_rotary(name)) continue;
    const std::vector<float> half_split = w;
    for (size_t head = 0; head < w.size() / cols; head += d)
      for (size_t j = 0; j < d / 2; ++j)
        for (size_t p = 0; p < 2; ++p)
          for (size_t i = 0; i < cols; ++i)
            w[(head + 2 * j + p) * cols + i] = half_split[(head + j + p * d / 2) * cols + i];
  }
  return weights;
}

// As bytes of F32 (0), F16 (1) or BF16 (30).
inline std::string as_type(const std::vector<float>& v, uint32_t type) {
  if (type == 0) return raw(v);
  std::string bytes;
  for (const float x : v) bytes += raw(type == 1 ? to_f16(x).bits : to_bf16(x).bits);
  return bytes;
}

// The matrices rounded to F16 (1) or BF16 (30); norms too if `norms`.
inline Weights rounded(Weights weights, uint32_t type, bool norms = false) {
  for (auto& [name, w] : weights) {
    if (name.ends_with("norm") && !norms) continue;
    for (float& x : w) x = type == 1 ? to_float(to_f16(x)) : to_float(to_bf16(x));
  }
  return weights;
}

inline std::string gguf_name(const std::string& name) {
  static const std::map<std::string, std::string> names = {
      {"embed", "token_embd"}, {"norm", "output_norm"}, {"head", "output"},       {"wq", "attn_q"},
      {"wk", "attn_k"},        {"wv", "attn_v"},        {"wo", "attn_output"},    {"w_gate", "ffn_gate"},
      {"w_up", "ffn_up"},      {"w_down", "ffn_down"},  {"ffn_norm", "ffn_norm"}, {"attn_norm", "attn_norm"}};
  const size_t dot = name.rfind('.');
  if (dot == std::string::npos) return names.at(name) + ".weight";
  return "blk." + name.substr(7, dot - 7) + "." + names.at(name.substr(dot + 1)) + ".weight";
}

inline void gguf_config(GgufBytes& g, const ModelConfig& c, int64_t ffn) {
  const auto u = [](int64_t x) { return static_cast<uint32_t>(x); };
  g.string("general.architecture", "llama");
  g.u32("llama.block_count", u(c.layers)), g.u32("llama.context_length", u(c.max_seq));
  g.u32("llama.embedding_length", u(c.dim)), g.u32("llama.feed_forward_length", u(ffn));
  g.u32("llama.attention.head_count", u(c.heads)), g.u32("llama.attention.head_count_kv", u(c.kv_heads));
  g.f32("llama.attention.layer_norm_rms_epsilon", static_cast<float>(c.norm_eps));
  g.f32("llama.rope.freq_base", static_cast<float>(c.rope_theta));
  if (c.head_dim != c.dim / c.heads) g.u32("llama.attention.key_length", u(c.head_dim));
}

// `type` of the matrices, or types[its GGUF name]; a type that is not F32, F16 or BF16 gets zeros of its size's order.
inline GgufBytes gguf_of(const ModelConfig& c, const Weights& half_split, uint32_t type = 0,
                         const std::map<std::string, uint32_t>& types = {}, int64_t claimed_ffn = 0) {
  GgufBytes g;
  gguf_config(g, c, claimed_ffn ? claimed_ffn : c.ffn);
  const Weights w = interleaved(c, half_split);
  const Layout layout = base_layout(c, DType::F32, "test");
  for (const TensorSpec& t : layout.tensors()) {
    const std::string name = gguf_name(t.name);
    const uint64_t rows = static_cast<uint64_t>(t.rows), cols = static_cast<uint64_t>(t.cols);
    const auto own = types.find(name);
    const uint32_t its = t.rows == 1 ? 0 : own != types.end() ? own->second : type;
    if (its == 12) g.tensor(name, {256, rows * cols / 256}, its, std::string(rows * cols / 256 * 144, '\0'));
    else
      g.tensor(name, t.rows == 1 ? std::vector<uint64_t>{cols} : std::vector<uint64_t>{cols, rows}, its,
               as_type(w.at(t.name), its));
  }
  return g;
}

// Random blocks of Q4_0 (2), Q4_1 (3) or Q8_0 (8) as every matrix; (*blocks)[our name] receives their bytes.
inline GgufBytes quantized_gguf(const ModelConfig& c, const Weights& norms, uint32_t type,
                                std::map<std::string, std::string>* blocks) {
  GgufBytes g;
  gguf_config(g, c, c.ffn);
  Rng rng(type);
  const size_t block_bytes = type == 2 ? 18 : type == 3 ? 20 : 34;
  const Layout layout = base_layout(c, DType::F32, "test");
  for (const TensorSpec& t : layout.tensors()) {
    const uint64_t rows = static_cast<uint64_t>(t.rows), cols = static_cast<uint64_t>(t.cols);
    if (t.rows == 1) {
      g.tensor(gguf_name(t.name), {cols}, 0, raw(norms.at(t.name)));
      continue;
    }
    std::string& bytes = (*blocks)[t.name];
    for (uint64_t b = 0; b < rows * cols / 32; ++b) {
      bytes += raw(to_f16(static_cast<float>(0.01 * rng.normal())).bits);
      if (type == 3) bytes += raw(to_f16(static_cast<float>(0.1 * rng.normal())).bits);
      while (bytes.size() % block_bytes) bytes += static_cast<char>(rng.next_u32());
    }
    g.tensor(gguf_name(t.name), {cols, rows}, type, bytes);
  }
  return g;
}

inline std::string ints(const std::vector<int32_t>& v) { return raw(v); }

// All layers' tensors of one kind, one after the other.
inline std::string every_layer(const ModelConfig& c, const Weights& w, const std::string& name, uint32_t type = 0) {
  std::string bytes;
  for (int64_t l = 0; l < c.layers; ++l) bytes += as_type(w.at(strf("layers.%ld.", l) + name), type);
  return bytes;
}

inline std::string llama2c_of(const ModelConfig& c, const Weights& half_split, int version) {
  const Weights w = interleaved(c, half_split);
  const auto i = [](int64_t x) { return static_cast<int32_t>(x); };
  const auto layers = [&](const std::vector<std::string>& names) {
    std::string bytes;
    for (const std::string& n : names) bytes += every_layer(c, w, n);
    return bytes;
  };
  const std::string head = c.tied ? "" : raw(w.at("head"));
  const int32_t vocab = i(version == 0 && !c.tied ? -c.vocab : c.vocab);
  const std::string sizes = ints({i(c.dim), i(c.ffn), i(c.layers), i(c.heads), i(c.kv_heads), vocab, i(c.max_seq)});
  if (version == 0)
    return sizes + raw(w.at("embed")) +
           layers({"attn_norm", "wq", "wk", "wv", "wo", "ffn_norm", "w_gate", "w_down", "w_up"}) + raw(w.at("norm")) +
           raw(std::vector<float>(static_cast<size_t>(c.max_seq * c.head_dim), 0.5f)) + head;
  std::string header = ints({0x616b3432, version}) + sizes + std::string(1, c.tied ? '\1' : '\0');
  header.resize(256, '\0');
  return header + layers({"attn_norm", "ffn_norm"}) + raw(w.at("norm")) + raw(w.at("embed")) +
         layers({"wq", "wk", "wv", "wo", "w_gate", "w_down", "w_up"}) + head;
}

// The first header (fractions as whole numbers) or the later one (with 256 floats behind it).
inline std::string llmc_header(const ModelConfig& c, int32_t version, bool floats, int32_t scaled_rope = 0) {
  const auto i = [](int64_t x) { return static_cast<int32_t>(x); };
  std::vector<int32_t> h = {20240803,    version,    i(c.max_seq),  i(c.vocab),
                            i(c.layers), i(c.heads), i(c.kv_heads), i(c.dim)};
  const int32_t multiple_of = 32;  // 8 x 64 / 3 = 170; times 0.56 -> 95 -> 96
  if (floats) h.insert(h.end(), {multiple_of, scaled_rope, 3, 1});
  else h.insert(h.end(), {0, multiple_of, 0, i(static_cast<int64_t>(c.rope_theta)), scaled_rope, 4, 3, 1});
  h.resize(256);
  std::vector<float> f = {0.56f, static_cast<float>(c.norm_eps), static_cast<float>(c.rope_theta)};
  f.resize(256);
  return ints(h) + (floats ? raw(f) : "");
}

inline std::string llmc_of(const ModelConfig& c, const Weights& half_split, int32_t version, bool floats) {
  const Weights w = interleaved(c, half_split);
  const uint32_t type = version == 3 ? 0 : 30;
  std::string bytes =
      llmc_header(c, version, floats) + as_type(w.at("embed"), type) + every_layer(c, w, "attn_norm", type);
  for (int64_t l = 0; l < c.layers; ++l)
    for (const char* name : {"wq", "wk", "wv"}) bytes += as_type(w.at(strf("layers.%ld.%s", l, name)), type);
  for (const char* name : {"wo", "ffn_norm", "w_up", "w_gate", "w_down"}) bytes += every_layer(c, w, name, type);
  return bytes + as_type(w.at("norm"), type) + as_type(w.at("head"), type);
}

}  // namespace irq
