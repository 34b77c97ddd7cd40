// What  : a group of packed linears for few rows (decoding) in one launch: RMSNorm before, adapters beside, residual, SwiGLU
//         or RoPE and the write into the KV cache behind. Also nfk_matmul for up to 8 rows.
// Math  : kernels/nfk_linear.h. Each row of W by blocks of 64: s_b sum level x + tau_b sum x; levels as bf16 (nfk_pairs.cuh),
//         sums, scales and shifts F32; u stays F32; one rounding at the end.
// Shapes: x (m, cols), m <= 8, cols a multiple of 256; dq8 scales, with or without tau; all of x fits into shared memory.
//         Everything else goes through packed_linear_by_ops().
// Cost  : k/8 + 0.03 bytes a weight, 2 bytes an adapter's weight: LLaMA-7B NF4, rank 64: q|k|v 29.9 MB, o 9.9, gate|up 52.1,
//         down 25.9; 10.7, 3.5, 18.6 and 9.3 us at 2.8 TB/s, plus 2 to 3 each until the first codes are there and for the tail.
//         About 2.3 instructions a weight, half of what can be issued in that time.
// Tricky: one block of 16 warps per multiprocessor walks through tiles of 16 rows, so that tables, x and its block sums are
//         made once, and each warp's copies run up to kStages pieces ahead, across tiles; they start before x is looked at.
//         A tile's warps split its columns and meet once: partial sums lie in two alternating buffers, so that one barrier a
//         tile is enough, and one warp adds them in a fixed order and finishes the tile.
//         u = n A'^T is shared work: block i makes rows i, i + grid, ... of it first, publishes them, and looks for the
//         others' when its first tile's sums are done. All blocks run at once (never more than multiprocessors), so nobody
//         waits for a block that has not begun.
#include "kernels/nfk_linear.cuh"

#include <bit>

namespace irq {
namespace {

using Finish = PackedLinear::Finish;

__device__ __forceinline__ TileRows rows_of_tile(const PackedLinearArgs& a, int tile) {
  if (a.finish == Finish::swiglu) return {0, 1, tile * 8, tile * 8};
  int part = 0, first = 0;
#pragma unroll
  for (int i = 0; i < PackedLinear::kParts - 1; ++i)
    if (tile >= a.tile_end[i]) part = i + 1, first = a.tile_end[i];
  const int i = tile - first;
  if (a.finish == Finish::rope && part < 2) {
    const int head = i >> a.tile_shift, low = head * 2 * a.half + (i - (head << a.tile_shift)) * 8;
    return {part, part, low, low + a.half};
  }
  return {part, part, i * kLinearRows, i * kLinearRows + 8};
}

template <int kBits, int kM, int kStages>
struct Kernel {
  using S = LinearShape<kBits>;
  // The table of pairs: a pitch of 256 bytes saves an instruction a pair; eight rows of x need the room.
  static constexpr int kTablePitch = kM == 1 ? 256 : 128;
  const PackedLinearArgs& a;
  const LinearMemory& at;
  char* shared;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, g = lane / 4, p = lane % 4;
  const int blocks = a.cols / kBlock, chunks = a.cols / kLinearColumns;
  const int rounds = (chunks + kLinearWarps - 1) / kLinearWarps;  // pieces of a tile that a warp has at most

  template <class T>
  __device__ __forceinline__ T* in_shared(int offset) const {
    return reinterpret_cast<T*>(shared + offset);
  }
  __device__ __forceinline__ float& partial(int buffer, int by, int row, int m) const {
    return in_shared<float>(at.partial)[((buffer * (kLinearWarps + 1) + by) * kLinearRows + row) * kM + m];
  }
  __device__ __forceinline__ char* stage(int i) const { return shared + at.stages + (warp * kStages + i) * S::kStage; }

