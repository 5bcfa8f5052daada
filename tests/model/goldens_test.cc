// Covers: model/forward, model/runner, model/weights
#include <gtest/gtest.h>

#include <algorithm>
#include <fstream>
#include <sstream>

#include "base/json.h"
#include "tests/model/small_model.h"

// Logits and greedy continuations of transformers' MiniMaxM2ForCausalLM, see
// tests/golden/model/README.md for what they are and where the tolerance comes from.

namespace m2::model {
namespace {

// Of logits that deviate by about 3.
constexpr double kTolerance = 0.05;
constexpr double kRoundedTolerance = 0.1;

Json read_golden(const std::string& name) {
  std::ifstream file(std::string(M2_SOURCE_DIR "/tests/golden/model/") + name + ".json");
  std::stringstream text;
  text << file.rdbuf();
  Result<Json> golden = parse_json(text.str());
  M2_CHECK(golden.ok(), "{}: {}", name, golden.error().text);
  return *std::move(golden);
}

class TransformersGolden : public testing::TestWithParam<const char*> {
 protected:
  void SetUp() override {
    const std::string folder = std::string(M2_CHECKPOINT_DIR "/") + GetParam();
    Result<load::Checkpoint> checkpoint = load::Checkpoint::open(folder);
    ASSERT_TRUE(checkpoint.ok()) << checkpoint.error().text;
    Result<ModelConfig> config = read_config(checkpoint->config());
    ASSERT_TRUE(config.ok()) << config.error().text;
    config->max_position_embeddings = 256;  // the KV these runs need, not the config's longest
    Result<Weights> weights = load_weights(*config, *checkpoint, {}, Device{}, nullptr);
    ASSERT_TRUE(weights.ok()) << weights.error().text;
    model_ = std::make_unique<SmallModel>(*config, *std::move(weights));
  }

  // Feeds tokens from position `begin` on, at most `step` at a time; the rows of all of them.
  Rows feed(const std::vector<int32_t>& tokens, size_t begin, size_t step) {
    Rows out;
    for (size_t i = 0; i < tokens.size(); i += step) {
      const size_t end = std::min(i + step, tokens.size());
      Rows rows = model_->run(
          {{{tokens.begin() + static_cast<long>(i), tokens.begin() + static_cast<long>(end)},
            static_cast<int32_t>(begin + i),
            blocks_}});
      std::move(rows.begin(), rows.end(), std::back_inserter(out));
    }
    return out;
  }

  void expect_run(const Json& run, long id_limit, double tolerance) {
    const auto prompt = run["prompt"].get<std::vector<int32_t>>();
    const auto greedy = run["greedy"].get<std::vector<int32_t>>();
    Rows rows = feed(prompt, 0, 64);
    for (size_t i = 0; i < greedy.size(); ++i) {
      const std::vector<float>& last = rows.back();
      const auto best = std::max_element(last.begin(), last.begin() + id_limit) - last.begin();
      ASSERT_EQ(best, greedy[i]) << "token " << i << " after a prompt of " << prompt.size();
      if (i + 1 == greedy.size()) break;
      rows.push_back(feed({greedy[i]}, prompt.size() + i, 1).front());
    }

    const auto positions = run["positions"].get<std::vector<size_t>>();
    for (size_t p = 0; p < positions.size(); ++p) {
      const auto expected = run["logits"][p].get<std::vector<double>>();
      const std::vector<float>& row = rows.at(positions[p]);
      ASSERT_EQ(row.size(), expected.size());
      for (size_t i = 0; i < row.size(); ++i)
        ASSERT_NEAR(row[i], expected[i], tolerance) << "position " << positions[p] << " id " << i;
    }
  }

  const std::vector<int32_t> blocks_{3, 60, 4, 59, 5, 58, 6, 57, 7, 56, 8, 55, 9, 54, 10, 53};
  std::unique_ptr<SmallModel> model_;
};

TEST_P(TransformersGolden, LogitsAndGreedyTokens) {
  const Json golden = read_golden(GetParam());
  for_each_arithmetic([&](bool rounds_inputs) {
    int runs = 0;
    for (const Json& run : golden["runs"]) {
      if (run["kv"] != "bf16" || run["inputs"] != (rounds_inputs ? "bf16" : "f32")) continue;
      ++runs;
      expect_run(run, golden["id_limit"].get<long>(),
                 rounds_inputs ? kRoundedTolerance : kTolerance);
    }
    EXPECT_EQ(runs, 3);
  });
}

INSTANTIATE_TEST_SUITE_P(Checkpoints, TransformersGolden,
                         testing::Values("plain_fp8", "bf16", "one_kv_head_fp8", "ragged_fp8"),
                         [](const auto& named) { return std::string(named.param); });

}  // namespace
}  // namespace m2::model
