#include "app/bench/numpy_random.h"

#include <bit>
#include <cmath>

#include "base/check.h"

namespace m2::app::bench {
namespace {

__extension__ using Wide = unsigned __int128;

constexpr Wide wide(uint64_t high, uint64_t low) {
  return static_cast<Wide>(high) << 64 | low;
}

constexpr Wide kMultiplier = wide(0x2360ed051fc65da4, 0x4385df649fccf645);

// numpy's SeedSequence: entropy hashed into a pool of four words, and words made from the pool
// (numpy/random/bit_generator.pyx, after O'Neill's seed_seq_fe).
class SeedSequence {
 public:
  explicit SeedSequence(uint64_t entropy) {
    const std::array<uint32_t, 2> words{static_cast<uint32_t>(entropy),
                                        static_cast<uint32_t>(entropy >> 32)};
    uint32_t constant = 0x43b0d7e5;
    const auto hash = [&constant](uint32_t value) {
      value ^= constant;
      constant *= 0x931e8875;
      value *= constant;
      return value ^ value >> 16;
    };
    // A seed below 2^32 is one word; a zero word more changes nothing.
    for (size_t i = 0; i < pool_.size(); ++i) pool_[i] = hash(i < words.size() ? words[i] : 0);
    for (size_t from = 0; from < pool_.size(); ++from) {
      for (size_t to = 0; to < pool_.size(); ++to) {
        if (from != to) pool_[to] = mix(pool_[to], hash(pool_[from]));
      }
    }
  }

  std::array<uint64_t, 4> words() const {
    std::array<uint64_t, 4> out{};
    uint32_t constant = 0x8b51f9dd;
    for (size_t i = 0; i < 2 * out.size(); ++i) {
      uint32_t value = pool_[i % pool_.size()] ^ constant;
      constant *= 0x58f38ded;
      value *= constant;
      value ^= value >> 16;
      out[i / 2] |= static_cast<uint64_t>(value) << (i % 2 * 32);
    }
    return out;
  }

 private:
  static uint32_t mix(uint32_t x, uint32_t y) {
    const uint32_t value = 0xca01f9ddu * x - 0x4973f715u * y;
    return value ^ value >> 16;
  }
  std::array<uint32_t, 4> pool_{};
};

}  // namespace

// ---- PCG64

NumpyGenerator::NumpyGenerator(uint64_t seed) {
  const std::array<uint64_t, 4> words = SeedSequence(seed).words();
  increment_ = wide(words[2], words[3]) << 1 | 1;
  state_ = increment_ + wide(words[0], words[1]);
  state_ = state_ * kMultiplier + increment_;
}

uint64_t NumpyGenerator::next64() {
  state_ = state_ * kMultiplier + increment_;
  const auto high = static_cast<uint64_t>(state_ >> 64);
  const auto low = static_cast<uint64_t>(state_);
  return std::rotr(high ^ low, static_cast<int>(high >> 58));
}

uint32_t NumpyGenerator::next32() {
  if (has_kept_) {
    has_kept_ = false;
    return kept_;
  }
  const uint64_t word = next64();
  kept_ = static_cast<uint32_t>(word >> 32);
  has_kept_ = true;
  return static_cast<uint32_t>(word);
}

// A number of [0, last] by Lemire's method (arXiv 1805.10941).
uint64_t NumpyGenerator::bounded(uint64_t last) {
  if (last == 0) return 0;
  if (last == UINT32_MAX) return next32();
  if (last == UINT64_MAX) return next64();
  if (last < UINT32_MAX) {
    const auto size = static_cast<uint32_t>(last + 1);
    uint64_t product = static_cast<uint64_t>(next32()) * size;
    if (static_cast<uint32_t>(product) < size) {
      const uint32_t threshold = (UINT32_MAX - static_cast<uint32_t>(last)) % size;
      while (static_cast<uint32_t>(product) < threshold)
        product = static_cast<uint64_t>(next32()) * size;
    }
    return product >> 32;
  }
  const uint64_t size = last + 1;
  Wide product = static_cast<Wide>(next64()) * size;
  if (static_cast<uint64_t>(product) < size) {
    const uint64_t threshold = (UINT64_MAX - last) % size;
    while (static_cast<uint64_t>(product) < threshold) product = static_cast<Wide>(next64()) * size;
  }
  return static_cast<uint64_t>(product >> 64);
}

std::vector<int64_t> NumpyGenerator::integers(int64_t low, int64_t high, size_t count) {
  M2_CHECK(low < high);
  const uint64_t last = static_cast<uint64_t>(high) - static_cast<uint64_t>(low) - 1;
  std::vector<int64_t> out(count);
  for (int64_t& value : out)
    value = static_cast<int64_t>(static_cast<uint64_t>(low) + bounded(last));
  return out;
}

// ---- MT19937

void MersenneTwister::fill(uint32_t seed) {
  words_[0] = seed;
  for (size_t i = 1; i < words_.size(); ++i)
    words_[i] = 1812433253u * (words_[i - 1] ^ words_[i - 1] >> 30) + static_cast<uint32_t>(i);
  next_ = words_.size();
}

MersenneTwister MersenneTwister::numpy(uint32_t seed) {
  MersenneTwister out;
  out.fill(seed);
  return out;
}

MersenneTwister MersenneTwister::python(uint64_t seed) {
  const std::array<uint32_t, 2> key{static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)};
  const size_t size = key[1] != 0 ? 2 : 1;
  MersenneTwister out;
  out.fill(19650218u);
  auto& words = out.words_;
  size_t i = 1, j = 0;
  const auto advance = [&] {
    if (++i < words.size()) return;
    words[0] = words.back();
    i = 1;
  };
  const auto mixed = [&] { return words[i - 1] ^ words[i - 1] >> 30; };
  for (size_t k = 0; k < words.size(); ++k) {
    words[i] = (words[i] ^ mixed() * 1664525u) + key[j] + static_cast<uint32_t>(j);
    advance();
    j = (j + 1) % size;
  }
  for (size_t k = 1; k < words.size(); ++k) {
    words[i] = (words[i] ^ mixed() * 1566083941u) - static_cast<uint32_t>(i);
    advance();
  }
  words[0] = 0x80000000u;
  return out;
}

