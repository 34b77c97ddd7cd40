// The element types of GGUF tensors: their sizes, and the plain and legacy quantized ones decoded to f32.
// Source: the GGML type table of the gguf Python package; decoding is its arithmetic, so the results are equal bit for bit.
#pragma once
#include <cstdint>
#include <string>

#include "src/io/gguf.h"

namespace irq {

struct GgmlBlock {
  uint32_t type;
  const char* name;        // "Q4_K"
  int64_t weights, bytes;  // of one block; a row is a whole number of blocks
};
const GgmlBlock* ggml_block(uint32_t type);  // null for a number that is not known here
std::string ggml_type_name(uint32_t type);   // "Q4_K"; "type 77" for an unknown number
bool ggml_decodable(uint32_t type);          // one of GgmlType's

// One row of `weights` elements (a whole number of blocks) as f32:
//   Q8_0  per 32: f16 d, int8 q[32]                -> d * q
//   Q4_0  per 32: f16 d, 16 bytes of two codes     -> d * (q - 8)      low halves are weights 0-15, high halves 16-31
//   Q4_1  per 32: f16 d, f16 m, 16 bytes           -> d * q + m        (two roundings)
//   Q6_K  per 256: low 4 bits [128], high 2 bits [64], int8 scale[16] of 16 weights each, f16 d -> (d * scale) * (q - 32)
void decode_ggml_row(GgmlType type, const unsigned char* row, int64_t weights, float* out);
// (rows, cols) row-major, threaded. head_dim > 0: the rows come in interleaved order and leave half-split (rope_rows.h).
void decode_ggml_rows(GgmlType type, const unsigned char* data, int64_t rows, int64_t cols, float* out,
                      int64_t head_dim = 0);

}  // namespace irq
