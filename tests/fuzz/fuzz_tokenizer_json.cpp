// tokenizer.json as hostile bytes: parsed, and where that succeeds turned into a vocabulary and its files.
#include <cstddef>
#include <cstdint>
#include <string>

#include "src/core/check.h"
#include "src/text/tokenizer_kinds.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string content(reinterpret_cast<const char*>(data), size);
  try {
    const auto tokenizer = irq::open_tokenizer_json("fuzz.json", content, {}, {});
    for (const char* text : {"a b<s>", " it's 12\n\n  caf\xC3\xA9 \xF0\x9F\x98\x80\xFF"}) {
      tokenizer->decode(tokenizer->encode(text));
      tokenizer->encode_with_specials(text);
      tokenizer->encode_long(text);
    }
  } catch (const irq::Error&) {}
  return 0;
}
