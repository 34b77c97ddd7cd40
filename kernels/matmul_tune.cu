// What:   choosing a matmul's algorithm by timing cuBLASLt's candidates, and the choices as text.
// Math:   none: every candidate computes the same product, summed in another order.
// Shapes: those of matmul.cu. A choice belongs to a MatmulKey: sizes, strides, types, transposes, alignments.
// Cost:   once per shape: its product about 9 times for each candidate that keeps up, 3 times for the others; all shapes of
//         a 7B's step of 8,192 rows are about 40 and take in the order of a second.
// Tricky: what is timed is the real call on the real operands. It may write y more than once, unless y is also c: then the
//         results go to memory of their own, for want of which the shape keeps the library's first choice. Rounds over all
//         candidates, so that a GPU growing slower under load slows all of them; a product runs untimed ahead of each
//         series, so that the host's launch hides behind it. The first choice stays unless another is clearly faster.
#include <algorithm>
#include <cstring>
#include <limits>
#include <sstream>

#include "kernels/matmul_plans.cuh"

namespace irq {
namespace {

constexpr int kRounds = 3;
constexpr double kClearlyFaster =
    0.98;                          // of the first choice's time: two runs of one algorithm differ by about a percent
constexpr double kHopeless = 1.2;  // of the best time after one round
constexpr double kSeriesMs = 0.2;  // a timed series lasts at least about this long ...
constexpr int kSeriesMost = 16;    // ... or has this many products
constexpr int kWords = sizeof(cublasLtMatmulAlgo_t) / sizeof(uint64_t);

struct Events {
  cudaEvent_t begin = nullptr, end = nullptr;
  Events() {
    CUDA_CHECK(cudaEventCreate(&begin));
    CUDA_CHECK(cudaEventCreate(&end));
  }
  Events(const Events&) = delete;
  ~Events() { cudaEventDestroy(begin), cudaEventDestroy(end); }
};

// Device memory that may be had or not.
struct Spare {
  void* data = nullptr;
  explicit Spare(size_t bytes) {
    if (bytes > 0 && cudaMalloc(&data, bytes) != cudaSuccess) data = nullptr, cudaGetLastError();
  }
  Spare(const Spare&) = delete;
  ~Spare() { cudaFree(data); }
};

// Is it one of those that add split sums in a fixed order?
bool repeatable(const cublasLtMatmulAlgo_t& algorithm) {
  uint32_t scheme = 0;
  size_t written = 0;
  return cublasLtMatmulAlgoConfigGetAttribute(&algorithm, CUBLASLT_ALGO_CONFIG_REDUCTION_SCHEME, &scheme, sizeof scheme,
                                              &written) == CUBLAS_STATUS_SUCCESS &&
         (scheme == CUBLASLT_REDUCTION_SCHEME_NONE || scheme == CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE);
}

std::string key_text(const MatmulKey& k) {
  return strf("%ld %ld %ld %ld %ld %ld %ld %s %s %d %d %d %d %d %d %ld %ld %ld %ld", k.m, k.n, k.k, k.a_stride,
              k.b_stride, k.c_stride, k.y_stride, name_of(k.in), name_of(k.out), k.transpose_a, k.transpose_b,
              k.alignment[0], k.alignment[1], k.alignment[2], k.alignment[3], k.count, k.a_step, k.b_step, k.y_step);
}

bool read_type(std::istream& in, DType& type) {
  std::string name;
  in >> name;
  for (const DType t : {DType::F32, DType::BF16})
    if (name == name_of(t)) return type = t, true;
  return false;
}

bool read_line(const std::string& line, MatmulKey& k, cublasLtMatmulAlgo_t& algorithm) {
  std::istringstream in(line);
  in >> k.m >> k.n >> k.k >> k.a_stride >> k.b_stride >> k.c_stride >> k.y_stride;
  if (!read_type(in, k.in) || !read_type(in, k.out)) return false;
  in >> k.transpose_a >> k.transpose_b;
  for (int& a : k.alignment) in >> a;
  in >> k.count >> k.a_step >> k.b_step >> k.y_step;
  uint64_t words[kWords] = {};
  in >> std::hex;
  for (uint64_t& w : words) in >> w;
  if (!in) return false;
  std::memcpy(&algorithm, words, sizeof words);
  return true;
}

std::string line_of(const MatmulKey& key, const cublasLtMatmulAlgo_t& algorithm) {
  uint64_t words[kWords];
  std::memcpy(words, &algorithm, sizeof words);
  std::string text = key_text(key);
  for (const uint64_t w : words) text += strf(" %lx", w);
  return text + "\n";
}

std::string header_of(const cudaDeviceProp& p) {
  return strf("irq matmul choices 1 | %s sm_%d%d | cuBLASLt %zu\n", p.name, p.major, p.minor, cublasLtGetVersion());
}

}  // namespace

void CudaBackend::MatmulPlans::settle(cublasLtHandle_t blas, MatmulPlan& plan, const MatmulKey& key) const {
  const auto known = restored.find(key);
  if (known == restored.end()) return;
  cublasLtMatmulHeuristicResult_t fit{};
  const cublasStatus_t status = cublasLtMatmulAlgoCheck(blas, plan.operation, plan.first, plan.second, plan.base,
                                                        plan.result, &known->second.algorithm, &fit);
  if (status != CUBLAS_STATUS_SUCCESS || fit.workspaceSize > static_cast<size_t>(kMatmulWorkspaceBytes) ||
      !repeatable(known->second.algorithm))
    return;
  plan.candidates = {known->second};
  plan.settled = plan.recorded = true;
}

void CudaBackend::MatmulPlans::tune(cublasLtHandle_t blas, MatmulPlan& plan, const MatmulKey& key,
                                    const MatmulCall& call, cudaStream_t stream) {
  cudaStreamCaptureStatus capturing = cudaStreamCaptureStatusNone;
  CUDA_CHECK(cudaStreamIsCapturing(stream, &capturing));
  if (capturing != cudaStreamCaptureStatusNone) return;
  plan.settled = true;
  const bool in_place = call.beta != 0 && call.c == call.y;
  const int64_t elements = (key.count - 1) * key.y_step + (key.m - 1) * key.y_stride + key.n;
  const Spare spare(in_place ? static_cast<size_t>(elements * size_of(key.out)) : 0);
  if (in_place && spare.data == nullptr) return;
  MatmulCall timed = call;
  if (in_place) timed.y = spare.data;

  const Events events;
  const size_t count = plan.candidates.size();
  const auto series_ms = [&](size_t candidate, int repeats) {  // of one product; infinite if it does not run
    if (run(blas, plan, candidate, timed, stream) != CUBLAS_STATUS_SUCCESS)
      return std::numeric_limits<float>::infinity();
    CUDA_CHECK(cudaEventRecord(events.begin, stream));
    for (int i = 0; i < repeats; ++i) cublas_check(run(blas, plan, candidate, timed, stream), "cublasLtMatmul");
    CUDA_CHECK(cudaEventRecord(events.end, stream));
    CUDA_CHECK(cudaEventSynchronize(events.end));
    float ms = 0;
    CUDA_CHECK(cudaEventElapsedTime(&ms, events.begin, events.end));
    return ms / static_cast<float>(repeats);
  };
  std::vector<std::vector<float>> times(count);
  std::vector<float> once(count);
  for (size_t i = 0; i < count; ++i) once[i] = series_ms(i, 2);  // kernels are loaded here; the slow ones go
  const float best_once = *std::min_element(once.begin(), once.end());
  const int repeats = std::clamp(static_cast<int>(kSeriesMs / std::max(best_once, 1e-3f)), 1, kSeriesMost);
  std::vector<float> typical(count, std::numeric_limits<float>::infinity());
  for (int round = 0; round < kRounds; ++round)
    for (size_t i = 0; i < count; ++i) {
      if (i > 0 && once[i] > kHopeless * best_once) continue;
      times[i].push_back(series_ms(i, repeats));
    }
  for (size_t i = 0; i < count; ++i) {
    if (times[i].empty()) continue;
    std::nth_element(times[i].begin(), times[i].begin() + kRounds / 2, times[i].end());
    typical[i] = times[i][kRounds / 2];
  }
  const auto best = static_cast<size_t>(std::min_element(typical.begin(), typical.end()) - typical.begin());
  plan.chosen = typical[best] < kClearlyFaster * typical[0] ? best : 0;
  plan.recorded = true;
  timings.push_back({key.m, key.n, key.k, key.transpose_a, key.transpose_b, static_cast<int>(count),
                     static_cast<int>(plan.chosen), 1e3 * static_cast<double>(typical[0]),
                     1e3 * static_cast<double>(typical[plan.chosen])});
}

// The library's tiles for large bf16 products are 256 x 128 or 128 x 256, one on a multiprocessor at a time. 8192 x 4096 on 132: 1,024
// tiles in 7.8 waves, room for 128 columns (measured: 2,113 us with K = 22016, 2,108 to 2,190 with 128 columns more).
int64_t CudaBackend::free_columns(int64_t rows, int64_t cols) const {
  constexpr int64_t kTileRows = 256, kTileCols = 128;
  if (rows == 0 || precision().storage != DType::BF16) return 0;
  const int64_t down = ceil_div(rows, kTileRows), across = ceil_div(cols, kTileCols);
  const int64_t waves = ceil_div(down * across, int64_t{sm_count()});
  return waves * sm_count() / down * kTileCols - cols;
}

void CudaBackend::tune_matmul(bool on) { plans_->tuning = on; }

std::vector<MatmulTiming> CudaBackend::take_matmul_timings() { return std::exchange(plans_->timings, {}); }

std::string CudaBackend::matmul_choices(bool met_only) const {
  std::string text = header_of(properties_);
  for (const auto& [key, plan] : plans_->plans)
    if (plan.recorded) text += line_of(key, plan.candidates[plan.chosen].algorithm);
  if (met_only) return text;
  for (const auto& [key, choice] : plans_->restored)
    if (!plans_->plans.contains(key)) text += line_of(key, choice.algorithm);
  return text;
}

bool CudaBackend::restore_matmul_choices(const std::string& text) {
  const std::string header = header_of(properties_);
  if (!text.starts_with(header)) return false;
  std::istringstream in(text.substr(header.size()));
  for (std::string line; std::getline(in, line);) {
    MatmulKey key{};
    MatmulCandidate choice{};
    if (read_line(line, key, choice.algorithm)) plans_->restored[key] = choice;
  }
  return true;
}

}  // namespace irq
