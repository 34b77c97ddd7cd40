// GGUF files: GgufReader and import_gguf.
#include "src/io/ggml_blocks.h"
#include "tests/fuzz/fuzz_util.h"
#include "tests/gguf_files.h"

namespace irq {
namespace {

// A LLaMA whose matrices take the readable types in turn.
std::string valid_file() {
  const ModelConfig c = fuzz_config();
  GgufBytes g;
  g.string("general.architecture", "llama");
  g.u32("llama.block_count", 1), g.u32("llama.context_length", 4), g.u32("llama.embedding_length", 32);
  g.u32("llama.feed_forward_length", 32), g.u32("llama.attention.head_count", 2);
  g.u32("llama.attention.head_count_kv", 1), g.f32("llama.attention.layer_norm_rms_epsilon", 1e-5f);
  g.f32("llama.rope.freq_base", 10000), g.string("tokenizer.ggml.model", "gpt2");
  g.string("tokenizer.ggml.pre", "smollm"),
      g.strings("tokenizer.ggml.tokens", {"a", "b", "ab", "c", "d", "e", "f", "g"});
  g.array("tokenizer.ggml.token_type", 5, 8,
          std::string("\3\0\0\0\1\0\0\0\1\0\0\0\1\0\0\0\1\0\0\0\1\0\0\0\1\0\0\0\1\0\0\0", 32));
  g.strings("tokenizer.ggml.merges", {"a b"}), g.u32("tokenizer.ggml.bos_token_id", 0);
  g.u32("tokenizer.ggml.eos_token_id", 0);
  const char* norms[] = {"output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"};
  for (const char* name : norms) g.tensor(std::string(name) + ".weight", {32}, 0, std::string(128, '\0'));
  const std::pair<const char*, uint64_t> matrices[] = {
      {"token_embd", 8},      {"output", 8},        {"blk.0.attn_q", 32},
      {"blk.0.attn_k", 16},   {"blk.0.attn_v", 16}, {"blk.0.attn_output", 32},
      {"blk.0.ffn_gate", 32}, {"blk.0.ffn_up", 32}, {"blk.0.ffn_down", 32}};
  const uint32_t types[] = {0, 1, 30, 8, 2, 3};
  size_t i = 0;
  for (const auto& [name, rows] : matrices) {
    const uint32_t type = types[i++ % 6];
    const GgmlBlock* block = ggml_block(type);
    g.tensor(std::string(name) + ".weight", {static_cast<uint64_t>(c.dim), rows}, type,
             std::string(static_cast<size_t>(c.dim / block->weights * block->bytes) * rows, '\1'));
  }
  return g.bytes();
}

}  // namespace
}  // namespace irq

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const std::string valid = irq::valid_file();
  return irq::fuzz_import(irq::import_gguf, valid, data, size);
}
