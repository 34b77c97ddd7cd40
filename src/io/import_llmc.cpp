// llm.c LLaMA checkpoints: 256 int32 of header, then f32 (version 3) or bf16 (version 5) tensors. Two headers exist under one
// version: the first writes fractions into int32 slots, so that epsilon is 0 and the feed-forward multiplier 1.3 is 1; the
// later one has them in 256 floats behind the integers. The feed-forward width is in neither: it follows from the file's size.
#include <cstring>

#include "src/core/check.h"
#include "src/io/decimal.h"
#include "src/io/sequential_import.h"

namespace irq {
namespace {

constexpr int32_t kMagic = 20240803, kGpt2Magic = 20240326;
constexpr int64_t kSlots = 256;

struct Header {
  bool floats = false;    // the later header
  double multiplier = 0;  // of the feed-forward width; rounded down in the first header
  int64_t multiple_of = 0;
  bool scaled_rope = false;
};

// LLaMA's rule for the feed-forward width: two thirds of 4 C, times the multiplier, rounded up to a multiple.
int64_t ruled_width(int64_t dim, double multiplier, int64_t multiple_of) {
  const double width = multiplier * static_cast<double>(8 * dim / 3);
  return (static_cast<int64_t>(width) + multiple_of - 1) / multiple_of * multiple_of;
}

class LlmcModel final : public SequentialModel {
 public:
  explicit LlmcModel(const std::string& path) : SequentialModel(path) {
    check_kind();
    read_header();
    find_width();
    validate(config_, path);
    place_all();
    check_end(strf("llm.c version %d, ", slot(1)) + describe(config_));
    if (!find_tokenizer_files())
      notes_.push_back("llm.c files bring no tokenizer: put tokenizer.model or tokenizer.json beside the model");
  }

 private:
  Error refuse(const std::string& reason) const {
    return Error(file_.path() + ": not a LLaMA this engine can run: " + reason);
  }

  void check_kind() {
    const int32_t magic = slot(0);
    if (magic == kGpt2Magic)
      throw refuse("it is an llm.c checkpoint of GPT-2")
          .line("expected", "an llm.c checkpoint of LLaMA (magic 20240803)")
          .line("likely", "GPT-2 has learned positions, LayerNorm and biases, which LLaMA does not have");
    if (magic != kMagic)
      throw Error(file_.path() + ": not an llm.c checkpoint")
          .line("expected", strf("magic %d", kMagic))
          .line("found", strf("%d", magic));
    const int32_t version = slot(1);
    if (version != 3 && version != 5)
      throw Error(file_.path() + ": an llm.c checkpoint of an unknown version")
          .line("expected", "version 3 (f32) or 5 (bf16)")
          .line("found", strf("version %d", version))
          .line("likely", "a debug state (x, y, logits, gradients), which has the same magic, or a damaged file");
    dtype_ = version == 3 ? DType::F32 : DType::BF16;
    slot(kSlots - 1);  // the whole header is there
  }

  double fraction(int64_t i) const {
    slot(kSlots + i);
    float x;
    std::memcpy(&x, file_.data() + 4 * (kSlots + i), 4);
    return decimal_of(x);
  }

