#include "bench/op_bench.h"

#include <algorithm>
#include <cstdio>

#include "bench/icq_naive.h"
#include "bench/op_row.h"
#include "bench/peer_times.h"

namespace irq {
namespace {

// The engine's CPU search against the plain loop, on the first blocks of random weights: how many times as long the loop takes.
std::string ratio_to_plain_loop(Backend& backend, Meter& meter, RandomData& random, int bits) {
  constexpr int64_t kWeights = 1 << 16;
  const Tensor w = allocate_tensor(backend, "w", DType::F32, 1, kWeights);
  const Tensor tau = allocate_tensor(backend, "tau", DType::F32, 1, kWeights / kBlock);
  random.normals(backend, w, 0, 0.02);
  const double ours = meter.time([&] { backend.icq_search(tau, {}, {}, w, bits, {}); }).median_ms;
  const std::vector<float> result(tau.as<float>(), tau.as<float>() + tau.numel());
  const double loop =
      meter.time([&] { icq_search_naive(tau.as<float>(), w.as<float>(), kWeights, bits, {}); }).median_ms;
  const bool same = std::equal(result.begin(), result.end(), tau.as<float>());
  backend.release(w.data);
  backend.release(tau.data);
  if (!same) throw Error(strf("icq_search with %d bits and the plain loop find different shifts", bits));
  return strf("%.3gx plain loop", loop / ours);
}

void print_header(bool csv) {
  if (csv) std::printf("op,shape,us,rate,unit,ceiling,fraction_of_ceiling,a100_predicted_us,peers,note\n");
  else
    std::printf("%-22s %-40s %12s %10s %-7s %10s %8s %13s  %s\n", "op", "shape", "us", "rate", "unit", "ceiling",
                "of it", "A100 us, pred", "ratio to peers");
}

void print_row(const OpRow& r, bool csv) {
  const double unit = r.flops ? 1e12 : 1e9;
  const char* name = r.flops ? "TFLOP/s" : "GB/s";
  if (csv)
    std::printf("%s,\"%s\",%.6g,%.6g,%s,%.6g,%.6g,%.6g,\"%s\",%s\n", r.op.c_str(), r.shape.c_str(), r.us, r.rate / unit,
                name, r.ceiling / unit, r.rate / r.ceiling, r.a100_us, r.peers.c_str(), r.note.c_str());
  else
    std::printf("%-22s %-40s %12.2f %10.4g %-7s %10.4g %6.1f %% %13.2f  %s%s%s\n", r.op.c_str(), r.shape.c_str(), r.us,
                r.rate / unit, name, r.ceiling / unit, 100 * r.rate / r.ceiling, r.a100_us, r.peers.c_str(),
                r.note.empty() ? "" : "  ", r.note.c_str());
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
  const std::vector<PeerTime> peers =
      o.peers.empty() ? std::vector<PeerTime>{} : read_peer_times(o.peers, backend.describe());
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
    OpRow row = measure_op(backend, meter, random, c, gemm);
    row.peers = ratio_to_peers(peers, row.op, row.shape, row.us);
    int bits = 0;
    if (row.op == "icq_search" && backend.device() == Device::CPU &&
        std::sscanf(row.shape.c_str(), "bits=%d", &bits) == 1)
      row.peers = ratio_to_plain_loop(backend, meter, random, bits);
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
