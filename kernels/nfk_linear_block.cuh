// What one thread block of nfk_linear.cu does: its copies, x and u, products of pieces of tiles, and the finish of a tile.
#pragma once
#include "kernels/nfk_linear_loads.cuh"

namespace irq {

template <int kBits, int kM, int kStages>
struct LinearBlock {
  using S = LinearShape<kBits>;
  // The table of pairs: a pitch of 256 bytes saves an instruction a pair; eight rows of x need the room.
  static constexpr int kTablePitch = kM == 1 ? 256 : 128;
  const PackedLinearArgs& a;
  const LinearMemory& at;
  char* shared;
  const int lane = threadIdx.x % kWarp, group = threadIdx.x / (kLinearWarps * kWarp),
            warp = threadIdx.x / kWarp % kLinearWarps, g = lane / 4, p = lane % 4;
  const int blocks = a.cols / kBlock, chunks = a.cols / kLinearColumns;
  const int rounds = (chunks + kLinearWarps - 1) / kLinearWarps;  // pieces of a tile that a warp has at most

  template <class T>
  __device__ __forceinline__ T* in_shared(int offset) const {
    return reinterpret_cast<T*>(shared + offset);
  }
  __device__ __forceinline__ float& partial(int buffer, int by, int row, int m) const {
    return in_shared<float>(
        at.partial)[(((group * 2 + buffer) * (kLinearWarps + 1) + by) * kLinearRows + row) * kM + m];
  }
  __device__ __forceinline__ char* stage(int i) const {
    return shared + at.stages + ((group * kLinearWarps + warp) * kStages + i) * S::kStage;
  }
  __device__ __forceinline__ float* group_u() const {
    return in_shared<float>(at.u) + group * ((a.ranks * a.m_count + 3) / 4 * 4);
  }
  __device__ __forceinline__ void group_barrier() const {
    asm volatile("bar.sync %0, %1;" ::"r"(group + 1), "n"(kLinearWarps * kWarp) : "memory");
  }

