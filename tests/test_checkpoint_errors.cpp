// The wording of what a user reads when a file is wrong, in full; and that hostile files are refused without harm.
#include <gtest/gtest.h>

#include <chrono>

#include "tests/io_files.h"

namespace irq {
namespace {

class ErrorText : public ::testing::Test {
 protected:
  void SetUp() override {
    previous_ = std::filesystem::current_path();
    std::filesystem::current_path(dir_.path());  // so that paths in messages are short and known
    write_base("m.bin", small_config(), DType::BF16);
    whole_ = read_bytes("m.bin");
  }
  void TearDown() override { std::filesystem::current_path(previous_); }
  static std::string base_error(const std::string& path = "m.bin") {
    return error_of([&] { BaseReader(path).verify_all(); });
  }
  static std::string irq_error(const std::string& path) {
    return error_of([&] { IrqReader(path).verify_all(); });
  }
  // The 64-bit checksum stored at a byte of a file, as messages show it.
  static std::string hash_text(const std::string& bytes, size_t at) {
    uint64_t x;
    std::memcpy(&x, bytes.data() + at, 8);
    return strf("%016lx", x);
  }
  ScratchDir dir_;
  std::filesystem::path previous_;
  std::string whole_;
};

// The small model in bf16: header and table 1,280; embed 1,600 -> 1,792; a layer 256 + 512 + 256 + 256 + 512 + 256 +
// 3 x 768 = 4,352, two of them 8,704; norm 256; head 1,600: together 13,632. layers.0.w_down lies from 6,656 to 7,424.
TEST_F(ErrorText, CutShort) {
  write_bytes("m.bin", whole_.substr(0, 7000));
  EXPECT_EQ(base_error(),
            "m.bin: checkpoint is cut short\n"
            "  header  : LLaMA, 2 layers, dim 16, bf16 -> the file must have 13,632 bytes\n"
            "  on disk : 7,000 bytes (51.3 %); first incomplete tensor: layers.0.w_down (16 x 24)\n"
            "  likely  : interrupted download or conversion\n"
            "  try     : ./irq_convert <hf_dir> m.bin    then    ./irq_inspect m.bin");
  write_bytes("m.bin", whole_.substr(0, 500));
  EXPECT_EQ(base_error(),
            "m.bin: checkpoint is cut short\n"
            "  header  : 1,024 bytes\n"
            "  on disk : 500 bytes\n"
            "  likely  : interrupted download or copy\n"
            "  try     : ./irq_convert <hf_dir> m.bin    then    ./irq_inspect m.bin");
}

TEST_F(ErrorText, TrailingBytes) {
  write_bytes("m.bin", whole_ + "more");
  EXPECT_EQ(base_error(),
            "m.bin: there are bytes behind the end\n"
            "  header  : LLaMA, 2 layers, dim 16, bf16 -> the file must have 13,632 bytes\n"
            "  on disk : 13,636 bytes: 4 too many\n"
            "  likely  : two files joined into one, or a download that was resumed wrongly\n"
            "  try     : ./irq_convert <hf_dir> m.bin    then    ./irq_inspect m.bin");
}

TEST_F(ErrorText, DamagedData) {
  std::string bad = whole_;
  bad[5000] = static_cast<char>(bad[5000] ^ 4);
  write_bytes("m.bin", bad);
  const std::string text = error_of([] { BaseReader("m.bin").tensor("layers.1.wv"); });
  const std::string start =
      "m.bin: the data is damaged\n"
      "  tensor  : one of embed to head, when reading layers.1.wv\n"
      "  bytes   : 1,280 to 13,632 of the file\n"
      "  expected: checksum ";
  EXPECT_EQ(text.substr(0, start.size()), start);
  const std::string end =
      "\n  likely  : a disk or transfer error after the file was written\n"
      "  try     : ./irq_convert <hf_dir> m.bin    then    ./irq_inspect m.bin";
  ASSERT_GT(text.size(), end.size());
  EXPECT_EQ(text.substr(text.size() - end.size()), end);
}

TEST_F(ErrorText, DamagedHeaderAndTable) {
  std::string bad = whole_;
  bad[70] = static_cast<char>(bad[70] ^ 1);
  write_bytes("m.bin", bad);
  EXPECT_EQ(base_error().find("m.bin: the header is damaged\n  expected: checksum " + hash_text(whole_, 1016)), 0u)
      << base_error();
  bad = whole_;
  bad[1030] = static_cast<char>(bad[1030] ^ 1);
  write_bytes("m.bin", bad);
  EXPECT_EQ(
      base_error().find("m.bin: the table of checksums is damaged\n  expected: checksum " + hash_text(whole_, 16)), 0u)
      << base_error();
}

TEST_F(ErrorText, NewerVersion) {
  forge("m.bin", {{1, 7}});
  EXPECT_EQ(base_error(),
            "m.bin: made by a newer version of these tools\n"
            "  expected: file version 1\n"
            "  found   : file version 7\n"
            "  try     : update these tools (git pull && make)");
}

TEST_F(ErrorText, TiedIsZeroOrOne) {
  for (const int32_t tied : {2, -1}) {
    forge("m.bin", {{24, tied}});
    EXPECT_EQ(base_error(), strf("m.bin: the header's flag for a tied head is neither 0 nor 1\n  found   : %d", tied));
  }
}

TEST_F(ErrorText, WhatIsThereIsReplacedByItsOwnKindOnly) {
  write_bytes("empty", "");
  write_bytes("train.json", "{}");
  for (const char* free : {"m.bin", "empty", "absent"}) EXPECT_NO_THROW(refuse_replacing(free, FileKind::base)) << free;
  EXPECT_EQ(error_of([] { refuse_replacing("train.json", FileKind::base); }),
            "train.json: is there already, and is not a base model (.bin)\n  found   : a JSON file\n"
            "  try     : rm train.json    if nobody needs it, or another name");
  EXPECT_NE(error_of([] { refuse_replacing("m.bin", FileKind::quantized); }), "");
  EXPECT_NE(error_of([] { refuse_replacing(".", FileKind::gguf); }).find("try     : a name in it: ./model.gguf"),
            std::string::npos);
}

TEST_F(ErrorText, OtherKindsOfFiles) {
  const std::string convert = "  likely  : the model has not been converted yet\n  try     : ./irq_convert ";
  write_bytes("model.safetensors", std::string("\x10\0\0\0\0\0\0\0{\"a\":           }", 24));
  EXPECT_EQ(base_error("model.safetensors"),
            "model.safetensors: not a base model (.bin)\n  found   : a safetensors file\n" + convert + ". model.bin");
  write_bytes("m.gguf", "GGUF\x03");
  EXPECT_EQ(base_error("m.gguf"),
            "m.gguf: not a base model (.bin)\n  found   : a GGUF file\n" + convert + "m.gguf model.bin");
  EXPECT_EQ(irq_error("m.gguf"), "m.gguf: not a quantized base model (.irq)\n  found   : a GGUF file\n" + convert +
                                     "m.gguf model.bin    then    ./irq_quantize model.bin model.irq");
  write_bytes("pytorch_model.bin", "PK\x03\x04zip");
  EXPECT_EQ(base_error("pytorch_model.bin"),
            "pytorch_model.bin: not a base model (.bin)\n  found   : a PyTorch file\n" + convert + ". model.bin");
  write_bytes("lfs", "version https://git-lfs.github.com/spec/v1\noid sha256:00\n");
  EXPECT_EQ(base_error("lfs"),
            "lfs: not a base model (.bin)\n  found   : a Git LFS pointer, not the file itself\n"
            "  likely  : the repository was cloned without its large files\n  try     : git lfs pull");
  write_bytes("page", "<!DOCTYPE html>");
  EXPECT_NE(base_error("page").find("found   : a web page"), std::string::npos);
  write_bytes("empty", "");
  EXPECT_NE(base_error("empty").find("found   : an empty file"), std::string::npos);
  write_adapter("a.lora", small_adapter());
  EXPECT_EQ(base_error("a.lora"),
            "a.lora: not a base model (.bin)\n  found   : an adapter (.lora)\n"
            "  likely  : an adapter given in the model's place\n"
            "  try     : give the base model first, then --adapter a.lora");
  EXPECT_EQ(irq_error("m.bin"),
            "m.bin: not a quantized base model (.irq)\n  found   : a base model (.bin)\n"
            "  try     : ./irq_quantize m.bin model.irq");
  EXPECT_EQ(error_of([] { IrqReader("a.lora"); }).find("a.lora: not a quantized base model (.irq)\n"), 0u);
  write_irq("q.irq", small_info());
  EXPECT_EQ(base_error("q.irq"),
            "q.irq: not a base model (.bin)\n  found   : a quantized base model (.irq)\n"
            "  likely  : it is quantized already\n  try     : ./irq_train q.irq    or the .bin that it was made from");
  write_bytes("my model.gguf", "GGUF\x03");
  EXPECT_NE(base_error("my model.gguf").find("try     : ./irq_convert 'my model.gguf' model.bin"), std::string::npos);
  EXPECT_EQ(error_of([] { AdapterReader("m.gguf"); }),
            "m.gguf: not an adapter (.lora)\n  found   : a GGUF file\n"
            "  likely  : a model of another program given in its place\n"
            "  try     : the adapter.lora that irq_train wrote");
  EXPECT_NE(base_error(".").find("is a folder"), std::string::npos);
  EXPECT_EQ(base_error("nothing.bin"), "nothing.bin: no such file");
}

TEST_F(ErrorText, Sniffing) {
  const std::map<std::string, FileKind> texts = {{"24ka", FileKind::llama2c},
                                                 {std::string("\x76\x2b\x35\x01", 4), FileKind::unknown},
                                                 {" \n{\"hidden_size\": 1}", FileKind::config_json},
                                                 {"\x80\x02}", FileKind::pytorch},
                                                 {"IR", FileKind::unknown},
                                                 {"hello", FileKind::unknown}};
  for (const auto& [text, kind] : texts) {
    write_bytes("f", text);
    EXPECT_EQ(sniff("f"), kind) << text;
  }
  EXPECT_EQ(sniff("."), FileKind::folder);
  EXPECT_EQ(sniff("m.bin"), FileKind::base);
  int32_t llmc = 20240326;
  write_bytes("f", std::string(reinterpret_cast<char*>(&llmc), 4));
  EXPECT_EQ(sniff("f"), FileKind::llmc);
}

// ---- hostile files ---------------------------------------------------------------------------------------------------

// A header of 1 KB that claims the largest model allowed, then sizes that cannot be: each refused at once.
TEST_F(ErrorText, HugeClaimsInASmallFile) {
  const auto start = std::chrono::steady_clock::now();
  write_bytes("small", whole_.substr(0, 1024));
  const std::map<size_t, int32_t> largest = {{16, 1 << 16}, {17, 1 << 18}, {18, 1024}, {22, 1 << 21}};
  forge("small", largest);
  EXPECT_NE(base_error("small").find("small: the header contradicts itself\n  expected: "), std::string::npos)
      << base_error("small");
  const int64_t claimed = base_layout(
                              [] {
                                ModelConfig c = small_config();
                                c.dim = 1 << 16, c.ffn = 1 << 18, c.layers = 1024, c.vocab = 1 << 21;
                                return c;
                              }(),
                              DType::BF16, "")
                              .payload_bytes();
  std::map<size_t, int32_t> consistent = largest;
  consistent[2] = static_cast<int32_t>(claimed), consistent[3] = static_cast<int32_t>(claimed >> 32);
  forge("small", consistent);
  EXPECT_NE(base_error("small").find("bytes (0.0 %); first incomplete tensor: embed (2097152 x 65536)"),
            std::string::npos)
      << base_error("small");
  for (const size_t slot : {16, 17, 18, 19, 20, 21, 22, 23})
    for (const int32_t value : {0, -1, INT32_MIN, INT32_MAX}) {
      write_bytes("small", whole_.substr(0, 1024));
      forge("small", {{slot, value}});
      EXPECT_NE(base_error("small").find("not a LLaMA this engine can run"), std::string::npos) << base_error("small");
    }
  for (const int32_t high : {-1, INT32_MIN, INT32_MAX}) {
    write_bytes("small", whole_.substr(0, 1024));
    forge("small", {{3, high}});
    EXPECT_NE(base_error("small").find("impossible size"), std::string::npos) << base_error("small");
  }
  forge("small", {{2, 1 << 30}, {3, 2}});  // 9.7 GB
  EXPECT_NE(base_error("small").find("the header contradicts itself"), std::string::npos);
  forge("m.bin", {{25, 50}});  // bos: one behind the last token
  EXPECT_EQ(base_error(),
            "m.bin: special tokens outside the vocabulary\n  expected: 0 to 49\n  found   : bos 50, eos 4");
  forge("m.bin", {{25, 3}, {27, 3}});
  EXPECT_NE(base_error().find("weights of an unknown type"), std::string::npos);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  EXPECT_LT(seconds, 5) << "50 files";
}

// .lora and .state list their tensors in text, so the list can lie too.
TEST_F(ErrorText, ListsOfTensorsThatLie) {
  struct Lie {
    const char *line, *says;
  };
  const Lie lies[] = {{"w f32 4 99999999999999999999\n", "its list of tensors cannot be read"},
                      {"w f32 -1 4\n", "its list of tensors cannot be read"},
                      {"w f32 4\n", "its list of tensors cannot be read"},
                      {"w f16 4 4\n", "its list of tensors cannot be read"},
                      {"w f32 4 4 \n", "its list of tensors cannot be read"},
                      {"w f32 4 4", "its list of tensors cannot be read"},
                      {"w f32 4294967296 4294967296\n", "a tensor of an impossible size"},
                      {"w f32 1 1000000000000\n", "the header contradicts itself"},
                      {"w f32 1 8\n", "the header contradicts itself"},
                      {"w f32 1 4\nw f32 0 0\n", "two tensors are called w"}};
  for (const Lie& lie : lies) {
    const std::string list = lie.line;
    HeaderFields f;
    f.put(static_cast<int64_t>(list.size()));
    f.put(int64_t{0});
    Layout layout;
    layout.add("list", DType::U8, 1, static_cast<int64_t>(list.size()), "");
    layout.add("text", DType::U8, 1, 0, "");
    layout.add("w", DType::F32, 1, 4, "");
    FlatWriter w("s.state", FileKind::state, f, layout);
    const float values[4] = {};
    w.write("list", list.data(), static_cast<int64_t>(list.size()));
    w.write("text", nullptr, 0);
    w.write("w", values, 16);
    w.finish();
    const std::string text = error_of([] { StateReader("s.state"); });
    EXPECT_NE(text.find(lie.says), std::string::npos) << list << text;
  }
}

}  // namespace
}  // namespace irq
