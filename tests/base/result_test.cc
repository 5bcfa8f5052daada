#include "base/result.h"

#include <gtest/gtest.h>

#include <memory>

namespace m2 {
namespace {

Result<int> half(int value) {
  if (value % 2) return fail(Code::invalid_argument, "{} is odd", value);
  return value / 2;
}

Result<int> quarter(int value) {
  M2_TRY(const int once, half(value));
  M2_TRY(const int twice, half(once));
  return twice;
}

Result<void> must_be_even(int value) {
  M2_TRY_VOID(half(value));
  return {};
}

TEST(Result, CarriesValuesAndErrors) {
  EXPECT_EQ(*quarter(8), 2);
  EXPECT_EQ(quarter(6).error().text, "3 is odd");
  EXPECT_TRUE(must_be_even(2).ok());
  EXPECT_EQ(must_be_even(3).error().code, Code::invalid_argument);
}

TEST(Result, MovesWhatCannotBeCopied) {
  Result<std::unique_ptr<int>> result = std::make_unique<int>(4);
  const std::unique_ptr<int> value = *std::move(result);
  EXPECT_EQ(*value, 4);
}

TEST(ResultDeathTest, ValueOfAnErrorEndsTheProcess) {
  EXPECT_DEATH(half(1).value(), "1 is odd");
}

}  // namespace
}  // namespace m2
