// Any bytes as text: every tokenizer kind gives ids in its vocabulary, and byte-level BPE gives the bytes back. Run from the
// top of the tree, where the golden tokenizer and the demo's lie.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <memory>
#include <string>

#include "src/core/check.h"
#include "src/text/tokenizer.h"

namespace {

void require(bool condition) {
  if (!condition) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const auto bpe = irq::open_tokenizer("tests/golden/bpe_tokenizer.json");
  static const auto pieces = irq::open_tokenizer("tools/demo/tokenizer.model");
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  std::string bytes;
  for (const int32_t id : bpe->encode(text)) bytes += bpe->bytes_of(id);
  require(bytes == text);
  for (const irq::Tokenizer* t : {bpe.get(), pieces.get()}) {
    for (const int32_t id : t->encode_with_specials(text)) require(id >= 0 && id < t->vocab_size());
    require(irq::is_utf8(t->decode(t->encode(text, false, irq::Before::text))));
  }
  return 0;
}
