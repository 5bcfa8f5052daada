#include "bench/ops/cuda/ceilings.h"
#include "ops/cuda/device.cuh"

namespace m2::bench {
namespace {

namespace cuda = ops::cuda;

__device__ uint32_t hash(uint64_t i, uint32_t seed) {
  uint64_t x = i * 0x9e3779b97f4a7c15ull + seed * 0xd1b54a32d192ed03ull + 1;
  x ^= x >> 29;
  x *= 0xbf58476d1ce4e5b9ull;
  x ^= x >> 32;
  return static_cast<uint32_t>(x);
}

__global__ void fill_f8_kernel(uint32_t* memory, int64_t words, uint32_t seed) {
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < words;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x) {
    uint32_t word = hash(i, seed);
    for (int b = 0; b < 4; ++b)
      if ((word >> (8 * b) & 0x7f) == 0x7f) word ^= 0x40u << (8 * b);
    memory[i] = word;
  }
}

__global__ void fill_bf16_kernel(__nv_bfloat16* memory, int64_t count, uint32_t seed) {
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < count;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x)
    memory[i] = __float2bfloat16_rn(static_cast<float>(hash(i, seed)) * 0x1p-30f - 2.0f);
}

__global__ void fill_f32_kernel(float* memory, int64_t count, float low, float high,
                                uint32_t seed) {
  for (int64_t i = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x; i < count;
       i += static_cast<int64_t>(gridDim.x) * blockDim.x)
    memory[i] = low + (high - low) * static_cast<float>(hash(i, seed)) * 0x1p-32f;
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
      if (i + a * step < count) values[a] = cuda::load_streaming(memory + i + a * step);
#pragma unroll
    for (int a = 0; a < kAhead; ++a)
      if (i + a * step < count) sum ^= values[a].x ^ values[a].y ^ values[a].z ^ values[a].w;
  }
  if (sum == 0x12345678) *sink = 1.0f;  // never mind: the reads must not be dropped
}

__global__ void nothing() {
  cuda::wait_for_previous();
  cuda::let_next_start();
}

}  // namespace

void fill_f8(void* memory, int64_t bytes, uint32_t seed) {
  fill_f8_kernel<<<2048, 256>>>(static_cast<uint32_t*>(memory), bytes / 4, seed);
}
void fill_bf16(void* memory, int64_t count, uint32_t seed) {
  fill_bf16_kernel<<<2048, 256>>>(static_cast<__nv_bfloat16*>(memory), count, seed);
}
void fill_f32(void* memory, int64_t count, float low, float high, uint32_t seed) {
  fill_f32_kernel<<<2048, 256>>>(static_cast<float*>(memory), count, low, high, seed);
}
void read_all(void* stream, const void* memory, int64_t bytes, int blocks, float* sink) {
  read_kernel<<<static_cast<unsigned>(blocks), 512, 0, static_cast<cudaStream_t>(stream)>>>(
      static_cast<const uint4*>(memory), bytes / 16, sink);
}
void empty_kernel(void* stream, bool overlap) {
  cuda::LaunchShape shape{dim3(132), dim3(256)};
  shape.overlap = overlap;
  cuda::launch(stream, nothing, shape);
}

}  // namespace m2::bench
