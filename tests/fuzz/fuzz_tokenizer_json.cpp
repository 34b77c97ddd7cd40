// tokenizer.json as hostile bytes: parsed, and where that succeeds turned into a vocabulary and its files.
#include "src/text/tokenizer_kinds.h"
#include "tests/fuzz/fuzz_file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string content(reinterpret_cast<const char*>(data), size);
  return irq::fuzz([&] {
    const auto tokenizer = irq::open_tokenizer_json("fuzz.json", content, {}, {});
    for (const char* text : {"a b<s>", " it's 12\n\n  caf\xC3\xA9 \xF0\x9F\x98\x80\xFF"}) {
      tokenizer->decode(tokenizer->encode(text));
      tokenizer->encode_with_specials(text);
      tokenizer->encode_long(text);
    }
  });
}
