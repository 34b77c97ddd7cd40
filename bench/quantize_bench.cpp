#include "bench/quantize_bench.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <filesystem>

#include "bench/op_bench.h"
#include "bench/random_data.h"
#include "src/core/clock.h"
#include "src/train/quantize_base.h"

namespace irq {
namespace {

constexpr int64_t kPiece = int64_t{16} << 20;  // bytes of one read()

// An open file descriptor.
class Descriptor {
 public:
  explicit Descriptor(const std::string& path) : fd_(open(path.c_str(), O_RDONLY | O_CLOEXEC)) {
    if (fd_ < 0) throw Error(path + ": " + std::strerror(errno));
  }
  ~Descriptor() { close(fd_); }
  Descriptor(const Descriptor&) = delete;
  Descriptor& operator=(const Descriptor&) = delete;
  int operator*() const { return fd_; }

 private:
  int fd_;
};

// A model of random weights, N(0, 0.02), as a .bin; one tensor at a time.
void make_file(const QuantizeBenchOptions& o, const std::string& path) {
  const auto cpu = make_cpu_backend({DType::F32, DType::F32});
  RandomData random(o.seed);
  BaseWriter writer(path, o.config, DType::BF16);
  std::vector<unsigned char> memory;
  while (const TensorSpec* spec = writer.next()) {
    memory.resize(static_cast<size_t>(spec->bytes()));
    const Tensor t = make_view(memory.data(), spec->dtype, spec->rows, spec->cols, "weights");
    random.normals(*cpu, t, spec->rows > 1 ? 0 : 1, spec->rows > 1 ? 0.02 : 0);
    writer.write(std::string(spec->name), memory.data(), spec->bytes());
  }
  writer.finish();
}

// Seconds that one thread needs to read the file from beginning to end into one buffer.
double read_seconds(const std::string& path) {
  const Descriptor file(path);
  std::vector<char> buffer(static_cast<size_t>(kPiece));
  const double start = now_seconds();
  for (ssize_t got = 1; got > 0;) {
    got = read(*file, buffer.data(), buffer.size());
    if (got < 0 && errno != EINTR) throw Error(path + ": " + std::strerror(errno));
    if (got < 0) got = 1;
  }
  return now_seconds() - start;
}

// Asks the kernel to forget the file; memory file systems keep it.
void drop_from_cache(const std::string& path) {
  const Descriptor file(path);
  fsync(*file);
  posix_fadvise(*file, 0, 0, POSIX_FADV_DONTNEED);
}

// Share of the file's pages that lie in memory.
double cached_share(const std::string& path) {
  const Descriptor file(path);
  const auto bytes = static_cast<size_t>(std::filesystem::file_size(path)),
             page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
  void* view = mmap(nullptr, bytes, PROT_READ, MAP_SHARED, *file, 0);
  if (view == MAP_FAILED) throw Error(path + ": " + std::strerror(errno));
  std::vector<unsigned char> pages((bytes + page - 1) / page);
  const int status = mincore(view, bytes, pages.data());
  munmap(view, bytes);
  if (status != 0) throw Error(path + ": " + std::strerror(errno));
  return static_cast<double>(std::count_if(pages.begin(), pages.end(), [](unsigned char p) { return (p & 1) != 0; })) /
         static_cast<double>(pages.size());
}

struct Pass {
  double read = 0, cached_at_read = 0, quantize = 0, cached_at_quantize = 0, search = 0;
  QuantizeTimes times;
};

Pass measure(CheckedBackend& backend, const QuantizeBenchOptions& o, const std::string& path, bool cold) {
  Pass p;
  if (cold) drop_from_cache(path);
  p.cached_at_read = cached_share(path);
  p.read = read_seconds(path);
  if (cold) drop_from_cache(path);
  p.cached_at_quantize = cached_share(path);
  const std::string out = path + ".bench.irq";
  const double start = now_seconds();
  {
    BaseReader in(path);
    QuantizeOptions options;
    options.bits = o.bits;
    backend.set_profile(true);
    p.times = quantize_base(backend, in, out, options).times;
  }
  p.quantize = now_seconds() - start;
  for (const OpTime& t : backend.profile())
    if (t.op == "icq_search") p.search = t.ms / 1000;
  backend.set_profile(false);
  std::filesystem::remove(out);
  return p;
}

void report(const QuantizeBenchOptions& o, const char* what, const Pass& p, double bytes) {
  if (o.csv) {
    std::printf("%s,%d,%s,%.0f,%.4f,%.7f,%.4f,%.7f,%.7f,%.6f\n", o.model.c_str(), o.bits, what, bytes, p.cached_at_read,
                p.read, p.cached_at_quantize, p.quantize, p.search, p.quantize / p.read);
    return;
  }
  std::printf(
      "  %-4s: read %.2f s (%.4g GB/s, %.0f %% of it cached), quantized %.2f s (%.4g GB/s, %.0f %% cached; %.3f s in "
      "the search): %+.0f %%\n",
      what, p.read, bytes / p.read / 1e9, 100 * p.cached_at_read, p.quantize, bytes / p.quantize / 1e9,
      100 * p.cached_at_quantize, p.search, 100 * (p.quantize / p.read - 1));
  const QuantizeTimes& t = p.times;
  const double known = t.read + t.check + t.upload + t.compute + t.download + t.write + t.finish;
  std::printf(
      "        its %.2f s: waiting for reading %.2f, looking for NaN %.2f, uploading %.2f, computing %.2f, downloading "
      "%.2f, "
      "waiting for writing %.2f, finishing the file %.2f, the rest %.2f; the writer was busy for %.2f\n",
      p.quantize, t.read, t.check, t.upload, t.compute, t.download, t.write, t.finish, p.quantize - known, t.writing);
  std::fflush(stdout);
}

}  // namespace

void run_quantize_bench(CheckedBackend& backend, const QuantizeBenchOptions& o) {
  const std::string path = o.file.empty() ? "irq-bench-" + o.model + ".bin" : o.file;
  struct Removal {
    std::string path;
    ~Removal() {
      std::error_code ignored;
      if (!path.empty()) std::filesystem::remove(path, ignored);
    }
  } removal;
  double made = 0;
  if (!std::filesystem::exists(path)) {
    const double start = now_seconds();
    make_file(o, path);
    removal.path = path;
    made = now_seconds() - start;
  }
  const double bytes = static_cast<double>(std::filesystem::file_size(path));
  if (o.csv) std::printf("model,bits,pass,bytes,cached_at_read,read_s,cached_at_quantize,quantize_s,search_s,ratio\n");
  else
    std::printf("%s\n  file: %s bytes%s, NF%d with ICQ, %s\n", describe(o.config).c_str(),
                with_commas(static_cast<int64_t>(bytes)).c_str(),
                made > 0 ? strf(", random, written in %.1f s", made).c_str() : "", o.bits, backend.describe().c_str());
  // The largest part of the device's bytes: each weight as the file has it, written and read twice as F32, and its code.
  const auto weights = static_cast<double>(linear_weights(o.config));
  if (!o.csv)
    std::printf(
        "  A100, predicted: %.3g s for the GPU's part (from bytes; reading and writing the files are not in it)\n",
        weights * (2 + 3 * 4 + o.bits / 8.0) / kA100BytesPerSecond);
  read_seconds(path);  // so that it is cached, as far as memory goes
  report(o, "warm", measure(backend, o, path, false), bytes);
  drop_from_cache(path);
  if (cached_share(path) > 0.5) {
    if (!o.csv) std::printf("  cold: not measured: the file stays in memory (a memory file system)\n");
    return;
  }
  report(o, "cold", measure(backend, o, path, true), bytes);
}

}  // namespace irq
