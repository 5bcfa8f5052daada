// What the device can do (ops/ceilings.h): plain reads, and matrix products on operands that are
// there.
#include "ops/cuda/mma.cuh"
#include "ops/cuda/tiles.cuh"
#include "ops/cuda/wgmma16.cuh"

namespace m2::ops::cuda {
namespace {

// Random bits that are finite numbers, as e4m3 and as bf16.
__device__ uint32_t finite_bits(uint32_t i) {
  uint32_t x = i * 0x9e3779b9u + 1;
  x ^= x >> 15;
  x *= 0x85ebca6bu;
  x ^= x >> 13;
  return x & 0xbfbfbfbfu;
}

__global__ void __launch_bounds__(512)
    read_kernel(const uint4* memory, int64_t count, float* sink) {
  constexpr int kAhead = 8;
  const int64_t step = static_cast<int64_t>(gridDim.x) * blockDim.x;
  uint32_t sum = 0;
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < count;
       i += step * kAhead) {
    uint4 values[kAhead];
#pragma unroll
    for (int a = 0; a < kAhead; ++a)
      if (i + a * step < count) values[a] = load_streaming(memory + i + a * step);
#pragma unroll
    for (int a = 0; a < kAhead; ++a)
      if (i + a * step < count) sum ^= values[a].x ^ values[a].y ^ values[a].z ^ values[a].w;
  }
  if (sum == 0x12345678) *sink = 1.0f;  // never mind: the reads must not be dropped
}

constexpr int kMultiplyThreads = 256, kMultiplyBytes = (2 * 64 + 128) * 128;

// Two warpgroups, each 64 x 128 and 128 bytes of the inner axis over and over, operands in shared
// memory.
template <bool kF8>
__global__ void __launch_bounds__(kMultiplyThreads) multiply_wgmma_kernel(int steps, float* sink) {
  extern __shared__ uint8_t memory[];
  const uint32_t base = (shared_address(memory) + 1023) & ~1023u;
  auto* words = reinterpret_cast<uint32_t*>(memory + (base - shared_address(memory)));
  for (int i = static_cast<int>(threadIdx.x); i < kMultiplyBytes / 4; i += kMultiplyThreads)
    words[i] = finite_bits(static_cast<uint32_t>(i));
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("fence.proxy.async;" ::: "memory");
#endif
  __syncthreads();
  const uint32_t a = base + threadIdx.x / 128 * 64 * 128, b = base + 2 * 64 * 128;
  float d[64] = {};
  for (int step = 0; step < steps; ++step) {
    wgmma_begin();
    for (uint32_t k = 0; k < 4; ++k) {
      if constexpr (kF8)
        wgmma_64x128x32(d, operand(a + 32 * k), operand(b + 32 * k), true);
      else
        wgmma_64x128x16<false>(d, operand(a + 32 * k), operand(b + 32 * k), true);
    }
    wgmma_finish();
  }
  float sum = 0;
  for (const float value : d) sum += value;
  if (sum == 0.1234f) *sink = sum;  // never mind: the products must not be dropped
}

// Chips other than Hopper: eight warps, each 16 x 64 x 16 bf16 over and over, operands in
// registers.
__global__ void __launch_bounds__(kMultiplyThreads) multiply_bf16_kernel(int steps, float* sink) {
  uint32_t a[4], b[16];
  for (uint32_t i = 0; i < 4; ++i) a[i] = finite_bits(threadIdx.x * 4 + i);
  for (uint32_t i = 0; i < 16; ++i) b[i] = finite_bits(threadIdx.x * 16 + i + 4096);
  float d[8][4] = {};
  for (int step = 0; step < steps; ++step) {
#pragma unroll
    for (int n = 0; n < 8; ++n) mma_bf16(d[n], a, b[2 * n], b[2 * n + 1]);
  }
  float sum = 0;
  for (int n = 0; n < 8; ++n) sum += d[n][0] + d[n][1] + d[n][2] + d[n][3];
  if (sum == 0.1234f) *sink = sum;
}

}  // namespace

void launch_read(void* stream, const void* memory, int64_t bytes, int blocks_each, float* sink) {
  const LaunchShape shape{dim3(static_cast<unsigned>(multiprocessors() * blocks_each)), dim3(512),
                          0, 1, false};
  launch(stream, read_kernel, shape, static_cast<const uint4*>(memory), bytes / 16, sink);
}

int64_t launch_multiply(void* stream, bool fp8, int steps, float* sink) {
  LaunchShape shape{dim3(static_cast<unsigned>(multiprocessors() * 2)), dim3(kMultiplyThreads), 0,
                    1, false};
  const int64_t blocks = multiprocessors() * 2;
  if (device_major() == 9) {
    shape.shared_bytes = kMultiplyBytes + 1024;
    launch(stream, fp8 ? multiply_wgmma_kernel<true> : multiply_wgmma_kernel<false>, shape, steps,
           sink);
    return blocks * steps * 2 * 4 * (2 * 64 * 128 * (fp8 ? 32 : 16));
  }
  launch(stream, multiply_bf16_kernel, shape, steps, sink);
  return blocks * steps * 8 * 8 * (2 * 16 * 8 * 16);
}

}  // namespace m2::ops::cuda
