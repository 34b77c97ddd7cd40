// What one thread block of nfk_layers.cu does for a linear: its copies, x and u, products of pieces, and the finish.
#pragma once
#include "kernels/nfk_layers.cuh"

namespace irq {

// The 32 codes of a lane of a row, as two times 8 pairs.
template <int kBits>
__device__ __forceinline__ void load_lane_codes(Codes<kBits> (&c)[2], const char* row, int index, int odd_row) {
  if constexpr (kBits == 4) {
    const uint4 v = *reinterpret_cast<const uint4*>(row + ((index ^ (odd_row << 2)) * 16));
    c[0].bytes = make_uint2(v.x, v.y), c[1].bytes = make_uint2(v.z, v.w);
  } else {
    const uint8_t* p = reinterpret_cast<const uint8_t*>(row) + index * 4 * kBits;
    c[0] = Codes<kBits>(p), c[1] = Codes<kBits>(p + 2 * kBits);
  }
}

// What a thread asks for before a linear's x is there.
struct StreamAhead {
  Pack<__nv_bfloat16> a[kLinearSegment / 8 / kWarp];
  float4 norm[2];
};
// And before its sums are: for the rows of the result that it finishes.
struct StreamLate {
  uint4 b;
  float first, second;  // what is added; or cosine and sine
};

template <int kBits, int kLinears>
struct StreamBlock {
  using S = StreamShape<kBits>;
  using Finish = PackedLinear::Finish;
  const StreamProgram<kLinears>& p;
  const StreamMemory& at;
  char* shared;
  unsigned epoch = 0, target = 0;  // of the meeting
  int issued = 0, consumed = 0;    // pieces of this warp
  struct Cursor {
    int linear, tile, chunk;  // tile: counted among this block's
  } ahead{0, 0, static_cast<int>(threadIdx.x / kWarp)};
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, g = lane / 4, q = lane % 4;

  template <class T>
  __device__ __forceinline__ T* in_shared(int offset) const {
    return reinterpret_cast<T*>(shared + offset);
  }
  __device__ __forceinline__ const StreamSlot& slot(int n) const {
    return in_shared<StreamSlot>(at.slots)[n % kStreamSlots];
  }
  __device__ __forceinline__ char* stage(int i) const {
    return shared + at.stages + (warp * kStreamStages + i % kStreamStages) * S::kStage;
  }
  __device__ __forceinline__ float* partial() const { return in_shared<float>(at.partial); }
  static __device__ __forceinline__ int chunks_of(const StreamLinear& a) {
    return (a.cols + kStreamColumns - 1) / kStreamColumns;
  }
  static __device__ __forceinline__ int own_tiles(const StreamLinear& a) {
    return (a.tiles - static_cast<int>(blockIdx.x) + static_cast<int>(gridDim.x) - 1) / static_cast<int>(gridDim.x);
  }

  // ---- arguments -----------------------------------------------------------------------------------------------------
  __device__ __forceinline__ void load_slot(int n) const {
    if (n >= p.count) return;
    constexpr int kWords = sizeof(StreamLinear) / 4;
    static_assert(kWords + kWarp <= kStreamThreads);
    StreamSlot& to = in_shared<StreamSlot>(at.slots)[n % kStreamSlots];
    const int i = threadIdx.x;
    if (i < kWords) reinterpret_cast<uint32_t*>(&to.a)[i] = reinterpret_cast<const uint32_t*>(&p.linear[n])[i];
    const int part = i - (kStreamThreads - PackedLinear::kParts);
    if (part >= 0 && p.linear[n].part[part].scale_offset) to.offset[part] = __ldg(p.linear[n].part[part].scale_offset);
  }

