// The pipeline that quantizes a base: the file that the plain way writes, on the CPU and the GPU; what it says at the file size limit,
// and what becomes of what a killed run left.
#include <gtest/gtest.h>
#include <sys/resource.h>
#include <sys/wait.h>

#include <csignal>

#include "kernels/nf_codebook.h"
#include "src/core/file.h"
#include "src/io/float_pieces.h"
#include "src/quant/quantize.h"
#include "src/train/quantize_base.h"
#include "tests/cli_util.h"
#include "tests/io_files.h"

namespace irq {
namespace {

// Four chunks, several matrices across the end of one.
ModelConfig chunked_config() {
  ModelConfig c;
  c.dim = 1024, c.ffn = 2752, c.layers = 1, c.heads = 8, c.kv_heads = 8, c.head_dim = 128, c.vocab = 9000,
  c.max_seq = 64;
  return c;
}

void write_weights(const std::string& path, const ModelConfig& config) {
  BaseWriter writer(path, config, DType::BF16);
  Rng rng(11);
  while (const TensorSpec* spec = writer.next()) {
    std::string bytes(static_cast<size_t>(spec->bytes()), '\0');
    for (size_t i = 0; i < bytes.size();
         i += 8) {  // four bf16 of +-2^-9 to 2^-7 in every word; as f32, two small numbers
      const uint64_t word =
          ((uint64_t{rng.next_u32()} << 32 | rng.next_u32()) & 0x81ff81ff81ff81ffull) | 0x3b003b003b003b00ull;
      std::memcpy(&bytes[i], &word, 8);
    }
    writer.write(std::string(spec->name), bytes.data(), spec->bytes());
  }
  writer.finish();
}

// The same file written the plain way: one tensor after the other, one thing at a time.
void quantize_plainly(Backend& backend, const std::string& in, const std::string& out, const QuantizeOptions& options) {
  BaseReader base(in);
  const IrqInfo info = quantized_info(base, options);
  IrqWriter writer(out, info);
  Quantizer quantizer(backend);
  std::array<float, 256> map = dynamic_map();
  for (const TensorSpec& t : base.layout().tensors()) {
    const Tensor w = base.tensor(t.name);
    if (linear_index(base.config(), t.name) < 0) {
      writer.write(t.name, w.data, w.bytes());
      continue;
    }
    std::vector<float> wide(static_cast<size_t>(w.numel()));
    convert_values(wide.data(), DType::F32, w.data, w.dtype, w.numel());
    std::vector<char> memory(static_cast<size_t>(placed_bytes(w.rows, w.cols, info.format)));
    const QuantizedMatrix q = place_quantized(memory.data(), w.rows, w.cols, info.format,
                                              make_view(map.data(), DType::F32, 1, 256, "map"), Device::CPU);
    const QuantizeStats stats = quantizer.run(q, make_view(wide.data(), DType::F32, w.rows, w.cols, "w"),
                                              options.icq ? &options.spec : nullptr);
    writer.write_matrix(t.name, q, stats.entropy_plain, stats.entropy);
  }
  writer.finish();
}

TEST(QuantizePipeline, ThePipelineWritesTheFileOfThePlainWay) {
  const TempDir dir;
  write_weights(dir / "m.bin", chunked_config());
  auto backend = make_backend("cpu");
  BaseReader base(dir / "m.bin");
  ASSERT_EQ(base.file().chunks(), 4);
  QuantizeOptions options;
  options.icq = false;
  quantize_plainly(*backend, dir / "m.bin", dir / "plain.irq", options);
  const QuantizeSummary summary = quantize_base(*backend, base, dir / "piped.irq", options);
  EXPECT_EQ(read_text(dir / "piped.irq"), read_text(dir / "plain.irq"));
  EXPECT_EQ(IrqReader(dir / "plain.irq").hash(), summary.hash);
  // And where the source makes its tensors when asked.
  struct Source final : BaseSource {
    explicit Source(BaseReader& b) : base(b) { config_ = b.config(), dtype_ = b.dtype(); }
    uint64_t hash() const override { return base.hash(); }
    const std::string& path() const override { return base.path(); }
    const Layout& layout() const override { return base.layout(); }
    Tensor tensor(const std::string& name) override { return base.tensor(name); }
    void dont_need(const std::string& name) override { base.dont_need(name); }
    BaseReader& base;
  } source(base);
  quantize_base(*backend, source, dir / "whole.irq", options);
  EXPECT_EQ(read_text(dir / "whole.irq"), read_text(dir / "plain.irq"));
}

TEST(QuantizePipeline, TheGpuWritesTheFileOfTheCpu) {
  if (const std::string reason = cuda_unavailable_reason(); !reason.empty()) GTEST_SKIP() << reason;
  const TempDir dir;
  write_weights(dir / "m.bin", chunked_config());
  QuantizeOptions options;
  options.spec.n = 3;
  for (const char* device : {"cpu", "cuda"}) {
    BaseReader base(dir / "m.bin");
    quantize_base(*make_backend(device), base, dir / device, options);
  }
  EXPECT_EQ(read_text(dir / "cuda"), read_text(dir / "cpu"));
}

// ulimit -f: told before the work begins, or, where no size is known in advance, when the limit is met; never a silent end.
TEST(QuantizePipelineTool, FileSizeLimit) {
  const TempDir dir;
  write_weights(dir / "tiny.bin", small_config());
  rlimit before;
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &before), 0);
  const rlimit small = {20000, before.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &small), 0);  // the tool's signals are the default ones
  const CommandResult r = run_command("irq_quantize", {dir / "tiny.bin", dir / "o.irq", "--device", "cpu", "--quiet"});
  setrlimit(RLIMIT_FSIZE, &before);
  EXPECT_EQ(r.status, 1);
  EXPECT_EQ(r.err.rfind("irq_quantize: " + (dir / "o.irq") + ": cannot be written: File too large\n  needs   : ", 0),
            0u)
      << r.err;
  EXPECT_NE(r.err.find("\n  allowed : 20,000 bytes (20.0 kB) by the file size limit (ulimit -f)\n  free    : "),
            std::string::npos)
      << r.err;
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(dir.path()), {}), 1) << "only tiny.bin";
}

