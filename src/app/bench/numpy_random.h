#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

// Random draws that are, bit for bit, those of numpy and of Python's random module, so that a seed
// names the same prompts and arrivals here as in the benchmark clients that are written in Python.

namespace m2::app::bench {

// numpy.random.default_rng(seed): PCG64 (O'Neill 2014, XSL-RR 128/64) seeded by SeedSequence.
class NumpyGenerator {
 public:
  explicit NumpyGenerator(uint64_t seed);

  // integers(low, high, size=count), dtype int64. Precondition: low < high. An interval of one
  // value consumes no random bits.
  std::vector<int64_t> integers(int64_t low, int64_t high, size_t count);

 private:
  __extension__ using Word = unsigned __int128;
  uint64_t next64();
  uint32_t next32();  // two halves of one next64(), the low one first
  uint64_t bounded(uint64_t last);

  Word state_ = 0;
  Word increment_ = 0;
  uint32_t kept_ = 0;
  bool has_kept_ = false;
};

// MT19937 (Matsumoto and Nishimura 1998) as both libraries seed it.
class MersenneTwister {
 public:
  // numpy.random.seed(seed): the reference code's init_genrand.
  static MersenneTwister numpy(uint32_t seed);
  // random.seed(seed): init_by_array of the seed's 32-bit digits.
  static MersenneTwister python(uint64_t seed);

  uint32_t next32();
  double next_double();  // [0, 1), 53 bits

 private:
  void fill(uint32_t seed);
  std::array<uint32_t, 624> words_{};
  size_t next_ = 624;
};

// The legacy global functions numpy.random.X after numpy.random.seed(seed).
class NumpyLegacy {
 public:
  explicit NumpyLegacy(uint32_t seed) : twister_(MersenneTwister::numpy(seed)) {}

  // gamma(shape, scale). Precondition: shape > 0.
  double gamma(double shape, double scale) { return scale * standard_gamma(shape); }
  // randint(low, high, size=count): masked rejection. Precondition: high - low <= 2^32.
  std::vector<int64_t> randint(int64_t low, int64_t high, size_t count);

 private:
  double standard_gamma(double shape);
  double gamma_below_one(double shape);
  double gamma_above_one(double shape);
  double exponential();
  double gauss();

  MersenneTwister twister_;
  double kept_gauss_ = 0;
  bool has_gauss_ = false;
};

// Python's random module after random.seed(seed).
class PythonRandom {
 public:
  explicit PythonRandom(uint64_t seed) : twister_(MersenneTwister::python(seed)) {}

  // random.choices(range(size), k=count). Precondition: size > 0.
  std::vector<size_t> choices(size_t size, size_t count);

  // random.shuffle(items). Precondition: fewer than 2^32 items.
  template <class T>
  void shuffle(std::vector<T>& items) {
    for (size_t i = items.size(); i-- > 1;)
      std::swap(items[i], items[below(static_cast<uint32_t>(i + 1))]);
  }

 private:
  uint32_t below(uint32_t limit);  // randrange(limit)
  MersenneTwister twister_;
};

}  // namespace m2::app::bench
