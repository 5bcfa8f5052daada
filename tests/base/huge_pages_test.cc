// Covers: base/huge_pages
#include "base/huge_pages.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <fstream>
#include <sstream>
#include <string>

namespace m2 {
namespace {

// The kernel's flags of the mapping that holds this address: "hg" is advice to use huge pages.
std::string flags_of(const void* address) {
  std::ifstream maps("/proc/self/smaps");
  const auto at = reinterpret_cast<uintptr_t>(address);
  bool inside = false;
  for (std::string line; std::getline(maps, line);) {
    uintptr_t begin = 0, end = 0;
    char dash = 0;
    std::istringstream range(line);
    if (range >> std::hex >> begin >> dash >> end && dash == '-') inside = begin <= at && at < end;
    if (inside && line.starts_with("VmFlags:")) return line + " ";
  }
  return "";
}

TEST(HugePages, AreAskedForWhereAnArrayIsLarge) {
  const LargeArray<int32_t> array(3 * kHugePage / sizeof(int32_t) + 1);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(array.data()) % kHugePage, 0u);
  EXPECT_NE(flags_of(array.data()).find(" hg "), std::string::npos) << flags_of(array.data());
  EXPECT_NE(flags_of(&array.back()).find(" hg "), std::string::npos);
  EXPECT_EQ(std::ranges::count(array, 0), std::ssize(array));
}

TEST(HugePages, SmallArraysAreAsAnyOther) {
  LargeArray<int64_t> array;
  for (int64_t i = 0; i < 1'000'000; ++i) array.push_back(i);  // grows from one kind into the other
  for (int64_t i = 0; i < 1'000'000; ++i) ASSERT_EQ(array[static_cast<size_t>(i)], i);
  const LargeArray<int64_t> copy(array.begin(), array.begin() + 10);
  EXPECT_EQ(flags_of(copy.data()).find(" hg "), std::string::npos);
}

}  // namespace
}  // namespace m2
