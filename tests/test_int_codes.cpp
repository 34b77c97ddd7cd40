// Ops on integer codes: the ladder of trust, and the host's decoding.
#include <gtest/gtest.h>

#include "src/io/inspect.h"
#include "tests/cases/int_codes.h"

IRQ_OP_TESTS(IntDequantOp, irq::int_dequant_cases());

namespace irq {
namespace {

// By hand: 3-bit codes 5 2 7 | 0 1 ... of one row in groups of 8, the second short.
TEST(IntCodes, HostDecodesWhatTheOpDecodes) {
  QuantizedMatrix q = int_matrix(1, 11, 3, 8, false);
  std::vector<uint8_t> codes = {0b10101011, 0b10000010, 0b11100101, 0b11001001, 0b00000000};
  std::vector<float> scales = {0.5f, 2.0f};
  std::vector<uint8_t> zeros = {3, 1};
  q.codes = make_view(codes.data(), DType::U8, 1, 5, "codes");
  q.scales = make_view(scales.data(), DType::F32, 1, 2, "scales");
  q.zeros = make_view(zeros.data(), DType::U8, 1, 2, "zeros");
  // 101 010 111 000 001 011 100 101 | 110 010 010
  EXPECT_EQ(unpack_codes(q), (std::vector<uint8_t>{5, 2, 7, 0, 1, 3, 4, 5, 6, 2, 2}));
  const std::vector<float> expected = {1, -0.5, 2, -1.5, -1, 0, 0.5, 1, 10, 2, 2};
  EXPECT_EQ(dequantize_on_host(q), expected);
  std::vector<float> w(11);
  make_cpu_backend({DType::F32, DType::F32})->int_dequant(make_view(w.data(), DType::F32, 1, 11, "w"), q);
  EXPECT_EQ(w, expected);
}

}  // namespace
}  // namespace irq
