#include <gtest/gtest.h>

#include <algorithm>
#include <csignal>
#include <numeric>
#include <set>

#include "src/core/check.h"
#include "src/core/interrupt.h"
#include "src/text/loader.h"

namespace irq {
namespace {

// n examples of odd lengths: example i has i % 37 + 2 ids, the first of which is i, and scores its last i % 5 + 1.
std::vector<Example> make_examples(int n) {
  std::vector<Example> examples;
  for (int i = 0; i < n; ++i) {
    Example e{std::vector<int32_t>(i % 37 + 2, i), std::vector<uint8_t>(i % 37 + 2, 0)};
    for (int t = 0; t <= i % 5 && t < static_cast<int>(e.ids.size()); ++t) e.trainable[e.ids.size() - 1 - t] = 1;
    examples.push_back(e);
  }
  return examples;
}

// The example numbers of `steps` steps, flat, and a check that sample numbers count up from `first`.
std::vector<int32_t> run(DataLoader& loader, int steps, int32_t first = 0) {
  std::vector<int32_t> seen;
  for (int s = 0; s < steps; ++s)
    for (const MicroBatch& m : loader.next()) {
      EXPECT_EQ(m.examples.size(), m.samples.size());
      for (size_t i = 0; i < m.examples.size(); ++i) {
        EXPECT_EQ(m.samples[i], first + static_cast<int32_t>(seen.size()));
        seen.push_back(m.examples[i]->ids[0]);
      }
    }
  return seen;
}

LoaderOptions options(int64_t batch, int64_t micro, uint64_t seed = 3, bool grouped = false) {
  LoaderOptions o;
  o.batch = batch;
  o.micro_batch = micro;
  o.seed = seed;
  o.group_by_length = grouped;
  return o;
}

// Planning looks at every batch of a run: Ctrl-C ends it.
TEST(Loader, SizesStopAtAnInterrupt) {
  const auto examples = make_examples(53);
  const DataLoader loader(examples, options(7, 0));
  install_interrupt_handler();
  int seen = 0;
  EXPECT_THROW(loader.for_each_size(1000,
                                    [&](const BatchSize&) {
                                      if (++seen == 5) std::raise(SIGINT);
                                    }),
               Error);
  clear_interrupt();
  EXPECT_EQ(seen, 5);
}

TEST(Loader, EachEpochIsAnotherPermutation) {
  const auto examples = make_examples(53);
  DataLoader loader(examples, options(7, 0));
  std::set<std::vector<int64_t>> orders;
  for (int epoch = 0; epoch < 20; ++epoch) {
    std::vector<int64_t> order = loader.epoch_order(epoch);
    orders.insert(order);
    std::sort(order.begin(), order.end());
    std::vector<int64_t> all(53);
    std::iota(all.begin(), all.end(), 0);
    EXPECT_EQ(order, all);
  }
  EXPECT_EQ(orders.size(), 20u);
  // The run goes through the epochs' orders one behind the other, windows across their borders included.
  const auto seen = run(loader, 23);
  for (int i = 0; i < 23 * 7; ++i) EXPECT_EQ(seen[i], loader.epoch_order(i / 53)[i % 53]);
}

TEST(Loader, ShuffleIsFair) {
  // Where does example 0 go over 4,000 epochs of 8? Each place 500 times; five standard deviations are 105.
  const auto examples = make_examples(8);
  DataLoader loader(examples, options(8, 0));
  std::vector<int> places(8, 0);
  for (int epoch = 0; epoch < 4000; ++epoch) {
    const auto order = loader.epoch_order(epoch);
    ++places[std::find(order.begin(), order.end(), 0) - order.begin()];
  }
  for (const int n : places) EXPECT_NEAR(n, 500, 105);
}

TEST(Loader, OrderDependsOnTheSeedAlone) {
  const auto examples = make_examples(50);
  DataLoader one(examples, options(12, 12)), split(examples, options(12, 5)), small(examples, options(4, 1));
  DataLoader other(examples, options(12, 12, 4));
  const auto seen = run(one, 10);
  EXPECT_EQ(run(split, 10), seen);
  EXPECT_EQ(run(small, 30), seen);
  EXPECT_NE(run(other, 10), seen);
}

TEST(Loader, MicroBatchesSplitTheWindow) {
  const auto examples = make_examples(50);
  DataLoader loader(examples, options(12, 5));
  const auto window = loader.next();
  ASSERT_EQ(window.size(), 3u);
  EXPECT_EQ(window[0].examples.size(), 5u);
  EXPECT_EQ(window[2].examples.size(), 2u);
  EXPECT_EQ(loader.cursor(), 12);
}

TEST(Loader, MoreThanAllExamplesInOneStep) {
  const auto examples = make_examples(3);
  DataLoader loader(examples, options(8, 0));
  const auto seen = run(loader, 3);  // 24 samples = 8 epochs of 3
  for (int e = 0; e < 8; ++e) EXPECT_EQ(std::set<int32_t>(seen.begin() + 3 * e, seen.begin() + 3 * e + 3).size(), 3u);
}

TEST(Loader, ResumesExactly) {
  const auto examples = make_examples(41);
  std::vector<int64_t> chars;
  for (const Example& e : examples) chars.push_back(static_cast<int64_t>(e.ids.size()));
  for (const bool grouped : {false, true}) {
    DataLoader whole(examples, options(6, 4, 3, grouped), chars);
    run(whole, 9);
    DataLoader resumed(examples, options(6, 4, 3, grouped), chars);
    resumed.seek(whole.cursor());
    const auto first = static_cast<int32_t>(whole.cursor());
    EXPECT_EQ(run(resumed, 20, first), run(whole, 20, first));
    EXPECT_EQ(resumed.cursor(), whole.cursor());
  }
}

void check_sizes(Prefixes prefixes) {
  const auto examples = make_examples(61);
  LoaderOptions o = options(13, 4);
  o.prefixes = prefixes;
  DataLoader loader(examples, o);
  run(loader, 2);
  const auto sizes = loader.sizes(11);
  EXPECT_EQ(loader.cursor(), 26);
  size_t at = 0;
  for (int step = 0; step < 11; ++step)
    for (const MicroBatch& m : loader.next()) {
      const Batch b = m.packed();
      ASSERT_LT(at, sizes.size());
      EXPECT_EQ(sizes[at].rows, b.rows());
      EXPECT_EQ(sizes[at].label_rows, static_cast<int64_t>(b.label_rows.size()));
      EXPECT_EQ(sizes[at].real_rows, b.real_rows);
      EXPECT_EQ(sizes[at].real_labels, b.real_labels);
      EXPECT_EQ(sizes[at].sequences, static_cast<int64_t>(b.seqs.size()));
      ++at;
    }
  EXPECT_EQ(at, sizes.size());
}
TEST(Loader, SizesAreThoseOfThePackedBatches) { check_sizes(Prefixes::own); }
TEST(Loader, SizesAreThoseOfBatchesThatSharePrefixes) { check_sizes(Prefixes::shared); }

// A batch of 12 of 5 examples meets some twice: their prompts are computed once.
TEST(Loader, PrefixesAreSharedWhereAsked) {
  std::vector<int32_t> ids(12, 4);
  std::vector<uint8_t> scored(12, 0);
  scored.back() = 1;
  const std::vector<Example> examples(5, Example{ids, scored});
  LoaderOptions o = options(12, 0);
  o.prefixes = Prefixes::shared;
  EXPECT_EQ(DataLoader(examples, o).next()[0].packed().real_rows, 10 + 12);
  o.prefixes = Prefixes::own;
  EXPECT_EQ(DataLoader(examples, o).next()[0].packed().real_rows, 12 * 11);
}

TEST(Loader, StepsForEpochs) {
  const auto examples = make_examples(50);
  const std::vector<int64_t> chars(50, 1);
  EXPECT_EQ(DataLoader(examples, options(16, 0)).steps_for_epochs(1), 4);
  EXPECT_EQ(DataLoader(examples, options(16, 0)).steps_for_epochs(3), 10);  // 150 samples in full windows
  DataLoader grouped(examples, options(16, 0, 3, true), chars);
  EXPECT_EQ(grouped.steps_for_epochs(3), 12);  // each epoch's last window holds 2
  run(grouped, 12);
  EXPECT_EQ(grouped.cursor(), 150);
}

// fidelity.md 6.5, group_by_length: N = 330, batch 4: mega-batches of 4 * min(50, 330 / 16) = 80, the last of 10.
TEST(Loader, GroupByLength) {
  const auto examples = make_examples(330);
  std::vector<int64_t> chars;
  for (int i = 0; i < 330; ++i) chars.push_back((i * 7919) % 1009);
  DataLoader grouped(examples, options(4, 0, 3, true), chars), plain(examples, options(4, 0, 3, false));
  for (int epoch = 0; epoch < 5; ++epoch) {
    auto order = grouped.epoch_order(epoch);
    EXPECT_EQ(chars[order[0]], *std::max_element(chars.begin(), chars.end()));
    // Undo the swap of the longest with the first mega-batch's head, then compare with the definition.
    std::vector<int64_t> expected = plain.epoch_order(epoch);
    for (int begin = 0; begin < 330; begin += 80)
      std::sort(expected.begin() + begin, expected.begin() + std::min(begin + 80, 330),
                [&](int64_t a, int64_t b) { return chars[a] > chars[b]; });  // lengths differ: 330 < 1009, a prime
    const auto longest = std::find(expected.begin(), expected.end(), order[0]);
    std::iter_swap(expected.begin(), longest);
    EXPECT_EQ(order, expected);
  }
}

TEST(Loader, GroupByLengthOfFewExamples) {
  const auto examples = make_examples(10);  // fewer than 4 batches: mega-batches of one batch
  const std::vector<int64_t> chars(10, 5);  // all alike: the stable sort keeps the permutation
  DataLoader grouped(examples, options(4, 0, 3, true), chars), plain(examples, options(4, 0, 3, false));
  EXPECT_EQ(grouped.epoch_order(0), plain.epoch_order(0));
  EXPECT_EQ(grouped.next().size(), 1u);
  grouped.next();
  EXPECT_EQ(grouped.next()[0].examples.size(), 2u);  // the epoch's last window is short
  EXPECT_EQ(grouped.next()[0].samples[0], 10);
}

}  // namespace
}  // namespace irq
