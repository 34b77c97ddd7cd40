// The forward pass of a LLaMA with IR-QLoRA adapters, as the paper writes it. Its backward is recorded by the ops.
#include "src/model/llama.h"

namespace irq {

// [the cache's first rows | the batch's own], of one layer.
void Llama::gather_passing(const KvCache& cache, size_t index, const Tensor& keys, const Tensor& values) {
  const auto gather = [&](const Tensor& all, const Tensor& cached, const Tensor& own) {
    if (cache.kept > 0) backend_.copy(all.slice_rows(0, cache.kept), cached.slice_rows(0, cache.kept));
    backend_.copy(all.slice_rows(cache.kept, own.rows), own);
  };
  gather(cache.passing_keys, cache.keys[index], keys);
  gather(cache.passing_values, cache.values[index], values);
}

Var Llama::attend(Tape& t, Layer& layer, size_t index, Var qkv, const DeviceBatch& batch, const KvCache* cache) {
  const ModelConfig& c = config();
  const int head_dim = static_cast<int>(c.head_dim);
  const Rope rope{cos_, sin_, batch.positions};
  if (cache == nullptr) return ops::attention(t, qkv, c.heads, c.kv_heads, head_dim, rope, batch, layer.o.rank);
  ops::rope(t, qkv, c.q_width() + c.kv_width(), head_dim, rope);
  const Tensor keys = t.value(qkv).slice_cols(c.q_width(), c.kv_width());
  const Tensor values = t.value(qkv).slice_cols(c.q_width() + c.kv_width(), c.kv_width());
  if (cache->kept >= 0) {
    gather_passing(*cache, index, keys, values);
    return ops::cached_attention(t, qkv, c.heads, head_dim, cache->passing_keys, cache->passing_values, batch,
                                 layer.o.rank);
  }
  if (cache->rows) ops::write_cache(t, qkv, cache->keys[index], cache->values[index], cache->rows);
  for (const KvCache::Write& w : cache->writes) {
    backend_.copy(cache->keys[index].slice_rows(w.cache_row, w.count), keys.slice_rows(w.row, w.count));
    backend_.copy(cache->values[index].slice_rows(w.cache_row, w.count), values.slice_rows(w.row, w.count));
  }
  return ops::cached_attention(t, qkv, c.heads, head_dim, cache->keys[index], cache->values[index], batch,
                               layer.o.rank);
}

// A layer for few rows whose weights are packed: norms, RoPE, the cache and SwiGLU are done inside the products' launches.
// Every row is a label row (decoding).
Var Llama::packed_block(Tape& t, Layer& layer, size_t index, Var x, const DeviceBatch& batch, const KvCache& cache) {
  const ModelConfig& c = config();
  const int head_dim = static_cast<int>(c.head_dim);
  const int64_t stream_spare = t.value(x).stride - t.value(x).cols;
  const Tensor &keys = cache.keys[index], &values = cache.values[index];
  const Var q = ops::packed_qkv(t, x, layer.qkv, {layer.attn_norm, c.norm_eps},
                                {head_dim, cos_, sin_, batch.positions, cache.rows, keys, values});
  const Var o = ops::cached_attention(t, q, c.heads, head_dim, keys, values, batch, layer.o.rank);
  t.done(q);
  const Var x1 = ops::adapted_linear(t, o, layer.o, *weights_, batch,
                                     {.residual = x, .spare_cols = stream_spare, .name = "attention out"});
  t.done(o);
  const Var h = ops::packed_gate_up(t, x1, layer.gate_up, {layer.ffn_norm, c.norm_eps});
  const Var x2 = ops::adapted_linear(t, h, layer.down, *weights_, batch,
                                     {.residual = x1, .spare_cols = stream_spare, .name = "ffn out"});
  t.done(h);
  t.done(x1);
  return x2;
}

// All layers for one row, whose weights are all packed, as one op; false if some are not. x becomes the result.
bool Llama::packed_layers(Tape& t, Var x, const DeviceBatch& batch, const KvCache& cache) {
  const double eps = config().norm_eps;
  std::vector<ops::PackedBlock> blocks;
  for (size_t i = 0; i < layers_.size(); ++i) {
    Layer& l = layers_[i];
    for (const LinearGroup* group : l.groups())
      if (!ops::runs_packed(t, *group, batch.rows)) return false;
    blocks.push_back({l.qkv,
                      l.o,
                      l.gate_up,
                      l.down,
                      {l.attn_norm, eps},
                      {l.ffn_norm, eps},
                      {static_cast<int>(config().head_dim), cos_, sin_, batch.positions, cache.rows, cache.keys[i],
                       cache.values[i]}});
  }
  ops::packed_layers(t, x, blocks, batch);
  return true;
}

Var Llama::block(Tape& t, Layer& layer, size_t index, Var x, const DeviceBatch& all, const KvCache* cache, bool last) {
  if (cache != nullptr && cache->rows && ops::runs_packed(t, layer.qkv, all.rows))
    return packed_block(t, layer, index, x, all, *cache);
  const double eps = config().norm_eps;
  const int64_t stream_spare = t.value(x).stride - t.value(x).cols;
  // x1 = x + W_o attention(rope(W_qkv norm(x)))
  const bool save = layer.recompute == Recompute::none;  // also what is cheap to compute again
  const Var n1 = ops::rmsnorm(t, x, layer.attn_norm, eps, layer.qkv.rank, save);
  const Var qkv = ops::adapted_linear(t, n1, layer.qkv, *weights_, all, {.name = "q|k|v"});
  t.done(n1);
  Var o = attend(t, layer, index, qkv, all, cache);
  t.done(qkv);
  if (last) {
    const Var o_all = o;
    o = ops::gather_labels(t, o_all, all, layer.o.rank);
    t.done(o_all);
    x = ops::gather_labels(t, x, all, stream_spare);
  }
  const DeviceBatch batch = last ? all.scored() : all;
  const Var x1 = ops::adapted_linear(t, o, layer.o, *weights_, batch,
                                     {.residual = x, .spare_cols = stream_spare, .name = "attention out"});
  t.done(o);
  if (last) t.done(x);
  // x2 = x1 + W_down (silu(W_gate n) * W_up n),  n = norm(x1)
  const Var n2 = ops::rmsnorm(t, x1, layer.ffn_norm, eps, layer.gate_up.rank, save);
  const bool rebuild = layer.recompute == Recompute::gate_up;
  const Var gate_up =
      ops::adapted_linear(t, n2, layer.gate_up, *weights_, batch, {.transient = rebuild, .name = "gate|up"});
  t.done(n2);
  const Var h = ops::swiglu(t, gate_up, layer.down.rank, save);
  t.done(gate_up);
  const Var x2 =
      ops::adapted_linear(t, h, layer.down, *weights_, batch,
                          {.residual = x1, .ends_block = true, .spare_cols = stream_spare, .name = "ffn out"});
  t.done(h);
  t.done(x1);
  return x2;
}

Var Llama::hidden(Tape& t, const DeviceBatch& batch, const KvCache* cache) {
  // The stream's gradient carries the du of the linears that write it (LinearGroup): room for the wider of the two.
  const int64_t spare = layers_.empty() ? 0 : std::max(layers_[0].o.rank, layers_[0].down.rank);
  Var x = ops::embedding(t, embed_, batch, spare);
  if (cache != nullptr && cache->rows && batch.rows == 1 && packed_layers(t, x, batch, *cache)) return x;
  for (size_t i = 0; i < layers_.size(); ++i) {
    const bool last = i + 1 == layers_.size();
    const auto run = [this, &t, i, batch, cache, last](Var in) {
      return block(t, layers_[i], i, in, batch, cache, last);
    };
    const Var next = layers_[i].recompute == Recompute::block
                         ? recompute(t, "layer", x, last ? batch.labels : batch.rows, run)
                         : run(x);
    t.done(x);
    x = next;
  }
  return layers_.empty() ? ops::gather_labels(t, x, batch, 0) : x;
}

void Llama::loss(Tape& t, const DeviceBatch& batch, Tensor nll) {
  const Var scored = hidden(t, batch);
  const Var n = ops::rmsnorm(t, scored, norm_, config().norm_eps, 0);
  ops::cross_entropy_head(t, n, head_, config().vocab + (plan_.pad_row ? 1 : 0), batch, nll);
  t.done(n);
  t.done(scored);
}

void Llama::row_losses(Tape& t, const DeviceBatch& batch, Tensor nll, const KvCache* cache) {
  const Var scored = hidden(t, batch, cache);
  const Var n = ops::rmsnorm(t, scored, norm_, config().norm_eps, 0);
  ops::row_losses(t, n, head_.value.slice_rows(0, config().vocab), batch, nll);
  t.done(n);
  t.done(scored);
}

void Llama::logits(Tape& t, const DeviceBatch& batch, Tensor out, const KvCache* cache, Tensor choice) {
  const Var scored = hidden(t, batch, cache);
  const Var n = ops::rmsnorm(t, scored, norm_, config().norm_eps, 0);
  ops::logits(t, n, head_.value.slice_rows(0, config().vocab), out);
  if (choice) ops::choose(t, out, choice);
  t.done(n);
  t.done(scored);
}

}  // namespace irq
