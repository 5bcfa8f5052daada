#pragma once

#include <cstdint>

#include "ops/noise.h"

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

using ops::noise_bits;
using ops::noise_uniform;
using ops::NoiseKey;

constexpr NoiseKey noise_key(uint64_t seed, uint64_t position) {
  const uint64_t key = mix64(mix64(seed) ^ position);
  return {static_cast<uint32_t>(key), static_cast<uint32_t>(key >> 32)};
}

}  // namespace m2::engine
