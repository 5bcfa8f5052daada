#include "base/descriptors.h"

#include <gtest/gtest.h>
#include <sys/resource.h>

namespace m2 {
namespace {

TEST(Descriptors, ALowLimitIsRaisedAndAHighOneStays) {
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
  ASSERT_GE(before.rlim_max, 512u);
  const rlimit low{256, before.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &low), 0);
  EXPECT_EQ(allow_descriptors(100), 256);
  EXPECT_EQ(allow_descriptors(500), 500);
  rlimit now{};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &now), 0);
  EXPECT_EQ(now.rlim_cur, 500u);
  EXPECT_GE(now.rlim_max, before.rlim_max);
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
}

TEST(Descriptors, MoreThanMayBeHadIsWhatMayBeHad) {
  rlimit before{};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &before), 0);
  const int64_t got = allow_descriptors(int64_t{1} << 62);
  EXPECT_GT(got, 0);
  EXPECT_LT(got, int64_t{1} << 62);
  ASSERT_EQ(setrlimit(RLIMIT_NOFILE, &before), 0);
}

}  // namespace
}  // namespace m2
