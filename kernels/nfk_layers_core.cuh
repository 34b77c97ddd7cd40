// What a thread block of nfk_layers.cu does whatever the bits: arguments, meetings, x and u, and words for other blocks.
#pragma once
#include "kernels/nfk_layers.cuh"

namespace irq {

// What a thread asks for before a linear's x is there.
struct StreamAhead {
  uint4 a[kLinearSegment / 8 / kWarp];
  float4 norm[2];
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

struct StreamCore {
  const StreamProgram& p;
  const StreamMemory& at;
  char* shared;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, g = lane / 4, q = lane % 4;

  template <class T>
  __device__ __forceinline__ T* in_shared(int offset) const {
    return reinterpret_cast<T*>(shared + offset);
  }
  __device__ __forceinline__ const StreamSlot& slot(int n) const {
    return in_shared<StreamSlot>(at.slots)[n % kStreamSlots];
  }
  __device__ __forceinline__ TileRows rows_of(const StreamLinear& a, int tile) const {
    const int part = (tile >= a.tile_end[0]) + (tile >= a.tile_end[1]);
    const StreamTiles t = a.tiles_of[part];
    const int i = tile - t.first, low = (i >> t.shift) * t.step + (i & ((1 << t.shift) - 1)) * 8;
    return {part, part + a.paired, low, low + t.upper};
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
    if (i == kWords + 2 && n % 4 == 0) {
      const int32_t* seq = p.attend[n / 4].seq;
      const int q_begin = __ldg(seq), q_end = __ldg(seq + 1), k_begin = __ldg(seq + 2), k_end = __ldg(seq + 3),
                p_begin = __ldg(seq + 4), prefix = __ldg(seq + 5) - p_begin;
      // The one row is 0: it sees the prefix, and of its own keys [0, 1 + lead) with lead = keys - queries.
      const int own = 1 - q_begin + (k_end - k_begin) - (q_end - q_begin);
      to.visible = {q_begin <= 0 && q_end > 0 ? prefix + max(0, own) : 0, prefix, p_begin, k_begin - prefix};
    }
  }

  // The number of linear n, by which words are known. The launch's first one lies in shared memory: it would be spilled.
  static __device__ __forceinline__ unsigned& first_number() {
    __shared__ unsigned number;
    return number;
  }
  __device__ __forceinline__ unsigned number(int n) const { return first_number() + static_cast<unsigned>(n); }

  // ---- words ----------------------------------------------------------------------------------------------------------
  // A word for the other blocks, with the number of its linear.
  __device__ __forceinline__ void send(uint2* to, uint32_t word, int n) const {
    asm volatile("st.volatile.global.v2.u32 [%0], {%1, %2};" ::"l"(to), "r"(word), "r"(number(n)) : "memory");
  }
  // Two of them: (word, number, word, number).
  __device__ __forceinline__ uint4 look(const uint2* from) const {
    uint4 w;
    asm volatile("ld.volatile.global.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(w.x), "=r"(w.y), "=r"(w.z), "=r"(w.w)
                 : "l"(from)
                 : "memory");
    return w;
  }
  __device__ __forceinline__ uint2 look_at_one(const uint2* from) const {
    uint2 w;
    asm volatile("ld.volatile.global.v2.u32 {%0, %1}, [%2];" : "=r"(w.x), "=r"(w.y) : "l"(from) : "memory");
    return w;
  }
  __device__ __forceinline__ bool is_there(const uint4& w, int n) const { return w.y == number(n) && w.w == number(n); }
  // Eight elements of what linear n gave, waited for.
  __device__ __forceinline__ uint4 wait_for_pack(const uint2* from, int n) const {
    uint4 w[2] = {look(from), look(from + 2)};
    while (!is_there(w[0], n) || !is_there(w[1], n)) w[0] = look(from), w[1] = look(from + 2);
    return make_uint4(w[0].x, w[0].z, w[1].x, w[1].z);
  }

