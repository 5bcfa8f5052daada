#include "ops/cpu/ceilings.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <numeric>

#include "base/check.h"
#include "ops/cpu/targets.h"
#include "ops/cpu/tiles.h"
#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "ops/cpu/ceilings.cc"
#include "hwy/foreach_target.h"
// After foreach_target.
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace m2::ops::cpu {
namespace HWY_NAMESPACE {
namespace {

namespace hn = hwy::HWY_NAMESPACE;

// Sum of all words of `streams` pieces read side by side; piece i begins at p + i * stride.
template <int kStreams>
uint64_t read_streams(const uint8_t* p, int64_t stride) {
  const hn::ScalableTag<uint64_t> d;
  const int64_t width = static_cast<int64_t>(hn::Lanes(d)) * 8;
  hn::Vec<decltype(d)> sums[kStreams];
  for (int s = 0; s < kStreams; ++s) sums[s] = hn::Zero(d);
  for (int64_t i = 0; i + 256 <= stride; i += 256) {
#pragma GCC unroll 16
    for (int s = 0; s < kStreams; ++s) {
      for (int64_t j = 0; j < 256; j += width)
        sums[s] = hn::Add(sums[s],
                          hn::LoadU(d, reinterpret_cast<const uint64_t*>(p + s * stride + i + j)));
    }
  }
  for (int s = 1; s < kStreams; ++s) sums[0] = hn::Add(sums[0], sums[s]);
  // Not SumOfLanes: GCC's header adds AVX-512's lanes as signed numbers, which overflow.
  HWY_ALIGN uint64_t lanes[HWY_MAX_BYTES / 8];
  hn::Store(sums[0], d, lanes);
  return std::accumulate(lanes, lanes + hn::Lanes(d), uint64_t{0});
}

uint64_t read_piece_here(const uint8_t* p, int64_t bytes, int streams) {
  switch (streams) {
    case 1:
      return read_streams<1>(p, bytes);
    case 2:
      return read_streams<2>(p, bytes / 2);
    case 4:
      return read_streams<4>(p, bytes / 4);
    default:
      return read_streams<8>(p, bytes / 8);
  }
}

// Twelve independent chains: enough for two units of latency four to six.
float multiply_add_here(int64_t steps, float start) {
  const hn::ScalableTag<float> d;
  hn::Vec<decltype(d)> acc[12];
  for (int i = 0; i < 12; ++i) acc[i] = hn::Set(d, start + static_cast<float>(i));
  const auto factor = hn::Set(d, 0.999f);
  for (int64_t step = 0; step < steps; ++step) {
#pragma GCC unroll 12
    for (int i = 0; i < 12; ++i) acc[i] = hn::MulAdd(acc[i], factor, factor);
  }
  for (int i = 1; i < 12; ++i) acc[0] = hn::Add(acc[0], acc[i]);
  return hn::GetLane(hn::SumOfLanes(d, acc[0]));
}

int64_t float_lanes_here() {
  return static_cast<int64_t>(hn::Lanes(hn::ScalableTag<float>()));
}

}  // namespace
}  // namespace HWY_NAMESPACE
}  // namespace m2::ops::cpu
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace m2::ops::cpu {
namespace {

HWY_EXPORT(read_piece_here);
HWY_EXPORT(multiply_add_here);
HWY_EXPORT(float_lanes_here);

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

// The fastest window of 32 MiB, with one to eight streams a thread: a window lasts about as long as
// one operation, so that on a busy machine bound and operation have the same chance of a quiet
// moment.
double read_rate(const Exec& exec, Tensor memory) {
  constexpr int64_t kPiece = 1 << 20;
  constexpr int64_t kWindow = 32 * kPiece;
  constexpr double kEnough = 3;  // seconds
  const auto* from = static_cast<const uint8_t*>(memory.data());
  const int64_t bytes = memory.elements() * size_of(memory.dtype());
  std::atomic<uint64_t> sink{0};
  double best = 0;
  const double begin = now();
  for (int round = 0; round < 3 && now() - begin < kEnough; ++round) {
    for (const int streams : {1, 2, 4, 8}) {
      for (int64_t window = 0; window + kWindow <= bytes; window += kWindow) {
        const double start = now();
        exec.pool->for_each(kWindow / kPiece, [&](int64_t piece) {
          sink += HWY_DYNAMIC_DISPATCH(read_piece_here)(from + window + piece * kPiece, kPiece,
                                                        streams);
        });
        best = std::max(best, static_cast<double>(kWindow) / (now() - start));
      }
    }
  }
  return sink.load() == 1 ? 0 : best;
}

namespace {

// The best of many runs of `work`, which does so many operations on every thread.
double best_rate(ThreadPool& pool, double operations, const std::function<void(int)>& work) {
  constexpr double kEnough = 1;  // seconds
  double best = 0;
  const double begin = now();
  for (int round = 0; round < 1000 && now() - begin < kEnough; ++round) {
    const double start = now();
    pool.run([&](int thread) { work(thread); });
    best = std::max(best, operations * pool.size() / (now() - start));
  }
  return best;
}

#if defined(__x86_64__)
// Four accumulators of 16 x 16, two tiles of inputs and two of weights: products of 16 x 32 x 16.
__attribute__((target("amx-tile,amx-bf16"))) void multiply_tiles(int64_t steps) {
  struct alignas(64) {
    uint8_t palette = 1, start_row = 0, reserved[14] = {};
    uint16_t row_bytes[16] = {};
    uint8_t rows[16] = {};
  } config;
  for (int tile = 0; tile < 8; ++tile) {
    config.row_bytes[tile] = 64;
    config.rows[tile] = 16;
  }
  _tile_loadconfig(&config);
  alignas(64) uint16_t numbers[16 * 32];
  for (size_t i = 0; i < std::size(numbers); ++i)
    numbers[i] = static_cast<uint16_t>(0x3f00 + i * 37 % 256);  // BF16 from 0.5 to 2
  _tile_loadd(4, numbers, 64);
  _tile_loadd(5, numbers, 64);
  _tile_loadd(6, numbers, 64);
  _tile_loadd(7, numbers, 64);
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t step = 0; step < steps; ++step) {
    _tile_dpbf16ps(0, 4, 6);
    _tile_dpbf16ps(1, 4, 7);
    _tile_dpbf16ps(2, 5, 6);
    _tile_dpbf16ps(3, 5, 7);
  }
  _tile_release();
}
#else
void multiply_tiles(int64_t) {
  M2_CHECK(false, "no tiles here");
}
#endif

}  // namespace

double multiply_rate(const Exec& exec, Multiplier unit) {
  constexpr int64_t kSteps = 20'000;
  if (unit == Multiplier::bf16) {
    M2_CHECK(tiles_supported(), "no tiles here");
    return best_rate(*exec.pool, 2.0 * 4 * 16 * 32 * 16 * kSteps,
                     [](int) { multiply_tiles(kSteps); });
  }
  M2_CHECK(unit == Multiplier::fp32);
  std::atomic<int> sink{0};
  const auto lanes = static_cast<double>(HWY_DYNAMIC_DISPATCH(float_lanes_here)());
  const double rate = best_rate(*exec.pool, 2.0 * 12 * kSteps * lanes, [&](int thread) {
    sink += HWY_DYNAMIC_DISPATCH(multiply_add_here)(kSteps, static_cast<float>(thread)) > 0;
  });
  return sink.load() < 0 ? 0 : rate;
}

}  // namespace m2::ops::cpu
#endif  // HWY_ONCE
