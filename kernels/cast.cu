// What:    copy: dst = src with conversion between F32, BF16 and F16; same type: the bits move (any type).
// Math:    round to nearest even.
// Shapes:  dst, src (rows, cols), any strides.
// Cost:    reads and writes every element once: bf16 -> f32 of 16384 x 4096 moves 403 MB, about 144 us at 2.8 TB/s.
//          No FLOPs.
// Tricky:  packs are 8 elements, so that the 16-bit side moves 16 bytes and the 32-bit side 2 x 16. Two contiguous
//          views are walked as one long row. Equal types go through unsigned integers: a NaN keeps its payload, F64
//          needs no math.
#include "kernels/map.cuh"

namespace irq {
namespace {

template <class D, class S>
__device__ __forceinline__ D convert(S x) {
  if constexpr (std::is_same_v<D, S>) return x;
  else return from_f<D>(to_f(x));
}

template <class D, class S>
struct CopyBody {
  D* dst;
  const S* src;
  int64_t dst_stride, src_stride;
  template <int W>
  struct State {
    Vec<S, W> x;
  };
  template <int W>
  __device__ void load(int64_t row, int64_t col, State<W>& s) const {
    s.x = load_vec<W>(src + row * src_stride + col);
  }
  template <int W>
  __device__ void store(int64_t row, int64_t col, State<W>& s) const {
    Vec<D, W> out;
#pragma unroll
    for (int k = 0; k < W; ++k) out.v[k] = convert<D>(s.x.v[k]);
    store_vec<W>(dst + row * dst_stride + col, out);
  }
};

template <class D, class S>
void launch_copy(cudaStream_t stream, Tensor dst, Tensor src) {
  constexpr int kWidth = 16 / (sizeof(D) < sizeof(S) ? sizeof(D) : sizeof(S));
  const CopyBody<D, S> body{static_cast<D*>(dst.data), static_cast<const S*>(src.data), dst.stride, src.stride};
  constexpr int kUnroll = sizeof(D) == sizeof(S) ? 4 : 2;  // 64 bytes in flight a thread at most
  launch_map<kWidth, kUnroll>(stream, body, dst.rows, dst.cols, packs_fit(dst, kWidth) && packs_fit(src, kWidth));
}

template <class F>
void dispatch_convertible(DType t, F&& f) {
  switch (t) {
    case DType::F32: return f(float{});
    case DType::BF16: return f(__nv_bfloat16{});
    case DType::F16: return f(__half{});
    default: IRQ_CHECK(false, "no CUDA conversion of %s", name_of(t));
  }
}

}  // namespace

void CudaBackend::copy(Tensor dst, Tensor src) {
  if (dst.contiguous() && src.contiguous()) dst = dst.flat(), src = src.flat();
  if (dst.dtype == src.dtype) {
    switch (size_of(dst.dtype)) {
      case 8: return launch_copy<uint64_t, uint64_t>(stream(), dst, src);
      case 4: return launch_copy<uint32_t, uint32_t>(stream(), dst, src);
      case 2: return launch_copy<uint16_t, uint16_t>(stream(), dst, src);
      default: return launch_copy<uint8_t, uint8_t>(stream(), dst, src);
    }
  }
  dispatch_convertible(dst.dtype, [&](auto d) {
    dispatch_convertible(src.dtype, [&](auto s) {
      using D = decltype(d);
      using S = decltype(s);
      if constexpr (!std::is_same_v<D, S>) launch_copy<D, S>(stream(), dst, src);
    });
  });
}

}  // namespace irq
