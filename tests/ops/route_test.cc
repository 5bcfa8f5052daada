#include "ops/route.h"

#include <algorithm>
#include <numeric>

#include "tests/ops/oracle.h"

namespace m2::ops {
namespace {

using namespace test;

class RouteTest : public testing::Test {
 protected:
  ThreadPool pool_{2};
  Exec exec_{Device{}, &pool_};
};

struct Choice {
  std::vector<int64_t> ids;
  std::vector<double> weights;
  double margin;  // between the last chosen and the first not chosen
};

Choice expected_choice(const Tensor& x, const Tensor& gate, const Tensor& bias, int64_t t,
                       int64_t top) {
  const int64_t experts = gate.size(0);
  std::vector<double> s, key;
  for (int64_t e = 0; e < experts; ++e) {
    double logit = 0;
    for (int64_t c = 0; c < x.size(1); ++c) logit += load(x, t, c) * load(gate, e, c);
    s.push_back(1 / (1 + std::exp(-logit)));
    key.push_back(s.back() + load(bias, e));
  }
  std::vector<size_t> order(static_cast<size_t>(experts));
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return key[a] > key[b]; });
  Choice out;
  const size_t n = static_cast<size_t>(top);
  out.margin = n < order.size() ? key[order[n - 1]] - key[order[n]] : 1;
  std::sort(order.begin(), order.begin() + top);
  double sum = 0;
  for (size_t i = 0; i < n; ++i) sum += s[order[i]];
  for (size_t i = 0; i < n; ++i) {
    out.ids.push_back(static_cast<int64_t>(order[i]));
    out.weights.push_back(s[order[i]] / sum);
  }
  return out;
}

TEST_F(RouteTest, MatchesDoublePrecision) {
  struct Shape {
    int64_t tokens, experts, top, hidden;
  };
  Random random(1);
  for (const Shape& shape : {Shape{1, 256, 8, 3072}, Shape{60, 256, 8, 100}, Shape{5, 3, 3, 17},
                             Shape{100, 700, 32, 64}, Shape{2, 1, 1, 8}}) {
    for (const DType dtype : {DType::f32, DType::bf16}) {
      Host x(dtype, {shape.tokens, shape.hidden}, 1),
          gate(DType::f32, {shape.experts, shape.hidden}), bias(DType::f32, {shape.experts}),
          ids(DType::i32, {shape.tokens, shape.top}),
          weights(DType::f32, {shape.tokens, shape.top});
      x.fill(random);
      gate.fill(random, 1 / std::sqrt(static_cast<double>(shape.hidden)));
      bias.fill(random, 0.3);
      int checked = 0;
      for_each_target([&](const char* target, bool) {
        ids.poison();
        weights.poison();
        route(exec_, x, gate, bias, ids, weights);
        for (int64_t t = 0; t < shape.tokens; ++t) {
          const Choice expected = expected_choice(x, gate, bias, t, shape.top);
          if (expected.margin < 1e-5) continue;  // FP32 may decide either way
          ++checked;
          for (int64_t i = 0; i < shape.top; ++i) {
            const size_t at = static_cast<size_t>(i);
            ASSERT_EQ(load(ids, t, i), static_cast<double>(expected.ids[at])) << target;
            ASSERT_NEAR(load(weights, t, i), expected.weights[at], 2e-6) << target;
          }
        }
      });
      EXPECT_GT(checked, 0);
    }
  }
}

TEST_F(RouteTest, TiesGoToTheLowerId) {
  Host x(DType::f32, {1, 4}), gate(DType::f32, {6, 4}), bias(DType::f32, {6}),
      ids(DType::i32, {1, 3}), weights(DType::f32, {1, 3});
  for (int64_t i = 0; i < 4; ++i) store(x, i, 0);
  for (int64_t i = 0; i < 24; ++i) store(gate, i, 1);
  for (int64_t e = 0; e < 6; ++e) store(bias, e, e == 4 ? 1 : 0);
  route(exec_, x, gate, bias, ids, weights);
  const double expected[] = {0, 1, 4};
  for (int64_t i = 0; i < 3; ++i) {
    EXPECT_EQ(load(ids, i), expected[i]);
    EXPECT_NEAR(load(weights, i), 1.0 / 3, 1e-7);  // the bias chooses, it does not weigh
  }
}

TEST_F(RouteTest, SigmoidsOfZeroSumGiveZeroWeights) {
  Host x(DType::f32, {1, 1}), gate(DType::f32, {3, 1}), bias(DType::f32, {3}),
      ids(DType::i32, {1, 2}), weights(DType::f32, {1, 2});
  store(x, 0, -1e4);
  for (int64_t e = 0; e < 3; ++e) store(gate, e, 1), store(bias, e, 0);
  route(exec_, x, gate, bias, ids, weights);
  for (int64_t i = 0; i < 2; ++i) {
    EXPECT_EQ(load(ids, i), static_cast<double>(i));
    EXPECT_EQ(load(weights, i), 0);
  }
}

// Broken logits must still give ids that exist, each once.
TEST_F(RouteTest, NotANumberStillGivesDistinctIds) {
  Host x(DType::f32, {1, 2}), gate(DType::f32, {5, 2}), bias(DType::f32, {5}),
      ids(DType::i32, {1, 4}), weights(DType::f32, {1, 4});
  store(x, 0, std::nan("")), store(x, 1, 1);
  for (int64_t i = 0; i < 10; ++i) store(gate, i, 1);
  for (int64_t e = 0; e < 5; ++e) store(bias, e, 0);
  route(exec_, x, gate, bias, ids, weights);
  for (int64_t i = 0; i < 4; ++i) EXPECT_EQ(load(ids, i), static_cast<double>(i));
}

TEST_F(RouteTest, ATokensChoiceDoesNotDependOnItsBatchThreadsOrInstructionSet) {
  Random random(2);
  Host x(DType::f32, {99, 3072}), gate(DType::f32, {256, 3072}), bias(DType::f32, {256}),
      ids(DType::i32, {99, 8}), weights(DType::f32, {99, 8});
  x.fill(random);
  gate.fill(random, 0.02);
  bias.fill(random, 0.3);
  route(exec_, x, gate, bias, ids, weights);
  for_each_target([&](const char* target, bool has_fma) {
    if (!has_fma) return;
    for (const int threads : {1, 2, 3}) {
      ThreadPool pool(threads);
      for (const int64_t count : {1, 2, 37}) {
        Host some_ids(DType::i32, {count, 8}), some_weights(DType::f32, {count, 8});
        route({Device{}, &pool}, x.view().rows(50, count), gate, bias, some_ids, some_weights);
        EXPECT_TRUE(same_bytes(some_ids, ids.view().rows(50, count))) << target;
        EXPECT_TRUE(same_bytes(some_weights, weights.view().rows(50, count))) << target;
      }
    }
  });
}

}  // namespace
}  // namespace m2::ops