  // ---- x ---------------------------------------------------------------------------------------------------------------
  // The last warps of a block have fewer pieces where these do not come out even: parts of u are theirs first.
  __device__ __forceinline__ int first_unit() const { return blockIdx.x + (kStreamWarps - 1 - warp) * gridDim.x; }
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
  // 16 bytes of x: pack i. The packs of a block are turned by its number, so that lanes of eight blocks do not collide.
  __device__ __forceinline__ uint4& x_pack(int i) const {
    const int block = i / 8;
    return *in_shared<uint4>(at.x + block * at.x_pitch + ((i ^ block) % 8) * 16);
  }
  // Packs i, i + kStreamThreads, ... (kAtOnce, as far as they are there) of what linear n gave, or attention behind it, waited
  // for, into shared memory.
  template <int kAtOnce>
  __device__ __forceinline__ void receive(int i, int packs, int n, float& squares) const {
    const uint2* from = n % 4 == 0 ? p.all.attended : p.all.result[n % 4];
    uint4 w[kAtOnce][2];
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const int pack = i + k * kStreamThreads;
      if (k == 0 || pack < packs) w[k][0] = look(from + 4 * pack), w[k][1] = look(from + 4 * pack + 2);
    }
#pragma unroll
    for (int k = 0; k < kAtOnce; ++k) {
      const int pack = i + k * kStreamThreads;
      if (pack >= packs) break;
      while (!is_there(w[k][0], n) || !is_there(w[k][1], n))
        w[k][0] = look(from + 4 * pack), w[k][1] = look(from + 4 * pack + 2);
      keep_x(pack, make_uint4(w[k][0].x, w[k][0].z, w[k][1].x, w[k][1].z), squares);
    }
  }
  __device__ __forceinline__ void keep_x(int pack, const uint4& v, float& squares) const {
    x_pack(pack) = v;
    float x[8];
    unpack(x, v);
#pragma unroll
    for (int j = 0; j < 8; ++j) squares = fmaf(x[j], x[j], squares);
  }
  // x, normalized if asked, into shared memory, and the sum of each of its blocks; zeros up to a whole piece. The long x of
  // down has no norm, so that many of its packs can be on their way in registers.
  __device__ __forceinline__ void store_x(const StreamLinear& a, int n, StreamAhead& e) const {
    if (n % 4 == 3) store_x<2, false>(a, n, e);
    else store_x<1, true>(a, n, e);
  }
  template <int kAtOnce, bool kNorm>
  __device__ __forceinline__ void store_x(const StreamLinear& a, int n, StreamAhead& e) const {
    const int packs = a.cols / 8, blocks = a.cols / kBlock;  // packs: a multiple of 32
    float rstd = 1;
    float squares = 0;
#pragma unroll 1
    for (int i = threadIdx.x; i < packs; i += kAtOnce * kStreamThreads) {
      if (!kNorm || n > 0) receive<kAtOnce>(i, packs, n - 1, squares);
      else keep_x(i, __ldcg(reinterpret_cast<const uint4*>(a.x) + i), squares);
    }
    if (kNorm && a.norm) rstd = 1.f / sqrtf(block_sum<kStreamThreads>(squares) / static_cast<float>(a.cols) + a.eps);
#pragma unroll 1
    for (int i = threadIdx.x; i < packs; i += kStreamThreads) {  // what this thread wrote
      float v[8];
      unpack(v, x_pack(i));
      if (kNorm && a.norm) {
        if (i != static_cast<int>(threadIdx.x)) load_norm(e.norm, a, i);
        const float4(&w)[2] = e.norm;
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

  // ---- u = x A'^T --------------------------------------------------------------------------------------------------------
  // This warp's parts of it, each published together with the number of the linear, so that one look says that it is there.
  // The next part's row of A takes the registers of this one's: a copy of it would be spilled.
  __device__ __forceinline__ void make_u(const StreamLinear& a, int n, StreamAhead& e) const {
    const int units = a.ranks * a.segments, step = gridDim.x * kStreamWarps;
#pragma unroll 1
    for (int unit = first_unit(); unit < units; unit += step) {
      const int row = unit / a.segments, segment = unit % a.segments;
      float sum = 0;
#pragma unroll
      for (int k = 0; k < kLinearSegment / 8 / kWarp; ++k) {
        const int column = segment * kLinearSegment + (k * kWarp + lane) * 8;
        if (column >= a.cols) break;
        float left[8], right[8];
        unpack(left, e.a[k]), unpack(right, x_pack(column / 8));
#pragma unroll
        for (int i = 0; i < 8; ++i) sum = fmaf(left[i], right[i], sum);
      }
      if (unit + step < units) load_a(e.a, a, unit + step);
      sum = warp_sum(sum);
      if (lane == 0) send(p.all.u + segment * a.ranks + row, __float_as_uint(sum), n);
    }
  }
  // Everybody's parts, waited for.
  __device__ __forceinline__ void fetch_u(const StreamLinear& a, int n) const {
    constexpr int kAtOnce = 2;
    const int units = a.ranks * a.segments;
#pragma unroll 1
    for (int first = threadIdx.x; first < units; first += kAtOnce * kStreamThreads) {
      uint2 w[kAtOnce];
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k)
        if (first + k * kStreamThreads < units) w[k] = look_at_one(p.all.u + first + k * kStreamThreads);
#pragma unroll
      for (int k = 0; k < kAtOnce; ++k) {
        const int i = first + k * kStreamThreads;
        if (i >= units) break;
        while (w[k].y != number(n)) w[k] = look_at_one(p.all.u + i);
        in_shared<float>(at.u_parts)[i] = __uint_as_float(w[k].x);
      }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < a.ranks; i += kStreamThreads) {
      float sum = 0;
      for (int k = 0; k < a.segments; ++k) sum += in_shared<float>(at.u_parts)[k * a.ranks + i];
      in_shared<float>(at.u)[i] = sum;
    }
  }
};

}  // namespace irq
