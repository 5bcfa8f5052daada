#include "base/checked.h"

#include <gtest/gtest.h>

namespace m2 {
namespace {

TEST(Checked, FailsWhereItWouldWrap) {
  EXPECT_EQ(checked_add<uint64_t>(1, 2), 3u);
  EXPECT_FALSE(checked_add<uint64_t>(UINT64_MAX, 1));
  EXPECT_FALSE(checked_mul<uint64_t>(uint64_t{1} << 33, uint64_t{1} << 33));
  // The shape whose product wraps to something small (reliability.md 4.3, case 73).
  const auto wraps = checked_mul<uint64_t>(4194305ull * 4194305ull, 211106198978564ull);
  EXPECT_FALSE(wraps);
  EXPECT_FALSE((narrow<int32_t>(int64_t{1} << 31)));
  EXPECT_FALSE((narrow<uint32_t>(int64_t{-1})));
  EXPECT_EQ((narrow<int32_t>(int64_t{-5})), -5);
}

}  // namespace
}  // namespace m2
