// One file for llama.cpp and the programs built on it.
#include "src/io/export.h"
#include "src/io/foreign_names.h"
#include "src/io/gguf.h"
#include "src/io/rope_rows.h"
#include "src/text/tokenizer.h"
#include "src/text/vocabulary.h"

namespace irq {
namespace {

using Pairs = std::vector<std::pair<std::string, GgufValue>>;

class PairList {
 public:
  Pairs pairs;
  void u32(const std::string& key, int64_t x) { add(key, GgufType::u32).integer = x; }
  void boolean(const std::string& key, bool x) { add(key, GgufType::boolean).integer = x; }
  void f32(const std::string& key, double x) { add(key, GgufType::f32).number = x; }
  void text(const std::string& key, const std::string& x) { add(key, GgufType::string).text = x; }
  GgufValue& list(const std::string& key, GgufType type) {
    GgufValue& v = add(key, type);
    v.is_array = true;
    return v;
  }

 private:
  GgufValue& add(const std::string& key, GgufType type) {
    pairs.emplace_back(key, GgufValue{});
    pairs.back().second.type = type;
    return pairs.back().second;
  }
};

uint32_t ggml_type(DType t) {
  return static_cast<uint32_t>(t == DType::F32 ? GgmlType::f32 : t == DType::F16 ? GgmlType::f16 : GgmlType::bf16);
}
// llama.cpp's number for "mostly of this type".
int64_t file_type(DType t) { return t == DType::F32 ? 0 : t == DType::F16 ? 1 : 32; }

void put_model(PairList& out, ExportSource& source, DType dtype, const std::string& name) {
  const ModelConfig& c = source.config();
  out.text("general.architecture", "llama");
  out.text("general.name", name);
  out.u32("general.file_type", file_type(dtype));
  out.u32("general.alignment", 32);
  out.u32("llama.block_count", c.layers);
  out.u32("llama.context_length", c.max_seq);
  out.u32("llama.embedding_length", c.dim);
  out.u32("llama.feed_forward_length", c.ffn);
  out.u32("llama.attention.head_count", c.heads);
  out.u32("llama.attention.head_count_kv", c.kv_heads);
  out.f32("llama.attention.layer_norm_rms_epsilon", c.norm_eps);
  out.f32("llama.rope.freq_base", c.rope_theta);
  out.u32("llama.rope.dimension_count", c.head_dim);
  out.u32("llama.vocab_size", c.vocab);
  if (c.head_dim * c.heads != c.dim) {
    out.u32("llama.attention.key_length", c.head_dim);
    out.u32("llama.attention.value_length", c.head_dim);
  }
  for (const auto& [key, value] : provenance(source, dtype)) out.text(key, value);
}

// The vocabulary filled up to the embedding's rows: llama.cpp wants as many tokens as rows.
void pad(Vocabulary& v, int64_t rows, const std::string& path) {
  const int64_t have = static_cast<int64_t>(v.tokens.size());
  if (have > rows)
    throw Error(path + ": this tokenizer does not belong to the model")
        .line("expected", strf("at most %s tokens, the rows of the model's embedding", with_commas(rows).c_str()))
        .line("found", with_commas(have));
  for (int64_t i = have; i < rows; ++i) {
    v.tokens.push_back(strf("[PAD%ld]", i));
    v.types.push_back(5);  // unused
    if (!v.scores.empty()) v.scores.push_back(-10000.0f);
  }
}

void put_vocabulary(PairList& out, const ModelConfig& c, const Vocabulary& v) {
  out.text("tokenizer.ggml.model", v.model);
  if (!v.pre.empty()) out.text("tokenizer.ggml.pre", v.pre);
  out.list("tokenizer.ggml.tokens", GgufType::string).texts = v.tokens;
  if (!v.scores.empty())
    out.list("tokenizer.ggml.scores", GgufType::f32).numbers.assign(v.scores.begin(), v.scores.end());
  out.list("tokenizer.ggml.token_type", GgufType::i32).integers.assign(v.types.begin(), v.types.end());
  if (!v.merges.empty()) out.list("tokenizer.ggml.merges", GgufType::string).texts = v.merges;
  out.u32("tokenizer.ggml.bos_token_id", v.bos >= 0 ? v.bos : c.bos);
  out.u32("tokenizer.ggml.eos_token_id", v.eos >= 0 ? v.eos : c.eos);
  if (v.unknown >= 0) out.u32("tokenizer.ggml.unknown_token_id", v.unknown);
  if (v.padding >= 0) out.u32("tokenizer.ggml.padding_token_id", v.padding);
  out.boolean("tokenizer.ggml.add_bos_token", v.add_bos);
  if (v.model == "llama") out.boolean("tokenizer.ggml.add_space_prefix", v.add_space_prefix);
  if (!v.chat_template.empty()) out.text("tokenizer.chat_template", v.chat_template);
}

// llama.cpp wants wq and wk in the interleaved order.
ExportSource::RowOrder row_order(const std::string& name, int64_t head_dim) {
  if (!is_rotary(name)) return {};
  return [head_dim](int64_t row) { return half_split_row(row, head_dim); };
}

}  // namespace

ExportReport export_gguf(ExportSource& source, const std::string& path, const ExportOptions& options,
                         const ByteProgress& progress) {
  if (file_exists(path) && !options.overwrite)
    throw Error(path + ": the file exists").line("try", "--overwrite, or another name");
  const ModelConfig& c = source.config();
  const DType dtype = export_dtype(source, options);
  std::string name = base_name(path);
  if (name.ends_with(".gguf")) name.resize(name.size() - 5);
  PairList pairs;
  ExportReport report;
  put_model(pairs, source, dtype, name);
  if (const std::string tokenizer = find_tokenizer(source.path()); !tokenizer.empty()) {
    Vocabulary v = read_vocabulary(tokenizer);
    pad(v, c.vocab, tokenizer);
    put_vocabulary(pairs, c, v);
  } else {
    pairs.text("tokenizer.ggml.model", "no_vocab");
    pairs.u32("tokenizer.ggml.bos_token_id", c.bos);
    pairs.u32("tokenizer.ggml.eos_token_id", c.eos);
    report.notes.push_back("warning: no tokenizer beside " + source.path() +
                           ": the file has none either, and llama.cpp cannot turn text into its tokens");
  }

  const Layout layout = base_layout(c, dtype, path);
  std::vector<GgufTensor> tensors;
  int64_t all = 0, done = 0;
  for (const TensorSpec& t : layout.tensors()) {
    const std::vector<int64_t> shape = t.name.ends_with("norm") ? std::vector{t.cols} : std::vector{t.cols, t.rows};
    tensors.push_back({gguf_module(t.name) + ".weight", ggml_type(t.dtype), shape});
    all += t.bytes();
  }
  GgufWriter writer(path, pairs.pairs, tensors);
  for (size_t i = 0; i < tensors.size(); ++i) {
    const TensorSpec& t = layout.tensors()[i];
    source.stream(t.name, t.dtype, row_order(t.name, c.head_dim), [&](const void* data, int64_t bytes) {
      writer.write(tensors[i].name, data, bytes);
      if (progress) progress(done += bytes, all);
    });
  }
  writer.finish();
  report.files.emplace_back(path, MappedFile(path).size());
  append_merge_note(source, dtype, report);
  return report;
}

}  // namespace irq
