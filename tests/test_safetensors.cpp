// The safetensors reader: what it gives, and what it says to files that lie.
#include <gtest/gtest.h>

#include <chrono>

#include "src/io/safetensors.h"
#include "tests/hf_files.h"

namespace irq {
namespace {

TEST(Safetensors, ReadsEntriesByOffset) {
  ScratchDir dir;
  const std::string path = dir / "a.safetensors";
  write_bytes(path,
              safetensors_file(
                  R"({"b":{"shape":[2,3],"data_offsets":[4,16],"dtype":"F16"},"__metadata__":{"format":"pt","x":""},)"
                  R"("a":{"dtype":"F32","shape":[],"data_offsets":[0,4]},"none":{"dtype":"U8","shape":[5,0],)"
                  R"("data_offsets":[16,16]}}   )",
                  "abcdefghijklmnop"));
  const SafetensorsReader r(path);
  ASSERT_EQ(r.entries().size(), 3u);
  EXPECT_EQ(r.entries()[0].name, "a");
  EXPECT_EQ(r.entries()[0].count(), 1);
  EXPECT_EQ(r.entries()[1].name, "b");
  EXPECT_EQ(r.entries()[1].shape, (std::vector<int64_t>{2, 3}));
  EXPECT_EQ(r.entries()[1].dtype, "F16");
  EXPECT_EQ(std::string(reinterpret_cast<const char*>(r.data(r.entries()[1])), 12), "efghijklmnop");
  EXPECT_EQ(r.find("none")->count(), 0);
  EXPECT_EQ(r.find("c"), nullptr);
  EXPECT_EQ(r.metadata(), (std::map<std::string, std::string>{{"format", "pt"}, {"x", ""}}));
}

// {header, bytes of data, what the message must hold}
struct Lie {
  std::string header;
  size_t data;
  std::string says;
};

std::string one(const std::string& shape, const std::string& offsets, const std::string& type = "\"F32\"") {
  return "{\"w\":{\"dtype\":" + type + ",\"shape\":" + shape + ",\"data_offsets\":" + offsets + "}}";
}

std::string two(const std::string& first, const std::string& second, const std::string& second_name = "v") {
  return "{\"w\":{\"dtype\":\"U8\",\"shape\":[8],\"data_offsets\":" + first + "},\"" + second_name +
         "\":{\"dtype\":\"U8\",\"shape\":[8],\"data_offsets\":" + second + "}}";
}

TEST(Safetensors, RefusesHeadersThatLie) {
  ScratchDir dir;
  const std::string deep(1000000, '[');
  const std::vector<Lie> lies = {
      {one("[4]", "[0,16]"), 15, "the file is cut short"},
      {one("[4]", "[0,16]"), 15, "first incomplete tensor: w"},
      {one("[4]", "[0,16]"), 17, "bytes behind the last tensor"},
      {one("[2684354560]", "[0,10737418240]"), 1024, "the file is cut short"},
      {one("[4]", "[4,20]"), 20, "bytes that belong to no tensor"},
      {two("[0,8]", "[12,20]"), 20, "bytes that belong to no tensor"},
      {two("[0,8]", "[4,12]"), 16, "two tensors share bytes"},
      {two("[0,8]", "[0,8]"), 8, "two tensors share bytes"},
      {two("[0,8]", "[8,16]", "w"), 16, "two tensors are called w"},
      {one("[4]", "[16,0]"), 16, "ends before it begins"},
      {one("[5]", "[0,16]"), 16, "has another size than its shape says"},
      {one("[1048576,1048576,1048576,4]", "[0,16]"), 16, "has an impossible size"},
      {one("[1152921504606846976,1152921504606846976,0]", "[0,0]"), 0, "has an impossible size"},
      {one("[-4]", "[0,16]"), 16, "the number -4"},
      {one("[4.5]", "[0,16]"), 16, "the number 4.5"},
      {one("[1e400]", "[0,16]"), 16, "the header is not valid JSON"},
      {one("[18446744073709551615]", "[0,16]"), 16, "the number 18446744073709551615"},
      {one("[9223372036854775807]", "[0,16]"), 16, "the number 9223372036854775807"},
      {one("[184467440737095516150]", "[0,16]"), 16, "the number 184467440737095516150"},
      {one("[\"4\"]", "[0,16]"), 16, "the text \"4\" at \"w\""},
      {one("\"4\"", "[0,16]"), 16, "the text \"4\""},
      {one("[[4]]", "[0,16]"), 16, "a list at \"w\""},
      {one("[4]", "[0,16,32]"), 16, "data_offsets that are not two numbers"},
      {one("[4]", "[]"), 16, "data_offsets that are not two numbers"},
      {one("[4]", "null"), 16, "null"},
      {one("[1,1,1,1,1,1,1,1,4]", "[0,16]"), 16, "a list of more than 8 numbers"},
      {one("[4]", "[0,16]", "\"F7\""), 16, "is of an unknown type"},
      {one("[4]", "[0,16]", "4"), 16, "the number 4"},
      {"{\"w\":{\"dtype\":\"F32\",\"data_offsets\":[0,16]}}", 16, "no dtype, no shape"},
      {"{\"w\":{\"dtype\":\"F32\",\"dtype\":\"F16\"}}", 16, "the key \"dtype\" twice"},
      {"{\"w\":{\"color\":\"red\"}}", 16, "the key \"color\""},
      {"{\"w\":[]}", 16, "a list at \"w\""},
      {"{\"w\":true}", 16, "true or false"},
      {"{\"__metadata__\":{\"a\":1}}", 0, "the number 1 at \"__metadata__\""},
      {"{\"__metadata__\":[]}", 0, "a list"},
      {"{} {}", 0, "not valid JSON"},
      {"{\"w\":", 0, "not valid JSON"},
      {"{\"\xff\":1}", 0, "not valid JSON"},
      {"{\"w\":" + deep, 0, "a list at \"w\""},
      {"{\"w\":{\"dtype\":" + deep, 0, "a list at \"w\""},
      {"[1]", 0, "not a safetensors file"},
      {"{", 0, "not a safetensors file"},
  };
  for (const Lie& lie : lies) {
    write_bytes(dir / "m", safetensors_file(lie.header, std::string(lie.data, 'x')));
    const auto start = std::chrono::steady_clock::now();
    const std::string error = error_of([&] { SafetensorsReader r(dir / "m"); });
    EXPECT_NE(error.find(lie.says), std::string::npos) << lie.header.substr(0, 200) << "\n" << error.substr(0, 500);
    EXPECT_EQ(error.find(dir / "m: "), 0u) << error.substr(0, 500);
    EXPECT_LT(error.size(), 1000u);
    EXPECT_LT(std::chrono::steady_clock::now() - start, std::chrono::seconds(1));
  }
}

TEST(Safetensors, RefusesLengthsThatLie) {
  ScratchDir dir;
  const std::string header = one("[4]", "[0,16]"), data(16, 'x');
  for (const int64_t length : {int64_t{0}, int64_t{1}, int64_t{1} << 40, INT64_MAX, int64_t{INT64_MIN}}) {
    write_bytes(dir / "m", safetensors_file(header, data, length == INT64_MIN ? length : length));
    std::string bytes = read_bytes(dir / "m");
    std::memcpy(bytes.data(), &length, 8);
    write_bytes(dir / "m", bytes);
    EXPECT_NE(error_of([&] { SafetensorsReader r(dir / "m"); }).find("not a safetensors file"), std::string::npos)
        << length;
  }
  // One byte longer or shorter than it is.
  for (const int64_t by : {-1, 1}) {
    write_bytes(dir / "m", safetensors_file(header, data, static_cast<int64_t>(header.size()) + by));
    EXPECT_NE(error_of([&] { SafetensorsReader r(dir / "m"); }).find("not valid JSON"), std::string::npos);
  }
  // A header above the format's limit, in a sparse file that really is so long.
  write_bytes(dir / "big", safetensors_file("{", "", 100'000'001));
  std::filesystem::resize_file(dir / "big", 200'000'000);
  EXPECT_NE(error_of([&] { SafetensorsReader r(dir / "big"); }).find("at most 100,000,000"), std::string::npos);
  // What is no safetensors file at all is named.
  write_bytes(dir / "lfs", "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n");
  EXPECT_NE(error_of([&] { SafetensorsReader r(dir / "lfs"); }).find("git lfs pull"), std::string::npos);
  write_bytes(dir / "empty", "");
  EXPECT_NE(error_of([&] { SafetensorsReader r(dir / "empty"); }).find("an empty file"), std::string::npos);
}

// Every prefix is an error; every single changed byte of the header is an error or another valid file, never anything else.
TEST(Safetensors, SurvivesCutsAndFlips) {
  ScratchDir dir;
  const std::string whole =
      safetensors_file(std::vector<RawTensor>{{"w", "F16", {2, 2}, "12345678"}, {"v", "U8", {3}, "abc"}});
  const std::string path = dir / "m";
  for (size_t n = 0; n < whole.size(); ++n) {
    write_bytes(path, whole.substr(0, n));
    EXPECT_NE(error_of([&] { SafetensorsReader r(path); }), "") << n;
  }
  int refused = 0;
  for (size_t n = 0; n + 11 < whole.size(); ++n)
    for (const char c : {'\0', '9', '"', '\xff'}) {
      std::string bytes = whole;
      bytes[n] = c;
      write_bytes(path, bytes);
      refused += !error_of([&] { SafetensorsReader r(path); }).empty();
    }
  EXPECT_GT(refused, 200);
}

}  // namespace
}  // namespace irq