  // Starts copying this warp's piece `chunk` of a tile. Rows past the end repeat the last and are not stored. 32 bits hold
  // any offset (takes() looks).
  __device__ __forceinline__ void copy_piece(int tile, int chunk, int to_stage) const {
    const TileRows rows = rows_of_tile(a, tile);
    const uint32_t to = smem_address(stage(to_stage)), row_bytes = blocks * S::kBlockBytes;
    const PackedView &low = a.part[rows.low_part], &high = a.part[rows.high_part];
    const int last_low = static_cast<int>(low.rows) - 1 - rows.low, last_high = static_cast<int>(high.rows) - 1 - rows.high;
    const uint8_t* low_codes = low.codes + static_cast<uint32_t>(rows.low) * row_bytes + chunk * S::kChunkBytes;
    const uint8_t* high_codes = high.codes + static_cast<uint32_t>(rows.high) * row_bytes + chunk * S::kChunkBytes;
    constexpr int kHalf = 8 * S::kPieces;  // pieces of the rows of one side
#pragma unroll
    for (int k = 0; k < kHalf; k += kWarp) {
      const int i = k + lane, r = i / S::kPieces, byte = i % S::kPieces * 16;
      if (kHalf % kWarp != 0 && i >= kHalf) break;
      const uint32_t at_shared = to + r * S::kPitch + byte;
      cp_async_16(at_shared, low_codes + min(r, last_low) * row_bytes + byte, true);
      cp_async_16(at_shared + 8 * S::kPitch, high_codes + min(r, last_high) * row_bytes + byte, true);
    }
    const int r = lane % kLinearRows;
    const bool shift = lane >= kLinearRows, upper = r >= 8;
    const PackedView& q = upper ? high : low;
    if (shift && !q.tau_codes) return;
    const uint32_t row = upper ? rows.high + min(r - 8, last_high) : rows.low + min(r, last_low);
    const uint32_t block = row * blocks + chunk * kLinearChunk;
    cp_async_4(to + (shift ? S::kShifts : S::kScales) + r * 4, (shift ? q.tau_codes : q.scale_codes) + block, true);
    cp_async_4(to + (shift ? S::kShiftGroups : S::kScaleGroups) + r * 4,
               (shift ? q.tau_groups : q.scale_groups) + block / kScaleGroup, true);
  }

  // x, normalized if asked, into shared memory, and the sum of each of its blocks.
  __device__ __forceinline__ void load_x() const {
    const int packs = a.cols / 8;  // a multiple of 32: whole warps, whole blocks
    for (int m = 0; m < a.m_count; ++m) {
      Pack<__nv_bfloat16>* row = reinterpret_cast<Pack<__nv_bfloat16>*>(in_shared<__nv_bfloat16>(at.x) + m * at.x_pitch);
      const Pack<__nv_bfloat16>* from = reinterpret_cast<const Pack<__nv_bfloat16>*>(a.x + m * a.x_stride);
      float squares = 0;
      for (int i = threadIdx.x; i < packs; i += kLinearThreads) {
        const Pack<__nv_bfloat16> v = from[i];
#pragma unroll
        for (int k = 0; k < 8; ++k) squares = fmaf(to_f(v.v[k]), to_f(v.v[k]), squares);
        row[i] = v;
      }
      const float rstd =
          a.norm ? 1.f / sqrtf(block_sum<kLinearThreads>(squares) / static_cast<float>(a.cols) + a.eps) : 1.f;
      for (int i = threadIdx.x; i < packs; i += kLinearThreads) {  // what this thread wrote
        Pack<__nv_bfloat16> v = row[i];
        if (a.norm) {
          const float4 w[2] = {reinterpret_cast<const float4*>(a.norm)[2 * i],
                               reinterpret_cast<const float4*>(a.norm)[2 * i + 1]};
          const float weight[8] = {w[0].x, w[0].y, w[0].z, w[0].w, w[1].x, w[1].y, w[1].z, w[1].w};
#pragma unroll
          for (int k = 0; k < 8; ++k)
            v.v[k] = __float2bfloat16_rn(to_f(__float2bfloat16_rn(to_f(v.v[k]) * rstd)) * weight[k]);
          row[i] = v;
        }
        float sum = 0;
#pragma unroll
        for (int k = 0; k < 8; ++k) sum += to_f(v.v[k]);
#pragma unroll
        for (int offset = 4; offset > 0; offset /= 2) sum += __shfl_xor_sync(kFullWarp, sum, offset);
        if (lane % 8 == 0) in_shared<float>(at.block_sums)[m * blocks + i / 8] = sum;
      }
    }
  }

