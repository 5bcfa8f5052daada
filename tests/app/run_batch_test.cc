#include "app/run_batch.h"

#include <gtest/gtest.h>

namespace m2::app::test {
namespace {

std::string line(const std::string& id, int status) {
  return fmt::format(
      R"({{"id":"x","custom_id":"{}","response":{{"status_code":{},"body":{{}}}},"error":null}})"
      "\n",
      id, status);
}

TEST(RunBatch, KeepsWhatIsAnsweredForGood) {
  const std::set<std::string> expected = {"a", "b", "c", "d", "e"};
  const std::string good = line("a", 200) + line("b", 400);
  const auto kept = kept_lines(good + line("c", 500) + line("d", 429) +
                                   R"({"custom_id":"e","response":null,"error":{}})" + "\n" +
                                   line("a", 200) + line("e", 200).substr(0, 30),
                               expected);
  ASSERT_TRUE(kept.ok());
  EXPECT_EQ(kept->text, good);
  EXPECT_EQ(kept->ids, (std::set<std::string>{"a", "b"}));
  EXPECT_EQ(kept_lines("", expected)->text, "");
}

TEST(RunBatch, RefusesTheOutputOfOtherRequests) {
  EXPECT_NE(kept_lines(line("z", 200), {"a"}).error().text.find("the request z"),
            std::string::npos);
  EXPECT_FALSE(kept_lines("my notes\n", {"a"}).ok());
  EXPECT_FALSE(kept_lines("[1]\n", {"a"}).ok());
}

}  // namespace
}  // namespace m2::app::test
