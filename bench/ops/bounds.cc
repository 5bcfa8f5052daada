#include "bench/ops/bounds.h"

#include <algorithm>
#include <atomic>
#include <chrono>

#include "ops/cpu/targets.h"

#undef HWY_TARGET_INCLUDE
#define HWY_TARGET_INCLUDE "bench/ops/bounds.cc"
#include "hwy/foreach_target.h"
// After foreach_target.
#include "hwy/highway.h"

HWY_BEFORE_NAMESPACE();
namespace m2::bench {
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
  return hn::GetLane(hn::SumOfLanes(d, sums[0]));
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
}  // namespace m2::bench
HWY_AFTER_NAMESPACE();

#if HWY_ONCE
namespace m2::bench {
namespace {

HWY_EXPORT(read_piece_here);
HWY_EXPORT(multiply_add_here);
HWY_EXPORT(float_lanes_here);

double now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace

double read_bandwidth(ThreadPool& pool, const void* memory, int64_t bytes) {
  constexpr int64_t kPiece = 1 << 20;
  constexpr int64_t kWindow = 32 * kPiece;
  const auto* from = static_cast<const uint8_t*>(memory);
  std::atomic<uint64_t> sink{0};
  double best = 0;
  for (int round = 0; round < 3; ++round) {
    for (const int streams : {1, 2, 4, 8}) {
      for (int64_t window = 0; window + kWindow <= bytes; window += kWindow) {
        const double start = now();
        pool.for_each(kWindow / kPiece, [&](int64_t piece) {
          sink += HWY_DYNAMIC_DISPATCH(read_piece_here)(from + window + piece * kPiece, kPiece,
                                                        streams);
        });
        best = std::max(best, static_cast<double>(kWindow) / (now() - start));
      }
    }
  }
  return sink.load() == 1 ? 0 : best;
}

double multiply_add_rate(ThreadPool& pool) {
  constexpr int64_t kSteps = 100000;
  std::atomic<int> sink{0};
  double best = 0;
  for (int round = 0; round < 1000; ++round) {
    const double start = now();
    pool.run([&](int thread) {
      const float sum = HWY_DYNAMIC_DISPATCH(multiply_add_here)(kSteps, static_cast<float>(thread));
      sink += sum > 0;
    });
    const double operations = 2.0 * 12 * kSteps * pool.size() *
                              static_cast<double>(HWY_DYNAMIC_DISPATCH(float_lanes_here)());
    best = std::max(best, operations / (now() - start));
  }
  return sink.load() < 0 ? 0 : best;
}

}  // namespace m2::bench
#endif  // HWY_ONCE