  // This block's rows of u = x A'^T, published. `partial` is free yet.
  __device__ __forceinline__ void make_u() const {
    for (int r = blockIdx.x; r < a.ranks; r += gridDim.x) {
      float sum[kM] = {};
      for (int i = threadIdx.x; i < a.cols / 8; i += kLinearThreads) {
        const Pack<__nv_bfloat16> w = *reinterpret_cast<const Pack<__nv_bfloat16>*>(a.a + r * a.a_stride + i * 8);
#pragma unroll
        for (int m = 0; m < kM; ++m) {
          if (m >= a.m_count) break;
          const Pack<__nv_bfloat16> v =
              *reinterpret_cast<const Pack<__nv_bfloat16>*>(in_shared<__nv_bfloat16>(at.x) + m * at.x_pitch + i * 8);
#pragma unroll
          for (int k = 0; k < 8; ++k) sum[m] = fmaf(to_f(w.v[k]), to_f(v.v[k]), sum[m]);
        }
      }
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        const float total = warp_sum(sum[m]);
        if (lane == 0) partial(0, warp, 0, m) = total;
      }
      __syncthreads();
      if (warp == 0) {
        if (lane < a.m_count) {
          float total = 0;
#pragma unroll
          for (int w = 0; w < kLinearWarps; ++w) total += partial(0, w, 0, lane);
          __stcg(a.u + lane * a.ranks + r, total);
          __threadfence();
        }
        __syncwarp();
        if (lane == 0) atomicAdd(a.meet, 1);
      }
      __syncthreads();
    }
  }

  // Waits for everybody's rows of u and takes them.
  __device__ __forceinline__ void fetch_u() const {
    if (threadIdx.x == 0) {
      while (atomicAdd(a.meet, 0) < a.ranks) __nanosleep(40);
      __threadfence();
    }
    __syncthreads();
    for (int i = threadIdx.x; i < a.ranks * a.m_count; i += kLinearThreads) in_shared<float>(at.u)[i] = __ldcg(a.u + i);
    __syncthreads();
  }

  // One piece: 16 rows by 4 blocks, added to sum (of rows g and g + 8; columns 2p, 2p + 1 of the tokens, or token 0 alone).
  __device__ __forceinline__ void multiply(float (&sum)[4], const char* piece, int chunk, const float (&offset)[2],
                                           const bool (&shifted)[2]) const {
    const float* map = in_shared<float>(at.map);
    float scale[2], shift[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = g + 8 * r;
      const uint8_t* bytes = reinterpret_cast<const uint8_t*>(piece);
      const float entry = map[bytes[S::kScales + row * 4 + p]];
      const float group = *reinterpret_cast<const float*>(piece + S::kScaleGroups + row * 4);
      scale[r] = __fadd_rn(__fmul_rn(entry, group), offset[r]) * a.unit;
      shift[r] = shifted[r] ? __fmul_rn(map[bytes[S::kShifts + row * 4 + p]],
                                         *reinterpret_cast<const float*>(piece + S::kShiftGroups + row * 4))
                             : 0.f;
    }
    const char* codes = piece + g * S::kPitch + p * 2 * kBits;
    const __nv_bfloat16* x = in_shared<__nv_bfloat16>(at.x) + min(g, a.m_count - 1) * at.x_pitch +
                             chunk * kLinearColumns + p * 16;
    const float* sums = in_shared<float>(at.block_sums) + chunk * kLinearChunk;
    const float *sums0 = sums + min(kM == 1 ? 0 : 2 * p, a.m_count - 1) * blocks,
                *sums1 = sums + min(kM == 1 ? 0 : 2 * p + 1, a.m_count - 1) * blocks;
#pragma unroll
    for (int j = 0; j < kLinearChunk; ++j) {
      const uint4 v[2] = {reinterpret_cast<const uint4*>(x + j * kBlock)[0],
                          reinterpret_cast<const uint4*>(x + j * kBlock)[1]};
      const uint8_t* block = reinterpret_cast<const uint8_t*>(codes + j * S::kBlockBytes);
      const Codes<kBits> now[2] = {Codes<kBits>(block), Codes<kBits>(block + 8 * S::kPitch)};
      float product[2][4] = {};  // two chains of dependent products
      const auto step = [&](auto s) {
        constexpr int i = 2 * s.value;
        const auto levels = [&](auto which, const Codes<kBits>& codes) {
          const uint32_t place = kTablePitch == 256 ? codes.template wide_address<which.value>(lane * 4)
                                                    : codes.template pair<which.value>() * kTablePitch + lane * 4;
          return *reinterpret_cast<const uint32_t*>(shared + place);
        };
        constexpr std::integral_constant<int, i> kFirst{};
        constexpr std::integral_constant<int, i + 1> kSecond{};
        const uint32_t w[4] = {levels(kFirst, now[0]), levels(kFirst, now[1]), levels(kSecond, now[0]),
                               levels(kSecond, now[1])};
        const uint4& half = v[i / 4];
        mma_m16n8k16(product[s.value % 2], w, i % 4 == 0 ? half.x : half.z, i % 4 == 0 ? half.y : half.w);
      };
      step(std::integral_constant<int, 0>{});
      step(std::integral_constant<int, 1>{});
      step(std::integral_constant<int, 2>{});
      step(std::integral_constant<int, 3>{});
      const float total[2] = {sums0[j], sums1[j]};
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float s = __shfl_sync(kFullWarp, scale[r], (lane & ~3) + j),
                    t = __shfl_sync(kFullWarp, shift[r], (lane & ~3) + j);
#pragma unroll
        for (int c = 0; c < (kM == 1 ? 1 : 2); ++c) {
          sum[2 * r + c] = fmaf(s, product[0][2 * r + c] + product[1][2 * r + c], sum[2 * r + c]);
          sum[2 * r + c] = fmaf(t, total[c], sum[2 * r + c]);
        }
      }
    }
  }

