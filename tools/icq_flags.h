// The flags of ICQ's search beyond the paper, the same for every tool that quantizes.
#pragma once
#include "src/quant/icq_options.h"
#include "tools/cli.h"

namespace irq {

void declare_icq(Cli& cli, IcqWords* words);

}  // namespace irq
