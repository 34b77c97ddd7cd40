// The four file formats: what goes in comes out, and nothing that is wrong comes out unnoticed.
#include <gtest/gtest.h>
#include <sys/resource.h>

#include <chrono>
#include <csignal>

#include "tests/io_files.h"

namespace irq {
namespace {

class BaseTypes : public ::testing::TestWithParam<std::tuple<DType, bool>> {};

TEST_P(BaseTypes, RoundTripIsBitExact) {
  const auto [dtype, tied] = GetParam();
  ScratchDir dir;
  const ModelConfig c = small_config(tied);
  const Contents contents = write_base(dir / "m.bin", c, dtype);
  BaseReader r(dir / "m.bin");
  EXPECT_EQ(r.config(), c);
  EXPECT_EQ(r.dtype(), dtype);
  EXPECT_EQ(contents.size(), tied ? 20u : 21u);
  for (const auto& [name, bytes] : contents) {
    const Tensor t = r.tensor(name);
    EXPECT_EQ(bytes_of(t), bytes) << name;
    EXPECT_EQ(t.name, name);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(t.data) % 256, 0u) << name;
    EXPECT_EQ(t.dtype, name.find("norm") != std::string::npos ? DType::F32 : dtype) << name;
  }
  EXPECT_EQ(r.tensor("layers.1.wk").rows, 8);
  EXPECT_EQ(r.tensor("layers.1.w_down").cols, 24);
  if (tied) { EXPECT_EQ(r.tensor("head").data, r.tensor("embed").data); }
}
INSTANTIATE_TEST_SUITE_P(All, BaseTypes,
                         ::testing::Combine(::testing::Values(DType::F32, DType::F16, DType::BF16), ::testing::Bool()));

TEST(Base, HashNamesTheContent) {
  ScratchDir dir;
  ModelConfig other = small_config();
  other.rope_theta = 10000;
  write_base(dir / "a", small_config(), DType::BF16);
  write_base(dir / "same", small_config(), DType::BF16);
  write_base(dir / "weights", small_config(), DType::BF16, 2);
  write_base(dir / "fields", other, DType::BF16);
  const uint64_t hash = BaseReader(dir / "a").hash();
  EXPECT_EQ(BaseReader(dir / "same").hash(), hash);
  EXPECT_NE(BaseReader(dir / "weights").hash(), hash);
  EXPECT_NE(BaseReader(dir / "fields").hash(), hash);
}

TEST(Base, WritingOutOfOrderOrTooMuchIsAnError) {
  ScratchDir dir;
  const std::string zeros(1 << 20, '\0');
  {
    BaseWriter w(dir / "m.bin", small_config(), DType::F32);
    EXPECT_THROW(w.write("norm", zeros.data(), 64), Error);
    EXPECT_THROW(w.write("embed", zeros.data(), 50 * 16 * 4 + 1), Error);
    EXPECT_THROW(w.finish(), Error);
  }
  EXPECT_FALSE(file_exists(dir / "m.bin"));
}

// A wrong byte is found when its chunk is first touched, and only then; other chunks stay readable.
TEST(Base, ChunksAreCheckedWhenTouched) {
  ScratchDir dir;
  ModelConfig c = small_config(true);
  c.vocab = 600000;  // embed: 38.4 MB of f32, chunks 0 to 2; the rest of the model follows in chunk 2
  const std::string path = dir / "m.bin";
  {
    BaseWriter w(path, c, DType::F32);
    const std::string zeros(static_cast<size_t>(c.vocab * c.dim * 4), '\0');
    while (const TensorSpec* t = w.next()) w.write(std::string(t->name), zeros.data(), t->bytes());
    w.finish();
  }
  ASSERT_EQ(BaseReader(path).file().chunks(), 3);
  int64_t calls = 0, last = 0;
  BaseReader(path).verify_all([&](int64_t done, int64_t all) { ++calls, last = done - all; });
  EXPECT_EQ(calls, 1);
  EXPECT_EQ(last, 0);
  {
    std::fstream f(path, std::ios::in | std::ios::out | std::ios::binary);
    f.seekp(20 << 20);  // in chunk 1
    f.put(1);
  }
  BaseReader r(path);
  EXPECT_EQ(r.tensor("norm").cols, 16);
  const std::string text = error_of([&] { r.tensor("embed"); });
  EXPECT_NE(
      text.find("m.bin: the data is damaged\n  tensor  : embed (600000 x 16)\n  bytes   : 16,778,496 to 33,555,712 of"),
      std::string::npos)
      << text;
  EXPECT_NE(error_of([&] { r.verify_all(); }), "");
}

TEST(Quantized, RoundTripIsBitExact) {
  for (const int bits : {2, 3, 4})
    for (const ShiftKind shift : {ShiftKind::none, ShiftKind::tau})
      for (const ScaleKind scale : {ScaleKind::f32, ScaleKind::dq8}) {
        ScratchDir dir;
        const IrqInfo info = small_info(bits, shift, scale);
        const Contents contents = write_irq(dir / "m.irq", info);
        IrqReader r(dir / "m.irq");
        EXPECT_EQ(r.config(), info.config);
        EXPECT_EQ(r.info().dtype, DType::F16);
        EXPECT_EQ(r.format().bits, bits);
        EXPECT_EQ(r.format().group, 64);
        EXPECT_EQ(r.format().shift, shift);
        EXPECT_EQ(r.format().scale, scale);
        EXPECT_EQ(r.info().icq.lambda, 0.25);
        EXPECT_EQ(r.info().icq.n, 50);
        EXPECT_TRUE(r.info().icq.fp32_entropy);
        EXPECT_EQ(r.source_hash(), info.source_hash);
        for (const auto& [name, bytes] : contents)
          if (r.layout().find(name)) { EXPECT_EQ(bytes_of(r.tensor(name)), bytes) << name; }
        const QuantizedMatrix q = r.matrix("layers.1.w_down");
        EXPECT_EQ(q.rows, 16);
        EXPECT_EQ(q.cols, 24);
        EXPECT_EQ(q.codes.bytes(), 384 * bits / 8);
        EXPECT_EQ(bytes_of(q.codes), contents.at("layers.1.w_down.codes"));
        EXPECT_EQ(static_cast<bool>(q.scales), scale == ScaleKind::f32);
        EXPECT_EQ(static_cast<bool>(q.scale_codes), scale == ScaleKind::dq8);
        EXPECT_EQ(static_cast<bool>(q.tau_groups), shift == ShiftKind::tau);
        if (q.map) { EXPECT_EQ(bytes_of(q.map), contents.at("map")); }
        EXPECT_EQ(r.entropy("layers.0.wq")[0], 1.0);
        EXPECT_EQ(r.entropy("layers.1.w_down")[1], 1.0 + 13 * 0.125 + 0.5);
      }
}

TEST(Quantized, MeanEntropyIsWeightedBySize) {
  ScratchDir dir;
  write_irq(dir / "m.irq", small_info());
  IrqReader r(dir / "m.irq");
  double sum = 0, n = 0, h = 1;  // entropies 1, 1.125, 1.25 ... in file order
  for (int layer = 0; layer < 2; ++layer)
    for (const LinearShape& s : layer_linears(r.config())) {
      sum += h * static_cast<double>(s.out * s.in);
      n += static_cast<double>(s.out * s.in);
      h += 0.125;
    }
  EXPECT_DOUBLE_EQ(r.mean_entropy()[0], sum / n);
  EXPECT_DOUBLE_EQ(r.mean_entropy()[1], sum / n + 0.5);
}

TEST(Quantized, UnknownMatrixIsNamed) {
  ScratchDir dir;
  write_irq(dir / "m.irq", small_info());
  IrqReader r(dir / "m.irq");
  for (const char* name :
       {"layers.2.wq", "layers..wq", "layers.x.wq", "layers.0.wx", "embed", "layers.0", "layers.99999999.wq"}) {
    EXPECT_FALSE(r.is_matrix(name)) << name;
    EXPECT_NE(error_of([&] { r.matrix(name); }).find(std::string("has no quantized matrix ") + name),
              std::string::npos);
  }
  EXPECT_NE(error_of([&] { r.tensor("layers.0.wq"); }).find("has no tensor layers.0.wq"), std::string::npos);
}

TEST(Adapter, RoundTripIsBitExact) {
  ScratchDir dir;
  const AdapterFile a = small_adapter();
  write_adapter(dir / "a.lora", a);
  const AdapterFile b = read_adapter(dir / "a.lora");
  EXPECT_EQ(b.method, a.method);
  EXPECT_EQ(b.rank, a.rank);
  EXPECT_EQ(b.alpha, a.alpha);
  EXPECT_EQ(b.dropout, a.dropout);
  EXPECT_EQ(b.targets, a.targets);
  EXPECT_EQ(b.tile, a.tile);
  EXPECT_EQ(b.base_hash, a.base_hash);
  ASSERT_EQ(b.tensors.size(), a.tensors.size());
  for (size_t i = 0; i < a.tensors.size(); ++i) {
    EXPECT_EQ(b.tensors[i].name, a.tensors[i].name);
    EXPECT_EQ(b.tensors[i].rows, a.tensors[i].rows);
    EXPECT_EQ(b.tensors[i].cols, a.tensors[i].cols);
    EXPECT_EQ(b.tensors[i].data, a.tensors[i].data);
  }
  EXPECT_EQ(b.find("layers.0.wq.B")->rows, 16);
  EXPECT_EQ(b.find("layers.0.wq.C"), nullptr);
}

TEST(State, RoundTripIsBitExact) {
  ScratchDir dir;
  const Contents contents = write_small_state(dir / "s.state");
  StateReader r(dir / "s.state");
  EXPECT_EQ(r.text(), kStateText);
  for (const auto& [name, bytes] : contents) EXPECT_EQ(bytes_of(r.tensor(name)), bytes);
  EXPECT_TRUE(r.has("masters"));
  EXPECT_FALSE(r.has("optimizer"));
  write_state(dir / "empty.state", "", {});
  EXPECT_EQ(StateReader(dir / "empty.state").text(), "");
}

// ---- damage ----------------------------------------------------------------------------------------------------------

struct Format {
  const char* name;
  FileKind kind;
};

class Damage : public ::testing::TestWithParam<Format> {
 protected:
  void SetUp() override {
    path_ = dir_ / GetParam().name;
    const FileKind kind = GetParam().kind;
    if (kind == FileKind::base) write_base(path_, small_config(), DType::BF16);
    if (kind == FileKind::quantized) write_irq(path_, small_info(3));
    if (kind == FileKind::adapter) write_adapter(path_, small_adapter());
    if (kind == FileKind::state) write_small_state(path_);
    ASSERT_EQ(sniff(path_), kind);
    read_everything(path_, kind);  // it is sound
  }
  std::string error() {
    return error_of([&] { read_everything(path_, GetParam().kind); });
  }
  ScratchDir dir_;
  std::string path_;
};

TEST_P(Damage, EveryLengthButTheRightOneIsAnError) {
  const std::string whole = read_bytes(path_);
  for (size_t n = 0; n < whole.size(); n += n < 1500 ? 1 : 37) {
    write_bytes(path_, whole.substr(0, n));
    const std::string text = error();
    ASSERT_NE(text, "") << n << " of " << whole.size() << " bytes";
    if (n >= 1024) { ASSERT_NE(text.find("is cut short"), std::string::npos) << text; }
  }
  write_bytes(path_, whole.substr(0, whole.size() - 1));
  EXPECT_NE(error().find("is cut short"), std::string::npos);
  for (const size_t more : {1, 255, 100000}) {
    write_bytes(path_, whole + std::string(more, '\0'));
    EXPECT_NE(error().find("there are bytes behind the end"), std::string::npos);
  }
}

// Every bit of header and table; in the payload every 13th, which reaches every position within a byte.
TEST_P(Damage, EveryFlippedBitIsFound) {
  const std::string whole = read_bytes(path_);
  std::fstream f(path_, std::ios::in | std::ios::out | std::ios::binary);
  const auto put = [&](size_t at, char c) {
    f.seekp(static_cast<std::streamoff>(at));
    f.put(c);
    f.flush();
  };
  for (size_t bit = 0; bit < 8 * whole.size(); bit += bit < 8 * 1280 ? 1 : 13) {
    put(bit / 8, static_cast<char>(whole[bit / 8] ^ (1 << bit % 8)));
    ASSERT_NE(error(), "") << "bit " << bit << " of byte " << bit / 8;
    put(bit / 8, whole[bit / 8]);
  }
  EXPECT_EQ(error(), "");
}

// Random header fields under a checksum that fits: an Error or a file that reads, quickly and in little memory.
TEST_P(Damage, ForgedHeadersAreRefusedQuickly) {
  const std::string whole = read_bytes(path_);
  rusage before, after;
  getrusage(RUSAGE_SELF, &before);
  const auto start = std::chrono::steady_clock::now();
  Rng rng(9);
  const int32_t values[] = {0, 1, -1, 2, 1000, 1 << 16, 1 << 20, 1 << 30, INT32_MAX, INT32_MIN};
  int refused = 0;
  for (int trial = 0; trial < 1000; ++trial) {
    write_bytes(path_, whole);
    std::map<size_t, int32_t> slots;
    for (uint64_t i = 0; i <= rng.below(3); ++i)
      slots[rng.below(4) == 0 ? 1 + rng.below(3) : 16 + rng.below(26)] =
          rng.below(2) ? values[rng.below(10)] : static_cast<int32_t>(rng.next_u32());
    forge(path_, slots);
    refused += error() != "";
  }
  EXPECT_GT(refused, 300);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  getrusage(RUSAGE_SELF, &after);
  EXPECT_LT(seconds, 20) << "1000 files";
  EXPECT_LT(after.ru_maxrss - before.ru_maxrss, 100 << 10) << "kB";
}

// The disk fills while an older file of the same name exists: that one stays.
TEST_P(Damage, FullDiskLeavesTheOldFile) {
  const std::string whole = read_bytes(path_);
  rlimit before;
  getrlimit(RLIMIT_FSIZE, &before);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit small = {whole.size() / 2, before.rlim_max};
  setrlimit(RLIMIT_FSIZE, &small);
  const std::string text = error_of([&] { SetUp(); });
  setrlimit(RLIMIT_FSIZE, &before);
  std::signal(SIGXFSZ, handler);
  EXPECT_NE(text.find("cannot be written"), std::string::npos) << text;
  EXPECT_EQ(read_bytes(path_), whole);
  EXPECT_FALSE(file_exists(path_ + ".tmp"));
}

INSTANTIATE_TEST_SUITE_P(Formats, Damage,
                         ::testing::Values(Format{"m.bin", FileKind::base}, Format{"m.irq", FileKind::quantized},
                                           Format{"a.lora", FileKind::adapter}, Format{"s.state", FileKind::state}),
                         [](const auto& info) { return std::string(info.param.name).substr(2); });

}  // namespace
}  // namespace irq
