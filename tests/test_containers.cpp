// The writers of other programs' containers, byte by byte.
#include <cstring>

#include "src/io/gguf.h"
#include "src/io/safetensors.h"
#include "tests/io_files.h"
#include "tests/text_fixtures.h"

namespace irq {
namespace {

TEST(SafetensorsWriter, ItsFilesReadBackAsTheyWere) {
  const ScratchDir dir;
  const std::string path = dir / "x.safetensors";
  Rng rng(1);
  const std::vector<SafetensorsEntry> entries = {{"wide", "F32", {3, 5}},
                                                 {"empty", "F32", {0, 7}},
                                                 {"half", "F16", {7}},
                                                 {"brain.\"weight\"\n", "BF16", {2, 3, 4}},
                                                 {"bytes", "U8", {9, 1}}};
  const std::vector<int64_t> bytes = {60, 0, 14, 48, 9};
  std::vector<std::string> contents;
  SafetensorsWriter w(path, entries, {{"format", "pt"}, {"note", "é \" \\"}});
  for (size_t i = 0; i < entries.size(); ++i) {
    contents.push_back(random_string(rng, bytes[i]));
    w.write(entries[i].name, contents[i].data(), bytes[i] / 2);  // in two pieces
    w.write(entries[i].name, contents[i].data() + bytes[i] / 2, bytes[i] - bytes[i] / 2);
  }
  EXPECT_FALSE(std::filesystem::exists(path));
  w.finish();
  const std::string file = read_bytes(path);
  uint64_t header = 0;
  std::memcpy(&header, file.data(), 8);
  EXPECT_EQ(header % 8, 0u);
  EXPECT_EQ(file.size(), 8 + header + 60 + 14 + 48 + 9);

  const SafetensorsReader r(path);
  EXPECT_EQ(r.metadata(), (std::map<std::string, std::string>{{"format", "pt"}, {"note", "é \" \\"}}));
  ASSERT_EQ(r.entries().size(), entries.size());
  for (size_t i = 0; i < entries.size(); ++i) {
    const SafetensorsEntry* e = r.find(entries[i].name);
    ASSERT_NE(e, nullptr) << entries[i].name;
    EXPECT_EQ(e->dtype, entries[i].dtype);
    EXPECT_EQ(e->shape, entries[i].shape);
    EXPECT_EQ(std::string(reinterpret_cast<const char*>(r.data(*e)), static_cast<size_t>(e->bytes)), contents[i]);
  }
}

TEST(SafetensorsWriter, AnUnfinishedFileIsNotThere) {
  const ScratchDir dir;
  const std::string path = dir / "x.safetensors";
  write_bytes(path, "the old one");
  {
    SafetensorsWriter w(path, {{"a", "F32", {4}}}, {});
    w.write("a", "12345678", 8);
  }
  EXPECT_EQ(read_bytes(path), "the old one");
  EXPECT_FALSE(std::filesystem::exists(path + ".tmp"));
}

// The format written down once more, by hand.
class Bytes {
 public:
  std::string text;
  template <class T>
  Bytes& put(T x) {
    text.append(reinterpret_cast<const char*>(&x), sizeof x);
    return *this;
  }
  Bytes& str(const std::string& s) {
    put<uint64_t>(s.size());
    text += s;
    return *this;
  }
  void align() { text.resize((text.size() + 31) / 32 * 32, '\0'); }
};

TEST(GgufWriter, WritesVersionThree) {
  const ScratchDir dir;
  std::vector<std::pair<std::string, GgufValue>> values(9);
  const auto set = [&](size_t i, const std::string& key, GgufType type, bool array = false) -> GgufValue& {
    values[i].first = key, values[i].second.type = type, values[i].second.is_array = array;
    return values[i].second;
  };
  set(0, "u32", GgufType::u32).integer = 4000000000;
  set(1, "f32", GgufType::f32).number = 1e-5;
  set(2, "bool", GgufType::boolean).integer = 1;
  set(3, "text", GgufType::string).text = "llama";
  set(4, "texts", GgufType::string, true).texts = {"a", "", "ccc"};
  set(5, "ints", GgufType::i32, true).integers = {-1, 7};
  set(6, "floats", GgufType::f32, true).numbers = {0.5};
  set(7, "u64", GgufType::u64).integer = int64_t{1} << 40;
  set(8, "i8", GgufType::i8).integer = -2;
  std::vector<GgufTensor> tensors(2);
  tensors[0].name = "a.weight", tensors[0].type = static_cast<uint32_t>(GgmlType::bf16), tensors[0].shape = {3, 5};
  tensors[1].name = "b.weight", tensors[1].type = static_cast<uint32_t>(GgmlType::f32), tensors[1].shape = {2};
  Rng rng(2);
  const std::string a = random_string(rng, 30), b = random_string(rng, 8);
  GgufWriter w(dir / "x.gguf", values, tensors);
  w.write("a.weight", a.data(), 11), w.write("a.weight", a.data() + 11, 19), w.write("b.weight", b.data(), 8);
  w.finish();

  Bytes want;
  want.text = "GGUF";
  want.put<uint32_t>(3).put<uint64_t>(2).put<uint64_t>(9);
  want.str("u32").put<uint32_t>(4).put<uint32_t>(4000000000u);
  want.str("f32").put<uint32_t>(6).put<float>(1e-5f);
  want.str("bool").put<uint32_t>(7).put<uint8_t>(1);
  want.str("text").put<uint32_t>(8).str("llama");
  want.str("texts").put<uint32_t>(9).put<uint32_t>(8).put<uint64_t>(3).str("a").str("").str("ccc");
  want.str("ints").put<uint32_t>(9).put<uint32_t>(5).put<uint64_t>(2).put<int32_t>(-1).put<int32_t>(7);
  want.str("floats").put<uint32_t>(9).put<uint32_t>(6).put<uint64_t>(1).put<float>(0.5f);
  want.str("u64").put<uint32_t>(10).put<uint64_t>(uint64_t{1} << 40);
  want.str("i8").put<uint32_t>(1).put<int8_t>(-2);
  want.str("a.weight").put<uint32_t>(2).put<uint64_t>(3).put<uint64_t>(5).put<uint32_t>(30).put<uint64_t>(0);
  want.str("b.weight").put<uint32_t>(1).put<uint64_t>(2).put<uint32_t>(0).put<uint64_t>(32);
  want.align();
  want.text += a, want.align();
  want.text += b, want.align();
  EXPECT_EQ(read_bytes(dir / "x.gguf"), want.text);
}

}  // namespace
}  // namespace irq
