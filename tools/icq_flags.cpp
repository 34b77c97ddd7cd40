#include "tools/icq_flags.h"

namespace irq {

void declare_icq(Cli& cli, IcqWords* words) {
  cli.option("--icq-ties", &words->ties, "ICQ: of shifts with equal entropy the first, or the least squared error",
             kIcqTies);
  cli.option("--icq-search", &words->search, "ICQ: 2n + 1 shifts, or the best of all between the ends", kIcqSearches);
  cli.option(
      "--icq-width", &words->width,
      "ICQ: what lambda is measured in: 0.54 absmax as the released code, absmax, the block's deviation, weights",
      kIcqWidths);
  cli.option("--icq-candidates", &words->candidates, "ICQ: how many shifts are tried", kIcqCandidates);
  cli.flag("--icq-consistent", &words->consistent, "ICQ: codes for the shift as it is stored, not as it was found");
}

}  // namespace irq
