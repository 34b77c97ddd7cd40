// What  : variant 3 of attention_fwd: both products by tensor cores (mma.m16n8k16, bf16 in, F32 sums).
// Math  : as variant 1; P is rounded to bf16 before it meets V (its sum is not).
// Shapes: as variant 1, rows aligned to 16 bytes.
// Cost  : a warp has 16 rows and 64 keys at a time: 256 mma, 160 ldmatrix, and about 700 instructions for the softmax of 32
//         scores a lane. 137 GFLOP at 200 TFLOP/s are 0.7 ms.
// Tricky: the accumulator of Q K^T is laid out as the left operand of P V wants it, so probabilities never leave their
//         registers; a row's 64 scores are spread over four lanes, which meet in two shuffles. Tiles are padded to an odd
//         number of 16-byte units a row: eight rows, which ldmatrix reads at once, are in eight different bank groups.
// Change: FMAs become mma: 16 x 8 x 16 products per instruction. Tiles stay bf16; a tile has 64 keys.
// Predicted: 5 -> 0.8 ms, since each tile is waited for with nothing else to do.
// Measured: 0.900 ms (7.80x), 153 TFLOP/s.
#include "bench/variants/attention.cuh"

namespace irq {
namespace {

constexpr int kThreads = 128, kRows = 64, kKeys = 64, kTileBytes = kKeys * kPitchBytes<kDim>;
constexpr int kSharedBytes = 3 * kTileBytes;  // Q, K, V

// Rows [first, first + 64) of one head; zeros from `end` on. All loads are issued before the first store.
__device__ __forceinline__ void copy_tile(unsigned char* tile, const __nv_bfloat16* x, int64_t stride, int first,
                                          int end) {
  constexpr int kPieces = kDim / 8, kEach = kKeys * kPieces / kThreads;
  uint4 piece[kEach];
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int at = i * kThreads + threadIdx.x, row = first + at / kPieces;
    piece[i] = row < end ? *reinterpret_cast<const uint4*>(x + row * stride + at % kPieces * 8) : uint4{};
  }
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int at = i * kThreads + threadIdx.x;
    *reinterpret_cast<uint4*>(tile + at / kPieces * kPitchBytes<kDim> + at % kPieces * 16) = piece[i];
  }
}

__global__ void __launch_bounds__(kThreads, 2) attention(CausalArgs a) {
  extern __shared__ __align__(16) unsigned char tiles[];
  const CausalTile<kRows> tile(a);
  const int head = blockIdx.y, warp_row = threadIdx.x / kWarp * 16, first_row = tile.first + warp_row;
  unsigned char *q_tile = tiles, *k_tile = tiles + kTileBytes, *v_tile = tiles + 2 * kTileBytes;
  copy_tile(q_tile, a.q + head * kDim, a.q_stride, tile.first, tile.end);
  SoftmaxRows<kKeys> rows;
  for (int key = tile.begin; key < tile.end; key += kKeys) {
    __syncthreads();  // everybody has left the last tile
    copy_tile(k_tile, a.k + head * kDim, a.k_stride, key, tile.end);
    copy_tile(v_tile, a.v + head * kDim, a.v_stride, key, tile.end);
    __syncthreads();
    float s[1][kKeys / 8][4] = {};
    multiply_abt<kDim, kKeys>(s, smem_address(q_tile) + warp_row * kPitchBytes<kDim>, smem_address(k_tile));
    rows.step(s, key, first_row, a.scale * kLog2E);
    multiply_pb<kDim, kKeys>(rows.o, s, smem_address(v_tile));
  }
  rows.store(a, head, first_row, tile.end, q_tile + warp_row * kPitchBytes<kDim>);
}

void run(Backend& backend, const std::vector<Tensor>& t) {
  const CausalArgs a = causal_args(t);
  allow_shared_memory(attention, kSharedBytes);
  attention<<<dim3(CausalTile<kRows>::count(a), static_cast<unsigned>(a.heads)), kThreads, kSharedBytes,
              stream_of(backend)>>>(a);
  CUDA_LAUNCHED();
}
[[maybe_unused]] const bool added = add_variant({"attention_fwd", "v3_tensor_cores", run});

}  // namespace
}  // namespace irq