// What a killed run leaves, the next one to the same output takes over; while its writer lives, it is refused.
TEST(QuantizePipelineTool, TakesOverWhatAKilledRunLeft) {
  const TempDir dir;
  write_weights(dir / "tiny.bin", small_config());
  const std::string out = dir / "o.irq";
  int ready[2];
  ASSERT_EQ(pipe(ready), 0);
  const pid_t child = fork();
  if (child == 0) {
    AtomicFile file(out);
    const FileLock lock(out + ".lock");
    file.write(std::string(3 << 20, 'x'));
    if (write(ready[1], "r", 1) != 1) _exit(1);
    for (;;) pause();
  }
  char byte = 0;
  ASSERT_EQ(read(ready[0], &byte, 1), 1);
  close(ready[0]), close(ready[1]);
  const std::vector<std::string> args = {dir / "tiny.bin", out, "--device", "cpu", "--quiet"};
  const CommandResult refused = run_command("irq_quantize", args);
  EXPECT_EQ(refused.status, 1);
  EXPECT_EQ(refused.err, "irq_quantize: " + out + ": another process is writing this file\n  found   : " + out +
                             ".tmp is locked by it\n");
  kill(child, SIGKILL);
  waitpid(child, nullptr, 0);
  EXPECT_TRUE(file_exists(out + ".tmp"));
  EXPECT_TRUE(file_exists(out + ".lock"));
  const CommandResult r = run_command("irq_quantize", args);
  EXPECT_EQ(r.status, 0) << r.err;
  EXPECT_FALSE(file_exists(out + ".tmp"));
  EXPECT_EQ(IrqReader(out).config(), small_config());
  {
    const FileLock lock(out + ".lock", [] { ADD_FAILURE() << "nobody holds it"; });
  }
  EXPECT_FALSE(file_exists(out + ".lock"));
}

}  // namespace
}  // namespace irq