  // ---- copies ----------------------------------------------------------------------------------------------------------
  // Starts copying a piece. Rows past the end repeat the last and are not stored; blocks past the end are zeros.
  __device__ __forceinline__ void copy_piece(const StreamLinear& a, int tile, int chunk, char* to_stage) const {
    const TileRows rows = rows_of_tile(a, tile);
    const uint32_t to = smem_address(to_stage);
    const int blocks = a.cols / kBlock, row_bytes = blocks * S::kBlockBytes;
    const StreamPart &low = a.part[rows.low_part], &high = a.part[rows.high_part];
    const int last_low = low.rows - 1 - rows.low, last_high = high.rows - 1 - rows.high;
    const uint8_t *low_codes = low.codes + rows.low * row_bytes, *high_codes = high.codes + rows.high * row_bytes;
    constexpr int kHalf = 8 * S::kPieces;
    static_assert(kHalf % kWarp == 0);
#pragma unroll
    for (int k = 0; k < kHalf; k += kWarp) {
      const int i = k + lane, r = i / S::kPieces, piece = i % S::kPieces, byte = chunk * S::kRowBytes + piece * 16;
      const bool valid = byte < row_bytes;
      const int place = kBits == 4 ? piece ^ (r % 2 << 2) : piece;
      const uint32_t at_shared = to + r * S::kPitch + place * 16;
      cp_async_16(at_shared, low_codes + (valid ? min(r, last_low) * row_bytes + byte : 0), valid);
      cp_async_16(at_shared + 8 * S::kPitch, high_codes + (valid ? min(r, last_high) * row_bytes + byte : 0), valid);
    }
    const int r = lane % kLinearRows, shift = lane / kLinearRows;
    const bool upper = r >= 8;
    const StreamPart& w = upper ? high : low;
    const uint8_t* codes = shift ? w.tau_codes : w.scale_codes;
    const float* groups = shift ? w.tau_groups : w.scale_groups;
    if (!codes) return;
    const int row = upper ? rows.high + min(r - 8, last_high) : rows.low + min(r, last_low);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int first = chunk * kStreamBlocks + h * 4;
      const bool valid = first < blocks;
      const int block = valid ? row * blocks + first : 0;
      cp_async_4(to + S::kScales + (shift * kLinearRows + r) * kStreamBlocks + h * 4, codes + block, valid);
      cp_async_4(to + S::kFactors + ((shift * kLinearRows + r) * 2 + h) * 4, groups + block / kScaleGroup, valid);
    }
  }
  // Keeps the stages full, with pieces of linear n and of the two behind it.
  __device__ __forceinline__ void fill(int n) {
    while (issued - consumed < kStreamStages) {
      if (ahead.linear >= p.count || ahead.linear > n + 2) return;
      const StreamLinear& a = slot(ahead.linear).a;
      const int chunks = chunks_of(a);
      while (ahead.chunk >= chunks) ahead.chunk -= chunks, ++ahead.tile;
      if (ahead.tile >= own_tiles(a)) {
        ++ahead.linear, ahead.tile = 0, ahead.chunk = warp;
        continue;
      }
      copy_piece(a, blockIdx.x + ahead.tile * gridDim.x, ahead.chunk, stage(issued));
      cp_async_commit();
      ++issued, ahead.chunk += kStreamWarps;
    }
  }

  // ---- meeting ---------------------------------------------------------------------------------------------------------
  __device__ __forceinline__ void arrive() {
    __syncthreads();
    if (threadIdx.x == 0) {
      __threadfence();
      atomicAdd(&p.all.meeting->arrived, 1);
    }
    target += gridDim.x;
  }
  __device__ __forceinline__ void meet() const {
    if (threadIdx.x == 0) {
      while (*const_cast<volatile unsigned*>(&p.all.meeting->arrived) < target) {}
      __threadfence();
    }
    __syncthreads();
  }