  // What adapters add to row `warp` of the tile. first: this lane's first two of B's terms, loaded long before.
  __device__ __forceinline__ const __nv_bfloat16* b_row(const TileRows& rows, int& part) const {
    part = warp < 8 ? rows.low_part : rows.high_part;
    const int64_t row = warp < 8 ? rows.low + warp : rows.high + warp - 8;
    return a.b[part] && row < a.part[part].rows ? a.b[part] + row * a.b_stride[part] : nullptr;
  }
  __device__ __forceinline__ void add_adapter(const TileRows& rows, __nv_bfloat162 first, int buffer) const {
    int part;
    const __nv_bfloat16* b = b_row(rows, part);
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      if (m >= a.m_count) break;
      const float* u = in_shared<float>(at.u) + m * a.ranks + a.b_column[part];
      float sum = 0;
      for (int i = 2 * lane; b && i < a.b_rank[part]; i += 2 * kWarp) {
        const __nv_bfloat162 w = i < 2 * kWarp ? first : *reinterpret_cast<const __nv_bfloat162*>(b + i);
        sum = fmaf(__low2float(w), u[i], fmaf(__high2float(w), u[i + 1], sum));
      }
      sum = warp_sum(sum);
      if (lane == 0) partial(buffer, kLinearWarps, warp, m) = sum;
    }
  }

  __device__ __forceinline__ float total(int buffer, int row, int m) const {
    float sum = 0;
#pragma unroll
    for (int w = 0; w < kLinearWarps; ++w) sum += partial(buffer, w, row, m);
    return a.ranks > 0 ? sum + partial(buffer, kLinearWarps, row, m) : sum;
  }
  __device__ __forceinline__ void store(int m, int part, int row, float z) const {
    if (row >= a.part[part].rows) return;
    int64_t column = row;
    for (int i = 0; i < part; ++i) column += a.part[i].rows;
    if (a.base) z = fmaf(a.base_scale, to_f(a.base[m * a.base_stride + column]), z);
    a.y[m * a.y_stride + column] = __float2bfloat16_rn(z);
  }
  // By one warp: sums, and what becomes of them.
  __device__ __forceinline__ void finish(const TileRows& rows, int buffer) const {
    for (int i = lane; i < 8 * a.m_count; i += kWarp) {
      const int r = i % 8, m = i / 8;
      const float low = total(buffer, r, m), high = total(buffer, r + 8, m);
      if (a.finish == Finish::add) {
        store(m, rows.low_part, rows.low + r, low);
        store(m, rows.high_part, rows.high + r, high);
      } else if (a.finish == Finish::swiglu) {
        a.y[m * a.y_stride + rows.low + r] = __float2bfloat16_rn(low / (1.f + expf(-low)) * high);
      } else {
        const int position = a.positions[m], to = a.cache_rows[m];
        float first = low, second = high;
        if (rows.low_part < 2) {
          const int pair = (rows.low + r) % a.half;  // of a head: low rows are its first half
          const float c = position < 0 ? 0.f : a.cosine[position * a.cos_stride + pair],
                      s = position < 0 ? 0.f : a.sine[position * a.sin_stride + pair];
          first = low * c - high * s, second = high * c + low * s;
        }
        __nv_bfloat16* out = rows.low_part == 0 ? a.y + m * a.y_stride
                             : to < 0           ? nullptr
                                                : (rows.low_part == 1 ? a.keys : a.values) + to * a.kv_stride;
        if (!out) continue;
        out[rows.low + r] = __float2bfloat16_rn(first);
        out[rows.high + r] = __float2bfloat16_rn(second);
      }
    }
  }

  __device__ __forceinline__ void run() const {
    int ahead_tile = blockIdx.x, ahead_round = 0, ahead_stage = 0;
    const auto copy_next = [&] {
      const int chunk = ahead_round * kLinearWarps + warp;
      if (ahead_tile < a.tiles && chunk < chunks) copy_piece(ahead_tile, chunk, ahead_stage);
      cp_async_commit();
      ahead_stage = ahead_stage + 1 < kStages ? ahead_stage + 1 : 0;
      if (++ahead_round == rounds) ahead_round = 0, ahead_tile += gridDim.x;
    };
#pragma unroll
    for (int k = 0; k < kStages; ++k) copy_next();
    fill_pair_table<kBits, kLinearThreads, kTablePitch>(in_shared<uint32_t>(0), a.scaled.level[lane & ((1 << kBits) - 1)]);
    if (threadIdx.x < 256) in_shared<float>(at.map)[threadIdx.x] = __ldg(a.part[0].map + threadIdx.x);
    load_x();
    __syncthreads();
    make_u();
    bool fetched = a.ranks == 0;
    int current = 0, number = 0;
    for (int tile = blockIdx.x; tile < a.tiles; tile += gridDim.x, ++number) {
      const TileRows rows = rows_of_tile(a, tile);
      const int buffer = number % 2;
      int part = 0;
      const __nv_bfloat16* b = a.ranks > 0 ? b_row(rows, part) : nullptr;
      __nv_bfloat162 first{};
      if (b && 2 * lane < a.b_rank[part]) first = *reinterpret_cast<const __nv_bfloat162*>(b + 2 * lane);
      const PackedView &low = a.part[rows.low_part], &high = a.part[rows.high_part];
      const float offset[2] = {__ldg(low.scale_offset), __ldg(high.scale_offset)};
      const bool shifted[2] = {low.tau_codes != nullptr, high.tau_codes != nullptr};
      float sum[4] = {};
      for (int round = 0; round < rounds; ++round) {
        const int chunk = round * kLinearWarps + warp;
        cp_async_wait<kStages - 1>();
        __syncwarp();
        if (chunk < chunks) multiply(sum, stage(current), chunk, offset, shifted);
        __syncwarp();  // all lanes have read the stage
        copy_next();
        current = current + 1 < kStages ? current + 1 : 0;
      }
      if (kM == 1) {
        if (p == 0) partial(buffer, warp, g, 0) = sum[0], partial(buffer, warp, g + 8, 0) = sum[2];
      } else {
#pragma unroll
        for (int c = 0; c < 4; ++c) partial(buffer, warp, g + c / 2 * 8, 2 * p + c % 2) = sum[c];
      }
      if (!fetched) fetch_u(), fetched = true;
      if (a.ranks > 0) add_adapter(rows, first, buffer);
      __syncthreads();
      if (warp == number % kLinearWarps) finish(rows, buffer);
    }
    // The last block to come by here leaves the counters as they were: nobody looks at them any more.
    if (a.ranks > 0 && threadIdx.x == 0 && atomicAdd(a.meet + 1, 1) == static_cast<int>(gridDim.x) - 1)
      a.meet[0] = 0, a.meet[1] = 0;
  }
};

