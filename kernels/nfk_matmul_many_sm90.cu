// What  : y = beta * y + x w_hat^T for 17 to 64 rows of x, straight from the codes, on the warpgroup products of sm_90a.
// Math  : y[m][r] = beta * y[m][r] + sum_c w[r][c] x[m][c], w = bf16(level s1 + bf16(level s2 + bf16(tau_hat))), where the bf16 s1 and s2
//         add up to s_hat: two instructions for two weights. Against exact weights the error of y is 1.86e-3 rms where tau is 0.05 of the
//         scale, 1.84e-3 with weights rounded once (nfk_matmul_many.cu), 1.69e-3 with exact levels too (nfk_dequant). Sums F32.
// Shapes: x (m, cols), y (m, rows) BF16, m <= 64; w (rows, cols) NF2/3/4 codes with dq8 scales, cols % 256 = 0.
// Cost  : k/8 + 0.03 bytes a weight from DRAM; x from L2 once for each cluster: 66 x 512 KB for 64 x 4096 beside 11008 rows of w.
//         Measured on an H100, NF4, m = 32; 64: 11008 x 4096 22.5; 27.0 us, 4096 x 11008 21.2; 27.5, 4096 x 4096 12.8; 15.5 (the
//         bytes: 8 and 3). Half of a warp's instructions are what the weights need; its latencies are what it waits for.
// Tricky: a cluster of 1 to 8 thread blocks has up to 256 rows of w and splits their columns, so that x is read from L2 a few times
//         only; the blocks' sums meet in distributed shared memory, in a fixed order. Clusters do not fill the device: 66 of 2, 30 of 4,
//         15 of 8 for 132 multiprocessors. A warpgroup has 64 rows; where two or four have no rows of their own, teams take the chunks
//         of columns in turns. A fifth copies; its copies announce themselves, so as many chunks are on the way as there are stages,
//         and those who multiply fence for products to see x. The codes become the left operand in registers, a pair of codes one
//         register, looked up in a table with a copy for each lane; x is the right operand and stays in shared memory, in its own
//         order, copied 16 bytes at a time: each lane reads a row's whole block of codes and multiplies every fourth pair. In a
//         cluster shared addresses carry the block's rank.
#include "kernels/nfk_matmul_many_sm90.cuh"

namespace irq {

using namespace many_sm90;

namespace {

template <int kBits, int kSets>
__global__ void __launch_bounds__(kThreads + kCopiers, 1) many_sm90_kernel(const __grid_constant__ Args a) {
  extern __shared__ __align__(16) char memory[];
  const uint32_t begin = smem_address(memory), window = begin & 0xff000000u;
  if (begin - window > kShareTable) __trap();
  Block<kBits, kSets>{a, window}.run();
}

struct Launch {
  cudaLaunchConfig_t config{};
  cudaLaunchAttribute attributes[2]{};
  Launch(int64_t grid, int cluster, int64_t shared_bytes, cudaStream_t stream) {
    attributes[0].id = cudaLaunchAttributeClusterDimension;
    attributes[0].val.clusterDim = {static_cast<unsigned>(cluster), 1, 1};
    attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[1].val.programmaticStreamSerializationAllowed = 1;
    config.gridDim = dim3(static_cast<unsigned>(grid)), config.blockDim = dim3(kThreads + kCopiers);
    config.dynamicSmemBytes = static_cast<size_t>(shared_bytes), config.stream = stream;
    config.attrs = attributes, config.numAttrs = 2;
  }
};

// How many clusters of this size the device runs at once: its multiprocessors come in groups that clusters do not cross.
template <int kBits, int kSets>
int most_clusters(int cluster, int64_t shared_bytes) {
  const Launch launch(cluster, cluster, shared_bytes, nullptr);
  int count = 0;
  CUDA_CHECK(cudaOccupancyMaxActiveClusters(&count, many_sm90_kernel<kBits, kSets>, &launch.config));
  return count;
}

// Deals rows to clusters of `cluster` thread blocks; returns the time of a thread block, roughly, in cycles (fitted to what clusters
// of 1 to 6 took); 0: they do not fit.
int64_t deal(Args& a, int cluster, int64_t clusters, int tokens) {
  const int64_t quads = ceil_div(a.q.rows, 4), chunks = a.blocks / kChunk;
  clusters = std::min(clusters, quads);
  if (clusters == 0 || chunks < cluster) return 0;
  a.cluster = cluster;
  a.quads = static_cast<int>(quads / clusters), a.more_quads = static_cast<int>(quads % clusters);
  a.chunks = static_cast<int>(chunks / cluster), a.more_chunks = static_cast<int>(chunks % cluster);
  a.tiles = static_cast<int>(ceil_div(ceil_div(quads, clusters) * 4, kTileRows));
  if (a.tiles > kGroups) return 0;
  a.turns = kGroups / a.tiles;
  return ceil_div(chunks, cluster) * (a.tiles * (430 + 7 * tokens / 2) + 5 * tokens / 2) + 64 * cluster;
}

template <int kBits, int kSets>
bool launch(Args& a, int64_t shared_bytes, cudaStream_t stream) {
  using S = StageShape<kBits>;
  const auto kernel = many_sm90_kernel<kBits, kSets>;
  CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, static_cast<int>(shared_bytes)));
  static const std::array<int, 4> clusters = {
      most_clusters<kBits, kSets>(1, shared_bytes), most_clusters<kBits, kSets>(2, shared_bytes),
      most_clusters<kBits, kSets>(4, shared_bytes), most_clusters<kBits, kSets>(8, shared_bytes)};
  int best = -1;
  int64_t least = 0, grid = 0;
  for (int i = 0; i < 4; ++i)
    if (const int64_t time = deal(a, 1 << i, clusters[i], 8 * kSets); time && (best < 0 || time < least))
      best = i, least = time;
  if (best < 0) return false;
  deal(a, 1 << best, clusters[best], 8 * kSets);
  grid = std::min<int64_t>(clusters[best], ceil_div(a.q.rows, 4)) << best;

