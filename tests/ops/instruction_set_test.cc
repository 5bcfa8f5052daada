#include "ops/instruction_set.h"

#include <gtest/gtest.h>

namespace m2::ops {
namespace {

TEST(InstructionSet, EveryOneThatIsListedCanBeChosen) {
  const std::vector<std::string_view> sets = instruction_sets();
  ASSERT_FALSE(sets.empty());
  for (const std::string_view set : sets) {
    ASSERT_TRUE(choose_instruction_set(set).ok()) << set;
    EXPECT_EQ(instruction_set(), set);
    EXPECT_EQ(cpu::use_tiles(), set == "amx");
  }
  ASSERT_TRUE(choose_instruction_set("auto").ok());
  EXPECT_EQ(instruction_set(), sets.front());
}

TEST(InstructionSet, OthersAreRefusedWithWhatThereIs) {
  const std::string_view before = instruction_set();
  for (const char* name : {"sse9", "", "AVX2"}) {
    const Result<void> chosen = choose_instruction_set(name);
    ASSERT_FALSE(chosen.ok()) << name;
    EXPECT_EQ(chosen.error().code, Code::unsupported);
    EXPECT_NE(chosen.error().text.find(instruction_sets().back()), std::string::npos);
  }
  EXPECT_EQ(instruction_set(), before);
}

}  // namespace
}  // namespace m2::ops
