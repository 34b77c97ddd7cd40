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
  uint4 a[kLinearSegment / 8 / kWarp];
  float4 norm[2];
};
// And before its sums are: for the rows of the result that it finishes.
struct StreamLate {
  uint4 b;
  float first, second;  // cosine and sine
  __nv_bfloat16 base;   // what is added
};
// Eight bf16 as floats.
__device__ __forceinline__ void unpack(float (&out)[8], const uint4& v) {
  const uint32_t words[4] = {v.x, v.y, v.z, v.w};
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    out[2 * i] = __uint_as_float(words[i] << 16);
    out[2 * i + 1] = __uint_as_float(words[i] & 0xffff0000u);
  }
}

template <int kBits>
struct StreamBlock {
  using S = StreamShape<kBits>;
  using Finish = PackedLinear::Finish;
  const StreamProgram& p;
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
    if (i == kWords) {
      to.chunks = (p.linear[n].cols + kStreamColumns - 1) / kStreamColumns;
      to.tiles = (p.linear[n].tiles - static_cast<int>(blockIdx.x) + static_cast<int>(gridDim.x) - 1) /
                 static_cast<int>(gridDim.x);
    }
    if (i == kWords + 1 && p.linear[n].positions)
      to.position = __ldg(p.linear[n].positions), to.cache_row = __ldg(p.linear[n].cache_rows);
  }

  // ---- copies ----------------------------------------------------------------------------------------------------------
  // Starts copying a piece. Rows and blocks past the end are zeros.
  __device__ __forceinline__ void copy_piece(const StreamLinear& a, int tile, int chunk, char* to_stage) const {
    const TileRows rows = rows_of_tile(a, tile);
    const uint32_t to = smem_address(to_stage);
    const int blocks = a.cols / kBlock, row_bytes = blocks * S::kBlockBytes;
    const StreamPart &low = a.part[rows.low_part], &high = a.part[rows.high_part];
    const int count_low = low.rows - rows.low, count_high = high.rows - rows.high;  // from here on
    constexpr int kHalf = 8 * S::kPieces;
    static_assert(kHalf % kWarp == 0);
    const auto copy_half = [&](const uint8_t* codes, int count, uint32_t half) {
#pragma unroll
      for (int k = 0; k < kHalf; k += kWarp) {
        const int i = k + lane, r = i / S::kPieces, piece = i % S::kPieces, byte = chunk * S::kRowBytes + piece * 16;
        const int place = kBits == 4 ? piece ^ (r % 2 << 2) : piece;
        cp_async_16(half + r * S::kPitch + place * 16, codes + r * row_bytes + byte, byte < row_bytes && r < count);
      }
    };
    copy_half(low.codes + rows.low * row_bytes, count_low, to);
    copy_half(high.codes + rows.high * row_bytes, count_high, to + 8 * S::kPitch);
    const int r = lane % kLinearRows, shift = lane / kLinearRows;
    const bool upper = r >= 8;
    const StreamPart& w = a.part[upper ? rows.high_part : rows.low_part];
    const uint8_t* codes = shift ? w.tau_codes : w.scale_codes;
    const float* groups = shift ? w.tau_groups : w.scale_groups;
    if (!codes) return;
    const int row = upper ? rows.high + r - 8 : rows.low + r;
    const bool there = row < w.rows;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int first = chunk * kStreamBlocks + h * 4;
      const bool valid = there && first < blocks;
      const int block = valid ? row * blocks + first : 0;
      cp_async_4(to + S::kScales + (shift * kLinearRows + r) * kStreamBlocks + h * 4, codes + block, valid);
      cp_async_4(to + S::kFactors + ((shift * kLinearRows + r) * 2 + h) * 4, groups + block / kScaleGroup, valid);
    }
  }
  // Keeps the stages full, with pieces of linear n and of the two behind it.
  __device__ __forceinline__ void fill(int n) {
    while (issued - consumed < kStreamStages) {
      if (ahead.linear >= p.count || ahead.linear > n + 2) return;
      const StreamSlot& s = slot(ahead.linear);
      const int chunks = s.chunks;
      while (ahead.chunk >= chunks) ahead.chunk -= chunks, ++ahead.tile;
      if (ahead.tile >= s.tiles) {
        ++ahead.linear, ahead.tile = 0, ahead.chunk = warp;
        continue;
      }
      copy_piece(s.a, blockIdx.x + ahead.tile * gridDim.x, ahead.chunk, stage(issued));
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
  __device__ __forceinline__ void load_a(uint4 (&w)[kLinearSegment / 8 / kWarp], const StreamLinear& a,
                                         int unit) const {
    const int first = unit % a.segments * kLinearSegment;
    const __nv_bfloat16* row = a.a + static_cast<int64_t>(unit / a.segments) * a.a_stride;
#pragma unroll
    for (int k = 0; k < kLinearSegment / 8 / kWarp; ++k) {
      const int column = first + (k * kWarp + lane) * 8;
      if (column < a.cols) w[k] = __ldg(reinterpret_cast<const uint4*>(row + column));
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
  __device__ __forceinline__ uint4 merged_pack(const StreamAttention& t, int i) const {
    const int head = i * 8 / t.head_dim, column = i * 8 - head * t.head_dim;
    float2 of[kStreamSplits];
    float4 o[kStreamSplits][2];
#pragma unroll
    for (int k = 0; k < kStreamSplits; ++k) {
      const int record = head * t.splits + min(k, t.splits - 1);
      const float4* from = reinterpret_cast<const float4*>(p.all.record_o + record * t.head_dim + column);
      of[k] = __ldcg(p.all.record_sum + record), o[k][0] = __ldcg(from), o[k][1] = __ldcg(from + 1);
    }
    float largest = -INFINITY, sum = 0, total[8] = {};
#pragma unroll
    for (int k = 0; k < kStreamSplits; ++k) largest = fmaxf(largest, of[k].x);
#pragma unroll
    for (int k = 0; k < kStreamSplits; ++k) {
      const float weight = k < t.splits && of[k].y > 0 ? expf(of[k].x - largest) : 0.f;
      sum = fmaf(weight, of[k].y, sum);
      const float v[8] = {o[k][0].x, o[k][0].y, o[k][0].z, o[k][0].w, o[k][1].x, o[k][1].y, o[k][1].z, o[k][1].w};
#pragma unroll
      for (int j = 0; j < 8; ++j) total[j] = fmaf(weight, v[j], total[j]);
    }
#pragma unroll
    for (int j = 0; j < 8; ++j) total[j] = sum > 0 ? total[j] / sum : 0.f;
    return make_uint4(pack_bf16(total[0], total[1]), pack_bf16(total[2], total[3]), pack_bf16(total[4], total[5]),
                      pack_bf16(total[6], total[7]));
  }
  // 16 bytes of x: pack i. The packs of a block are turned by its number, so that lanes of eight blocks do not collide.
  __device__ __forceinline__ uint4& x_pack(int i) const {
    const int block = i / 8;
    return *in_shared<uint4>(at.x + block * S::kXPitch + ((i ^ block) % 8) * 16);
  }
  // What linear n gave, waited for.
  __device__ __forceinline__ void receive(uint4 (&raw)[kStreamPacks], int packs, int n) const {
    const uint2* from = p.all.result[n % 4 - 1];
    const uint32_t number = epoch + n + 1;
    uint4 w[kStreamPacks][2];
    const auto load = [&](int k, int i) {
#pragma unroll
      for (int h = 0; h < 2; ++h)
        asm volatile("ld.volatile.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                     : "=r"(w[k][h].x), "=r"(w[k][h].y), "=r"(w[k][h].z), "=r"(w[k][h].w)
                     : "l"(from + 4 * i + 2 * h)
                     : "memory");
    };
#pragma unroll
    for (int k = 0; k < kStreamPacks; ++k)
      if (const int i = k * kStreamThreads + threadIdx.x; i < packs) load(k, i);
#pragma unroll
    for (int k = 0; k < kStreamPacks; ++k) {
      const int i = k * kStreamThreads + threadIdx.x;
      if (i >= packs) break;
      while (w[k][0].y != number || w[k][0].w != number || w[k][1].y != number || w[k][1].w != number) load(k, i);
      raw[k] = make_uint4(w[k][0].x, w[k][0].z, w[k][1].x, w[k][1].z);
    }
  }
  // x, normalized if asked, into shared memory, and the sum of each of its blocks; zeros up to a whole piece.
  __device__ __forceinline__ void store_x(const StreamLinear& a, int n, const StreamAhead& e) const {
    const int packs = a.cols / 8, blocks = a.cols / kBlock;  // packs: a multiple of 32
    float rstd = 1;
    if (n % 4 != 1) {
      uint4 raw[kStreamPacks];
      float squares = 0;
      if (n == 0) {
#pragma unroll
        for (int k = 0; k < kStreamPacks; ++k)
          if (const int i = k * kStreamThreads + threadIdx.x; i < packs)
            raw[k] = __ldcg(reinterpret_cast<const uint4*>(a.x) + i);
      } else {
        receive(raw, packs, n - 1);
      }
#pragma unroll
      for (int k = 0; k < kStreamPacks; ++k) {
        const int i = k * kStreamThreads + threadIdx.x;
        if (i >= packs) break;
        x_pack(i) = raw[k];
        float v[8];
        unpack(v, raw[k]);
#pragma unroll
        for (int j = 0; j < 8; ++j) squares = fmaf(v[j], v[j], squares);
      }
      if (a.norm) rstd = 1.f / sqrtf(block_sum<kStreamThreads>(squares) / static_cast<float>(a.cols) + a.eps);
    } else {
#pragma unroll 1
      for (int i = threadIdx.x; i < packs; i += kStreamThreads) x_pack(i) = merged_pack(p.attend[n / 4], i);
    }
#pragma unroll 1
    for (int i = threadIdx.x; i < packs; i += kStreamThreads) {  // what this thread wrote
      float v[8];
      unpack(v, x_pack(i));
      if (a.norm) {
        float4 w[2] = {e.norm[0], e.norm[1]};
        if (i != static_cast<int>(threadIdx.x)) load_norm(w, a, i);
        const float weight[8] = {w[0].x, w[0].y, w[0].z, w[0].w, w[1].x, w[1].y, w[1].z, w[1].w};
        uint32_t words[4];
#pragma unroll
        for (int j = 0; j < 4; ++j) {
          const uint32_t n01 = pack_bf16(v[2 * j] * rstd, v[2 * j + 1] * rstd);  // rounded before the norm's weight
          words[j] = pack_bf16(__uint_as_float(n01 << 16) * weight[2 * j],
                               __uint_as_float(n01 & 0xffff0000u) * weight[2 * j + 1]);
        }
        const uint4 normalized = make_uint4(words[0], words[1], words[2], words[3]);
        x_pack(i) = normalized;
        unpack(v, normalized);
      }
      float sum = 0;
#pragma unroll
      for (int j = 0; j < 8; ++j) sum += v[j];
#pragma unroll
      for (int offset = 4; offset > 0; offset /= 2) sum += __shfl_xor_sync(kFullWarp, sum, offset);
      if (lane % 8 == 0) in_shared<float>(at.block_sums)[i / 8] = sum;
    }
    const int spare = slot(n).chunks * kStreamBlocks - blocks;
    if (static_cast<int>(threadIdx.x) < spare * 8) {
      x_pack(packs + threadIdx.x) = make_uint4(0, 0, 0, 0);
      if (threadIdx.x % 8 == 0) in_shared<float>(at.block_sums)[blocks + threadIdx.x / 8] = 0;
    }
  }

  // A word for the other blocks, with the number of its linear.
  __device__ __forceinline__ void send(uint2* to, uint32_t word, int n) const {
    asm volatile("st.volatile.global.v2.u32 [%0], {%1, %2};" ::"l"(to), "r"(word), "r"(epoch + n + 1) : "memory");
  }

  // ---- u = x A'^T --------------------------------------------------------------------------------------------------------
  // This warp's parts of it, each published together with the number of the linear, so that one look says that it is there.
  __device__ __forceinline__ void make_u(const StreamLinear& a, int n, const StreamAhead& e) const {
    const int units = a.ranks * a.segments;
#pragma unroll 1
    for (int unit = first_unit(); unit < units; unit += gridDim.x * kStreamWarps) {
      uint4 w[kLinearSegment / 8 / kWarp];
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
        float left[8], right[8];
        unpack(left, w[k]), unpack(right, x_pack(column / 8));
#pragma unroll
        for (int i = 0; i < 8; ++i) sum = fmaf(left[i], right[i], sum);
      }
      sum = warp_sum(sum);
      if (lane == 0) send(p.all.u + segment * a.ranks + row, __float_as_uint(sum), n);
    }
  }
  // Everybody's parts, waited for.
  __device__ __forceinline__ void fetch_u(const StreamLinear& a, int n) const {
    for (int i = threadIdx.x; i < a.ranks * a.segments; i += kStreamThreads) {
      uint32_t value, number;
      do {
        asm volatile("ld.volatile.global.v2.u32 {%0, %1}, [%2];"
                     : "=r"(value), "=r"(number)
                     : "l"(p.all.u + i)
                     : "memory");
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
        return *reinterpret_cast<const uint16_t*>(piece + S::kScales + (shift * kLinearRows + row) * kStreamBlocks +
                                                  2 * q);
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
    const int chunks = s.chunks, tiles = s.tiles;
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
  __device__ __forceinline__ Item item(const StreamSlot& s, int i) const {
    const StreamLinear& a = s.a;
    const int tile = i / kLinearRows, j = i % kLinearRows;
    if (tile >= s.tiles) return {0, 0, 0, 0, false};
    const TileRows rows = rows_of_tile(a, blockIdx.x + tile * gridDim.x);
    const bool upper = j % 2;
    return {tile, j / 2 + upper * 8, upper ? rows.high_part : rows.low_part, (upper ? rows.high : rows.low) + j / 2,
            true};
  }
  __device__ __forceinline__ StreamLate load_late(const StreamSlot& s, int i) const {
    const StreamLinear& a = s.a;
    const Item t = item(s, i);
    StreamLate late{};
    if (!t.there) return late;
    const StreamPart& w = a.part[t.part];
    if (t.row >= w.rows) return late;
    const int rank = lane % 8 * 8;
    if (w.b && rank < w.b_rank)
      late.b = __ldg(reinterpret_cast<const uint4*>(w.b + static_cast<int64_t>(t.row) * w.b_stride + rank));
    if (a.finish == Finish::add && a.base) late.base = __ldcg(a.base + w.first + t.row);
    if (a.finish == Finish::rope && t.part < 2) {
      const int position = s.position, pair = t.row & (a.half - 1);
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
      const uint4 b = rank < 64
                          ? first
                          : __ldg(reinterpret_cast<const uint4*>(w.b + static_cast<int64_t>(row) * w.b_stride + rank));
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
  __device__ __forceinline__ void finish(const StreamSlot& s, int n, int i, const StreamLate& late) const {
    const StreamLinear& a = s.a;
    const Item t = item(s, i);
    const StreamPart& w = a.part[t.part];
    float sum = 0;
    if (t.there) {
      const int chunks = s.chunks;
      const float* from = partial() + t.tile * chunks * kLinearRows + t.row_in_tile;
      for (int k = lane % 8; k < chunks; k += 8) sum += from[k * kLinearRows];
      if (w.b && t.row < w.rows) sum += adapter_term(w, t.row, late.b);
    }
#pragma unroll
    for (int offset = 4; offset > 0; offset /= 2) sum += __shfl_xor_sync(kFullWarp, sum, offset);
    const float other = __shfl_xor_sync(kFullWarp, sum, 8);
    const bool upper = t.row_in_tile >= 8, mine = t.there && lane % 8 == 0 && t.row < w.rows;
    if (a.finish != Finish::rope) {  // rows r and r + 1 are sixteen lanes apart
      if (a.finish == Finish::swiglu) sum = sum / (1.f + expf(-sum)) * other;
      else if (a.base) sum = fmaf(a.base_scale, to_f(late.base), sum);
      const float next = __shfl_down_sync(kFullWarp, sum, 16);
      if (!mine || (a.finish == Finish::swiglu && upper)) return;
      if (a.finish == Finish::add) a.y[w.first + t.row] = __float2bfloat16_rn(sum);
      if (lane < 16) send(p.all.result[n % 4 - 1] + (w.first + t.row) / 2, pack_bf16(sum, next), n);
    } else if (mine) {
      const float z = t.part == 2 ? sum
                      : upper     ? sum * late.first + other * late.second
                                  : sum * late.first - other * late.second;
      const int to = s.cache_row;
      __nv_bfloat16* out = t.part == 0 ? a.y
                           : to < 0    ? nullptr
                                       : (t.part == 1 ? a.keys : a.values) + static_cast<int64_t>(to) * a.kv_stride;
      if (out) out[t.row] = __float2bfloat16_rn(z);
    }
  }

  // One linear, whose x is there.
  __device__ __forceinline__ void linear(int n, const StreamAhead& e) {
    const StreamSlot& s = slot(n);
    const StreamLinear& a = s.a;
    constexpr int kRowsAtOnce = kStreamThreads / 8, kLate = 3;
    const int items = s.tiles * kLinearRows, mine = threadIdx.x / 8;
    store_x(a, n, e);
    __syncthreads();
    load_slot(n + kStreamSlots - 1);  // where linear n - 1 was, which everybody has left
    if (a.ranks > 0) make_u(a, n, e);
    fill(n);
    StreamLate late[kLate];
    late[0] = load_late(s, mine);
    products(n);
#pragma unroll
    for (int k = 1; k < kLate; ++k)
      if (k * kRowsAtOnce < items) late[k] = load_late(s, k * kRowsAtOnce + mine);
    if (a.ranks > 0 && items > 0) fetch_u(a, n);  // who has no rows is not waited for, and must not wait
    __syncthreads();                              // partial sums and u are there
#pragma unroll
    for (int k = 0; k < kLate; ++k)
      if (k * kRowsAtOnce < items) finish(s, n, k * kRowsAtOnce + mine, late[k]);
#pragma unroll 1
    for (int i = kLate * kRowsAtOnce; i < items; i += kRowsAtOnce) finish(s, n, i + mine, load_late(s, i + mine));
  }
};

}  // namespace irq