  // ---- x ---------------------------------------------------------------------------------------------------------------
  __device__ __forceinline__ int first_unit() const { return blockIdx.x + warp * gridDim.x; }
  __device__ __forceinline__ void load_a(Pack<__nv_bfloat16> (&w)[kLinearSegment / 8 / kWarp], const StreamLinear& a,
                                         int unit) const {
    const int first = unit % a.segments * kLinearSegment;
    const __nv_bfloat16* row = a.a + static_cast<int64_t>(unit / a.segments) * a.a_stride;
#pragma unroll
    for (int k = 0; k < kLinearSegment / 8 / kWarp; ++k) {
      const int column = first + (k * kWarp + lane) * 8;
      if (column < a.cols) w[k] = *reinterpret_cast<const Pack<__nv_bfloat16>*>(row + column);
    }
  }
  __device__ __forceinline__ void load_norm(float4 (&w)[2], const StreamLinear& a, int pack) const {
    w[0] = __ldg(reinterpret_cast<const float4*>(a.norm) + 2 * pack);
    w[1] = __ldg(reinterpret_cast<const float4*>(a.norm) + 2 * pack + 1);
  }
  __device__ __forceinline__ void look_ahead(StreamAhead& e, int n) const {
    const StreamLinear& a = slot(n).a;
    if (a.norm && threadIdx.x < a.cols / 8) load_norm(e.norm, a, threadIdx.x);
    if (first_unit() < a.ranks * a.segments) load_a(e.a, a, first_unit());
  }
  // Pack i of what attention left: the splits of a head, put together in their order.
  __device__ __forceinline__ Pack<__nv_bfloat16> merged_pack(const StreamAttention& t, int i) const {
    const int head = i * 8 / t.head_dim, column = i * 8 - head * t.head_dim;
    float largest = -INFINITY, weight[kStreamSplits], sum = 0, total[8] = {};
    float2 of[kStreamSplits];
    float4 o[kStreamSplits][2];
#pragma unroll
    for (int k = 0; k < kStreamSplits; ++k) {
      if (k >= t.splits) break;
      const int record = head * t.splits + k;
      const float4* from = reinterpret_cast<const float4*>(p.all.record_o + record * t.head_dim + column);
      of[k] = __ldcg(p.all.record_sum + record), o[k][0] = __ldcg(from), o[k][1] = __ldcg(from + 1);
    }
#pragma unroll
    for (int k = 0; k < kStreamSplits; ++k)
      if (k < t.splits) largest = fmaxf(largest, of[k].x);
#pragma unroll
    for (int k = 0; k < kStreamSplits; ++k) {
      if (k >= t.splits) break;
      weight[k] = of[k].y > 0 ? expf(of[k].x - largest) : 0.f;
      sum = fmaf(weight[k], of[k].y, sum);
      const float v[8] = {o[k][0].x, o[k][0].y, o[k][0].z, o[k][0].w, o[k][1].x, o[k][1].y, o[k][1].z, o[k][1].w};
#pragma unroll
      for (int j = 0; j < 8; ++j) total[j] = fmaf(weight[k], v[j], total[j]);
    }
    Pack<__nv_bfloat16> out;
#pragma unroll
    for (int j = 0; j < 8; ++j) out.v[j] = __float2bfloat16_rn(sum > 0 ? total[j] / sum : 0.f);
    return out;
  }
  // 16 bytes of x: pack i. The packs of a block are turned by its number, so that lanes of eight blocks do not collide.
  __device__ __forceinline__ Pack<__nv_bfloat16>& x_pack(int i) const {
    const int block = i / 8;
    return *in_shared<Pack<__nv_bfloat16>>(at.x + block * S::kXPitch + ((i ^ block) % 8) * 16);
  }
  // x, normalized if asked, into shared memory, and the sum of each of its blocks; zeros up to a whole piece.
  __device__ __forceinline__ void store_x(const StreamLinear& a, int n, const StreamAhead& e) const {
    const int packs = a.cols / 8, blocks = a.cols / kBlock;  // packs: a multiple of 32
    Pack<__nv_bfloat16> v[kStreamPacks];
    float squares = 0;
#pragma unroll
    for (int k = 0; k < kStreamPacks; ++k) {
      const int i = k * kStreamThreads + threadIdx.x;
      if (i >= packs) break;
      if (a.x) {
        const uint4 raw = __ldcg(reinterpret_cast<const uint4*>(a.x) + i);
        v[k] = reinterpret_cast<const Pack<__nv_bfloat16>&>(raw);
      } else {
        v[k] = merged_pack(p.attend[n / 4], i);
      }
    }
    float rstd = 1;
    if (a.norm) {
#pragma unroll
      for (int k = 0; k < kStreamPacks; ++k) {
        if (k * kStreamThreads + static_cast<int>(threadIdx.x) >= packs) break;
#pragma unroll
        for (int j = 0; j < 8; ++j) squares = fmaf(to_f(v[k].v[j]), to_f(v[k].v[j]), squares);
      }
      rstd = 1.f / sqrtf(block_sum<kStreamThreads>(squares) / static_cast<float>(a.cols) + a.eps);
    }
#pragma unroll
    for (int k = 0; k < kStreamPacks; ++k) {
      const int i = k * kStreamThreads + threadIdx.x;
      if (i >= packs) break;
      if (a.norm) {
        float4 w[2] = {e.norm[0], e.norm[1]};
        if (k > 0) load_norm(w, a, i);
        const float weight[8] = {w[0].x, w[0].y, w[0].z, w[0].w, w[1].x, w[1].y, w[1].z, w[1].w};
#pragma unroll
        for (int j = 0; j < 8; ++j)
          v[k].v[j] = __float2bfloat16_rn(to_f(__float2bfloat16_rn(to_f(v[k].v[j]) * rstd)) * weight[j]);
      }
      x_pack(i) = v[k];
      float sum = 0;
#pragma unroll
      for (int j = 0; j < 8; ++j) sum += to_f(v[k].v[j]);
#pragma unroll
      for (int offset = 4; offset > 0; offset /= 2) sum += __shfl_xor_sync(kFullWarp, sum, offset);
      if (lane % 8 == 0) in_shared<float>(at.block_sums)[i / 8] = sum;
    }
    const int spare = chunks_of(a) * kStreamBlocks - blocks;
    if (static_cast<int>(threadIdx.x) < spare * 8) {
      x_pack(packs + threadIdx.x) = Pack<__nv_bfloat16>{};
      if (threadIdx.x % 8 == 0) in_shared<float>(at.block_sums)[blocks + threadIdx.x / 8] = 0;
    }
  }

