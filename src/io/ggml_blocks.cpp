#include "src/io/ggml_blocks.h"

#include <cstring>

#include "src/core/check.h"
#include "src/core/dtype.h"
#include "src/io/rope_rows.h"

namespace irq {
namespace {

constexpr int64_t kWeights = 32;  // per block of Q8_0, Q4_0, Q4_1
constexpr GgmlBlock kBlocks[] = {
    {0, "F32", 1, 4},         {1, "F16", 1, 2},         {2, "Q4_0", 32, 18},      {3, "Q4_1", 32, 20},
    {6, "Q5_0", 32, 22},      {7, "Q5_1", 32, 24},      {8, "Q8_0", 32, 34},      {9, "Q8_1", 32, 40},
    {10, "Q2_K", 256, 84},    {11, "Q3_K", 256, 110},   {12, "Q4_K", 256, 144},   {13, "Q5_K", 256, 176},
    {14, "Q6_K", 256, 210},   {15, "Q8_K", 256, 292},   {16, "IQ2_XXS", 256, 66}, {17, "IQ2_XS", 256, 74},
    {18, "IQ3_XXS", 256, 98}, {19, "IQ1_S", 256, 50},   {20, "IQ4_NL", 32, 18},   {21, "IQ3_S", 256, 110},
    {22, "IQ2_S", 256, 82},   {23, "IQ4_XS", 256, 136}, {24, "I8", 1, 1},         {25, "I16", 1, 2},
    {26, "I32", 1, 4},        {27, "I64", 1, 8},        {28, "F64", 1, 8},        {29, "IQ1_M", 256, 56},
    {30, "BF16", 1, 2},       {34, "TQ1_0", 256, 54},   {35, "TQ2_0", 256, 66},   {39, "MXFP4", 32, 17},
    {40, "NVFP4", 64, 36},    {41, "Q1_0", 128, 18}};

float half_at(const unsigned char* p) {
  F16 h;
  std::memcpy(&h, p, 2);
  return to_float(h);
}

void decode_q8_0(const unsigned char* block, float* out) {
  const float d = half_at(block);
  const signed char* q = reinterpret_cast<const signed char*>(block + 2);
  for (int i = 0; i < kWeights; ++i) out[i] = d * static_cast<float>(q[i]);
}

void decode_q4_0(const unsigned char* block, float* out) {
  const float d = half_at(block);
  const unsigned char* q = block + 2;
  for (int i = 0; i < kWeights / 2; ++i) {
    out[i] = d * static_cast<float>((q[i] & 15) - 8);
    out[i + kWeights / 2] = d * static_cast<float>((q[i] >> 4) - 8);
  }
}

void decode_q4_1(const unsigned char* block, float* out) {
  const float d = half_at(block), m = half_at(block + 2);
  const unsigned char* q = block + 4;
  for (int i = 0; i < kWeights / 2; ++i) {
    out[i] = d * static_cast<float>(q[i] & 15) + m;
    out[i + kWeights / 2] = d * static_cast<float>(q[i] >> 4) + m;
  }
}

// Two halves of 128 weights, each in four groups of 32: groups 0 and 1 are the low halves of 64 bytes, 2 and 3 the high ones;
// group g's upper two bits are bits 2g and 2g + 1 of the half's 32 bytes.
void decode_q6_k(const unsigned char* block, float* out) {
  const float d = half_at(block + 208);
  const signed char* scales = reinterpret_cast<const signed char*>(block + 192);
  for (int group = 0; group < 8; ++group) {
    const int half = group / 4, in_half = group % 4;
    const unsigned char* low = block + 64 * half + 32 * (in_half % 2);
    const unsigned char* high = block + 128 + 32 * half;
    for (int part = 0; part < 2; ++part) {
      const float scale = d * static_cast<float>(scales[2 * group + part]);
      for (int i = 16 * part; i < 16 * part + 16; ++i) {
        const int q = (low[i] >> (in_half / 2 * 4) & 15) | (high[i] >> (2 * in_half) & 3) << 4;
        out[32 * group + i] = scale * static_cast<float>(q - 32);
      }
    }
  }
}

}  // namespace

const GgmlBlock* ggml_block(uint32_t type) {
  for (const GgmlBlock& b : kBlocks)
    if (b.type == type) return &b;
  return nullptr;
}

std::string ggml_type_name(uint32_t type) {
  const GgmlBlock* b = ggml_block(type);
  return b ? b->name : strf("type %u", type);
}

bool ggml_decodable(uint32_t type) {
  switch (static_cast<GgmlType>(type)) {
    case GgmlType::f32:
    case GgmlType::f16:
    case GgmlType::q4_0:
    case GgmlType::q4_1:
    case GgmlType::q8_0:
    case GgmlType::q6_k:
    case GgmlType::bf16: return true;
  }
  return false;
}

void decode_ggml_row(GgmlType type, const unsigned char* row, int64_t weights, float* out) {
  switch (type) {
    case GgmlType::f32: std::memcpy(out, row, static_cast<size_t>(4 * weights)); break;
    case GgmlType::f16:
      for (int64_t i = 0; i < weights; ++i) out[i] = half_at(row + 2 * i);
      break;
    case GgmlType::bf16:
      for (int64_t i = 0; i < weights; ++i) {
        Bf16 h;
        std::memcpy(&h, row + 2 * i, 2);
        out[i] = to_float(h);
      }
      break;
    case GgmlType::q8_0:
      for (int64_t b = 0; b < weights / kWeights; ++b) decode_q8_0(row + 34 * b, out + kWeights * b);
      break;
    case GgmlType::q6_k:
      for (int64_t b = 0; b < weights / 256; ++b) decode_q6_k(row + 210 * b, out + 256 * b);
      break;
    case GgmlType::q4_0:
      for (int64_t b = 0; b < weights / kWeights; ++b) decode_q4_0(row + 18 * b, out + kWeights * b);
      break;
    case GgmlType::q4_1:
      for (int64_t b = 0; b < weights / kWeights; ++b) decode_q4_1(row + 20 * b, out + kWeights * b);
      break;
  }
}

void decode_ggml_rows(GgmlType type, const unsigned char* data, int64_t rows, int64_t cols, float* out,
                      int64_t head_dim) {
  const GgmlBlock* block = ggml_block(static_cast<uint32_t>(type));
  IRQ_CHECK(block && ggml_decodable(block->type) && cols % block->weights == 0, "%ld columns of ggml type %u", cols,
            static_cast<unsigned>(type));
  const int64_t row_bytes = cols / block->weights * block->bytes;
#pragma omp parallel for schedule(static)
  for (int64_t r = 0; r < rows; ++r) {
    const int64_t from = head_dim > 0 ? interleaved_row(r, head_dim) : r;
    decode_ggml_row(type, data + from * row_bytes, cols, out + r * cols);
  }
}

}  // namespace irq
