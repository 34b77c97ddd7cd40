// What  : variant 4 of attention_fwd: the next tile is copied while this one is computed.
// Math  : as variant 3, bit for bit.
// Shapes: as variant 3.
// Cost  : as variant 3 without the waiting: two stages of K and V, 87 KB of shared memory, two blocks per multiprocessor.
// Tricky: cp.async writes shared memory without passing registers. One barrier per tile does for two things: this tile has
//         arrived (each thread waited for its own copies before it), and everybody has left the tile whose place is
//         overwritten next.
// Change: cp.async and a second stage. The production kernel lets a warp have 32 rows where sequences are long (each
//         fragment of K and V is used twice), masks only the tiles on the diagonal, and finds its sequence on the device.
// Predicted: 0.8 -> 0.65 ms.
// Measured: 0.707 ms (1.27x), 194 TFLOP/s; the production kernel 0.599 ms, 230.
#include "bench/variants/attention.cuh"

namespace irq {
namespace {

constexpr int kThreads = 128, kRows = 64, kKeys = 64, kTileBytes = kKeys * kPitchBytes<kDim>;
constexpr int kSharedBytes = 5 * kTileBytes;  // Q, two stages of K and V

__global__ void __launch_bounds__(kThreads, 2) attention(CausalArgs a) {
  extern __shared__ __align__(16) unsigned char tiles[];
  const CausalTile<kRows> tile(a);
  const int head = blockIdx.y, warp_row = threadIdx.x / kWarp * 16, first_row = tile.first + warp_row;
  const uint32_t q_tile = smem_address(tiles);
  const auto stage = [&](int key) { return q_tile + kTileBytes * (1 + (key - tile.begin) / kKeys % 2 * 2); };
  const auto load = [&](int key) {
    load_tile<kDim, kKeys, kThreads>(stage(key), a.k + head * kDim, a.k_stride, key, tile.end);
    load_tile<kDim, kKeys, kThreads>(stage(key) + kTileBytes, a.v + head * kDim, a.v_stride, key, tile.end);
    cp_async_commit();
  };
  load_tile<kDim, kRows, kThreads>(q_tile, a.q + head * kDim, a.q_stride, tile.first, tile.end);
  load(tile.begin);
  SoftmaxRows<kKeys> rows;
  for (int key = tile.begin; key < tile.end; key += kKeys) {
    cp_async_wait<0>();
    __syncthreads();
    if (key + kKeys < tile.end) load(key + kKeys);
    float s[1][kKeys / 8][4] = {};
    multiply_abt<kDim, kKeys>(s, q_tile + warp_row * kPitchBytes<kDim>, stage(key));
    rows.step(s, key, first_row, a.scale * kLog2E);
    multiply_pb<kDim, kKeys>(rows.o, s, stage(key) + kTileBytes);
  }
  rows.store(a, head, first_row, tile.end, tiles + warp_row * kPitchBytes<kDim>);
}

void run(Backend& backend, const std::vector<Tensor>& t) {
  const CausalArgs a = causal_args(t);
  allow_shared_memory(attention, kSharedBytes);
  attention<<<dim3(CausalTile<kRows>::count(a), static_cast<unsigned>(a.heads)), kThreads, kSharedBytes,
              stream_of(backend)>>>(a);
  CUDA_LAUNCHED();
}
[[maybe_unused]] const bool added = add_variant({"attention_fwd", "v4_cp_async", run});

}  // namespace
}  // namespace irq
