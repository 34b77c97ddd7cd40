// PTX of sm_80 and later (asynchronous copies, ldmatrix, bf16 tensor cores): the only inline assembly of the generic kernels.
// Shared memory is addressed by its 32-bit window address: smem_address() once, then byte offsets.
#pragma once
#include <cuda_bf16.h>

#include <cstdint>

namespace irq {

__device__ __forceinline__ uint32_t smem_address(const void* shared) {
  return static_cast<uint32_t>(__cvta_generic_to_shared(shared));
}

// threadIdx.x, read anew: what is computed from it in a loop is not kept in registers from one round to the next.
__device__ __forceinline__ int fresh_thread_index() {
  int x;
  asm volatile("mov.u32 %0, %%tid.x;\n" : "=r"(x));
  return x;
}

// Starts a copy of 16 bytes, past L1, to shared memory; zeros if not valid (nothing is read then). Both 16-byte aligned.
__device__ __forceinline__ void cp_async_16(uint32_t shared, const void* global, bool valid) {
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(shared), "l"(global), "r"(valid ? 16 : 0)
               : "memory");
}
// The same with 4 bytes.
__device__ __forceinline__ void cp_async_4(uint32_t shared, const void* global, bool valid) {
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;\n" ::"r"(shared), "l"(global), "r"(valid ? 4 : 0)
               : "memory");
}
__device__ __forceinline__ void cp_async_commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
// Waits until at most kPending of this thread's groups are unfinished. Other threads' copies need a barrier as well.
template <int kPending>
__device__ __forceinline__ void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(kPending) : "memory");
}

__device__ __forceinline__ uint32_t load_shared_32(uint32_t shared) {
  uint32_t x;
  asm volatile("ld.shared.u32 %0, [%1];\n" : "=r"(x) : "r"(shared));
  return x;
}

__device__ __forceinline__ uint32_t load_shared_8(uint32_t shared) {
  uint32_t x;
  asm volatile("ld.shared.u8 %0, [%1];\n" : "=r"(x) : "r"(shared));
  return x;
}
__device__ __forceinline__ uint32_t load_shared_16(uint32_t shared) {
  uint32_t x;
  asm volatile("{\n.reg .u16 h;\nld.shared.u16 h, [%1];\ncvt.u32.u16 %0, h;\n}\n" : "=r"(x) : "r"(shared));
  return x;
}
__device__ __forceinline__ uint2 load_shared_64(uint32_t shared) {
  uint2 x;
  asm volatile("ld.shared.v2.u32 {%0,%1}, [%2];\n" : "=r"(x.x), "=r"(x.y) : "r"(shared));
  return x;
}
__device__ __forceinline__ uint4 load_shared_128(uint32_t shared) {
  uint4 x;
  asm volatile("ld.shared.v4.u32 {%0,%1,%2,%3}, [%4];\n" : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w) : "r"(shared));
  return x;
}
__device__ __forceinline__ void store_shared_32(uint32_t shared, uint32_t x) {
  asm volatile("st.shared.u32 [%0], %1;\n" ::"r"(shared), "r"(x) : "memory");
}
__device__ __forceinline__ void store_shared_64(uint32_t shared, uint32_t x, uint32_t y) {
  asm volatile("st.shared.v2.u32 [%0], {%1,%2};\n" ::"r"(shared), "r"(x), "r"(y) : "memory");
}
__device__ __forceinline__ void store_shared_128(uint32_t shared, uint4 x) {
  asm volatile("st.shared.v4.u32 [%0], {%1,%2,%3,%4};\n" ::"r"(shared), "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w)
               : "memory");
}

// x, but the compiler no longer knows how it came about: it stays in a register instead of being computed again at each use.
__device__ __forceinline__ uint32_t kept(uint32_t x) {
  asm volatile("" : "+r"(x));
  return x;
}
template <class T>
__device__ __forceinline__ const T* kept(const T* x) {
  asm volatile("" : "+l"(x));
  return x;
}

// Four 8x8 matrices of 16-bit elements. Lane l passes the address of row l % 8 of matrix l / 8 and receives in r[m] the
// elements (l / 4, 2 (l % 4)) and the one behind it of matrix m.
__device__ __forceinline__ void ldmatrix_x4(uint32_t (&r)[4], uint32_t shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared)
               : "memory");
}
// The same with every matrix transposed: elements (2 (l % 4), l / 4) and the one below it.
__device__ __forceinline__ void ldmatrix_x4_trans(uint32_t (&r)[4], uint32_t shared) {
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(shared)
               : "memory");
}

// c (16, 8) f32 += a (16, 16) bf16 * b (16, 8) bf16. With g = lane / 4, t = 2 (lane % 4):
//   c[0..1] = C(g, t..t+1), c[2..3] = C(g+8, t..t+1)
//   a[0] = A(g, t..t+1), a[1] = A(g+8, t..t+1), a[2] = A(g, t+8..t+9), a[3] = A(g+8, t+8..t+9)
//   b0 = B(t..t+1, g), b1 = B(t+8..t+9, g)
__device__ __forceinline__ void mma_m16n8k16(float (&c)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Two floats rounded to bf16; `low` in the lower half, which is the element with the lower index.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
  uint32_t packed;
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;\n" : "=r"(packed) : "f"(high), "f"(low));
  return packed;
}

// 0xffff or 0 in each half of a word: its sign bit, spread.
__device__ __forceinline__ uint32_t spread_signs(uint32_t x) {
  uint32_t mask;
  asm("prmt.b32 %0, %1, 0, 0xBB99;\n" : "=r"(mask) : "r"(x));
  return mask;
}

// The same with bits 7 and 23 of a word.
__device__ __forceinline__ uint32_t spread_low_signs(uint32_t x) {
  uint32_t mask;
  asm("prmt.b32 %0, %1, 0, 0xAA88;\n" : "=r"(mask) : "r"(x));
  return mask;
}

// sum += x if any bit is set: a test and a predicated addition, where the compiler would select first.
__device__ __forceinline__ void add_if_any(float& sum, float x, uint32_t bits) {
  asm("{\n.reg .pred any;\nsetp.ne.u32 any, %2, 0;\n@any add.f32 %0, %0, %1;\n}\n" : "+f"(sum) : "f"(x), "r"(bits));
}

// 1/x in one instruction: at most 1 ulp; only for normal x and results.
__device__ __forceinline__ float reciprocal_hardware(float x) {
  float y;
  asm("rcp.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
}

// 2^x in one instruction: at most 2 ulp, exact 0 for -infinity, results under 2^-126 become 0.
__device__ __forceinline__ float exp2_hardware(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
}

}  // namespace irq