template <int kBits, int kM, int kStages>
__global__ void __launch_bounds__(kLinearThreads, 1)
    packed_linear_kernel(const __grid_constant__ PackedLinearArgs a, const __grid_constant__ LinearMemory at) {
  extern __shared__ __align__(16) char memory[];
  Kernel<kBits, kM, kStages>{a, at, memory}.run();
}

constexpr int kStaticBytes = 1088;  // of block_sum

bool aligned(const void* p, uintptr_t bytes) { return reinterpret_cast<uintptr_t>(p) % bytes == 0; }

bool takes(const PackedView& q) {
  return q.cols % kLinearColumns == 0 && !q.scales && q.rows > 0 && aligned(q.codes, 16) && aligned(q.scale_codes, 4) &&
         aligned(q.tau_codes, 4) &&
         q.rows * q.cols / 2 < int64_t{1} << 31;
}

// False if there is too little shared memory for it.
bool launch(PackedLinearArgs a, int bits, int multiprocessors, int64_t shared_bytes, cudaStream_t stream) {
  a.scaled = nf_codebook(bits);
  for (float& level : a.scaled.level) level *= kLevelScale[bits];
  a.unit = 1.0f / kLevelScale[bits];
  const unsigned grid = static_cast<unsigned>(std::min(a.tiles, multiprocessors));
  bool done = false;
  dispatch_bits(bits, [&](auto k) {
    const auto run = [&](auto tokens, auto stages) {
      using S = LinearShape<k.value>;
      constexpr int kTableBytes = S::kPairs * Kernel<k.value, tokens.value, stages.value>::kTablePitch;
      const LinearMemory at(kTableBytes, tokens.value, a.m_count, a.cols, a.ranks, S::kStage, stages.value);
      if (done || at.total + kStaticBytes > shared_bytes) return;
      const auto kernel = packed_linear_kernel<k.value, tokens.value, stages.value>;
      CUDA_CHECK(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, at.total));
      kernel<<<grid, kLinearThreads, at.total, stream>>>(a, at);
      CUDA_LAUNCHED();
      done = true;
    };
    const auto run_stages = [&](auto tokens) {
      run(tokens, std::integral_constant<int, 3>{});
      run(tokens, std::integral_constant<int, 2>{});
    };
    if (a.m_count == 1) run_stages(std::integral_constant<int, 1>{});
    else run_stages(std::integral_constant<int, kLinearTokens>{});
  });
  return done;
}

