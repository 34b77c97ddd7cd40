// Causal softmax attention of packed sequences (equations and shapes: ops.inc). Specification and CPU production path.
//
// No row ever sees more than one block of kSlab scores: the forward keeps a running maximum and sum (online softmax),
// the backward rebuilds P = exp(S - lse) from the saved lse. Inner loops run over the lanes of a block or over head_dim,
// never over a reduction, so that the compiler vectorises them without changing the order of any sum. A row's result
// depends only on its own sequence: packing order, threads and tiles change no bit.
#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/common.h"

namespace irq {
namespace {

constexpr int64_t kSlab = 64;      // keys (backward of dk, dv: queries) whose scores exist at once
constexpr int64_t kTileRows = 32;  // query or key rows of one task; they share a transposed block

struct Sequence {
  int64_t q_begin, q_end, k_begin, k_end, p_begin, p_end;
  int64_t queries() const { return q_end - q_begin; }
  // Query i (counted from q_begin) sees own keys [0, own_keys(i)): the last query is aligned with the last key.
  int64_t own_keys(int64_t i) const { return std::max<int64_t>(0, i + 1 + (k_end - k_begin) - queries()); }
  // The first query that sees own key j (counted from k_begin).
  int64_t first_query(int64_t j) const { return std::max<int64_t>(0, j + queries() - (k_end - k_begin)); }
};

std::vector<Sequence> read_sequences(Tensor seqs) {
  std::vector<Sequence> all;
  for (int64_t i = 0; i < seqs.rows; ++i) {
    const int32_t* s = seqs.row<int32_t>(i);
    if (s[1] > s[0]) all.push_back({s[0], s[1], s[2], s[3], s[4], s[5]});
  }
  return all;
}

// One task: some query rows of one sequence and head.
struct Task {
  const Sequence* seq;
  int64_t head, row_begin, row_end;  // rows counted from q_begin
};

std::vector<Task> query_tasks(const std::vector<Sequence>& seqs, int64_t heads) {
  std::vector<Task> tasks;
  for (const Sequence& s : seqs)
    for (int64_t h = 0; h < heads; ++h)
      for (int64_t r = 0; r < s.queries(); r += kTileRows)
        tasks.push_back({&s, h, r, std::min(r + kTileRows, s.queries())});
  return tasks;
}

std::vector<char> live_rows(const std::vector<Sequence>& seqs, int64_t rows) {
  std::vector<char> live(static_cast<size_t>(rows), 0);
  for (const Sequence& s : seqs) std::fill(live.begin() + s.q_begin, live.begin() + s.q_end, 1);
  return live;
}

template <class T>
const T* at(Tensor x, int64_t row, int64_t head, int64_t dim) {
  return x.row<T>(row) + head * dim;
}
template <class T>
T* at_mutable(Tensor x, int64_t row, int64_t head, int64_t dim) {
  return x.row<T>(row) + head * dim;
}

// packed[d][j] = rows[j][d] for j < count; the lanes behind stay zero, so that the loops over lanes have no tail.
template <class T>
void transpose_block(T* packed, const T* rows, int64_t stride, int64_t count, int64_t dim) {
  for (int64_t d = 0; d < dim; ++d) {
    for (int64_t j = 0; j < count; ++j) packed[d * kSlab + j] = rows[j * stride + d];
    for (int64_t j = count; j < kSlab; ++j) packed[d * kSlab + j] = 0;
  }
}

// out[j] = sum over d, ascending, of a[d] * packed[d][j]                                       out (kSlab)
template <class T>
void dot_block(T* __restrict out, const T* __restrict a, const T* __restrict packed, int64_t dim) {
  constexpr int64_t kLanes = 128 / sizeof(T);  // four vector registers of partial sums
  for (int64_t lane = 0; lane < kSlab; lane += kLanes) {
    T sum[kLanes] = {};
    for (int64_t d = 0; d < dim; ++d)
      for (int64_t j = 0; j < kLanes; ++j) sum[j] += a[d] * packed[d * kSlab + lane + j];
    for (int64_t j = 0; j < kLanes; ++j) out[lane + j] = sum[j];
  }
}

// y += w * x                                                                                       y, x (dim)
template <class T>
void add_scaled(T* __restrict y, T w, const T* __restrict x, int64_t dim) {
  for (int64_t d = 0; d < dim; ++d) y[d] += w * x[d];
}

// Calls f(first key row, keys, first key counted from the segment's begin, segment is the prefix) for every block of keys
// that some query row below row_end sees. Blocks are anchored at the segment, not at the buffer.
template <class F>
void for_key_blocks(const Sequence& s, int64_t row_end, F&& f) {
  for (int64_t j = 0; j < s.p_end - s.p_begin; j += kSlab)
    f(s.p_begin + j, std::min(kSlab, s.p_end - s.p_begin - j), j, true);
  const int64_t own = std::min(s.own_keys(row_end - 1), s.k_end - s.k_begin);
  for (int64_t j = 0; j < own; j += kSlab) f(s.k_begin + j, std::min(kSlab, own - j), j, false);
}

// How many keys of a block query row i sees.
int64_t visible(const Sequence& s, int64_t i, int64_t keys, int64_t first, bool prefix) {
  return prefix ? keys : std::clamp<int64_t>(s.own_keys(i) - first, 0, keys);
}

template <class T>
struct Scratch {
  std::vector<T> k_block, v_block, o, max, sum;
  explicit Scratch(int64_t dim)
      : k_block(static_cast<size_t>(dim * kSlab)),
        v_block(k_block.size()),
        o(static_cast<size_t>(dim * kTileRows)),
        max(kTileRows),
        sum(kTileRows) {}
};

template <class T>
void forward_task(const Task& t, Scratch<T>& w, Tensor o, Tensor lse, Tensor q, Tensor k, Tensor v, int64_t dim,
                  int64_t group) {
  const T scale = T(1) / std::sqrt(static_cast<T>(dim));
  const int64_t kv_head = t.head / group;
  std::fill(w.o.begin(), w.o.end(), T(0));
  std::fill(w.sum.begin(), w.sum.end(), T(0));
  std::fill(w.max.begin(), w.max.end(), -std::numeric_limits<T>::infinity());
  for_key_blocks(*t.seq, t.row_end, [&](int64_t key, int64_t keys, int64_t first, bool prefix) {
    transpose_block(w.k_block.data(), at<T>(k, key, kv_head, dim), k.stride, keys, dim);
    for (int64_t i = t.row_begin; i < t.row_end; ++i) {
      const int64_t seen = visible(*t.seq, i, keys, first, prefix);
      if (seen == 0) continue;
      T s[kSlab];
      dot_block(s, at<T>(q, t.seq->q_begin + i, t.head, dim), w.k_block.data(), dim);
      T largest = w.max[static_cast<size_t>(i - t.row_begin)];
      for (int64_t j = 0; j < seen; ++j) largest = std::max(largest, s[j] * scale);
      T* acc = &w.o[static_cast<size_t>((i - t.row_begin) * dim)];
      T& max = w.max[static_cast<size_t>(i - t.row_begin)];
      T& sum = w.sum[static_cast<size_t>(i - t.row_begin)];
      if (largest > max) {  // rescale what was summed under the old maximum (exp(-inf) = 0 the first time)
        const T shrink = std::exp(max - largest);
        for (int64_t d = 0; d < dim; ++d) acc[d] *= shrink;
        sum *= shrink;
        max = largest;
      }
      for (int64_t j = 0; j < seen; ++j) {
        const T p = std::exp(s[j] * scale - max);
        sum += p;
        add_scaled(acc, p, at<T>(v, key + j, kv_head, dim), dim);
      }
    }
  });
  for (int64_t i = t.row_begin; i < t.row_end; ++i) {
    const T sum = w.sum[static_cast<size_t>(i - t.row_begin)], max = w.max[static_cast<size_t>(i - t.row_begin)];
    const T* acc = &w.o[static_cast<size_t>((i - t.row_begin) * dim)];
    T* out = at_mutable<T>(o, t.seq->q_begin + i, t.head, dim);
    for (int64_t d = 0; d < dim; ++d) out[d] = sum == 0 ? T(0) : acc[d] / sum;
    lse.row<T>(t.head)[t.seq->q_begin + i] = sum == 0 ? T(0) : max + std::log(sum);
  }
}

// dq = scale * dS K with dS = P * (dO V^T - delta), P = exp(scale * Q K^T - lse)
template <class T>
void backward_q_task(const Task& t, Scratch<T>& w, Tensor dq, Tensor delta, Tensor dout, Tensor q, Tensor k, Tensor v,
                     Tensor lse, int64_t dim, int64_t group) {
  const T scale = T(1) / std::sqrt(static_cast<T>(dim));
  const int64_t kv_head = t.head / group;
  std::fill(w.o.begin(), w.o.end(), T(0));
  for_key_blocks(*t.seq, t.row_end, [&](int64_t key, int64_t keys, int64_t first, bool prefix) {
    transpose_block(w.k_block.data(), at<T>(k, key, kv_head, dim), k.stride, keys, dim);
    transpose_block(w.v_block.data(), at<T>(v, key, kv_head, dim), v.stride, keys, dim);
    for (int64_t i = t.row_begin; i < t.row_end; ++i) {
      const int64_t row = t.seq->q_begin + i, seen = visible(*t.seq, i, keys, first, prefix);
      if (seen == 0) continue;
      T s[kSlab], dp[kSlab];
      dot_block(s, at<T>(q, row, t.head, dim), w.k_block.data(), dim);
      dot_block(dp, at<T>(dout, row, t.head, dim), w.v_block.data(), dim);
      const T row_lse = lse.row<T>(t.head)[row], row_delta = delta.row<T>(t.head)[row];
      T* acc = &w.o[static_cast<size_t>((i - t.row_begin) * dim)];
      for (int64_t j = 0; j < seen; ++j) {
        const T ds = std::exp(s[j] * scale - row_lse) * (dp[j] - row_delta);
        add_scaled(acc, ds, at<T>(k, key + j, kv_head, dim), dim);
      }
    }
  });
  for (int64_t i = t.row_begin; i < t.row_end; ++i) {
    const T* acc = &w.o[static_cast<size_t>((i - t.row_begin) * dim)];
    T* out = at_mutable<T>(dq, t.seq->q_begin + i, t.head, dim);
    for (int64_t d = 0; d < dim; ++d) out[d] = acc[d] * scale;
  }
}

// dk, dv of one tile of key rows and one key/value head: the sum over every sequence that sees the rows, every query
// head of the group and every query, in this order. dk = scale * dS^T Q, dv = P^T dO.
template <class T>
struct KeyTile {
  int64_t begin, end, kv_head;               // key rows
  std::vector<T> dk, dv, q_block, do_block;  // accumulators (rows, dim); transposed blocks (dim, kSlab)
};

// One block of queries [first, first + count) of sequence s; the segment of keys starts at row `segment`.
template <class T>
void add_query_block(KeyTile<T>& t, const Sequence& s, int64_t key_begin, int64_t key_end, bool prefix, int64_t head,
                     int64_t first, int64_t count, Tensor delta, Tensor dout, Tensor q, Tensor k, Tensor v, Tensor lse,
                     int64_t dim) {
  const T scale = T(1) / std::sqrt(static_cast<T>(dim));
  const int64_t row = s.q_begin + first;
  transpose_block(t.q_block.data(), at<T>(q, row, head, dim), q.stride, count, dim);
  transpose_block(t.do_block.data(), at<T>(dout, row, head, dim), dout.stride, count, dim);
  const T *row_lse = lse.row<T>(head) + row, *row_delta = delta.row<T>(head) + row;
  for (int64_t key = key_begin; key < key_end; ++key) {
    const int64_t skip = prefix ? 0 : std::clamp<int64_t>(s.first_query(key - s.k_begin) - first, 0, count);
    if (skip == count) continue;
    T sc[kSlab], dp[kSlab];
    dot_block(sc, at<T>(k, key, t.kv_head, dim), t.q_block.data(), dim);
    dot_block(dp, at<T>(v, key, t.kv_head, dim), t.do_block.data(), dim);
    T* dk = &t.dk[static_cast<size_t>((key - t.begin) * dim)];
    T* dv = &t.dv[static_cast<size_t>((key - t.begin) * dim)];
    for (int64_t i = skip; i < count; ++i) {
      const T p = std::exp(sc[i] * scale - row_lse[i]);
      add_scaled(dv, p, at<T>(dout, row + i, head, dim), dim);
      add_scaled(dk, p * (dp[i] - row_delta[i]), at<T>(q, row + i, head, dim), dim);
    }
  }
}

template <class T>
void backward_key_tile(KeyTile<T>& t, const std::vector<Sequence>& seqs, Tensor dk, Tensor dv, Tensor delta,
                       Tensor dout, Tensor q, Tensor k, Tensor v, Tensor lse, int64_t dim, int64_t group) {
  const T scale = T(1) / std::sqrt(static_cast<T>(dim));
  std::fill(t.dk.begin(), t.dk.end(), T(0));
  std::fill(t.dv.begin(), t.dv.end(), T(0));
  for (const Sequence& s : seqs)
    for (const bool prefix : {true, false}) {
      const int64_t key_begin = std::max(t.begin, prefix ? s.p_begin : s.k_begin);
      const int64_t key_end = std::min(t.end, prefix ? s.p_end : s.k_end);
      if (key_begin >= key_end) continue;
      const int64_t first = prefix ? 0 : s.first_query(key_begin - s.k_begin) / kSlab * kSlab;  // causal skip
      for (int64_t head = t.kv_head * group; head < (t.kv_head + 1) * group; ++head)
        for (int64_t i = first; i < s.queries(); i += kSlab)
          add_query_block(t, s, key_begin, key_end, prefix, head, i, std::min(kSlab, s.queries() - i), delta, dout, q,
                          k, v, lse, dim);
    }
  for (int64_t key = t.begin; key < t.end; ++key)
    for (int64_t d = 0; d < dim; ++d) {
      at_mutable<T>(dk, key, t.kv_head, dim)[d] = t.dk[static_cast<size_t>((key - t.begin) * dim + d)] * scale;
      at_mutable<T>(dv, key, t.kv_head, dim)[d] = t.dv[static_cast<size_t>((key - t.begin) * dim + d)];
    }
}

// delta = rowsum(dO * O)                                                                                  delta (H, N)
template <class T>
void rowsum(Tensor delta, Tensor dout, Tensor o, int64_t dim) {
#pragma omp parallel for schedule(static)
  for (int64_t i = 0; i < o.rows; ++i)
    for (int64_t h = 0; h < delta.rows; ++h) {
      T sum = 0;
      for (int64_t d = 0; d < dim; ++d) sum += at<T>(dout, i, h, dim)[d] * at<T>(o, i, h, dim)[d];
      delta.row<T>(h)[i] = sum;
    }
}

}  // namespace

void CpuBackend::attention_fwd(Tensor o, Tensor lse, Tensor q, Tensor k, Tensor v, Tensor seqs, int head_dim) {
  const std::vector<Sequence> all = read_sequences(seqs);
  const int64_t heads = q.cols / head_dim, group = q.cols / k.cols;
  const std::vector<Task> tasks = query_tasks(all, heads);
  const std::vector<char> live = live_rows(all, q.rows);
  dispatch_float(q.dtype, [&](auto zero) {
    using T = decltype(zero);
    for (int64_t i = 0; i < q.rows; ++i) {
      if (live[static_cast<size_t>(i)]) continue;
      std::fill_n(o.row<T>(i), o.cols, T(0));
      for (int64_t h = 0; h < heads; ++h) lse.row<T>(h)[i] = 0;
    }
#pragma omp parallel
    {
      Scratch<T> scratch(head_dim);
#pragma omp for schedule(dynamic)
      for (size_t i = 0; i < tasks.size(); ++i) forward_task<T>(tasks[i], scratch, o, lse, q, k, v, head_dim, group);
    }
  });
}

void CpuBackend::attention_bwd(Tensor dq, Tensor dk, Tensor dv, Tensor delta, Tensor dout, Tensor q, Tensor k, Tensor v,
                               Tensor o, Tensor lse, Tensor seqs, int head_dim, Rope turned) {
  const std::vector<Sequence> all = read_sequences(seqs);
  const int64_t dim = head_dim, heads = q.cols / dim, kv_heads = k.cols / dim, group = heads / kv_heads;
  const std::vector<Task> tasks = query_tasks(all, heads);
  const std::vector<char> live = live_rows(all, q.rows);
  dispatch_float(q.dtype, [&](auto zero) {
    using T = decltype(zero);
    rowsum<T>(delta, dout, o, dim);
    for (int64_t i = 0; i < q.rows; ++i)
      if (!live[static_cast<size_t>(i)]) std::fill_n(dq.row<T>(i), dq.cols, T(0));
#pragma omp parallel
    {
      Scratch<T> scratch(dim);
#pragma omp for schedule(dynamic) nowait
      for (size_t i = 0; i < tasks.size(); ++i)
        backward_q_task<T>(tasks[i], scratch, dq, delta, dout, q, k, v, lse, dim, group);
      KeyTile<T> tile{};
      for (auto* buffer : {&tile.dk, &tile.dv}) buffer->resize(static_cast<size_t>(kTileRows * dim));
      for (auto* buffer : {&tile.q_block, &tile.do_block}) buffer->resize(static_cast<size_t>(kSlab * dim));
#pragma omp for schedule(dynamic) collapse(2)
      for (int64_t begin = 0; begin < k.rows; begin += kTileRows)
        for (int64_t g = 0; g < kv_heads; ++g) {
          tile.begin = begin, tile.end = std::min(begin + kTileRows, k.rows), tile.kv_head = g;
          backward_key_tile<T>(tile, all, dk, dv, delta, dout, q, k, v, lse, dim, group);
        }
    }
  });
  if (turned.cos_table)
    for (const Tensor& d : {dq, dk}) rope(d, turned.cos_table, turned.sin_table, turned.positions, head_dim, true);
}

}  // namespace irq
