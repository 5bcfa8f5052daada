#pragma once

#include <cstdint>

// Counter-based randomness: a number is a pure function of (seed, position, token id), so a sampled
// token does not depend on batch mates, chunking, threads or recomputation.

namespace m2::engine {

// Vigna's SplitMix64 finaliser: a bijection whose output bits all depend on all input bits.
constexpr uint64_t mix64(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// The randomness of one position of one request: noise for every token id.
struct NoiseKey {
  uint32_t first, second;
};

constexpr NoiseKey noise_key(uint64_t seed, uint64_t position) {
  const uint64_t key = mix64(mix64(seed) ^ position);
  return {static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32)};
}

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

}  // namespace m2::engine