  const int rows = a.tiles * kTileRows, words = (a.chunks + 1) * kChunk / 4 + 2;
  int64_t end = kShareTable + kShareTableBytes;
  const auto take = [&](int64_t bytes) {
    const int64_t begin = end;
    end += ceil_div(bytes, 128) * 128;
    return static_cast<int>(begin);
  };
  a.at.pitch = (words | 1) * 4;              // sixteen rows start in different banks
  const int codes = rows * a.at.pitch + 32;  // the places move on behind the last
  a.at.scales = take(codes), a.at.shifts = a.q.tau_codes ? take(codes) : a.at.scales;
  a.at.groups = take((int64_t{rows} * a.blocks / kScaleGroup + 3) * 8);
  a.barriers = take(kMostStages * 16);
  end = ceil_div(end, 1024) * 1024;  // as the panels of x want it
  a.codes_in_stage = kChunk * kSets * 8 * 128;
  a.stage_bytes = static_cast<int>(ceil_div(a.codes_in_stage + rows * S::kPitch, 1024) * 1024);
  a.stages = static_cast<int>(std::min<int64_t>(kMostStages, (shared_bytes - end) / a.stage_bytes));
  if (a.stages < kFewestStages) return false;
  // A team leaves a stage in the middle of its next chunk, which must be there by then.
  a.turns = std::min(a.turns, a.stages - 2);
  a.ring = take(std::max<int64_t>(a.stages * a.stage_bytes, int64_t{kSets} * 8 * kPitch));
  if (end > shared_bytes) return false;
  const Launch how(grid, a.cluster, end, stream);
  CUDA_CHECK(cudaLaunchKernelEx(&how.config, kernel, a));
  CUDA_LAUNCHED();
  return true;
}

}  // namespace

bool nfk_matmul_many_sm90(__nv_bfloat16* y, int64_t y_stride, const __nv_bfloat16* x, int64_t x_stride,
                          const PackedView& q, int bits, int m, float beta, int64_t shared_bytes, cudaStream_t stream) {
  if (m < 1 || m > kManyTokens || !share_takes(q, x, x_stride)) return false;
  Args a{};
  a.q = q, a.x = x, a.x_stride = x_stride, a.y = y, a.y_stride = y_stride, a.m_count = m, a.beta = beta;
  a.whole_quads = reinterpret_cast<uintptr_t>(y) % 8 == 0 && y_stride % 4 == 0 && q.rows % 4 == 0;
  a.blocks = static_cast<int>(q.cols / kBlock);
  scale_levels(a.level, a.unit, bits);
  bool done = false;
  dispatch_bits(bits, [&](auto k) {
    if (m <= 32) done = launch<k.value, 4>(a, shared_bytes, stream);
    else done = launch<k.value, 8>(a, shared_bytes, stream);
  });
  return done;
}

}  // namespace irq