  // ---- u = x A'^T --------------------------------------------------------------------------------------------------------
  // This warp's parts of it, each published together with the number of the linear, so that one look says that it is there.
  __device__ __forceinline__ void make_u(const StreamLinear& a, int n, const StreamAhead& e) const {
    const int units = a.ranks * a.segments;
    for (int unit = first_unit(); unit < units; unit += gridDim.x * kStreamWarps) {
      Pack<__nv_bfloat16> w[kLinearSegment / 8 / kWarp];
      if (unit == first_unit()) {
#pragma unroll
        for (int k = 0; k < kLinearSegment / 8 / kWarp; ++k) w[k] = e.a[k];
      } else load_a(w, a, unit);
      const int row = unit / a.segments, segment = unit % a.segments;
      float sum = 0;
#pragma unroll
      for (int k = 0; k < kLinearSegment / 8 / kWarp; ++k) {
        const int column = segment * kLinearSegment + (k * kWarp + lane) * 8;
        if (column >= a.cols) break;
        const Pack<__nv_bfloat16> v = x_pack(column / 8);
#pragma unroll
        for (int i = 0; i < 8; ++i) sum = fmaf(to_f(w[k].v[i]), to_f(v.v[i]), sum);
      }
      sum = warp_sum(sum);
      if (lane == 0)
        asm volatile("st.volatile.global.v2.u32 [%0], {%1, %2};" ::"l"(p.all.u + segment * a.ranks + row),
                     "r"(__float_as_uint(sum)), "r"(epoch + n + 1)
                     : "memory");
    }
  }
  // Everybody's parts, waited for.
  __device__ __forceinline__ void fetch_u(const StreamLinear& a, int n) const {
    for (int i = threadIdx.x; i < a.ranks * a.segments; i += kStreamThreads) {
      uint32_t value, number;
      do {
        asm volatile("ld.volatile.global.v2.u32 {%0, %1}, [%2];" : "=r"(value), "=r"(number) : "l"(p.all.u + i) : "memory");
      } while (number != epoch + n + 1);
      in_shared<float>(at.u_parts)[i] = __uint_as_float(value);
    }
    __syncthreads();
    for (int i = threadIdx.x; i < a.ranks; i += kStreamThreads) {
      float sum = 0;
      for (int k = 0; k < a.segments; ++k) sum += in_shared<float>(at.u_parts)[k * a.ranks + i];
      in_shared<float>(at.u)[i] = sum;
    }
  }

