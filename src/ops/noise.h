#pragma once

#include <cstdint>

// Counter-based noise for sampling, a pure function of a key and a token id: the same numbers on
// the CPU and on GPUs. Read by nvcc too, so it includes nothing of ours.
namespace m2::ops {

// The randomness of one position of one request: noise for every token id.
struct NoiseKey {
  uint32_t first, second;
};

// 32 uniform bits: two rounds of Wellons' lowbias32, keyed before each. Needs 32-bit operations
// only, so that a vector computes as many ids as it has floats (row_ops.cc repeats it so).
constexpr uint32_t noise_bits(NoiseKey key, uint32_t id) {
  uint32_t x = id + key.first;
  for (int round = 0; round < 2; ++round) {
    x ^= x >> 16;
    x *= 0x7feb352du;
    x ^= x >> 15;
    x *= 0x846ca68bu;
    x ^= x >> 16;
    if (round == 0) x ^= key.second;
  }
  return x;
}

// The bits as a number in (0, 1) with full relative precision near 0, where it decides who wins.
constexpr float noise_uniform(NoiseKey key, uint32_t id) {
  const auto bits = static_cast<int32_t>(noise_bits(key, id) >> 1);
  const float uniform = (static_cast<float>(bits) + 0.5f) * 0x1p-31f;
  return uniform < 0x1.fffffep-1f ? uniform : 0x1.fffffep-1f;
}

}  // namespace m2::ops
