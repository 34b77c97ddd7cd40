// The GGUF container and its element types: values against the gguf Python package, and files that lie.
#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <cstring>
#include <limits>

#include "src/core/rng.h"
#include "src/io/ggml_blocks.h"
#include "src/io/rope_rows.h"
#include "tests/gguf_files.h"
#include "tests/scratch_dir.h"

namespace irq {
namespace {

std::vector<unsigned char> from_hex(const std::string& hex) {
  std::vector<unsigned char> bytes;
  for (size_t i = 0; i < hex.size(); i += 2)
    bytes.push_back(static_cast<unsigned char>(std::stoi(hex.substr(i, 2), nullptr, 16)));
  return bytes;
}

std::vector<float> decoded(GgmlType type, const std::vector<unsigned char>& bytes, int64_t weights) {
  std::vector<float> out(static_cast<size_t>(weights), std::nanf(""));
  decode_ggml_row(type, bytes.data(), weights, out.data());
  return out;
}

// gguf.quants.dequantize of random blocks (gguf 0.17): some values, and FNV-1a of all.
struct Golden {
  GgmlType type;
  int64_t weights;
  std::vector<float> values;  // at 0, 1, 15, 16, 17, 31, the last
  uint64_t hash;
  std::string hex;
};
const Golden kGolden[] = {
    {GgmlType::q8_0,
     64,
     {-0x1.56p+1f, -0x1.93cp+1f, -0x1.8a4p+1f, 0x1.c8p-3f, 0x1.1dp+2f, 0x1.3p-1f, -0.0f},
     0x59fadd78a4a393d9,
     "c028b8abeeab14cef599cc052535d5cec0ad06783f60ec83760457a17c472a49ed1000b80a67ce0d8f02264785762462c423399232b39168c"
     "e3"
     "58d21b527970bb48a4200"},
    {GgmlType::q4_0,
     64,
     {0x1.c8p-4f, 0x1.3p-3f, 0x1.3p-5f, -0x1.3p-5f, -0x1.3p-2f, 0x1.3p-4f, 0x1p+0f},
     0x6966d2c82012b232,
     "c0287b0c90b818268101caff5536e4307fa900b86df710c04edc083cbdb5404808b9586f"},
    {GgmlType::q4_1,
     64,
     {-0x1.334p-2f, -0x1.368p-3f, 0x1.298p-3f, -0x1.828p-3f, -0x1.368p-3f, 0x1.298p-3f, -0x1.e668p+1f},
     0x0baf249626e631da,
     "c028cdb4304464f943287f2d2133cee5d95535cc00b8cdb40e7fa01dd0a174645397c6a0adc1367e"},
    {GgmlType::q6_k,
     256,
     {0x1.c0ep+4f, -0x1.37b8p+5f, -0x1.8288p+5f, -0x1.0b3p+4f, -0x1.4dfcp+5f, 0x1.25e8p+4f, 0x1.0884p+6f},
     0xe8d6f4cea43f40da,
     "7e3976aa6b833bad348bb5a93fc4900f8a8987f50f8c3b8efc8c4ce733da7d4597758c5cbdd130e147d9d82f7c5b70102d58b85f48d7dead2"
     "49"
     "24b1fbe1ebedebe4b4f57ff8b313a8509618b87183ce5346b49e2c23348df4abd744e5c8bbd04b85d34c7f36d1eb5cdc25ec5599f4e006d2f"
     "b1"
     "09fa75dc800fadcc557469c96f94eb69eebb60083412b52987ef702f53e2eb824bc02064cee95b3927060103514ace681e82642726b083f04"
     "78"
     "aaed1b2bc0e5d9443c9d372a980672b694c87ccd6d3becc79ce4a3c08d2480f3868dd51c028"}};

TEST(Gguf, BlocksAsThePythonPackageDecodesThem) {
  for (const Golden& g : kGolden) {
    const std::vector<unsigned char> bytes = from_hex(g.hex);
    const GgmlBlock* block = ggml_block(static_cast<uint32_t>(g.type));
    ASSERT_EQ(static_cast<int64_t>(bytes.size()), g.weights / block->weights * block->bytes) << block->name;
    const std::vector<float> w = decoded(g.type, bytes, g.weights);
    const size_t at[] = {0, 1, 15, 16, 17, 31, static_cast<size_t>(g.weights - 1)};
    for (size_t i = 0; i < 7; ++i) EXPECT_EQ(w[at[i]], g.values[i]) << block->name << " weight " << at[i];
    EXPECT_EQ(fnv(w), g.hash) << block->name;
  }
}

TEST(Gguf, PlainTypes) {
  const std::vector<uint16_t> halves = {0x0000, 0x8000, 0x0001, 0x83ff, 0x3c00, 0xbc01, 0x7bff, 0x7c00, 0xfc00};
  const float inf = std::numeric_limits<float>::infinity();
  const std::vector<float> expected = {0, -0.0f, 0x1p-24f, -0x1.ff8p-15f, 1, -0x1.004p+0f, 0x1.ffcp+15f, inf, -inf};
  const std::string h = raw(halves);
  EXPECT_EQ(fnv(decoded(GgmlType::f16, {h.begin(), h.end()}, 9)), fnv(expected));
  const std::string b = raw(std::vector<uint16_t>{0x3f80, 0xbf81, 0x0001, 0x8000, 0x7f80});
  EXPECT_EQ(fnv(decoded(GgmlType::bf16, {b.begin(), b.end()}, 5)),
            fnv(std::vector<float>{1, -0x1.02p+0f, 0x1p-133f, -0.0f, inf}));
  const std::string f = raw(expected);
  EXPECT_EQ(fnv(decoded(GgmlType::f32, {f.begin(), f.end()}, 9)), fnv(expected));
}

// llama.cpp's reordering of a head's D rows, as a program that converts from Hugging Face does it: seen as (2, D/2), transposed.
TEST(Gguf, RowsOfAHeadMoveWhole) {
  const int64_t heads = 3, d = 8, cols = 32, rows = heads * d;
  Rng rng(1);
  std::string file(static_cast<size_t>(rows * 34), '\0');
  for (char& c : file) c = static_cast<char>(rng.next_u32());
  for (int64_t r = 0; r < rows; ++r) file.replace(static_cast<size_t>(34 * r), 2, raw<uint16_t>(0x2c00));
  const unsigned char* data = reinterpret_cast<const unsigned char*>(file.data());
  std::vector<float> out(static_cast<size_t>(rows * cols));
  decode_ggml_rows(GgmlType::q8_0, data, rows, cols, out.data(), d);
  for (int64_t h = 0; h < heads; ++h)
    for (int64_t p = 0; p < 2; ++p)
      for (int64_t j = 0; j < d / 2; ++j) {
        std::vector<float> row(32);
        decode_ggml_row(GgmlType::q8_0, data + 34 * (h * d + 2 * j + p), cols, row.data());
        const float* got = &out[static_cast<size_t>((h * d + p * d / 2 + j) * cols)];
        EXPECT_EQ(row, std::vector<float>(got, got + cols)) << "head " << h << " row " << p << " " << j;
      }
}

GgufBytes small_file() {
  GgufBytes g;
  g.string("general.architecture", "llama");
  g.pair("a.u8", 0, raw<uint8_t>(200)), g.pair("a.i8", 1, raw<int8_t>(-3)), g.pair("a.u16", 2, raw<uint16_t>(65535));
  g.pair("a.i16", 3, raw<int16_t>(-2)), g.u32("a.u32", 4000000000u), g.pair("a.i32", 5, raw<int32_t>(-5));
  g.f32("a.f32", 0.5f), g.flag("a.yes", true), g.flag("a.no", false);
  g.pair("a.u64", 10, raw<uint64_t>(1)), g.pair("a.i64", 11, raw<int64_t>(-7)), g.pair("a.f64", 12, raw(0.1));
  g.strings("a.words", {"", "b\n", "c"});
  g.array("a.ints", 5, 3, raw(std::vector<int32_t>{1, -2, 3}));
  g.array("a.floats", 6, 2, raw(std::vector<float>{0.25f, -8}));
  g.array("a.none", 8, 0, "");
  g.tensor("x", {3, 2}, 0, raw(std::vector<float>{1, 2, 3, 4, 5, 6}));
  g.tensor("y", {64}, 12345, "");  // a type nobody knows
  g.tensor("z", {256, 2}, 12, std::string(288, 'k'));
  return g;
}

class GgufFile : public ::testing::Test {
 protected:
  void SetUp() override {
    previous_ = std::filesystem::current_path();
    std::filesystem::current_path(dir_.path());  // so that paths in messages are short and known
  }
  void TearDown() override { std::filesystem::current_path(previous_); }
  static std::string error(const std::string& bytes) {
    write_bytes("m.gguf", bytes);
    return error_of([] { GgufReader("m.gguf"); });
  }
  static void expect_error(const GgufBytes& g, const std::string& part) {
    const std::string e = error(g.bytes());
    EXPECT_NE(e.find(part), std::string::npos) << "expected: " << part << "\nfound: " << e;
  }
  ScratchDir dir_;
  std::filesystem::path previous_;
};

TEST_F(GgufFile, ValuesAndTensors) {
  for (const uint32_t version : {2u, 3u}) {
    GgufBytes g = small_file();
    g.version = version;
    write_bytes("m.gguf", g.bytes());
    const GgufReader r("m.gguf");
    const auto integer = [&](const char* key) { return r.find(key)->integer; };
    EXPECT_EQ(r.find("general.architecture")->text, "llama");
    EXPECT_EQ(integer("a.u8"), 200);
    EXPECT_EQ(integer("a.i8"), -3);
    EXPECT_EQ(integer("a.u16"), 65535);
    EXPECT_EQ(integer("a.i16"), -2);
    EXPECT_EQ(integer("a.u32"), 4000000000);
    EXPECT_EQ(integer("a.i32"), -5);
    EXPECT_EQ(r.find("a.f32")->number, 0.5);
    EXPECT_EQ(integer("a.yes"), 1);
    EXPECT_EQ(integer("a.no"), 0);
    EXPECT_EQ(integer("a.u64"), 1);
    EXPECT_EQ(integer("a.i64"), -7);
    EXPECT_EQ(r.find("a.f64")->number, 0.1);
    EXPECT_EQ(r.find("a.words")->texts, (std::vector<std::string>{"", "b\n", "c"}));
    EXPECT_EQ(r.find("a.ints")->integers, (std::vector<int64_t>{1, -2, 3}));
    EXPECT_EQ(r.find("a.floats")->numbers, (std::vector<double>{0.25, -8}));
    EXPECT_TRUE(r.find("a.none")->is_array);
    EXPECT_EQ(r.find("absent"), nullptr);
    EXPECT_EQ(r.tensors().size(), 3u);
    const GgufTensor* x = r.tensor("x");
    EXPECT_EQ(x->shape, (std::vector<int64_t>{3, 2}));
    float last;
    std::memcpy(&last, r.data(*x) + 20, 4);
    EXPECT_EQ(last, 6);
    EXPECT_EQ(r.tensor("z")->bytes, 288);
    EXPECT_EQ(r.tensor("absent"), nullptr);
    EXPECT_EQ(error_of([&] { r.data(*r.tensor("z")); }),
              "m.gguf: z is of a type that cannot be read\n"
              "  expected: F32, F16, BF16, Q8_0, Q6_K, Q4_0 or Q4_1\n"
              "  found   : Q4_K\n"
              "  try     : take an F16, BF16 or Q8_0 file of the same model");
    EXPECT_NE(error_of([&] { r.data(*r.tensor("y")); }).find("type 12345"), std::string::npos);
  }
}

TEST_F(GgufFile, KindsThatAreRefused) {
  GgufBytes g = small_file();
  g.version = 1;
  EXPECT_EQ(error(g.bytes()),
            "m.gguf: a GGUF file of a kind that is not supported\n"
            "  expected: version 2 or 3, little-endian\n"
            "  found   : version 1\n"
            "  try     : convert the model again with a llama.cpp of September 2023 or later");
  g.version = __builtin_bswap32(3);
  EXPECT_EQ(error(g.bytes()),
            "m.gguf: a GGUF file of a kind that is not supported\n"
            "  expected: version 2 or 3, little-endian\n"
            "  found   : version 3, big-endian\n"
            "  try     : take the little-endian file of the same model");
  g.version = 4;
  expect_error(g, "found   : version 4");
  EXPECT_EQ(error("GGML1234"), "m.gguf: not a GGUF file\n  expected: the letters GGUF at its beginning");
  EXPECT_NE(error(""), "");
}

TEST_F(GgufFile, CutAnywhere) {
  const std::string whole = small_file().bytes();
  ASSERT_EQ(error(whole), "");
  for (size_t n = 0; n < whole.size(); ++n) {
    if (n >= whole.size() - 31 && whole.find_first_not_of('\0', n) == std::string::npos) continue;  // padding
    EXPECT_NE(error(whole.substr(0, n)), "") << "cut at " << n;
  }
  EXPECT_EQ(error(whole.substr(0, whole.size() - 40)).substr(0, 31), "m.gguf: GGUF file is cut short\n");
}

// Every one of these is 1 KB or less and claims more, or contradicts itself.
TEST_F(GgufFile, Hostile) {
  const auto start = std::chrono::steady_clock::now();
  const MemoryLimit limit(512 << 20);
  GgufBytes g = small_file();
  g.pairs += raw(uint64_t{1} << 63) + "key", ++g.pair_count;
  expect_error(g, "expected: 9223372036854775808 more bytes for key 17");
  g = small_file();
  g.pair("s", 8, raw(~uint64_t{0}));
  expect_error(g, "18446744073709551615 more bytes for s");
  g = small_file();
  g.array("t", 8, uint64_t{1} << 60, "");
  expect_error(g, "found   : 1152921504606846976 elements");
  for (const uint32_t type : {0u, 5u, 7u, 12u}) {
    g = small_file();
    g.array("t", type, uint64_t{1} << 60, "");
    expect_error(g, "found   : 1152921504606846976 elements");
  }
  g = small_file();
  g.array("t", 9, 1, raw<uint32_t>(5) + raw<uint64_t>(0));
  expect_error(g, "expected: no array of arrays");
  g = small_file();
  g.pair("t", 13, "xxxxxxxx");
  expect_error(g, "type 13");
  g = small_file();
  g.u32("a.u32", 1);
  expect_error(g, "found   : a.u32 twice");
  g = small_file();
  g.tensor("x", {1}, 0, "aaaa");
  expect_error(g, "found   : x twice");
  g = small_file();
  g.tensor_count = ~uint64_t{0};
  expect_error(g, "18446744073709551615 tensors");
  g = small_file();
  g.pair_count = uint64_t{1} << 40;
  expect_error(g, "1099511627776 pairs");
  g = small_file();
  g.info("big", {2684354560}, 0, g.data.size());  // 10 GB
  expect_error(g, "10,737,418,240 bytes of big");
  for (const std::vector<uint64_t>& shape :
       {std::vector<uint64_t>{uint64_t{1} << 40, uint64_t{1} << 40}, {0}, {~uint64_t{0}}, {uint64_t{1} << 62, 2}}) {
    g = small_file();
    g.info("odd", shape, 0, 0);
    expect_error(g, "a possible shape and offset of odd");
  }
  g = small_file();
  g.info("odd", {uint64_t{1} << 61}, 0, 0);  // 2^63 bytes
  expect_error(g, "a possible shape and offset of odd");
  g = small_file();
  g.info("odd", {33}, 8, 0);  // not a whole number of blocks
  expect_error(g, "33 of Q8_0");
  g = small_file();
  g.info("deep", {1, 1, 1, 1, 1}, 0, 0);
  expect_error(g, "1 to 4 dimensions");
  g = small_file();
  g.info("far", {1}, 0, uint64_t{1} << 62);
  expect_error(g, "GGUF file is cut short");
  g = small_file();
  g.info("far", {1}, 0, uint64_t{1} << 63);
  expect_error(g, "at offset 9223372036854775808");
  g = small_file();
  g.info("inside", {4}, 0, 64);  // z lies from 32 to 320
  expect_error(g, "found   : inside (4, F32) at offset 64, inside z");
  g = small_file();
  g.info("same", {6}, 0, 0);
  expect_error(g, "tensors that do not overlap");
  g = small_file();
  g.data.resize(g.data.size() + 64);
  g.info("crooked", {1}, 0, 332);
  expect_error(g, "every tensor at a multiple of 32 bytes");
  for (const uint32_t alignment : {0u, 3u, 48u, 1u << 30}) {
    g = small_file();
    g.u32("general.alignment", alignment);
    expect_error(g, "general.alignment to be a u32, a power of two");
  }
  g = small_file();
  g.pair("general.alignment", 10, raw(uint64_t{1} << 40));
  expect_error(g, "general.alignment to be a u32, a power of two");
  EXPECT_LT(std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count(), 1.0);
}

TEST_F(GgufFile, AnotherAlignment) {
  GgufBytes g;
  g.alignment = 256;
  g.u32("general.alignment", 256);
  g.tensor("x", {1}, 0, raw(7.0f)), g.tensor("y", {1}, 0, raw(8.0f));
  write_bytes("m.gguf", g.bytes());
  const GgufReader r("m.gguf");
  EXPECT_EQ(r.tensor("y")->offset, 256);
  float y;
  std::memcpy(&y, r.data(*r.tensor("y")), 4);
  EXPECT_EQ(y, 8);
}

// Random bytes flipped: an Error or a file whose every tensor can be read, never a crash.
TEST_F(GgufFile, FlippedBytes) {
  const std::string whole = small_file().bytes();
  Rng rng(3);
  for (int i = 0; i < 2000; ++i) {
    std::string bytes = whole;
    for (int k = 0; k < 3; ++k) bytes[rng.below(bytes.size())] = static_cast<char>(rng.next_u32());
    write_bytes("m.gguf", bytes);
    error_of([&] {
      const GgufReader r("m.gguf");
      for (const GgufTensor& t : r.tensors()) {
        if (!ggml_decodable(t.type)) continue;
        const unsigned char* p = r.data(t);
        uint64_t sum = 0;
        for (int64_t b = 0; b < t.bytes; ++b) sum += p[b];
        ASSERT_LE(sum, 255ull * static_cast<uint64_t>(t.bytes));
      }
    });
  }
}

}  // namespace
}  // namespace irq
