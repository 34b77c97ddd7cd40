#include "src/quant/icq_options.h"

#include <algorithm>
#include <charconv>

#include "src/core/check.h"

namespace irq {
namespace {

template <class E>
E value_of(const std::vector<std::string>& words, const std::string& word) {
  const auto at = std::find(words.begin(), words.end(), word);
  IRQ_CHECK(at != words.end(), "'%s' is none of ICQ's words", word.c_str());
  return static_cast<E>(at - words.begin());
}
template <class E>
const std::string& word_of(const std::vector<std::string>& words, E value) {
  return words.at(static_cast<size_t>(value));
}

}  // namespace

std::string shortest(double x) {
  char text[32];
  return std::string(text, std::to_chars(text, text + sizeof(text), x).ptr);
}

IcqSpec icq_spec(double lambda, int n, const std::string& entropy, const IcqWords& words) {
  IcqSpec spec;
  spec.lambda = lambda;
  spec.n = n;
  spec.fp32_entropy = entropy == "fp32";
  spec.ties = value_of<IcqTies>(kIcqTies, words.ties);
  spec.search = value_of<IcqSearch>(kIcqSearches, words.search);
  spec.width = value_of<IcqWidth>(kIcqWidths, words.width);
  spec.even = words.candidates == "2n";
  spec.consistent = words.consistent;
  return spec;
}

std::vector<IgnoredFlags> ignored_icq_flags(const IcqSpec& spec) {
  return {
      {spec.fp32_entropy,
       {"--icq-ties", "--icq-search", "--icq-width", "--icq-candidates"},
       "--entropy fp32 reproduces the released code, whose search has one form"},
      {spec.search == IcqSearch::exact,
       {"--n", "--icq-candidates"},
       "--icq-search exact tries a shift for every histogram between the ends, whatever n is"},
      {spec.n == 0, {"--icq-ties", "--icq-search", "--icq-width", "--icq-candidates"}, "--n 0 tries the median alone"}};
}

std::string describe(const IcqSpec& spec) {
  std::string text = strf("lambda %g, n %d, entropy %s", spec.lambda, spec.n, spec.fp32_entropy ? "fp32" : "exact");
  if (spec.search != IcqSearch::grid) text += ", search " + word_of(kIcqSearches, spec.search);
  if (spec.ties != IcqTies::first) text += ", ties " + word_of(kIcqTies, spec.ties);
  if (spec.width != IcqWidth::code) text += ", width " + word_of(kIcqWidths, spec.width);
  if (spec.even) text += ", 2n candidates";
  if (spec.consistent) text += ", consistent";
  return text;
}

std::string name_part(const IcqSpec& spec) {
  std::string text = strf("l%s-n%d-%s", shortest(spec.lambda).c_str(), spec.n, spec.fp32_entropy ? "fp32" : "exact");
  if (spec.search != IcqSearch::grid) text += "-optimum";
  if (spec.ties != IcqTies::first) text += "-" + word_of(kIcqTies, spec.ties);
  if (spec.width != IcqWidth::code) text += "-" + word_of(kIcqWidths, spec.width);
  if (spec.even) text += "-2n";
  if (spec.consistent) text += "-consistent";
  return text;
}

}  // namespace irq