int tiles_of(int64_t rows) { return static_cast<int>(ceil_div(rows, kLinearRows)); }

}  // namespace

bool nfk_matmul_few(__nv_bfloat16* y, int64_t y_stride, const __nv_bfloat16* x, int64_t x_stride, const PackedView& q,
                    int bits, int m, float beta, int multiprocessors, int64_t shared_bytes, cudaStream_t stream) {
  if (m < 1 || m > kLinearTokens || !takes(q) || !aligned(x, 16) || x_stride % 8 != 0) return false;
  PackedLinearArgs a{};
  a.part[0] = q;
  a.tiles = a.tile_end[0] = a.tile_end[1] = a.tile_end[2] = tiles_of(q.rows);
  a.cols = static_cast<int>(q.cols), a.m_count = m;
  a.x = x, a.x_stride = x_stride, a.y = y, a.y_stride = y_stride;
  if (beta != 0) a.base = y, a.base_stride = y_stride, a.base_scale = beta;
  return launch(a, bits, multiprocessors, shared_bytes, stream);
}

namespace {

// Everything but the places of u and the counters; false if the kernel does not take the call.
bool arguments_of(const PackedLinear& c, PackedLinearArgs& a) {
  const int64_t rows = c.x.rows;
  if (c.x.dtype != DType::BF16 || rows > kLinearTokens || !aligned(c.x.data, 16) || (rows > 1 && c.x.stride % 8 != 0))
    return false;
  if (c.norm && !aligned(c.norm.data, 16)) return false;
  a.cols = static_cast<int>(c.x.cols), a.m_count = static_cast<int>(rows), a.finish = c.finish;
  a.x = static_cast<const __nv_bfloat16*>(c.x.data), a.x_stride = c.x.stride;
  a.norm = c.norm ? c.norm.as<float>() : nullptr, a.eps = static_cast<float>(c.eps);
  a.y = static_cast<__nv_bfloat16*>(c.y.data), a.y_stride = c.y.stride;
  if (c.residual)
    a.base = static_cast<const __nv_bfloat16*>(c.residual.data), a.base_stride = c.residual.stride, a.base_scale = 1;
  if (c.a) {
    if (!aligned(c.a.data, 16) || c.a.stride % 8 != 0) return false;
    a.a = static_cast<const __nv_bfloat16*>(c.a.data), a.a_stride = c.a.stride, a.ranks = static_cast<int>(c.a.rows);
  }
  int tiles = 0;
  for (int i = 0; i < PackedLinear::kParts; ++i) {
    const size_t k = static_cast<size_t>(i);
    a.tile_end[i] = tiles;
    if (i >= c.parts) continue;
    const QuantizedMatrix& w = c.w[k];
    if (w.format.kind != QuantKind::nf || w.format.group != kBlock || w.format.bits != c.w[0].format.bits ||
        w.map.data != c.w[0].map.data)
      return false;
    a.part[i] = packed_view(w);
    if (!takes(a.part[i])) return false;
    a.tile_end[i] = tiles += tiles_of(w.rows);
    const Tensor& b = c.b[k];
    if (!b) continue;
    if (!aligned(b.data, 4) || b.stride % 2 != 0 || b.cols % 2 != 0 || c.column[k] % 2 != 0) return false;
    a.b[i] = static_cast<const __nv_bfloat16*>(b.data), a.b_stride[i] = b.stride;
    a.b_column[i] = static_cast<int>(c.column[k]), a.b_rank[i] = static_cast<int>(b.cols);
  }
  a.tiles = tiles;
  if (c.finish == Finish::swiglu) {
    a.tiles = static_cast<int>(c.w[0].rows / 8);
    return c.w[0].rows % 8 == 0;
  }
  if (c.finish == Finish::add) return true;
  a.half = c.head_dim / 2;
  a.cosine = c.cos_table.as<float>(), a.sine = c.sin_table.as<float>();
  a.cos_stride = c.cos_table.stride, a.sin_stride = c.sin_table.stride, a.kv_stride = c.keys.stride;
  a.positions = c.positions.as<int32_t>(), a.cache_rows = c.cache_rows.as<int32_t>();
  a.keys = static_cast<__nv_bfloat16*>(c.keys.data), a.values = static_cast<__nv_bfloat16*>(c.values.data);
  if (c.head_dim < 16 || !std::has_single_bit(static_cast<unsigned>(c.head_dim))) return false;
  a.tile_shift = std::countr_zero(static_cast<unsigned>(c.head_dim)) - 4;
  return c.w[2].rows % kLinearRows == 0 && c.keys.stride == c.values.stride;
}

}  // namespace

void CudaBackend::nfk_linear(PackedLinear call) {
  if (call.x.rows == 0) return;
  PackedLinearArgs a{};
  if (arguments_of(call, a)) {
    a.u = static_cast<float*>(workspace(int64_t{kLinearTokens} * a.ranks * static_cast<int64_t>(sizeof(float))));
    a.meet = meetings();
    if (launch(a, call.w[0].format.bits, sm_count(), shared_bytes(), stream())) return;
  }
  const int64_t element = size_of(call.x.dtype), rstd = ceil_div(call.x.rows * 4, 256) * 256;
  char* scratch = static_cast<char*>(workspace(rstd + packed_linear_scratch(call) * element));
  packed_linear_by_ops(*this, call, scratch + rstd, scratch);
}

}  // namespace irq
