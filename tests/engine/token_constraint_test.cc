// Covers: engine/token_constraint, engine/engine, engine/row_ops
#include "engine/token_constraint.h"

#include <gtest/gtest.h>

#include "engine/row_ops.h"
#include "tests/engine/engine_fixture.h"

namespace m2::engine {
namespace {

using test::greedy_request;
using test::World;

// Allows at its n-th token the ids that are n modulo `period`, and after `length` tokens none.
class Turns : public TokenConstraint {
 public:
  explicit Turns(int32_t period, size_t length = SIZE_MAX) : period_(period), length_(length) {}
  bool fill(std::span<uint32_t> words) override {
    EXPECT_EQ(words.size(), mask_words(World::kIdLimit));
    std::ranges::fill(words, 0u);
    const auto turn = static_cast<int32_t>(accepted.size()) % period_;
    for (int32_t id = turn; accepted.size() < length_ && id < 64; id += period_)
      words[static_cast<size_t>(id / 32)] |= 1u << (id % 32);
    return true;
  }
  void accept(int32_t token) override { accepted.push_back(token); }
  void begin_trial() override { own_ = accepted.size(); }
  void end_trial() override { accepted.resize(own_); }
  bool complete() const override { return whole; }
  std::string_view failure() const override { return why; }

  std::vector<int32_t> accepted;
  bool whole = true;
  std::string why;

 private:
  const int32_t period_;
  const size_t length_;
  size_t own_ = 0;  // of a trial
};

TEST(TokenConstraint, MasksEveryTokenAndSeesEachOnceThroughPreemption) {
  World world(World::config(), World::limits(24));
  std::vector<std::shared_ptr<Turns>> turns;
  std::vector<RequestId> bound, free;
  for (int i = 0; i < 3; ++i) {
    Request request = greedy_request(10 + i, 30, 10 + i);
    request.params.temperature = i == 0 ? 0.0F : 1.0F;
    turns.push_back(std::make_shared<Turns>(5));
    request.constraint = turns.back();
    bound.push_back(world.submit(std::move(request)));
    free.push_back(world.submit(greedy_request(12 + i, 25, 20 + i)));
  }
  ASSERT_TRUE(world.run_until_idle());
  ASSERT_GT(world.engine.stats().preemptions, 0);
  for (size_t i = 0; i < bound.size(); ++i) {
    const std::vector<TokenId>& tokens = world.record(bound[i]).tokens;
    EXPECT_EQ(tokens, turns[i]->accepted);
    ASSERT_EQ(tokens.size(), 30u);
    for (size_t n = 0; n < tokens.size(); ++n)
      EXPECT_EQ(tokens[n] % 5, static_cast<TokenId>(n % 5)) << n;

    World alone;
    const RequestId id = alone.submit(
        greedy_request(12 + static_cast<int64_t>(i), 25, 20 + static_cast<TokenId>(i)));
    ASSERT_TRUE(alone.run_until_idle());
    EXPECT_EQ(world.record(free[i]).tokens, alone.record(id).tokens) << "a batch mate";
  }
}

TEST(TokenConstraint, ThatRunsDryEndsTheRequest) {
  for (const bool whole : {true, false}) {
    World world;
    Request request = greedy_request(6, 20);
    const auto turns = std::make_shared<Turns>(3, 4);
    turns->whole = whole;
    request.constraint = turns;
    const RequestId id = world.submit(std::move(request));
    ASSERT_TRUE(world.run_until_idle());
    EXPECT_EQ(world.record(id).tokens.size(), 4u);
    EXPECT_EQ(world.record(id).finish, whole ? FinishReason::stop : FinishReason::error);
    const Event& last = world.record(id).events.back();
    EXPECT_EQ(last.detail && last.detail->unsatisfiable, !whole);
    ASSERT_TRUE(world.engine.audit().ok());
  }
}

TEST(TokenConstraint, ThatGaveUpSaysWhy) {
  for (const char* why : {"", "It took too long."}) {
    World world;
    Request request = greedy_request(6, 20);
    const auto turns = std::make_shared<Turns>(3, 4);
    turns->whole = false;
    turns->why = why;
    request.constraint = turns;
    const RequestId id = world.submit(std::move(request));
    ASSERT_TRUE(world.run_until_idle());
    const Event& last = world.record(id).events.back();
    ASSERT_TRUE(last.detail);
    EXPECT_EQ(last.detail->error,
              *why == '\0' ? "The request's own constraints leave no token to choose." : why);
  }
}

TEST(TokenConstraint, MaskOfARowIsBitForBit) {
  for (const size_t size : {1u, 31u, 32u, 33u, 61u, 200u}) {
    std::vector<float> row(size, 1.5F);
    std::vector<uint32_t> words(mask_words(size));
    for (size_t w = 0; w < words.size(); ++w)
      words[w] = w % 3 == 0 ? 0xA5F00F1Bu * static_cast<uint32_t>(w + 1) : w % 3 == 1 ? ~0u : 0u;
    mask_row(row, words);
    for (size_t i = 0; i < size; ++i) {
      const bool allowed = (words[i / 32] >> (i % 32) & 1u) != 0;
      EXPECT_EQ(row[i], allowed ? 1.5F : -std::numeric_limits<float>::infinity()) << i;
    }
  }
}

}  // namespace
}  // namespace m2::engine
