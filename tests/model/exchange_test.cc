// Covers: model/exchange, model/forward, model/weights
#include "model/exchange.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

#include "ops/instruction_set.h"
#include "tests/model/rank_models.h"

// One model on any number of ranks, spread in every way, against the same model on one rank: the
// logits of prompts and of decoding steps.

namespace m2::model {
namespace {

// Sums over ranks are the sums of one rank in another order: about 1e-6 of the largest logit. A
// key or value that this moves over a rounding edge of BF16 shifts what reads it by 1e-3 or so.
constexpr double kTolerance = 4e-3;
// The root of the mean square. Tiles round the inputs of products to BF16 too, so there are more
// edges to move over: 2.3e-4 at worst was seen.
double usual_tolerance() {
  return ops::cpu::use_tiles() ? 1e-3 : 2e-4;
}

// Widths that cut FP8 blocks, vocabulary and experts unevenly: inner 208 over 16 ranks is 13, 163
// rows of vocabulary over 2 are 82 and 81, and 9 experts over 8 are 2 and seven times 1.
ModelConfig spread_config(int64_t heads, int64_t kv_heads) {
  ModelConfig config = small_config();
  config.intermediate_size = 208;
  config.num_layers = 2;
  config.num_heads = heads;
  config.num_kv_heads = kv_heads;
  config.head_dim = 16;
  config.rotary_dim = 8;
  config.num_experts = 9;
  config.vocab_size = 163;
  return config;
}

std::vector<int32_t> tokens_of(uint32_t seed, size_t count, int64_t vocabulary) {
  std::mt19937 random(seed);
  std::vector<int32_t> out;
  while (out.size() < count) out.push_back(static_cast<int32_t>(random() % vocabulary));
  return out;
}

void expect_close(const Rows& rows, const Rows& expected, const std::string& what) {
  ASSERT_EQ(rows.size(), expected.size()) << what;
  double worst = 0, squares = 0, count = 0, largest = 0;
  for (const auto& row : expected)
    for (const float value : row) largest = std::max(largest, std::abs(double{value}));
  for (size_t r = 0; r < rows.size(); ++r) {
    ASSERT_EQ(rows[r].size(), expected[r].size()) << what;
    for (size_t i = 0; i < rows[r].size(); ++i, ++count) {
      const double error = std::abs(double{rows[r][i]} - double{expected[r][i]}) / largest;
      ASSERT_FALSE(std::isnan(error)) << what;
      worst = std::max(worst, error);
      squares += error * error;
    }
  }
  if (count == 0) return;
  EXPECT_LT(worst, kTolerance) << what;
  EXPECT_LT(std::sqrt(squares / count), usual_tolerance()) << what;
}

// Engine e works on prompts of its own, and has nothing to do in some steps.
void expect_equal_to_one_rank(const ModelConfig& config, const Spread& spread) {
  const auto make_weights = [&](const parallel::Topology& topology) {
    Result<Weights> weights = dummy_weights(config, topology, Device{}, 7);
    M2_CHECK(weights.ok(), "{}", weights.error().text);
    return *std::move(weights);
  };
  RankModels ranks(config, spread, make_weights);
  std::vector<std::unique_ptr<SmallModel>> alone;
  for (int64_t e = 0; e < spread.data; ++e)
    alone.push_back(std::make_unique<SmallModel>(config, make_weights({}), 1));

  for (int step = 0; step < 3; ++step) {
    std::vector<std::vector<Chunk>> work(static_cast<size_t>(spread.data));
    for (size_t e = 0; e < work.size(); ++e) {
      const auto seed = static_cast<uint32_t>(e * 10);
      const auto prompt = tokens_of(seed, 19 + e, config.vocab_size);
      if (step == 0) work[e] = {{prompt, 0, {3, 1}}, {tokens_of(seed + 1, 3, 100), 0, {9}}};
      if (step == 1 && e % 3 != 1) work[e] = {{{5}, static_cast<int32_t>(19 + e), {3, 1}}};
      if (step == 2 && e % 2 == 0)
        work[e] = {{{8, 1, 2, 9, 4}, 3, {9}}, {tokens_of(seed + 2, 1, 100), 0, {20}}};
    }
    const std::vector<Rows> rows = ranks.run(work);
    for (size_t e = 0; e < work.size(); ++e) {
      const Rows expected = work[e].empty() ? Rows() : alone[e]->run(work[e]);
      expect_close(rows[e], expected, fmt::format("{} step {} engine {}", spread.name(), step, e));
    }
  }
}

class Spreads : public testing::TestWithParam<Spread> {};

TEST_P(Spreads, EqualOneRankInFp8) {
  const bool by_three = GetParam().tensor % 3 == 0;
  expect_equal_to_one_rank(by_three ? spread_config(6, 3) : spread_config(16, 4), GetParam());
}

TEST_P(Spreads, EqualOneRankInBf16) {
  const bool by_three = GetParam().tensor % 3 == 0;
  ModelConfig config = by_three ? spread_config(6, 3) : spread_config(16, 4);
  config.fp8_blocks = false;
  expect_equal_to_one_rank(config, GetParam());
}

constexpr auto kAllToAll = ExchangeKind::all_to_all;
INSTANTIATE_TEST_SUITE_P(, Spreads,
                         testing::Values(Spread{1}, Spread{2}, Spread{3}, Spread{4},
                                         Spread{8},                 // kv heads on 2 ranks each
                                         Spread{16},                // kv heads on 4 ranks each
                                         Spread{2, 1, true},        // TP2 + EP2
                                         Spread{2, 1, true, true},  // round-robin
                                         Spread{8, 1, true},        // TP8 + EP8
                                         Spread{1, 2},              // DP2, experts cut
                                         Spread{1, 2, true},        // DP2 + EP2
                                         Spread{2, 2},              // DP2 x TP2
                                         Spread{2, 2, true},        // DP2 x TP2 + EP4
                                         Spread{1, 8, true},        // DP8 + EP8
                                         Spread{1, 8},              // DP8, experts cut into eight
                                         Spread{1, 3, true, true},  // uneven, round-robin
                                         Spread{1, 2, true, false, kAllToAll},
                                         Spread{2, 2, true, false, kAllToAll},
                                         Spread{1, 8, true, false, kAllToAll},
                                         Spread{1, 3, true, true, kAllToAll}),
                         [](const auto& spread) { return spread.param.name(); });

// Both ways of the exchange add the same numbers in the same order.
TEST(Exchange, AllToAllGivesTheBytesOfAllGather) {
  const ModelConfig config = spread_config(16, 4);
  const auto make_weights = [&](const parallel::Topology& topology) {
    return *dummy_weights(config, topology, Device{}, 7);
  };
  Spread spread{2, 3, true};
  RankModels gather(config, spread, make_weights);
  spread.exchange = kAllToAll;
  RankModels direct(config, spread, make_weights);
  std::vector<std::vector<Chunk>> work(3);
  work[0] = {{tokens_of(1, 30, 163), 0, {0, 1}}};
  work[2] = {{tokens_of(2, 9, 163), 0, {0}}, {tokens_of(3, 2, 163), 0, {1}}};
  EXPECT_EQ(gather.run(work), direct.run(work));
}

}  // namespace
}  // namespace m2::model
