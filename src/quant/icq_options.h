// ICQ's settings in words: of the command line, of what describes a file, of a file's name.
#pragma once
#include <string>
#include <vector>

#include "kernels/quantized_matrix.h"
#include "src/core/ignored_flags.h"

namespace irq {

// Allowed words, in the order of the enums.
inline const std::vector<std::string> kIcqTies = {"first", "mse"};
inline const std::vector<std::string> kIcqSearches = {"grid", "exact"};
inline const std::vector<std::string> kIcqWidths = {"code", "absmax", "block-std", "raw"};
inline const std::vector<std::string> kIcqCandidates = {"2n+1", "2n"};
// Every flag that means something only where ICQ searches.
inline const std::vector<std::string> kIcqFlags = {
    "--lambda",     "--n",         "--entropy",        "--icq-ties",
    "--icq-search", "--icq-width", "--icq-candidates", "--icq-consistent"};
// Of these, what the search of integer codes has not.
inline const std::vector<std::string> kIcqNfFlags = {"--entropy",   "--icq-ties",       "--icq-search",
                                                     "--icq-width", "--icq-candidates", "--icq-consistent"};

// The flags that go beyond the paper.
struct IcqWords {
  std::string ties = "first", search = "grid", width = "code", candidates = "2n+1";
  bool consistent = false;
};
IcqSpec icq_spec(double lambda, int n, const std::string& entropy, const IcqWords& words);

// Which flags would change nothing beside the others.
std::vector<IgnoredFlags> ignored_icq_flags(const IcqSpec& spec);

// The fewest digits that read back as x: two lambdas never share a name.
std::string shortest(double x);
// "lambda 0.1, n 100, entropy exact", and behind it each setting that is not the paper's: ", ties mse".
std::string describe(const IcqSpec& spec);
// "l0.1-n100-exact", and behind it the same: "-mse-absmax". Two specs that differ have different names.
std::string name_part(const IcqSpec& spec);

}  // namespace irq
