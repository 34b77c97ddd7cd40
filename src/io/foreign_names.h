// Names of this engine's tensors in other programs' files, without the ".weight" that follows there.
#pragma once
#include <string>

namespace irq {

// "layers.3.wq" -> "model.layers.3.self_attn.q_proj"; "embed" -> "model.embed_tokens"; "head" -> "lm_head".
std::string hugging_face_module(const std::string& name);
// "layers.3.wq" -> "blk.3.attn_q"; "embed" -> "token_embd"; "head" -> "output".
std::string gguf_module(const std::string& name);

}  // namespace irq
