#include <gtest/gtest.h>

#include "src/ops/batch.h"

namespace irq {
namespace {

using Ints = std::vector<int32_t>;

TEST(Batch, PackedContents) {
  const Example a{{1, 10, 11, 12}, {0, 0, 1, 1}}, b{{1, 20, 21}, {0, 1, 0}}, lone{{1}, {0}};
  const Batch p = pack({&a, &lone, &b}, {5, 6, 7});
  ASSERT_EQ(p.rows(), kRowBucket);
  EXPECT_EQ(p.real_rows, 5);
  EXPECT_EQ(p.real_labels, 3);
  EXPECT_EQ(p.examples, 3);
  const auto head = [](const Ints& v, size_t n) { return Ints(v.begin(), v.begin() + static_cast<int64_t>(n)); };
  EXPECT_EQ(head(p.tokens, 6), Ints({1, 10, 11, 1, 20, -1}));  // no row for a last token
  EXPECT_EQ(head(p.positions, 6), Ints({0, 1, 2, 0, 1, -1}));
  EXPECT_EQ(head(p.samples, 6), Ints({5, 5, 5, 7, 7, -1}));
  EXPECT_EQ(head(p.row_label, 6), Ints({-1, 0, 1, 2, -1, -1}));
  EXPECT_EQ(head(p.label_rows, 4), Ints({1, 2, 3, -1}));
  EXPECT_EQ(head(p.targets, 4), Ints({11, 12, 20, -1}));
  ASSERT_EQ(p.seqs.size(), 2u);  // a sequence of one token has no rows
  EXPECT_EQ(p.seqs[0].q_begin, 0);
  EXPECT_EQ(p.seqs[0].q_end, 3);
  EXPECT_EQ(p.seqs[1].q_begin, 3);
  EXPECT_EQ(p.seqs[1].k_end, 5);
  EXPECT_EQ(p.seqs[1].p_end, 0);
}

TEST(Batch, BucketEdges) {
  for (const int64_t rows : {127, 128, 129, 256, 257}) {
    Example e{Ints(rows + 1, 3), std::vector<uint8_t>(rows + 1, 1)};
    const Batch p = pack({&e}, {0});
    EXPECT_EQ(p.real_rows, rows);
    EXPECT_EQ(p.rows() % kRowBucket, 0);
    EXPECT_GE(p.rows(), rows);
    EXPECT_LT(p.rows(), rows + kRowBucket);
    EXPECT_EQ(static_cast<int64_t>(p.label_rows.size()), p.rows());
    for (int64_t i = rows; i < p.rows(); ++i) EXPECT_EQ(p.tokens[i], -1);
  }
  const Batch none = pack({}, {});
  EXPECT_EQ(none.rows(), 0);
}

}  // namespace
}  // namespace irq
