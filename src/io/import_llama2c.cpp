// llama2.c checkpoints, f32: version 0 (seven int32, no magic; a negative vocabulary means a head of its own) and version 1
// ("ak42", 256 bytes of header). wq and wk have interleaved rows.
#include <cstdlib>
#include <cstring>

#include "src/core/check.h"
#include "src/io/sequential_import.h"
#include "src/text/piece_space.h"

namespace irq {
namespace {

constexpr int32_t kMagic = 0x616b3432;  // "ak42" as a number; the bytes are 24ka
constexpr int64_t kHeaderV0 = 28, kHeaderV1 = 256, kSharedByte = 36;

// tokenizer.bin: u32 longest piece; per token f32 score, i32 length, its bytes. The pieces are SentencePiece's, with U+2581
// written as a space and tokens 1 and 2 as "\n<s>\n" and "\n</s>\n". Empty unless it has exactly `count` tokens.
std::optional<Vocabulary> read_tokenizer_bin(const std::string& path, int64_t count) {
  const MappedFile file(path);
  Vocabulary v;
  v.model = "llama";
  v.bos = 1, v.eos = 2, v.unknown = 0, v.add_bos = true;
  int64_t at = 4;
  for (int64_t i = 0; i < count; ++i) {
    float score;
    int32_t length;
    if (file.size() - at < 8) return std::nullopt;
    std::memcpy(&score, file.data() + at, 4);
    std::memcpy(&length, file.data() + at + 4, 4);
    at += 8;
    if (length < 0 || length > file.size() - at) return std::nullopt;
    const std::string bytes(reinterpret_cast<const char*>(file.data()) + at, static_cast<size_t>(length));
    at += length;
    const std::string piece = with_piece_spaces(bytes);
    const bool byte = piece.size() == 6 && piece.compare(0, 3, "<0x") == 0 && piece[5] == '>';
    v.types.push_back(i == 0 ? 2 : i <= 2 ? 3 : byte ? 6 : 1);
    v.tokens.push_back(i == 0 ? "<unk>" : i == 1 ? "<s>" : i == 2 ? "</s>" : piece);
    v.scores.push_back(score);
  }
  return at == file.size() ? std::optional<Vocabulary>(std::move(v)) : std::nullopt;
}

class Llama2cModel final : public SequentialModel {
 public:
  explicit Llama2cModel(const std::string& path) : SequentialModel(path) {
    if (slot(0) == kMagic) open_v1();
    else open_v0();
    notes_.push_back("llama2.c files do not say their epsilon and RoPE base: 1e-5 and 10,000 are assumed, as in run.c");
    take_tokenizer();
  }

 private:
  void read_config(int64_t first_slot) {
    const std::string& path = file_.path();
    int64_t x[7];
    for (int64_t i = 0; i < 7; ++i) x[i] = slot(first_slot + i);
    ModelConfig& c = config_;
    c.dim = x[0], c.ffn = x[1], c.layers = x[2], c.heads = x[3], c.kv_heads = x[4];
    c.vocab = std::abs(x[5]), c.max_seq = x[6];
    c.head_dim = c.heads > 0 ? c.dim / c.heads : 0;
    c.norm_eps = 1e-5;
    validate(c, path);
    if (c.dim % c.heads)
      throw Error(path + ": not a LLaMA this engine can run")
          .line("expected", "a width that is a multiple of the number of heads")
          .line("found", strf("%ld and %ld", c.dim, c.heads));
  }

  void open_v0() {
    config_.tied = slot(5) > 0;  // before validate(), which sees the absolute value
    read_config(0);
    const ModelConfig& c = config_;
    start(kHeaderV0);
    place("embed", c.vocab, c.dim);
    place_layers("attn_norm", 1, c.dim);
    place_attention();
    place_layers("ffn_norm", 1, c.dim);
    place_feed_forward();
    place("norm", 1, c.dim);
    skip(c.max_seq * c.head_dim);  // cos and sin of the rotations, (max_seq, head_dim / 2) each: computed anew here
    if (!c.tied) place("head", c.vocab, c.dim);
    check_end("llama2.c version 0, " + describe(c));
  }

