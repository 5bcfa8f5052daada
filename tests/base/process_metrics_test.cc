#include "base/process_metrics.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <ctime>
#include <vector>

namespace m2 {
namespace {

double value_of(const std::string& name) {
  const std::string text = "\n" + process_metrics();
  const size_t at = text.find("\n" + name + " ");
  if (at == std::string::npos) return -1;
  return std::strtod(text.c_str() + at + 1 + name.size(), nullptr);
}

TEST(ProcessMetrics, AreThisProcesss) {
  const auto now = static_cast<double>(time(nullptr));
  EXPECT_GT(value_of("process_start_time_seconds"), now - 600);
  EXPECT_LT(value_of("process_start_time_seconds"), now + 2);
  EXPECT_GE(value_of("process_cpu_seconds_total"), 0);
  EXPECT_GT(value_of("process_max_fds"), value_of("process_open_fds"));
  EXPECT_GT(value_of("process_virtual_memory_bytes"), value_of("process_resident_memory_bytes"));
  EXPECT_GT(value_of("process_resident_memory_bytes"), 1 << 20);
}

TEST(ProcessMetrics, FollowWhatTheProcessDoes) {
  const double open = value_of("process_open_fds");
  const int copy = dup(0);
  EXPECT_EQ(value_of("process_open_fds"), open + (copy >= 0));
  close(copy);
  EXPECT_EQ(value_of("process_open_fds"), open);
  const double before = value_of("process_resident_memory_bytes");
  const std::vector<char> held(64 << 20, 'x');
  EXPECT_GT(value_of("process_resident_memory_bytes"), before + (60 << 20));
  EXPECT_EQ(held.back(), 'x');
  const double spent = value_of("process_cpu_seconds_total");
  const clock_t until = clock() + CLOCKS_PER_SEC / 10;
  while (clock() < until) {
  }
  EXPECT_GE(value_of("process_cpu_seconds_total"), spent + 0.05);
}

}  // namespace
}  // namespace m2
