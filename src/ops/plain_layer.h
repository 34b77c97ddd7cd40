// One decoder layer's forward pass piece by piece, without a tape, an arena or adapters: what GPTQ needs to see the inputs of
// every linear, with the linears before it quantized already.
#pragma once
#include "kernels/device_memory.h"

namespace irq {

struct PlainShape {
  int64_t dim = 0, ffn = 0, heads = 0, kv_heads = 0, head_dim = 0;
  double eps = 0;
};

// Rows of a packed batch on the device.
struct PlainRows {
  Tensor x;                // (N, C) S, the residual stream
  Tensor positions, seqs;  // (1, N) i32, (n_seqs, 6) i32
};

// Owns the memory of one layer's weights in storage type and of the activations of at most max_rows rows.
class PlainLayer {
 public:
  // cos_table, sin_table (T, D/2) M.
  PlainLayer(Backend& backend, const PlainShape& shape, int64_t max_rows, Tensor cos_table, Tensor sin_table);

  // Where the weights go: of linear 0 to 6 (wq wk wv wo w_gate w_up w_down) (out, in) S, and the norms (1, C) M.
  Tensor weight(int linear) const;
  Tensor attn_norm() const { return attn_norm_; }
  Tensor ffn_norm() const { return ffn_norm_; }

  // The inputs of q|k|v, of o, of gate|up and of down: (N, in) S, until the next call. They read the weights before them.
  Tensor input_of_qkv(const PlainRows& rows);
  Tensor input_of_o(const PlainRows& rows);
  Tensor input_of_gate_up(const PlainRows& rows);
  Tensor input_of_down(const PlainRows& rows);
  // x += W_o (input of o); x += W_down (input of down)
  void add_attention(const PlainRows& rows);
  void add_ffn(const PlainRows& rows);
  // x = table[tokens]; table (V, C) S, tokens (1, N) i32
  void embed(const Tensor& x, const Tensor& table, const Tensor& tokens) { backend_.embedding_fwd(x, table, tokens); }

 private:
  Tensor normalized(const Tensor& x, const Tensor& weight);

  Backend& backend_;
  DeviceMemory memory_;
  PlainShape shape_;
  Tensor cos_, sin_, attn_norm_, ffn_norm_, qkv_weight_, o_weight_, gate_up_weight_, down_weight_;
  Tensor normed_, rstd_, qkv_, attended_, lse_, gate_up_, hidden_;
};

}  // namespace irq