  // Starts copying this warp's piece `chunk` of a tile. Rows past the end repeat the last and are not stored. 32 bits hold
  // any offset (takes() looks).
  __device__ __forceinline__ void copy_piece(int tile, int chunk, int to_stage) const {
    const TileRows rows = rows_of_tile(a, tile);
    const uint32_t to = smem_address(stage(to_stage));
    const int row_bytes = blocks * S::kBlockBytes;
    const PackedView &low = a.part[rows.low_part], &high = a.part[rows.high_part];
    const int last_low = static_cast<int>(low.rows) - 1 - rows.low,
              last_high = static_cast<int>(high.rows) - 1 - rows.high;
    const uint8_t* low_codes = low.codes + rows.low * row_bytes + chunk * S::kChunkBytes;
    const uint8_t* high_codes = high.codes + rows.high * row_bytes + chunk * S::kChunkBytes;
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

  __device__ __forceinline__ int first_unit() const { return blockIdx.x + (group * kLinearWarps + warp) * gridDim.x; }
  __device__ __forceinline__ void load_early(LinearEarly& e) const {
    if (threadIdx.x < a.cols / 8 && a.norm) load_norm(e.norm, a, threadIdx.x);
    if (threadIdx.x < 256) e.map_entry = __ldg(a.part[0].map + threadIdx.x);
    if (first_unit() < a.ranks * a.segments) load_a(e.a, a, first_unit(), lane);
  }

  // x, normalized if asked, into shared memory, and the sum of each of its blocks.
  __device__ __forceinline__ void store_x(const LinearEarly& e) const {
    const int packs = a.cols / 8;  // a multiple of 32: whole warps, whole blocks
    for (int m = 0; m < a.m_count; ++m) {
      Pack<__nv_bfloat16>* row =
          reinterpret_cast<Pack<__nv_bfloat16>*>(in_shared<__nv_bfloat16>(at.x) + m * at.x_pitch);
      float squares = 0;
      for (int i = threadIdx.x; i < packs; i += kLinearThreads) {
        const Pack<__nv_bfloat16> v = m == 0 && i == static_cast<int>(threadIdx.x) ? e.x : x_row(a, m)[i];
#pragma unroll
        for (int k = 0; k < 8; ++k) squares = fmaf(to_f(v.v[k]), to_f(v.v[k]), squares);
        row[i] = v;
      }
      const float rstd =
          a.norm ? 1.f / sqrtf(block_sum<kLinearThreads>(squares) / static_cast<float>(a.cols) + a.eps) : 1.f;
      for (int i = threadIdx.x; i < packs; i += kLinearThreads) {  // what this thread wrote
        Pack<__nv_bfloat16> v = row[i];
        if (a.norm) {
          float4 w[2] = {e.norm[0], e.norm[1]};
          if (i != static_cast<int>(threadIdx.x)) load_norm(w, a, i);
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

  // This warp's parts of u = x A'^T, published; they are dealt to the warps of different blocks first.
  __device__ __forceinline__ void make_u(const LinearEarly& e) const {
    const int units = a.ranks * a.segments;
    for (int unit = first_unit(); unit < units; unit += gridDim.x * kLinearGroups * kLinearWarps) {
      Pack<__nv_bfloat16> w[kLinearSegment / 8 / kWarp];
      if (unit == first_unit()) {
#pragma unroll
        for (int k = 0; k < kLinearSegment / 8 / kWarp; ++k) w[k] = e.a[k];
      } else load_a(w, a, unit, lane);
      const int row = unit / a.segments, segment = unit % a.segments;
#pragma unroll
      for (int m = 0; m < kM; ++m) {
        if (m >= a.m_count) break;
        float sum = 0;
#pragma unroll
        for (int k = 0; k < kLinearSegment / 8 / kWarp; ++k) {
          const int column = segment * kLinearSegment + (k * kWarp + lane) * 8;
          if (column >= a.cols) break;
          const Pack<__nv_bfloat16> v =
              *reinterpret_cast<const Pack<__nv_bfloat16>*>(in_shared<__nv_bfloat16>(at.x) + m * at.x_pitch + column);
#pragma unroll
          for (int i = 0; i < 8; ++i) sum = fmaf(to_f(w[k].v[i]), to_f(v.v[i]), sum);
        }
        sum = warp_sum(sum);
        if (lane == 0) __stcg(a.u + (m * a.segments + segment) * a.ranks + row, sum);
      }
      if (lane == 0) __threadfence(), atomicAdd(a.meet, 1);
    }
  }

  // Waits for everybody's parts of u and adds them up in a fixed order.
  __device__ __forceinline__ void fetch_u() const {
    const int thread = warp * kWarp + lane;
    if (thread == 0) {
      while (atomicAdd(a.meet, 0) < a.ranks * a.segments) __nanosleep(20);
      __threadfence();
    }
    group_barrier();
    for (int i = thread; i < a.ranks * a.m_count; i += kLinearWarps * kWarp) {
      const int m = i / a.ranks, row = i - m * a.ranks;
      float sum = 0;
#pragma unroll 4
      for (int k = 0; k < a.segments; ++k) sum += __ldcg(a.u + (m * a.segments + k) * a.ranks + row);
      group_u()[i] = sum;
    }
    group_barrier();
  }

  __device__ __forceinline__ float scale_of(const char* piece, int row, int block, float offset) const {
    const float entry = in_shared<float>(at.map)[reinterpret_cast<const uint8_t*>(piece)[S::kScales + row * 4 + block]];
    const float factor = *reinterpret_cast<const float*>(piece + S::kScaleGroups + row * 4);
    return __fadd_rn(__fmul_rn(entry, factor), offset) * a.unit;
  }
  __device__ __forceinline__ float shift_of(const char* piece, int row, int block, bool shifted) const {
    if (!shifted) return 0.f;
    const float entry = in_shared<float>(at.map)[reinterpret_cast<const uint8_t*>(piece)[S::kShifts + row * 4 + block]];
    return __fmul_rn(entry, *reinterpret_cast<const float*>(piece + S::kShiftGroups + row * 4));
  }
  // product += block j of the piece (16 rows) times this lane's 16 values of x.
  __device__ __forceinline__ void multiply_block(float (&product)[2][4], const char* codes, int j,
                                                 const uint4 (&v)[2]) const {
    const uint8_t* block = reinterpret_cast<const uint8_t*>(codes + j * S::kBlockBytes);
    const Codes<kBits> now[2] = {Codes<kBits>(block), Codes<kBits>(block + 8 * S::kPitch)};
    const auto step = [&](auto s) {
      constexpr int i = 2 * s.value;
      const auto levels = [&](auto which, const Codes<kBits>& codes) {
        if constexpr (kTablePitch == 256) return load_pair(codes.template wide_address<which.value>(lane * 4));
        else return load_pair(codes.template pair<which.value>() * kTablePitch + lane * 4);
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
  }

  // One piece: 16 rows by 4 blocks, added to sum: of rows g and g + 8 (sum[0], sum[2]) for one token; of tokens 2p and 2p + 1
  // in rows g (sum[0], sum[1]) and g + 8 (sum[2], sum[3]) for more.
  __device__ __forceinline__ void multiply(float (&sum)[4], const char* piece, int chunk, const float (&offset)[2],
                                           const bool (&shifted)[2]) const {
    const char* codes = piece + g * S::kPitch + p * 2 * kBits;
    const __nv_bfloat16* x = in_shared<__nv_bfloat16>(at.x) + chunk * kLinearColumns + p * 16;
    const float* sums = in_shared<float>(at.block_sums) + chunk * kLinearChunk;
    if constexpr (kM == 1) {
      // One token leaves seven of the product's eight columns free: column j takes block j, so that a piece is one chain
      // of products, and a lane that holds columns 2p and 2p + 1 of the result scales just those blocks.
      const uint4* mine = reinterpret_cast<const uint4*>(x + g % kLinearChunk * kBlock);
      const uint4 own[2] = {mine[0], mine[1]};
      float product[2][4] = {};
#pragma unroll
      for (int j = 0; j < kLinearChunk; ++j) {
        const bool here = g == j;
        const uint4 v[2] = {
            make_uint4(here ? own[0].x : 0, here ? own[0].y : 0, here ? own[0].z : 0, here ? own[0].w : 0),
            make_uint4(here ? own[1].x : 0, here ? own[1].y : 0, here ? own[1].z : 0, here ? own[1].w : 0)};
        multiply_block(product, codes, j, v);
      }
      const int pair = 2 * (p % 2);  // columns 4..7 hold zeros: lanes p = 2, 3 are not asked
#pragma unroll
      for (int r = 0; r < 2; ++r)
#pragma unroll
        for (int c = 0; c < 2; ++c) {
          const float s = scale_of(piece, g + 8 * r, pair + c, offset[r]),
                      t = shift_of(piece, g + 8 * r, pair + c, shifted[r]);
          sum[2 * r] = fmaf(s, product[0][2 * r + c] + product[1][2 * r + c], sum[2 * r]);
          sum[2 * r] = fmaf(t, sums[pair + c], sum[2 * r]);
        }
    } else {
      float scale[2], shift[2];
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        scale[r] = scale_of(piece, g + 8 * r, p, offset[r]);
        shift[r] = shift_of(piece, g + 8 * r, p, shifted[r]);
      }
      const __nv_bfloat16* row = x + min(g, a.m_count - 1) * at.x_pitch;
      const float *sums0 = sums + min(2 * p, a.m_count - 1) * blocks,
                  *sums1 = sums + min(2 * p + 1, a.m_count - 1) * blocks;
#pragma unroll
      for (int j = 0; j < kLinearChunk; ++j) {
        const uint4 v[2] = {reinterpret_cast<const uint4*>(row + j * kBlock)[0],
                            reinterpret_cast<const uint4*>(row + j * kBlock)[1]};
        float product[2][4] = {};  // two chains of dependent products
        multiply_block(product, codes, j, v);
        const float total[2] = {sums0[j], sums1[j]};
#pragma unroll
        for (int r = 0; r < 2; ++r) {
          const float s = __shfl_sync(kFullWarp, scale[r], (lane & ~3) + j),
                      t = __shfl_sync(kFullWarp, shift[r], (lane & ~3) + j);
#pragma unroll
          for (int c = 0; c < 2; ++c) {
            sum[2 * r + c] = fmaf(s, product[0][2 * r + c] + product[1][2 * r + c], sum[2 * r + c]);
            sum[2 * r + c] = fmaf(t, total[c], sum[2 * r + c]);
          }
        }
      }
    }
  }

  // The row of B that this half of a warp is for: lanes 0..15 row `warp` of the tile, lanes 16..31 row warp + 8.
  __device__ __forceinline__ const __nv_bfloat16* b_row(const TileRows& rows, int& part) const {
    part = lane < 16 ? rows.low_part : rows.high_part;
    const int row = (lane < 16 ? rows.low : rows.high) + warp;
    return a.b[part] && row < a.part[part].rows ? a.b[part] + row * a.b_stride[part] : nullptr;
  }
  // What the adapter adds to those rows. first: this lane's first four terms of B, loaded long before.
  __device__ __forceinline__ void add_adapter(const __nv_bfloat16* b, int part, const uint2& first, int buffer) const {
#pragma unroll
    for (int m = 0; m < kM; ++m) {
      if (m >= a.m_count) break;
      const float* u = group_u() + m * a.ranks + a.b_column[part];
      float sum = 0;
      for (int i = 4 * (lane % 16); b && i < a.b_rank[part]; i += 64) {
        const uint2 w = i < 64 ? first : *reinterpret_cast<const uint2*>(b + i);
        sum = fmaf(__uint_as_float(w.x << 16), u[i], sum);
        sum = fmaf(__uint_as_float(w.x & 0xffff0000u), u[i + 1], sum);
        sum = fmaf(__uint_as_float(w.y << 16), u[i + 2], sum);
        sum = fmaf(__uint_as_float(w.y & 0xffff0000u), u[i + 3], sum);
      }
#pragma unroll
      for (int offset = 8; offset > 0; offset /= 2) sum += __shfl_xor_sync(kFullWarp, sum, offset);
      if (lane % 16 == 0) partial(buffer, kLinearWarps, lane / 16 * 8 + warp, m) = sum;
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
      if (a.finish == PackedLinear::Finish::add) {
        store(m, rows.low_part, rows.low + r, low);
        store(m, rows.high_part, rows.high + r, high);
      } else if (a.finish == PackedLinear::Finish::swiglu) {
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
    const int first_tile = blockIdx.x + group * gridDim.x, stride = kLinearGroups * gridDim.x;
    int ahead_tile = first_tile, ahead_round = 0, ahead_stage = 0;
    const auto copy_next = [&] {
      const int chunk = ahead_round * kLinearWarps + warp;
      if (ahead_tile < a.tiles && chunk < chunks) copy_piece(ahead_tile, chunk, ahead_stage);
      cp_async_commit();
      ahead_stage = ahead_stage + 1 < kStages ? ahead_stage + 1 : 0;
      if (++ahead_round == rounds) ahead_round = 0, ahead_tile += stride;
    };
    LinearEarly early;
    load_early(early);
    let_next_kernel_begin();
#pragma unroll
    for (int k = 0; k < kStages; ++k) copy_next();
    fill_pair_table<kBits, kLinearThreads, kTablePitch>(in_shared<uint32_t>(0),
                                                        a.scaled.level[lane & ((1 << kBits) - 1)]);
    if (threadIdx.x < 256) in_shared<float>(at.map)[threadIdx.x] = early.map_entry;
    wait_for_previous_kernel();  // x is its work; all before was on weights
    if (threadIdx.x < a.cols / 8) early.x = x_row(a, 0)[threadIdx.x];
    store_x(early);
    __syncthreads();
    make_u(early);
    bool fetched = a.ranks == 0;
    int current = 0, number = 0;
    for (int tile = first_tile; tile < a.tiles; tile += stride, ++number) {
      const TileRows rows = rows_of_tile(a, tile);
      const int buffer = number % 2;
      int part = 0;
      const __nv_bfloat16* b = a.ranks > 0 ? b_row(rows, part) : nullptr;
      uint2 first{};
      if (b && 4 * (lane % 16) < a.b_rank[part]) first = *reinterpret_cast<const uint2*>(b + 4 * (lane % 16));
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
        const float low_sum = sum[0] + __shfl_xor_sync(kFullWarp, sum[0], 1),
                    high_sum = sum[2] + __shfl_xor_sync(kFullWarp, sum[2], 1);
        if (p == 0) partial(buffer, warp, g, 0) = low_sum, partial(buffer, warp, g + 8, 0) = high_sum;
      } else {
#pragma unroll
        for (int c = 0; c < 4; ++c) partial(buffer, warp, g + c / 2 * 8, 2 * p + c % 2) = sum[c];
      }
      if (!fetched) fetch_u(), fetched = true;
      if (a.ranks > 0) add_adapter(b, part, first, buffer);
      group_barrier();
      if (warp == number % kLinearWarps) finish(rows, buffer);
    }
    // The last block to come by here leaves the counters as they were: nobody looks at them any more.
    if (a.ranks == 0) return;
    __syncthreads();  // both groups have looked
    if (threadIdx.x == 0 && atomicAdd(a.meet + 1, 1) == static_cast<int>(gridDim.x) - 1) a.meet[0] = 0, a.meet[1] = 0;
  }
};

}  // namespace irq
