#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>

#include "ops/cuda/kernels.h"

// Words every kernel speaks: checked launches, conversions, reductions. Knows no operation.
namespace m2::ops::cuda {

#define M2_CUDA(call)                                                                \
  do {                                                                               \
    const cudaError_t m2_status = (call);                                            \
    if (m2_status != cudaSuccess) cuda_failed(#call, cudaGetErrorString(m2_status)); \
  } while (0)

// Of a kernel: at most so many registers a thread. Before CUDA 12.4 there is no word for it, and
// the kernel may take more than leaves room for what should stand beside it.
#if CUDART_VERSION >= 12040
#define M2_MOST_REGISTERS(count) __maxnreg__(count)
#else
#define M2_MOST_REGISTERS(count)
#endif

constexpr int kWarp = 32;

// --- host side ---------------------------------------------------------------------------------

struct LaunchShape {
  dim3 grid;
  dim3 block;
  int shared_bytes = 0;
  int cluster = 1;          // thread blocks in a cluster, along x
  bool overlap = true;      // may start while the previous kernel of the stream drains (Hopper)
  bool through_l1 = false;  // keeps much memory in flight by loads: does not want it all shared
  // Of a multiprocessor's memory, as shared memory; < 0: no wish. Without one a kernel that fits
  // starts in whatever split a block in front has left, be L1 small.
  int shared_percent = -1;
};

// The compute capability's major number of the current device.
inline int device_major() {
  static const int major = [] {
    int device = 0, value = 0;
    M2_CUDA(cudaGetDevice(&device));
    M2_CUDA(cudaDeviceGetAttribute(&value, cudaDevAttrComputeCapabilityMajor, device));
    return value;
  }();
  return major;
}

inline int multiprocessors() {
  static const int count = [] {
    int device = 0, value = 0;
    M2_CUDA(cudaGetDevice(&device));
    M2_CUDA(cudaDeviceGetAttribute(&value, cudaDevAttrMultiProcessorCount, device));
    return value;
  }();
  return count;
}

// Launches and checks. Kernels launched with `overlap` must call wait_for_previous() before they
// read or write anything that the kernels before them wrote or read.
template <class... Parameters, class... Arguments>
void launch(void* stream, void (*kernel)(Parameters...), const LaunchShape& shape,
            Arguments&&... arguments) {
  // All but those that go through L1 split the multiprocessor's memory alike, for shared memory:
  // one that wants another split than the kernel before it cannot begin before that one has left.
  prepare_kernel(reinterpret_cast<const void*>(kernel),
                 {shape.shared_bytes > 48 * 1024 ? shape.shared_bytes : 0, shape.through_l1,
                  shape.cluster > 8});
  cudaLaunchConfig_t config = {};
  config.gridDim = shape.grid;
  config.blockDim = shape.block;
  config.dynamicSmemBytes = static_cast<size_t>(shape.shared_bytes);
  config.stream = static_cast<cudaStream_t>(stream);
  cudaLaunchAttribute attributes[3];
  unsigned count = 0;
  if (shape.cluster > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count].val.clusterDim.x = static_cast<unsigned>(shape.cluster);
    attributes[count].val.clusterDim.y = 1;
    attributes[count].val.clusterDim.z = 1;
    ++count;
  }
  if (shape.overlap && device_major() >= 9) {
    attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[count].val.programmaticStreamSerializationAllowed = 1;
    ++count;
  }
#if CUDART_VERSION >= 12080
  if (shape.shared_percent >= 0) {
    attributes[count].id = cudaLaunchAttributePreferredSharedMemoryCarveout;
    attributes[count].val.sharedMemCarveout = static_cast<unsigned>(shape.shared_percent);
    ++count;
  }
#endif
  config.attrs = attributes;
  config.numAttrs = count;
  M2_CUDA(cudaLaunchKernelEx(&config, kernel, Parameters(arguments)...));
}

inline unsigned blocks_for(int64_t items, int64_t per_block) {
  return static_cast<unsigned>((items + per_block - 1) / per_block);
}

// --- device side -------------------------------------------------------------------------------

// Programmatic dependent launch. A kernel waits for the ones before it, then lets the next one
// start: so when a kernel runs at all, everything but its direct predecessor is complete, and what
// that predecessor does not write may be read before the wait. (Where a kernel lets the next one
// start before it waits, that one reads nothing before its own wait but what no kernel writes.)
__device__ __forceinline__ void wait_for_previous() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}
__device__ __forceinline__ void let_next_start() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;" ::: "memory");
#endif
}

__device__ __forceinline__ float f8_to_float(uint8_t bits) {
  const __half_raw half = __nv_cvt_fp8_to_halfraw(bits, __NV_E4M3);
  return __half2float(__half(half));
}

// Element i of an array of any of the number formats.
__device__ __forceinline__ float load_number(const void* data, DType dtype, int64_t i) {
  switch (dtype) {
    case DType::f32:
      return static_cast<const float*>(data)[i];
    case DType::bf16:
      return __bfloat162float(static_cast<const __nv_bfloat16*>(data)[i]);
    case DType::f16:
      return __half2float(static_cast<const __half*>(data)[i]);
    case DType::f8_e4m3:
      return f8_to_float(static_cast<const uint8_t*>(data)[i]);
    default:
      return 0.0f;
  }
}
// f32 or bf16.
__device__ __forceinline__ void store_number(void* data, DType dtype, int64_t i, float value) {
  if (dtype == DType::bf16)
    static_cast<__nv_bfloat16*>(data)[i] = __float2bfloat16_rn(value);
  else
    static_cast<float*>(data)[i] = value;
}