  // ---- products --------------------------------------------------------------------------------------------------------
  // product += part i of a piece (16 rows by two blocks) times x, whose words are zero in all but the column of its block.
  __device__ __forceinline__ void multiply_part(float (&product)[2][4], const char* piece, int i,
                                                const uint32_t (&own)[16], bool here) const {
    Codes<kBits> low[2], high[2];
    load_lane_codes<kBits>(low, piece + g * S::kPitch, i * 4 + q, g % 2);
    load_lane_codes<kBits>(high, piece + (g + 8) * S::kPitch, i * 4 + q, g % 2);
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const auto step = [&](auto s) {
        constexpr int kFirst = 2 * s.value;
        const auto levels = [&](auto which, const Codes<kBits>& codes) {
          return load_pair(codes.template wide_address<which.value>(lane * 4));
        };
        constexpr std::integral_constant<int, kFirst> first{};
        constexpr std::integral_constant<int, kFirst + 1> second{};
        const uint32_t w[4] = {levels(first, low[h]), levels(first, high[h]), levels(second, low[h]),
                               levels(second, high[h])};
        const uint32_t b0 = here ? own[h * 8 + kFirst] : 0, b1 = here ? own[h * 8 + kFirst + 1] : 0;
        mma_m16n8k16(product[s.value % 2], w, b0, b1);
      };
      step(std::integral_constant<int, 0>{});
      step(std::integral_constant<int, 1>{});
      step(std::integral_constant<int, 2>{});
      step(std::integral_constant<int, 3>{});
    }
  }
  // A piece: the sums of its 16 rows into `to`. Column j of the product is block j: lane (g, q) holds blocks 2q, 2q + 1 of
  // rows g and g + 8.
  __device__ __forceinline__ void multiply(const StreamSlot& s, const TileRows& rows, int chunk, const char* piece,
                                           float* to) const {
    const int block = chunk * kStreamBlocks + g;
    const char* x = shared + at.x + block * S::kXPitch;
    uint32_t own[16];
#pragma unroll
    for (int k = 0; k < 4; ++k) {
      const uint4 v = *reinterpret_cast<const uint4*>(x + (((q % 2 * 4 + k) ^ g) * 16));
      own[4 * k] = v.x, own[4 * k + 1] = v.y, own[4 * k + 2] = v.z, own[4 * k + 3] = v.w;
    }
    const bool mine = q / 2 == g % 2;
    float product[2][4] = {};
#pragma unroll
    for (int i = 0; i < 4; ++i) multiply_part(product, piece, i, own, mine && g / 2 == i);
    const float2 total = *in_shared<float2>(at.block_sums + (chunk * kStreamBlocks + 2 * q) * 4);
    const float* map = in_shared<float>(at.map);
    float sum[2] = {};
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const int row = g + 8 * r, part = r == 0 ? rows.low_part : rows.high_part;
      const auto codes = [&](int shift) {
        return *reinterpret_cast<const uint16_t*>(piece + S::kScales + (shift * kLinearRows + row) * kStreamBlocks + 2 * q);
      };
      const auto factor = [&](int shift) {
        return *reinterpret_cast<const float*>(piece + S::kFactors + ((shift * kLinearRows + row) * 2 + q / 2) * 4);
      };
      const uint32_t scales = codes(0);
      const float offset = s.offset[part], f = factor(0);
      const float s0 = __fadd_rn(__fmul_rn(map[scales & 255], f), offset) * p.all.unit,
                  s1 = __fadd_rn(__fmul_rn(map[scales >> 8], f), offset) * p.all.unit;
      sum[r] = fmaf(s0, product[0][2 * r] + product[1][2 * r], sum[r]);
      sum[r] = fmaf(s1, product[0][2 * r + 1] + product[1][2 * r + 1], sum[r]);
      if (!s.a.part[part].tau_codes) continue;
      const uint32_t shifts = codes(1);
      const float t = factor(1);
      sum[r] = fmaf(__fmul_rn(map[shifts & 255], t), total.x, sum[r]);
      sum[r] = fmaf(__fmul_rn(map[shifts >> 8], t), total.y, sum[r]);
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      sum[r] += __shfl_xor_sync(kFullWarp, sum[r], 1);
      sum[r] += __shfl_xor_sync(kFullWarp, sum[r], 2);
    }
    if (q < 2) to[g + 8 * q] = q == 0 ? sum[0] : sum[1];
  }
  // All pieces of this warp.
  __device__ __forceinline__ void products(int n) {
    const StreamSlot& s = slot(n);
    const int chunks = chunks_of(s.a), tiles = own_tiles(s.a);
    int tile = 0, chunk = warp;
    for (;; chunk += kStreamWarps) {
      while (chunk >= chunks) chunk -= chunks, ++tile;
      if (tile >= tiles) return;
      if (issued - consumed > 1) cp_async_wait<1>();
      else cp_async_wait<0>();
      __syncwarp();
      multiply(s, rows_of_tile(s.a, blockIdx.x + tile * gridDim.x), chunk, stage(consumed),
               partial() + (tile * chunks + chunk) * kLinearRows);
      __syncwarp();  // all lanes have read the stage
      ++consumed;
      fill(n);
    }
  }

  // ---- finish ----------------------------------------------------------------------------------------------------------
  // Eight lanes have a row of the result; neighbours of eight have rows r and r + 8 of one tile.
  struct Item {
    int tile, row_in_tile, part, row;  // tile: this block's; row: of the part
    bool there;
  };
  __device__ __forceinline__ Item item(const StreamLinear& a, int i) const {
    const int tile = i / kLinearRows, j = i % kLinearRows;
    if (tile >= own_tiles(a)) return {0, 0, 0, 0, false};
    const TileRows rows = rows_of_tile(a, blockIdx.x + tile * gridDim.x);
    const bool upper = j % 2;
    return {tile, j / 2 + upper * 8, upper ? rows.high_part : rows.low_part, (upper ? rows.high : rows.low) + j / 2, true};
  }
  __device__ __forceinline__ StreamLate load_late(const StreamLinear& a, const Item& t) const {
    StreamLate late{};
    if (!t.there) return late;
    const StreamPart& w = a.part[t.part];
    if (t.row >= w.rows) return late;
    const int rank = lane % 8 * 8;
    if (w.b && rank < w.b_rank)
      late.b = __ldg(reinterpret_cast<const uint4*>(w.b + static_cast<int64_t>(t.row) * w.b_stride + rank));
    if (a.finish == Finish::add && a.base) late.first = to_f(__ldcg(a.base + w.first + t.row));
    if (a.finish == Finish::rope && t.part < 2) {
      const int position = __ldg(a.positions), pair = t.row % a.half;
      if (position < 0) return late;
      late.first = __ldg(a.cosine + static_cast<int64_t>(position) * a.cos_stride + pair);
      late.second = __ldg(a.sine + static_cast<int64_t>(position) * a.sin_stride + pair);
    }
    return late;
  }
  // u_part times this lane's ranks of a row of B.
  __device__ __forceinline__ float adapter_term(const StreamPart& w, int row, const uint4& first) const {
    float sum = 0;
    for (int rank = lane % 8 * 8; rank < w.b_rank; rank += 64) {
      const uint4 b = rank < 64 ? first : __ldg(reinterpret_cast<const uint4*>(w.b + static_cast<int64_t>(row) * w.b_stride + rank));
      const float* u = in_shared<float>(at.u) + w.b_column + rank;
      const uint32_t words[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
      for (int k = 0; k < 4; ++k) {
        sum = fmaf(__uint_as_float(words[k] << 16), u[2 * k], sum);
        sum = fmaf(__uint_as_float(words[k] & 0xffff0000u), u[2 * k + 1], sum);
      }
    }
    return sum;
  }
  __device__ __forceinline__ void finish(const StreamLinear& a, int i, const StreamLate& late) const {
    const Item t = item(a, i);
    const StreamPart& w = a.part[t.part];
    float sum = 0;
    if (t.there) {
      const int chunks = chunks_of(a);
      const float* from = partial() + t.tile * chunks * kLinearRows + t.row_in_tile;
      for (int k = lane % 8; k < chunks; k += 8) sum += from[k * kLinearRows];
      if (w.b && t.row < w.rows) sum += adapter_term(w, t.row, late.b);
    }
#pragma unroll
    for (int offset = 4; offset > 0; offset /= 2) sum += __shfl_xor_sync(kFullWarp, sum, offset);
    const float other = __shfl_xor_sync(kFullWarp, sum, 8);
    if (!t.there || lane % 8 != 0 || t.row >= w.rows) return;
    const bool upper = t.row_in_tile >= 8;
    if (a.finish == Finish::add) {
      if (a.base) sum = fmaf(a.base_scale, late.first, sum);
      a.y[w.first + t.row] = __float2bfloat16_rn(sum);
    } else if (a.finish == Finish::swiglu) {
      if (!upper) a.y[t.row] = __float2bfloat16_rn(sum / (1.f + expf(-sum)) * other);
    } else {
      const float z = t.part == 2 ? sum : upper ? sum * late.first + other * late.second : sum * late.first - other * late.second;
      const int to = __ldg(a.cache_rows);
      __nv_bfloat16* out = t.part == 0 ? a.y
                           : to < 0    ? nullptr
                                       : (t.part == 1 ? a.keys : a.values) + static_cast<int64_t>(to) * a.kv_stride;
      if (out) out[t.row] = __float2bfloat16_rn(z);
    }
  }

  // One linear, whose x is there.
  __device__ __forceinline__ void linear(int n, const StreamAhead& e) {
    const StreamLinear& a = slot(n).a;
    store_x(a, n, e);
    __syncthreads();
    if (a.ranks > 0) make_u(a, n, e);
    fill(n);
    products(n);
    constexpr int kRowsAtOnce = kStreamThreads / 8, kLate = 3;
    const int items = own_tiles(a) * kLinearRows, mine = threadIdx.x / 8;
    StreamLate late[kLate];
#pragma unroll
    for (int k = 0; k < kLate; ++k) late[k] = load_late(a, item(a, k * kRowsAtOnce + mine));
    if (a.ranks > 0) fetch_u(a, n);
    __syncthreads();  // partial sums and u are there
#pragma unroll
    for (int k = 0; k < kLate; ++k)
      if (k * kRowsAtOnce < items) finish(a, k * kRowsAtOnce + mine, late[k]);
    for (int i = kLate * kRowsAtOnce; i < items; i += kRowsAtOnce) finish(a, i + mine, load_late(a, item(a, i + mine)));
  }
};

}  // namespace irq
