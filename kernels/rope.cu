// What:    rotary position embedding of the query and key heads, in place; the inverse rotation is its backward.
// Math:    per head, pairs (j, j + D/2) by the angle of the row's position: (a, b) -> (a c - b s, b c + a s).
// Shapes:  x (N, heads * D), tables (T, D/2) float, positions (1, N). x may be a slice of a wider matrix (q and k of
//          qkv).
// Cost:    reads and writes x once: N = 8192, 64 heads of 128 in bf16 moves 268 MB, 96 us at 2.8 TB/s. 6 FLOPs per
//          pair.
// Tricky:  the tables' rows (512 bytes for D = 128) are shared by all heads of a token and come from L1 and L2. They
//          are read in the store phase: held from the load phase on they would cost 16 registers a pack. A thread
//          owns both halves of its pairs, so in place is safe. The walk's "columns" are the pairs of a row:
//          heads * D/2.
#include "kernels/map.cuh"

namespace irq {
namespace {

// Read-only path: the compiler may then issue all of a thread's table loads before its first store.
template <int W>
__device__ __forceinline__ void load_table(Vec<float, W>& out, const float* p) {
  if constexpr (W % 4 == 0) {
#pragma unroll
    for (int k = 0; k < W; k += 4) {
      const float4 four = __ldg(reinterpret_cast<const float4*>(p + k));
      out.v[k] = four.x, out.v[k + 1] = four.y, out.v[k + 2] = four.z, out.v[k + 3] = four.w;
    }
  } else {
#pragma unroll
    for (int k = 0; k < W; ++k) out.v[k] = __ldg(p + k);
  }
}

template <class T>
struct RopeBody {
  T* x;
  const float* cosine;
  const float* sine;
  const int32_t* positions;
  int64_t stride, cos_stride, sin_stride;
  int half;  // D/2
  float sign;
  template <int W>
  struct State {
    Vec<T, W> a, b;
    int position;
  };
  // The first element of pair number `pair` of the row: head (pair / half), j = pair % half. A row fits an int.
  __device__ T* first_half(int64_t row, int pair) const { return x + row * stride + pair + pair / half * half; }
  template <int W>
  __device__ void load(int64_t row, int64_t pair, State<W>& s) const {
    const T* p = first_half(row, static_cast<int>(pair));
    s.a = load_vec<W>(p);
    s.b = load_vec<W>(p + half);
    s.position = positions[row];
  }
  template <int W>
  __device__ void store(int64_t row, int64_t pair, State<W>& s) const {
    const bool dead = s.position < 0;
    const int64_t position = dead ? 0 : s.position;
    const int j = static_cast<int>(pair) % half;
    Vec<float, W> cosines, sines;
    load_table(cosines, cosine + position * cos_stride + j);
    load_table(sines, sine + position * sin_stride + j);
    Vec<T, W> a_out, b_out;
#pragma unroll
    for (int k = 0; k < W; ++k) {
      const float a = to_f(s.a.v[k]), b = to_f(s.b.v[k]), c = cosines.v[k], sn = sign * sines.v[k];
      a_out.v[k] = from_f<T>(dead ? 0.f : a * c - b * sn);
      b_out.v[k] = from_f<T>(dead ? 0.f : b * c + a * sn);
    }
    T* p = first_half(row, static_cast<int>(pair));
    store_vec<W>(p, a_out);
    store_vec<W>(p + half, b_out);
  }
};

}  // namespace

void CudaBackend::rope(Tensor x, Tensor cos_table, Tensor sin_table, Tensor positions, int head_dim, bool inverse) {
  dispatch_storage(x.dtype, [&](auto zero) {
    using T = decltype(zero);
    constexpr int kWidth = 16 / sizeof(T);
    const int half = head_dim / 2;
    const RopeBody<T> body{static_cast<T*>(x.data),
                           cos_table.as<float>(),
                           sin_table.as<float>(),
                           positions.as<int32_t>(),
                           x.stride,
                           cos_table.stride,
                           sin_table.stride,
                           half,
                           inverse ? -1.f : 1.f};
    const bool packed =
        half % kWidth == 0 && packs_fit(x, kWidth) && packs_fit(cos_table, kWidth) && packs_fit(sin_table, kWidth);
    launch_map<kWidth, 2>(stream(), body, x.rows, x.cols / 2, packed);
  });
}

}  // namespace irq