  void open_v1() {
    const int32_t version = slot(1);
    if (version == 2)
      throw Error(file_.path() + ": a llama2.c checkpoint of version 2 (Q8_0), which is not supported")
          .line("expected", "version 0 or 1 (f32)")
          .line("likely", "made with --version 2; its scales stand in two different orders under this one version")
          .line("try", "python export.py model.bin --version 1 ...    in llama2.c, then convert again");
    if (version != 1)
      throw Error(file_.path() + ": a llama2.c checkpoint of an unknown version")
          .line("expected", "version 0 or 1 (f32)")
          .line("found", strf("version %d", version));
    slot(kHeaderV1 / 4 - 1);  // the whole header is there
    read_config(2);
    const int shared = file_.data()[kSharedByte];
    if (shared > 1 || slot(7) < 0)
      throw Error(file_.path() + ": a damaged llama2.c header")
          .line("expected", "a positive vocabulary, and 0 or 1 in byte 36 (shared head)")
          .line("found", strf("%d and %d", slot(7), shared));
    config_.tied = shared == 1;
    const ModelConfig& c = config_;
    start(kHeaderV1);
    place_layers("attn_norm", 1, c.dim);
    place_layers("ffn_norm", 1, c.dim);
    place("norm", 1, c.dim);
    place("embed", c.vocab, c.dim);
    place_attention();
    place_feed_forward();
    if (!c.tied) place("head", c.vocab, c.dim);
    check_end("llama2.c version 1, " + describe(c));
  }

  void place_attention() {
    for (const LinearShape& s : layer_linears(config_))
      if (std::string(s.name).size() == 2) place_layers(s.name, s.out, s.in);  // wq wk wv wo
  }
  void place_feed_forward() {
    const ModelConfig& c = config_;
    place_layers("w_gate", c.ffn, c.dim);  // w1
    place_layers("w_down", c.dim, c.ffn);  // w2
    place_layers("w_up", c.ffn, c.dim);    // w3
  }

  void take_tokenizer() {
    if (find_tokenizer_files()) return;
    const std::string path = parent_path(file_.path()) + "/tokenizer.bin";
    const bool exists = file_exists(path);
    if (exists) vocabulary_ = read_tokenizer_bin(path, config_.vocab);
    if (vocabulary_) return;
    notes_.push_back(exists ? path + " does not have this model's " + with_commas(config_.vocab) +
                                  " tokens: put its tokenizer.model beside the model"
                            : "there is no tokenizer.model or tokenizer.bin beside it: put its tokenizer.model beside "
                              "the model");
  }
};

}  // namespace

// llama2.c's version 0 has no magic: seven int32 (dim, hidden_dim, layers, heads, kv_heads, vocabulary, negative where the head
// is untied, positions), then f32 tensors. It is recognised by sizes that are possible and give exactly the file's size.
bool is_llama2c_v0(const MappedFile& file) {
  if (file.size() <= kHeaderV0) return false;
  int32_t field[7];
  std::memcpy(field, file.data(), kHeaderV0);
  const int64_t dim = field[0], ffn = field[1], layers = field[2], heads = field[3], kv_heads = field[4],
                vocab = std::abs(static_cast<int64_t>(field[5])), positions = field[6];
  const auto in = [](int64_t x, int64_t high) { return x >= 1 && x <= high; };
  if (!in(dim, 1 << 16) || !in(ffn, 1 << 18) || !in(layers, 1 << 10) || !in(heads, 1 << 10) || !in(kv_heads, heads) ||
      !in(vocab, 1 << 21) || !in(positions, 1 << 24) || dim % heads || heads % kv_heads)
    return false;
  const int64_t head_dim = dim / heads, kv_width = kv_heads * head_dim;
  const int64_t layer = 2 * dim + 2 * dim * dim + 2 * dim * kv_width + 3 * dim * ffn;
  const int64_t rope = 2 * positions * (head_dim / 2);
  const int64_t count = layers * layer + dim + rope + (field[5] < 0 ? 2 : 1) * vocab * dim;  // below 2^48
  return file.size() == kHeaderV0 + 4 * count;
}

std::unique_ptr<ImportedModel> import_llama2c(const std::string& path) { return std::make_unique<Llama2cModel>(path); }

}  // namespace irq
