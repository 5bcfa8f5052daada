#include "load/hub.h"

#include <gtest/gtest.h>

#include "tests/load/test_checkpoint.h"

namespace m2::load {
namespace {

namespace fs = std::filesystem;
using test::TempFolder;

constexpr const char* kCommit = "f710177d0123456789abcdef0123456789abcdef";
constexpr const char* kOther = "00000000111111112222222233333333abcdef00";

// A cache as huggingface_hub lays it out: two snapshots, main, a tag and a pull request.
class HubTest : public testing::Test {
 protected:
  void SetUp() override {
    for (const char* commit : {kCommit, kOther})
      test::write_file(repository() / "snapshots" / commit / "config.json", "{}");
    test::write_file(repository() / "refs" / "main", kCommit);
    test::write_file(repository() / "refs" / "v2", std::string(kOther) + "\n");
    test::write_file(repository() / "refs" / "refs" / "pr" / "1", kOther);
    locations_.hf_hub_cache = cache_.path().string();
  }

  fs::path repository() const { return cache_ / "models--MiniMaxAI--MiniMax-M2.5"; }

  std::string resolve(const std::string& revision) const {
    const auto path = resolve_model("MiniMaxAI/MiniMax-M2.5", revision, locations_);
    return path.ok() ? path->string() : path.error().text;
  }
  std::string snapshot(const char* commit) const {
    return (repository() / "snapshots" / commit).string();
  }

  TempFolder cache_;
  HubLocations locations_;
};

TEST_F(HubTest, AFolderIsItself) {
  const auto path = resolve_model(cache_.path().string(), "v9", locations_);
  ASSERT_TRUE(path.ok());
  EXPECT_EQ(*path, cache_.path());
}

TEST_F(HubTest, FindsBranchesTagsPullRequestsAndCommits) {
  EXPECT_EQ(resolve(""), snapshot(kCommit));
  EXPECT_EQ(resolve("main"), snapshot(kCommit));
  EXPECT_EQ(resolve("v2"), snapshot(kOther));
  EXPECT_EQ(resolve("refs/pr/1"), snapshot(kOther));
  EXPECT_EQ(resolve(kOther), snapshot(kOther));
}

TEST_F(HubTest, ANameWithoutOrganisationIsANameToo) {
  test::write_file(cache_ / "models--gpt2/refs/main", kCommit);
  test::write_file(cache_ / (std::string("models--gpt2/snapshots/") + kCommit + "/config.json"),
                   "{}");
  EXPECT_TRUE(resolve_model("gpt2", "", locations_).ok());
}

TEST_F(HubTest, SaysWhereItLookedAndHowToDownload) {
  const auto unknown = resolve_model("MiniMaxAI/MiniMax-M9", "", locations_);
  ASSERT_FALSE(unknown.ok());
  EXPECT_EQ(unknown.error().code, Code::not_found);
  for (const std::string& part :
       {(cache_ / "models--MiniMaxAI--MiniMax-M9/refs/main").string(),
        std::string("hf download MiniMaxAI/MiniMax-M9 --revision main")})
    EXPECT_NE(unknown.error().text.find(part), std::string::npos) << unknown.error().text;
  EXPECT_NE(resolve("v3").find("refs/v3"), std::string::npos);
  EXPECT_NE(resolve("1111111111111111111111111111111111111111").find("snapshots/1111"),
            std::string::npos);
}

TEST_F(HubTest, NothingLeadsOutOfTheCache) {
  test::write_file(cache_ / "secret/refs/main", kCommit);
  for (const char* model : {"../secret", "a/../b", "a/b/c", "/absent/x", "a//b", "", "a/", "~x",
                            "a b/c", "a/\xff"})
    EXPECT_FALSE(resolve_model(model, "", locations_).ok()) << model;
  for (const char* revision : {"../../x", "..", "a//b", "/etc/passwd", "a\nb", "refs/../../x"}) {
    const auto result = resolve_model("MiniMaxAI/MiniMax-M2.5", revision, locations_);
    ASSERT_FALSE(result.ok()) << revision;
    EXPECT_EQ(result.error().param, "revision");
  }
  // A ref that is no commit hash would lead anywhere.
  for (const char* content :
       {"../../../..", "", "main", "F710177D0123456789abcdef0123456789abcdef"}) {
    test::write_file(repository() / "refs" / "main", content);
    EXPECT_NE(resolve("main").find("no commit hash"), std::string::npos) << content;
  }
  test::write_file(repository() / "refs" / "main", std::string(100'000, 'a'));
  EXPECT_NE(resolve("main").find("exceed the limit"), std::string::npos);
}

TEST(HubCache, TheFirstLocationThatIsSetDecides) {
  HubLocations locations{"/d", "/hub", "/old", "/home/hf", "/xdg", "/home/me"};
  EXPECT_EQ(hub_cache(locations), "/d");
  locations.download_dir = "";
  EXPECT_EQ(hub_cache(locations), "/hub");
  locations.hf_hub_cache = "";
  EXPECT_EQ(hub_cache(locations), "/old");
  locations.huggingface_hub_cache = "";
  EXPECT_EQ(hub_cache(locations), "/home/hf/hub");
  locations.hf_home = "~/hf";
  EXPECT_EQ(hub_cache(locations), "/home/me/hf/hub");
  locations.hf_home = "";
  EXPECT_EQ(hub_cache(locations), "/xdg/huggingface/hub");
  locations.xdg_cache_home = "";
  EXPECT_EQ(hub_cache(locations), "/home/me/.cache/huggingface/hub");
  locations.home = "";
  EXPECT_EQ(hub_cache(locations), "");
}

TEST(HubCache, WithoutAnyLocationTheErrorSaysWhatToSet) {
  const auto result = resolve_model("a/b", "", {});
  ASSERT_FALSE(result.ok());
  EXPECT_NE(result.error().text.find("HF_HOME"), std::string::npos);
}

}  // namespace
}  // namespace m2::load
