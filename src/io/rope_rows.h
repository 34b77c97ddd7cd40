// The order of a head's rows in wq and wk. LLaMA's own checkpoints, GGUF, llama2.c and llm.c rotate neighbours, rows (2j, 2j+1)
// of a head; Hugging Face's layout, which this engine computes in, rotates row j with row j + D/2 (half-split RoPE).
#pragma once
#include <cstdint>
#include <cstring>
#include <string>

namespace irq {

// Does the order of this tensor's rows matter? ("layers.3.wq")
inline bool is_rotary(const std::string& name) { return name.ends_with(".wq") || name.ends_with(".wk"); }

// Where row `row` of the half-split order lies in the interleaved one: head h, row j + p D/2 -> head h, row 2j + p. Both count
// over all heads, head_dim (even) rows each.
inline int64_t interleaved_row(int64_t row, int64_t head_dim) {
  const int64_t half = head_dim / 2, in_head = row % head_dim;
  return row - in_head + 2 * (in_head % half) + in_head / half;
}

// The other direction: where row `row` of the interleaved order lies in the half-split one.
inline int64_t half_split_row(int64_t row, int64_t head_dim) {
  const int64_t in_head = row % head_dim;
  return row - in_head + in_head / 2 + in_head % 2 * (head_dim / 2);
}

// Copies `rows` rows of row_bytes each from the interleaved order into the half-split one. The buffers must not overlap.
inline void copy_half_split(void* half_split, const void* interleaved, int64_t rows, int64_t row_bytes,
                            int64_t head_dim) {
  char* to = static_cast<char*>(half_split);
  const char* from = static_cast<const char*>(interleaved);
#pragma omp parallel for schedule(static)
  for (int64_t r = 0; r < rows; ++r)
    std::memcpy(to + r * row_bytes, from + interleaved_row(r, head_dim) * row_bytes, static_cast<size_t>(row_bytes));
}

}  // namespace irq