uint32_t MersenneTwister::next32() {
  constexpr size_t kSize = 624, kShift = 397;
  if (next_ == kSize) {
    for (size_t i = 0; i < kSize; ++i) {
      const uint32_t y = (words_[i] & 0x80000000u) | (words_[(i + 1) % kSize] & 0x7fffffffu);
      words_[i] = words_[(i + kShift) % kSize] ^ y >> 1 ^ (y & 1 ? 0x9908b0dfu : 0);
    }
    next_ = 0;
  }
  uint32_t y = words_[next_++];
  y ^= y >> 11;
  y ^= y << 7 & 0x9d2c5680u;
  y ^= y << 15 & 0xefc60000u;
  return y ^ y >> 18;
}

double MersenneTwister::next_double() {
  const uint32_t high = next32() >> 5, low = next32() >> 6;
  return (high * 67108864.0 + low) / 9007199254740992.0;
}

// ---- numpy's legacy distributions (numpy/random/src/legacy/legacy-distributions.c)

double NumpyLegacy::exponential() {
  return -std::log(1.0 - twister_.next_double());
}

// Marsaglia's polar method; every second call takes the pair's other half.
double NumpyLegacy::gauss() {
  if (std::exchange(has_gauss_, false)) return std::exchange(kept_gauss_, 0);
  double x, y, r;
  do {
    x = 2.0 * twister_.next_double() - 1.0;
    y = 2.0 * twister_.next_double() - 1.0;
    r = x * x + y * y;
  } while (r >= 1.0 || r == 0.0);
  const double f = std::sqrt(-2.0 * std::log(r) / r);
  kept_gauss_ = f * x;
  has_gauss_ = true;
  return f * y;
}

double NumpyLegacy::standard_gamma(double shape) {
  if (shape == 1.0) return exponential();
  return shape < 1.0 ? gamma_below_one(shape) : gamma_above_one(shape);
}

// Ahrens and Dieter (1974).
double NumpyLegacy::gamma_below_one(double shape) {
  while (true) {
    const double u = twister_.next_double();
    const double v = exponential();
    if (u <= 1.0 - shape) {
      const double x = std::pow(u, 1. / shape);
      if (x <= v) return x;
    } else {
      const double y = -std::log((1 - u) / shape);
      const double x = std::pow(1.0 - shape + shape * y, 1. / shape);
      if (x <= v + y) return x;
    }
  }
}

// Marsaglia and Tsang (2000).
double NumpyLegacy::gamma_above_one(double shape) {
  const double b = shape - 1. / 3.;
  const double c = 1. / std::sqrt(9 * b);
  while (true) {
    double x, v;
    do {
      x = gauss();
      v = 1.0 + c * x;
    } while (v <= 0.0);
    v = v * v * v;
    const double u = twister_.next_double();
    if (u < 1.0 - 0.0331 * (x * x) * (x * x)) return b * v;
    if (std::log(u) < 0.5 * x * x + b * (1. - v + std::log(v))) return b * v;
  }
}

std::vector<int64_t> NumpyLegacy::randint(int64_t low, int64_t high, size_t count) {
  M2_CHECK(low < high && high - low <= int64_t{1} << 32);
  const auto last = static_cast<uint32_t>(high - low - 1);
  const uint32_t mask = last == 0 ? 0 : UINT32_MAX >> std::countl_zero(last);
  std::vector<int64_t> out(count, low);
  if (last == 0) return out;
  for (int64_t& value : out) {
    uint32_t drawn;
    do drawn = twister_.next32() & mask;
    while (drawn > last);
    value = low + drawn;
  }
  return out;
}

// ---- Python's random

uint32_t PythonRandom::below(uint32_t limit) {
  const int bits = std::bit_width(limit);
  uint32_t drawn;
  do drawn = twister_.next32() >> (32 - bits);
  while (drawn >= limit);
  return drawn;
}

std::vector<size_t> PythonRandom::choices(size_t size, size_t count) {
  std::vector<size_t> out(count);
  for (size_t& index : out)
    index = static_cast<size_t>(std::floor(twister_.next_double() * static_cast<double>(size)));
  return out;
}

}  // namespace m2::app::bench