  void read_header() {
    ModelConfig& c = config_;
    c.max_seq = slot(2), c.vocab = slot(3), c.layers = slot(4), c.heads = slot(5), c.kv_heads = slot(6),
    c.dim = slot(7);
    header_.floats = slot(10) > 0;  // there the model's major version; the first header has epsilon rounded down to 0
    if (header_.floats) {
      header_.multiple_of = slot(8), header_.scaled_rope = slot(9) != 0;
      header_.multiplier = fraction(0);
      c.rope_theta = fraction(2);
      c.norm_eps = fraction(1);
    } else {
      header_.multiplier = slot(8), header_.multiple_of = slot(9), header_.scaled_rope = slot(12) != 0;
      c.rope_theta = slot(11), c.norm_eps = 1e-5;
      notes_.push_back("this llm.c file's header has its epsilon rounded to 0: 1e-5 is assumed");
    }
    if (header_.scaled_rope)
      throw refuse("its positions are stretched as LLaMA 3.1's are (use_scaled_rope = 1; not supported)");
    c.head_dim = c.heads > 0 ? c.dim / c.heads : 0;
    c.ffn = 1;  // until find_width()
    validate(c, file_.path());
    if (c.dim % c.heads) throw refuse(strf("its width %ld is not a multiple of %ld heads", c.dim, c.heads));
    if (c.vocab > 128001) c.bos = 128000, c.eos = 128001;  // LLaMA 3's
    notes_.push_back(
        strf("llm.c files do not say which tokens begin and end a text: %d and %d are assumed", c.bos, c.eos));
  }

  int64_t header_bytes() const { return 4 * kSlots * (header_.floats ? 2 : 1); }

  // Everything but the feed-forward matrices has a known size; those are 3 x width x C in each layer.
  void find_width() {
    ModelConfig& c = config_;
    ModelConfig narrow = c;
    narrow.ffn = 0;
    const int64_t known = total_parameters(narrow), per_width = 3 * c.dim * c.layers;
    const int64_t elements = (file_.size() - header_bytes()) / size_of(dtype_), rest = elements - known;
    const bool whole = (file_.size() - header_bytes()) % size_of(dtype_) == 0 && rest > 0 && rest % per_width == 0;
    const int64_t width = whole ? rest / per_width : 0;
    const double low = header_.multiplier, high = header_.floats ? low : low + 1;
    bool fits = whole;
    std::string rule = "a whole number";
    if (header_.multiple_of > 0 && header_.multiple_of <= 1 << 18 && low >= 0 && high > 0 && high <= 1024) {
      const int64_t from = ruled_width(c.dim, low, header_.multiple_of),
                    to = ruled_width(c.dim, high, header_.multiple_of);
      fits = fits && width >= from && width <= to && width % header_.multiple_of == 0;
      rule = from == to ? strf("%ld", from) : strf("a multiple of %ld from %ld to %ld", header_.multiple_of, from, to);
    }
    if (!fits) {
      Error e(file_.path() + ": its feed-forward width cannot be told");
      e.line("expected", rule + " by its header");
      e.line("found", strf("%s bytes, which would make it %.3f", with_commas(file_.size()).c_str(),
                           static_cast<double>(rest) / static_cast<double>(per_width)));
      e.line("likely", "an interrupted download or copy, or bytes behind the end");
      throw e;
    }
    c.ffn = width;
    notes_.push_back(strf("llm.c headers do not have the feed-forward width: %ld, by the file's size", width));
  }

  void place_all() {
    const ModelConfig& c = config_;
    start(header_bytes());
    place("embed", c.vocab, c.dim);
    place_layers("attn_norm", 1, c.dim);
    for (int64_t l = 0; l < c.layers; ++l) {  // one matrix, the rows of q, then k, then v
      const std::string prefix = strf("layers.%ld.", l);
      place(prefix + "wq", c.q_width(), c.dim);
      place(prefix + "wk", c.kv_width(), c.dim);
      place(prefix + "wv", c.kv_width(), c.dim);
    }
    place_layers("wo", c.dim, c.q_width());
    place_layers("ffn_norm", 1, c.dim);
    place_layers("w_up", c.ffn, c.dim);    // c_fc
    place_layers("w_gate", c.ffn, c.dim);  // c_fc2
    place_layers("w_down", c.dim, c.ffn);  // mlp.c_proj
    place("norm", 1, c.dim);
    place("head", c.vocab, c.dim);
  }

  Header header_;
};

}  // namespace

std::unique_ptr<ImportedModel> import_llmc(const std::string& path) { return std::make_unique<LlmcModel>(path); }

}  // namespace irq
