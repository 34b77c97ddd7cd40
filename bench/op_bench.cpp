#include "bench/op_bench.h"

#include <algorithm>
#include <cstdio>

namespace irq {
namespace {

struct Row {
  std::string op, shape;
  double us = 0, rate = 0, ceiling = 0, a100_us = 0;  // rate and ceiling in FLOPs or bytes per second
  bool flops = false;
  std::string note;
};

// The case's tensors for as long as it is timed.
class CaseMemory {
 public:
  CaseMemory(Backend& backend, RandomData& random, const OpCase& c) : backend_(backend) {
    for (const Arg& a : c.args) {
      const bool params = a.kind == Kind::params;
      const int64_t rows = params ? 1 : a.rows, cols = params ? int64_t{sizeof(StepParams)} : a.cols;
      Tensor t = allocate_tensor(backend, a.name, dtype_for(a.kind, backend.precision()), rows, cols + a.spare_cols);
      if (a.role != Role::out) random.argument(backend, t, a);
      t.cols = cols;
      tensors_.push_back(t);
    }
  }
  ~CaseMemory() {
    for (const Tensor& t : tensors_) backend_.release(t.data);
  }
  CaseMemory(const CaseMemory&) = delete;
  CaseMemory& operator=(const CaseMemory&) = delete;
  const std::vector<Tensor>& tensors() const { return tensors_; }

 private:
  Backend& backend_;
  std::vector<Tensor> tensors_;
};

// gemm: the last GEMM rate that was measured; renewed around a case that GEMMs are the measure of.
Row measure(Backend& backend, Meter& meter, RandomData& random, const OpCase& c, double& gemm) {
  const size_t slash = c.name.find('/');
  Row row{.op = c.name.substr(0, slash), .shape = c.name.substr(slash + 1), .note = ""};
  const CaseMemory memory(backend, random, c);
  if (c.prepare) c.prepare(backend, memory.tensors());
  const auto work = [&] { c.run(backend, memory.tensors()); };
  if (const size_t at = row.shape.find(",spare=0"); at != std::string::npos) row.shape.erase(at, 8);
  // What binds it on this device: the larger of its two floors. Only sums of products are measured against a GEMM.
  const bool products = row.op == "matmul" || row.op.starts_with("nfk_matmul") || row.op == "nfk_linear" ||
                        row.op.starts_with("attention");
  row.flops = products && c.flops / gemm > c.bytes / meter.copy_rate();
  const double before = row.flops ? meter.gemm_rate() : 0;
  const Timing t = meter.time(work);
  if (row.flops) gemm = (before + meter.gemm_rate()) / 2;  // just before and just after: the same heat
  row.us = 1e3 * t.median_ms;
  row.rate = 1e6 * (row.flops ? c.flops : c.bytes) / row.us;
  row.ceiling = row.flops ? gemm : meter.copy_rate(static_cast<int64_t>(c.bytes));
  row.a100_us = 1e6 * std::max(c.bytes / kA100BytesPerSecond, c.flops / kA100FlopsPerSecond);
  return row;
}

void print_header(bool csv) {
  if (csv) std::printf("op,shape,us,rate,unit,ceiling,fraction_of_ceiling,a100_predicted_us,note\n");
  else
    std::printf("%-22s %-40s %12s %10s %-7s %10s %8s %13s  %s\n", "op", "shape", "us", "rate", "unit", "ceiling",
                "of it", "A100 us, pred", "");
}

void print_row(const Row& r, bool csv) {
  const double unit = r.flops ? 1e12 : 1e9;
  const char* name = r.flops ? "TFLOP/s" : "GB/s";
  if (csv)
    std::printf("%s,\"%s\",%.6g,%.6g,%s,%.6g,%.6g,%.6g,%s\n", r.op.c_str(), r.shape.c_str(), r.us, r.rate / unit, name,
                r.ceiling / unit, r.rate / r.ceiling, r.a100_us, r.note.c_str());
  else
    std::printf("%-22s %-40s %12.2f %10.4g %-7s %10.4g %6.1f %% %13.2f  %s\n", r.op.c_str(), r.shape.c_str(), r.us,
                r.rate / unit, name, r.ceiling / unit, 100 * r.rate / r.ceiling, r.a100_us, r.note.c_str());
  std::fflush(stdout);
}

std::vector<OpCase> chosen_cases(const OpBenchOptions& o) {
  std::vector<OpCase> chosen;
  for (OpCase& c : bench_cases(o.sizes)) {
    const size_t slash = c.name.find('/');
    if ((o.op == "all" || c.name.substr(0, slash) == o.op) && c.name.find(o.shape, slash) != std::string::npos)
      chosen.push_back(std::move(c));
  }
  long m = 0, n = 0, k = 0;
  if (chosen.empty() && o.op == "matmul" && std::sscanf(o.shape.c_str(), "%ldx%ldx%ld", &m, &n, &k) == 3 && m > 0 &&
      n > 0 && k > 0)
    chosen.push_back(bench_matmul(m, n, k));
  if (chosen.empty())
    throw Error("no case of " + o.op + " has '" + o.shape + "' in its shape", Exit::usage)
        .line("try", "irq_bench " + o.op + "    for all of them; matmul also takes --shape MxNxK");
  return chosen;
}

}  // namespace

void run_op_bench(Backend& backend, const OpBenchOptions& o) {
  const std::vector<OpCase> cases = chosen_cases(o);
  RandomData random(o.seed);
  Meter meter(backend, random, o.repeats);
  const char* comment = o.csv ? "# " : "";
  std::printf("%sdevice : %s\n", comment, backend.describe().c_str());
  std::printf("%smodel  : %s, LoRA rank %ld\n", comment, describe(o.sizes.config).c_str(), o.sizes.rank);
  std::printf("%sbytes  : the least that must move with activations and weights in bf16%s\n", comment,
              backend.device() == Device::CPU ? "; the CPU's are f32, so it moves up to twice as many" : "");
  double gemm = meter.gemm_rate();
  std::printf(
      "%sceiling: %ld^3 GEMM in %s %.4g TFLOP/s, large copy %.4g GB/s read + written; empty measurement %.2f us\n",
      comment, meter.gemm_size(), name_of(backend.precision().storage), gemm / 1e12, meter.copy_rate() / 1e9,
      1e3 * meter.empty_ms());
  print_header(o.csv);
  for (const OpCase& c : cases) {
    Row row = measure(backend, meter, random, c, gemm);
    if (row.op == "icq_search")
      row.note = strf(
          "%.3g s for all %.4g weights",
          row.us / 1e6 * static_cast<double>(linear_weights(o.sizes.config)) / static_cast<double>(c.args.back().cols),
          static_cast<double>(linear_weights(o.sizes.config)));
    print_row(row, o.csv);
  }
  std::printf("%sceiling: %ld^3 GEMM at the end %.4g TFLOP/s\n", comment, meter.gemm_size(), meter.gemm_rate() / 1e12);
}

}  // namespace irq