__device__ __forceinline__ float to_float(float value) {
  return value;
}
__device__ __forceinline__ float to_float(__nv_bfloat16 value) {
  return __bfloat162float(value);
}
template <class T>
__device__ __forceinline__ T from_float(float value);
template <>
__device__ __forceinline__ float from_float<float>(float value) {
  return value;
}
template <>
__device__ __forceinline__ __nv_bfloat16 from_float<__nv_bfloat16>(float value) {
  return __float2bfloat16_rn(value);
}

// Two numbers as bf16, the first in the lower half.
__device__ __forceinline__ uint32_t pack_bf16(float low, float high) {
  const __nv_bfloat162 pair = __floats2bfloat162_rn(low, high);
  return reinterpret_cast<const uint32_t&>(pair);
}

// Where row `row` of an output begins, at its owner's if it has one.
__device__ __forceinline__ void* output_row(const Matrix& out, const RowOwners& owners,
                                            int64_t row) {
  const int bytes = out.dtype == DType::bf16 ? 2 : 4;
  if (owners.ranks == 0) return static_cast<uint8_t*>(out.data) + row * out.stride * bytes;
  int r = 0;
  while (row >= owners.first[r] + owners.count[r]) ++r;
  return static_cast<uint8_t*>(owners.to[r]) + (row - owners.first[r]) * out.columns * bytes;
}

__device__ __forceinline__ float warp_sum(float value) {
#pragma unroll
  for (int offset = 16; offset; offset /= 2) value += __shfl_xor_sync(~0u, value, offset);
  return value;
}

// Whole numbers by one instruction, where there is one: their sum, the largest and the smallest.
__device__ __forceinline__ int warp_sum(int value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  return __reduce_add_sync(~0u, value);
#else
  for (int offset = kWarp / 2; offset; offset /= 2) value += __shfl_xor_sync(~0u, value, offset);
  return value;
#endif
}
__device__ __forceinline__ uint32_t warp_max(uint32_t value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  return __reduce_max_sync(~0u, value);
#else
  for (int offset = kWarp / 2; offset; offset /= 2)
    value = max(value, __shfl_xor_sync(~0u, value, offset));
  return value;
#endif
}
__device__ __forceinline__ uint32_t warp_min(uint32_t value) {
  return ~warp_max(~value);
}
__device__ __forceinline__ int warp_min(int value) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  return __reduce_min_sync(~0u, value);
#else
  for (int offset = kWarp / 2; offset; offset /= 2)
    value = min(value, __shfl_xor_sync(~0u, value, offset));
  return value;
#endif
}

// Sum over the block, in an order that depends on the block's size alone; every thread gets it.
// `scratch` holds 33 floats; blockDim.x is a multiple of 32.
__device__ __forceinline__ float block_sum(float value, float* scratch) {
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  value = warp_sum(value);
  if (lane == 0) scratch[warp] = value;
  __syncthreads();
  if (warp == 0) {
    const int warps = blockDim.x / kWarp;
    const float total = warp_sum(lane < warps ? scratch[lane] : 0.0f);
    if (lane == 0) scratch[32] = total;
  }
  __syncthreads();
  return scratch[32];
}

// Quantisation (ops/quantised.h): scale = largest magnitude / 448, or the power of two above that,
// and x / scale as e4m3.
constexpr float kF8Most = 448.0f;
__device__ __forceinline__ float up_to_power_of_two(float value) {
  return __uint_as_float((__float_as_uint(value) + 0x7fffffu) & 0xff800000u);
}
__device__ __forceinline__ float f8_scale(float most, bool powers) {
  const float scale = fmaxf(most, 1e-10f) / kF8Most;
  return powers ? up_to_power_of_two(fmaxf(scale, 1e-10f)) : scale;
}
// Four numbers, given 1 / scale.
__device__ __forceinline__ uint32_t to_f8(float a, float b, float c, float d, float inverse) {
  return __nv_fp8x4_e4m3(float4{a * inverse, b * inverse, c * inverse, d * inverse}).__x;
}
__device__ __forceinline__ float largest_of(float a, float b, float c, float d) {
  return fmaxf(fmaxf(fabsf(a), fabsf(b)), fmaxf(fabsf(c), fabsf(d)));
}

__device__ __forceinline__ float silu(float value) {
  return value / (1.0f + expf(-value));
}

// The same in a fifth of the instructions, to some 2^-20: for what becomes FP8 or bf16 at once.
__device__ __forceinline__ float quick_silu(float value) {
  float power, inverse;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(value * -1.4426950408889634f));
  asm("rcp.approx.ftz.f32 %0, %1;" : "=f"(inverse) : "f"(1.0f + power));
  return value * inverse;
}

// 16 bytes of memory that no kernel writes, past L1: weights are read once.
__device__ __forceinline__ uint4 load_streaming(const void* pointer) {
  uint4 value;
  asm volatile("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(pointer));
  return value;
}

// The same for memory that earlier kernels of the stream wrote (the KV cache).
__device__ __forceinline__ uint4 load_written(const void* pointer) {
  uint4 value;
  asm volatile("ld.global.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(value.x), "=r"(value.y), "=r"(value.z), "=r"(value.w)
               : "l"(pointer)
               : "memory");
  return value;
}

}  // namespace m2::ops::cuda
