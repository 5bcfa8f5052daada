#include "engine/row_ops.h"

#include <gtest/gtest.h>
#include <hwy/targets.h>

#include <cmath>
#include <functional>
#include <limits>
#include <vector>

namespace m2::engine::test {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// Calls body() once for every instruction set this machine has and the build carries.
void on_every_target(const std::function<void()>& body) {
  const int64_t all = hwy::SupportedTargets();
  for (int64_t bit = 1; bit > 0 && bit <= all; bit <<= 1) {
    if ((all & bit) == 0) continue;
    hwy::SetSupportedTargetsForTest(bit);
    hwy::GetChosenTarget().Update(hwy::SupportedTargets());
    SCOPED_TRACE(hwy::TargetName(bit));
    body();
  }
  hwy::SetSupportedTargetsForTest(0);
  hwy::GetChosenTarget().Update(hwy::SupportedTargets());
}

std::vector<float> random_row(size_t size, uint64_t seed) {
  std::vector<float> row(size);
  for (size_t i = 0; i < size; ++i) {
    row[i] = static_cast<float>(mix64(seed * 1000003 + i) >> 40) * 0x1p-20f - 8;
    if (mix64(seed + i * 77) % 16 == 0) row[i] = -kInfinity;
  }
  row[seed % size] = 1;
  return row;
}

const std::vector<size_t> kSizes = {1, 2, 7, 8, 15, 16, 17, 63, 64, 65, 127, 128, 129, 1000, 4101};

TEST(RowOps, ScanFindsMaximaOfBlocks) {
  on_every_target([] {
    for (const size_t size : kSizes) {
      const auto row = random_row(size, size);
      std::vector<float> maxima(static_cast<size_t>(row_blocks(static_cast<int64_t>(size))));
      const RowScan scan = scan_row(row, maxima);
      EXPECT_FALSE(scan.has_nan);
      EXPECT_EQ(scan.max, *std::max_element(row.begin(), row.end()));
      for (size_t b = 0; b < maxima.size(); ++b) {
        const auto begin = row.begin() + static_cast<std::ptrdiff_t>(b * 64);
        const auto end = row.begin() + static_cast<std::ptrdiff_t>(std::min(size, b * 64 + 64));
        EXPECT_EQ(maxima[b], *std::max_element(begin, end)) << size << " block " << b;
      }
    }
  });
}

TEST(RowOps, ScanSeesOneNanAnywhere) {
  on_every_target([] {
    for (const size_t size : {size_t{1}, size_t{65}, size_t{131}}) {
      for (size_t place = 0; place < size; ++place) {
        auto row = random_row(size, size);
        row[place] = place % 2 ? std::nanf("") : -std::nanf("");
        std::vector<float> maxima(static_cast<size_t>(row_blocks(static_cast<int64_t>(size))));
        EXPECT_TRUE(scan_row(row, maxima).has_nan) << size << " at " << place;
      }
    }
  });
}

TEST(RowOps, SumExpAgreesWithDoubles) {
  on_every_target([] {
    for (const size_t size : kSizes) {
      const auto row = random_row(size, size + 1);
      const float max = *std::max_element(row.begin(), row.end());
      for (const float scale : {1.0f, 0.3f, 5.0f}) {
        for (const float cutoff : {-kInfinity, max - 2, max}) {
          double expected = 0;
          for (const float x : row) {
            if (x >= cutoff)
              expected += std::exp((static_cast<double>(x) - static_cast<double>(max)) *
                                   static_cast<double>(scale));
          }
          EXPECT_NEAR(sum_exp(row, max, scale, cutoff), expected, 2e-6 * expected) << size;
        }
      }
    }
  });
}

TEST(RowOps, CountGreater) {
  on_every_target([] {
    for (const size_t size : kSizes) {
      const auto row = random_row(size, size + 2);
      for (const float value : {-kInfinity, -3.0f, 1.0f, 100.0f}) {
        const auto expected =
            std::count_if(row.begin(), row.end(), [&](float x) { return x > value; });
        EXPECT_EQ(count_greater(row, value), expected) << size;
      }
    }
  });
}

// The winner by double arithmetic, and how far behind the given id was.
double shortfall(const std::vector<float>& row, float scale, float cutoff, NoiseKey key,
                 int32_t id) {
  double best = -1, chosen = -1;
  const float max = *std::max_element(row.begin(), row.end());
  for (size_t i = 0; i < row.size(); ++i) {
    if (row[i] < cutoff || row[i] == -kInfinity) continue;
    const double time =
        -std::log1p(-static_cast<double>(noise_uniform(key, static_cast<uint32_t>(i))));
    const double score =
        std::exp(static_cast<double>(row[i] - max) * static_cast<double>(scale)) / time;
    best = std::max(best, score);
    if (static_cast<int32_t>(i) == id) chosen = score;
  }
  return (best - chosen) / best;
}

TEST(RowOps, RaceIsWonByTheLargestScore) {
  on_every_target([] {
    for (const size_t size : kSizes) {
      const auto row = random_row(size, size + 3);
      const float max = *std::max_element(row.begin(), row.end());
      for (uint64_t position = 0; position < 20; ++position) {
        const NoiseKey key = noise_key(size, position);
        for (const float cutoff : {-kInfinity, max - 1}) {
          const int32_t id = race(row, max, 0.8f, cutoff, key);
          EXPECT_LT(shortfall(row, 0.8f, cutoff, key, id), 1e-5) << size;
        }
      }
    }
  });
}

TEST(RowOps, NoiseIsUniformAndNeverZero) {
  double sum = 0, squares = 0;
  float smallest = 1, largest = 0;
  constexpr uint32_t kCount = 1 << 20;
  const NoiseKey key = noise_key(1, 2);
  for (uint32_t id = 0; id < kCount; ++id) {
    const float u = noise_uniform(key, id);
    sum += static_cast<double>(u);
    squares += static_cast<double>(u) * static_cast<double>(u);
    smallest = std::min(smallest, u);
    largest = std::max(largest, u);
  }
  EXPECT_GT(smallest, 0);
  EXPECT_LT(largest, 1);
  EXPECT_NEAR(sum / kCount, 0.5, 0.0015);  // 5 standard errors
  EXPECT_NEAR(squares / kCount, 1.0 / 3, 0.0015);
}

}  // namespace
}  // namespace m2::engine::test
