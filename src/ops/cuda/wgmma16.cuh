#pragma once

#include <cstdint>

// Hopper's products of 16-bit numbers, 64 rows a warpgroup. Between tiles.cuh's wgmma_begin() and
// the commit; sums may be read after the wait alone.
namespace m2::ops::cuda {

#define M2_WGMMA_SUMS                        \
  "{%0, %1, %2, %3, %4, %5, %6, %7, "        \
  "%8, %9, %10, %11, %12, %13, %14, %15, "   \
  "%16, %17, %18, %19, %20, %21, %22, %23, " \
  "%24, %25, %26, %27, %28, %29, %30, %31, " \
  "%32, %33, %34, %35, %36, %37, %38, %39, " \
  "%40, %41, %42, %43, %44, %45, %46, %47, " \
  "%48, %49, %50, %51, %52, %53, %54, %55, " \
  "%56, %57, %58, %59, %60, %61, %62, %63}"
#define M2_FOUR(d, i) "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3])
#define M2_EIGHT(d, i)                                                                        \
  "+f"(d[i]), "+f"(d[i + 1]), "+f"(d[i + 2]), "+f"(d[i + 3]), "+f"(d[i + 4]), "+f"(d[i + 5]), \
      "+f"(d[i + 6]), "+f"(d[i + 7])
#define M2_SIXTY_FOUR(d)                                                             \
  M2_EIGHT(d, 0), M2_EIGHT(d, 8), M2_EIGHT(d, 16), M2_EIGHT(d, 24), M2_EIGHT(d, 32), \
      M2_EIGHT(d, 40), M2_EIGHT(d, 48), M2_EIGHT(d, 56)

// d (+)= a b^T: 64 x 128, 16 of the inner axis, both in shared memory as rows of 128 bytes in the
// 128-byte swizzle, bf16 or (kHalves) f16.
template <bool kHalves>
__device__ __forceinline__ void wgmma_64x128x16(float (&d)[64], uint64_t a, uint64_t b, bool add) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  if constexpr (kHalves)
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 " M2_WGMMA_SUMS
        ", %64, %65, p, 1, 1, 0, 0;\n}\n"
        : M2_SIXTY_FOUR(d)
        : "l"(a), "l"(b), "r"(static_cast<int>(add)));
  else
    asm volatile(
        "{\n.reg .pred p;\nsetp.ne.b32 p, %66, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 " M2_WGMMA_SUMS
        ", %64, %65, p, 1, 1, 0, 0;\n}\n"
        : M2_SIXTY_FOUR(d)
        : "l"(a), "l"(b), "r"(static_cast<int>(add)));
#else
  __trap();
#endif
}
// d += a b: a in registers (mma's layout of 64 rows), b in shared memory with its inner axis along
// the rows.
template <bool kHalves>
__device__ __forceinline__ void wgmma_64x128x16(float (&d)[64], const uint32_t* a, uint64_t b) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  if constexpr (kHalves)
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.f16.f16 " M2_WGMMA_SUMS
                 ", {%64, %65, %66, %67}, %68, 1, 1, 1, 1;\n"
                 : M2_SIXTY_FOUR(d)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
  else
    asm volatile("wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 " M2_WGMMA_SUMS
                 ", {%64, %65, %66, %67}, %68, 1, 1, 1, 1;\n"
                 : M2_SIXTY_FOUR(d)
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b));
#else
  __trap();
#endif
}
// d (+)= a b^T: 64 weight rows x kN tokens, 16 of K, both bf16 in shared memory as rows of 128
// bytes in the 128-byte swizzle. A thread holds what wgmma_64xNx32 (flow.cuh) says.
template <int kN>
__device__ __forceinline__ void wgmma_64xNx16(float (&d)[kN / 2], uint64_t a, uint64_t b, bool add);
template <>
__device__ __forceinline__ void wgmma_64xNx16<8>(float (&d)[4], uint64_t a, uint64_t b, bool add) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %6, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3"
      "}, %4, %5, p, 1, 1, 0, 0;\n}\n"
      : M2_FOUR(d, 0)
      : "l"(a), "l"(b), "r"(static_cast<int>(add)));
#else
  __trap();
#endif
}
template <>
__device__ __forceinline__ void wgmma_64xNx16<16>(float (&d)[8], uint64_t a, uint64_t b, bool add) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %10, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n16k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7"
      "}, %8, %9, p, 1, 1, 0, 0;\n}\n"
      : M2_EIGHT(d, 0)
      : "l"(a), "l"(b), "r"(static_cast<int>(add)));
#else
  __trap();
#endif
}
template <>
__device__ __forceinline__ void wgmma_64xNx16<32>(float (&d)[16], uint64_t a, uint64_t b,
                                                  bool add) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %18, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n32k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, "
      "%8, %9, %10, %11, %12, %13, %14, %15"
      "}, %16, %17, p, 1, 1, 0, 0;\n}\n"
      : M2_EIGHT(d, 0), M2_EIGHT(d, 8)
      : "l"(a), "l"(b), "r"(static_cast<int>(add)));
#else
  __trap();
#endif
}
template <>
__device__ __forceinline__ void wgmma_64xNx16<64>(float (&d)[32], uint64_t a, uint64_t b,
                                                  bool add) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  asm volatile(
      "{\n.reg .pred p;\nsetp.ne.b32 p, %34, 0;\n"
      "wgmma.mma_async.sync.aligned.m64n64k16.f32.bf16.bf16 {"
      "%0, %1, %2, %3, %4, %5, %6, %7, "
      "%8, %9, %10, %11, %12, %13, %14, %15, "
      "%16, %17, %18, %19, %20, %21, %22, %23, "
      "%24, %25, %26, %27, %28, %29, %30, %31"
      "}, %32, %33, p, 1, 1, 0, 0;\n}\n"
      : M2_EIGHT(d, 0), M2_EIGHT(d, 8), M2_EIGHT(d, 16), M2_EIGHT(d, 24)
      : "l"(a), "l"(b), "r"(static_cast<int>(add)));
#else
  __trap();
#endif
}
#undef M2_WGMMA_SUMS
#undef M2_FOUR
#undef M2_EIGHT
#undef M2_SIXTY_FOUR

}  // namespace m2::ops::cuda
