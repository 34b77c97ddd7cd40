// llm.c's token files and evaluation files, and SentencePiece models read for conversion, as hostile bytes.
#include <array>
#include <cstring>

#include "src/text/eval_file.h"
#include "src/text/piece_model.h"
#include "src/text/token_file.h"
#include "tests/fuzz/fuzz_file.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string content(reinterpret_cast<const char*>(data), size);
  irq::fuzz([&] { irq::read_piece_model("fuzz.model", content); });
  // Headers of 1,024 bytes would hide what stands behind them from the fuzzer: the first bytes are its numbers.
  std::array<int32_t, 256> head{};
  std::memcpy(head.data(), data, size < 16 ? size : 16);
  const std::string body = content.substr(size < 16 ? size : 16);
  for (const int32_t magic : {head[0], 20240520, 20240801, 20240522}) {
    head[0] = magic;
    const std::string file = std::string(reinterpret_cast<const char*>(head.data()), 1024) + body;
    if (irq::is_token_file(file)) irq::fuzz([&] { irq::parse_token_file("fuzz.bin", file); });
    if (irq::is_eval_file(file)) irq::fuzz([&] { irq::parse_eval_file("fuzz.bin", file); });
  }
  return 0;
}
