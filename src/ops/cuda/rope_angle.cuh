#pragma once

#include "ops/cuda/device.cuh"

// The angles by which q and k turn: what the kernels that make them have in common.
namespace m2::ops::cuda {

// theta^(-2i / rotary), rounded once from double; an angle is then a product of floats.
__device__ __forceinline__ float rope_frequency(int i, int rotary, float theta) {
  return static_cast<float>(
      pow(static_cast<double>(theta), -2.0 * i / static_cast<double>(rotary)));
}

// Cosine i, and sine, of a token's `angles` [rotary].
__device__ __forceinline__ void store_angle(int32_t position, float frequency, int i, int rotary,
                                            float* angles) {
  float sine, cosine;
  sincosf(static_cast<float>(position) * frequency, &sine, &cosine);
  angles[i] = cosine;
  angles[rotary / 2 + i] = sine;
}

}  // namespace m2::ops::cuda
