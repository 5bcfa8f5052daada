#include "ops/experts.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "ops/norm.h"
#include "ops/route.h"
#include "tests/ops/oracle.h"

namespace m2::ops {
namespace {

using namespace test;

int64_t blocks(int64_t n) {
  return (n + 127) / 128;
}

struct Geometry {
  DType dtype;
  int64_t count, inner, hidden;
  int64_t first_expert = 0, first_inner = 0, scale_row = 0;
};

struct RandomExperts {
  RandomExperts(Random& random, const Geometry& g)
      : w13(g.dtype, {g.count, 2 * g.inner, g.hidden}),
        w2(g.dtype, {g.count, g.hidden, g.inner}),
        s1(DType::f32, {g.count, blocks(g.first_inner + g.inner) - g.scale_row, blocks(g.hidden)}),
        s3(DType::f32, {g.count, blocks(g.first_inner + g.inner) - g.scale_row, blocks(g.hidden)}),
        s2(DType::f32, {g.count, blocks(g.hidden), blocks(g.first_inner + g.inner) - g.scale_row}) {
    const bool fp8 = g.dtype == DType::f8_e4m3;
    const double scale = fp8 ? 60 : 0.05;
    w13.fill(random, scale);
    w2.fill(random, scale);
    for (Host* s : {&s1, &s3, &s2})
      for (int64_t i = 0; i < s->view().elements(); ++i)
        store(*s, i, 0.001 * (0.5 + random.uniform()));
    experts = {w13,
               fp8 ? s1.view() : Tensor(),
               fp8 ? s3.view() : Tensor(),
               w2,
               fp8 ? s2.view() : Tensor(),
               g.first_expert,
               g.first_inner,
               g.scale_row};
  }

  // Weight [row, column] of a matrix of one expert, with its scale.
  double up(int64_t e, int64_t row, int64_t column, bool gate) const {
    const int64_t inner = experts.inner(), hidden = experts.hidden();
    const int64_t at = (e * 2 * inner + (gate ? row : inner + row)) * hidden + column;
    const Host& s = gate ? s1 : s3;
    const int64_t block = (experts.first_inner + row) / 128 - experts.scale_row;
    return load(w13, at) * scale_at(s, e, block, column / 128);
  }
  double down(int64_t e, int64_t row, int64_t column) const {
    const int64_t block = (experts.first_inner + column) / 128 - experts.scale_row;
    return load(w2, (e * experts.hidden() + row) * experts.inner() + column) *
           scale_at(s2, e, row / 128, block);
  }
  double scale_at(const Host& s, int64_t e, int64_t row, int64_t column) const {
    if (experts.w1_scale.empty()) return 1;
    return load(s, (e * s.view().size(1) + row) * s.view().size(2) + column);
  }

  Host w13, w2, s1, s3, s2;
  Experts experts;
};

// Ascending distinct ids per token and weights that sum to 1.
struct Choices {
  Choices(Random& random, int64_t tokens, int64_t top, int64_t total)
      : ids(DType::i32, {tokens, top}), weights(DType::f32, {tokens, top}) {
    for (int64_t t = 0; t < tokens; ++t) {
      std::vector<int64_t> chosen;
      while (static_cast<int64_t>(chosen.size()) < top) {
        const int64_t id = random.below(total);
        if (std::find(chosen.begin(), chosen.end(), id) == chosen.end()) chosen.push_back(id);
      }
      std::sort(chosen.begin(), chosen.end());
      for (int64_t i = 0; i < top; ++i) {
        store(ids, t * top + i, static_cast<double>(chosen[static_cast<size_t>(i)]));
        store(weights, t * top + i, (1 + random.uniform()) / static_cast<double>(top));
      }
    }
  }
  Host ids, weights;
};

struct Expected {
  std::vector<double> values, magnitudes, slacks;
};

// One token's output, all in double precision but for inputs of products rounded to BF16 where
// tiles round them. A number near the middle of two BF16 numbers may have become either: its slack.
Expected expected_token(const RandomExperts& set, const Tensor& x, const Choices& choices,
                        int64_t t) {
  const Experts& experts = set.experts;
  const int64_t hidden = experts.hidden(), inner = experts.inner();
  const bool rounded = rounds_inputs(experts.w13.dtype());
  const std::vector<double> zeros(static_cast<size_t>(hidden));
  Expected out{zeros, zeros, zeros};
  const int64_t top = choices.ids.view().size(1);
  for (int64_t j = 0; j < top; ++j) {
    const int64_t e = static_cast<int64_t>(load(choices.ids, t * top + j)) - experts.first_expert;
    if (e < 0 || e >= experts.count()) continue;
    std::vector<double> h, size, slack;
    for (int64_t i = 0; i < inner; ++i) {
      double gate = 0, up = 0, gate_size = 0, up_size = 0;
      for (int64_t c = 0; c < hidden; ++c) {
        const double input = as_input(load(x, t, c), rounded);
        const double a = input * set.up(e, i, c, true);
        const double b = input * set.up(e, i, c, false);
        gate += a, gate_size += std::fabs(a), up += b, up_size += std::fabs(b);
      }
      h.push_back(gate / (1 + std::exp(-gate)) * up);
      // |silu(g) u| can be off by what is off in g, times u, and the reverse.
      size.push_back(1.1 * gate_size * std::fabs(up) + std::fabs(gate) * up_size);
      const double off = tolerance_of(DType::f32).sum * size.back();
      slack.push_back(as_input(h.back() + off, rounded) - as_input(h.back() - off, rounded));
      if (rounded) size.back() = std::fabs(h.back());
      h.back() = as_input(h.back(), rounded);
    }
    const double weight = load(choices.weights, t * top + j);
    for (int64_t r = 0; r < hidden; ++r) {
      for (int64_t i = 0; i < inner; ++i) {
        const double w = weight * set.down(e, r, i);
        out.values[static_cast<size_t>(r)] += w * h[static_cast<size_t>(i)];
        out.magnitudes[static_cast<size_t>(r)] += std::fabs(w) * size[static_cast<size_t>(i)];
        if (rounded)
          out.slacks[static_cast<size_t>(r)] += std::fabs(w) * slack[static_cast<size_t>(i)];
      }
    }
  }
  return out;
}

void run(const Exec& exec, const Tensor& x, const RandomExperts& set, const Tensor& ids,
         const Tensor& weights, const Tensor& out) {
  Host scratch(DType::u8,
               {experts_scratch_bytes(exec.device, set.experts, x.size(0), ids.size(1))});
  experts(exec, x, set.experts, ids, weights, scratch, out);
}

class ExpertsTest : public testing::Test {
 protected:
  ThreadPool pool_{2};
  Exec exec_{Device{}, &pool_};
};

TEST_F(ExpertsTest, MatchesDoublePrecision) {
  Random random(1);
  const Geometry geometries[] = {{DType::f8_e4m3, 6, 40, 72},
                                 {DType::f8_e4m3, 4, 192, 130, 0, 192, 1},
                                 {DType::f8_e4m3, 4, 64, 256, 2, 192, 1},
                                 {DType::f8_e4m3, 2, 200, 70, 1, 100},
                                 {DType::bf16, 5, 33, 50, 3},
                                 {DType::f16, 8, 16, 64},
                                 {DType::f32, 3, 100, 20, 1}};
  for (const Geometry& g : geometries) {
    RandomExperts set(random, g);
    for (const int64_t tokens : {1, 2, 9, 140}) {
      for (const DType activation : {DType::f32, DType::bf16}) {
        Host x(activation, {tokens, g.hidden}, 2);
        x.fill(random);
        Choices choices(random, tokens, 3, 9);
        Host out(activation, {tokens, g.hidden}, 3);
        for_each_target([&](const char* target, bool) {
          out.poison();
          run(exec_, x, set, choices.ids, choices.weights, out);
          for (int64_t t = 0; t < tokens; t += 1 + t / 3) {
            const Expected expected = expected_token(set, x, choices, t);
            for (int64_t c = 0; c < g.hidden; ++c)
              expect_close(load(out, t, c), expected.values[static_cast<size_t>(c)],
                           expected.magnitudes[static_cast<size_t>(c)], activation,
                           name(g.dtype) + " " + out.view().describe() + " " + target + " token " +
                               std::to_string(t),
                           expected.slacks[static_cast<size_t>(c)]);
            if (HasFailure()) return;
          }
        });
        if (HasFailure()) return;
      }
    }
  }
}

TEST_F(ExpertsTest, ATokensResultDoesNotDependOnItsBatchThreadsOrInstructionSet) {
  Random random(2);
  for (const DType dtype : {DType::f8_e4m3, DType::bf16}) {
    RandomExperts set(random, {dtype, 4, 192, 256, 0, 192, 1});
    for (const DType activation : {DType::f32, DType::bf16}) {
      constexpr int64_t kTokens = 130;
      Host x(activation, {kTokens, 256});
      x.fill(random);
      Choices choices(random, kTokens, 2, 4);
      Host by_tiles(activation, {kTokens, 256}), by_rows(activation, {kTokens, 256});
      bool have[2] = {};
      for_each_target([&](const char* target, bool has_fma) {
        if (!has_fma) return;
        const bool tiles = rounds_inputs(dtype);
        const Host& all = tiles ? by_tiles : by_rows;
        if (!std::exchange(have[tiles], true))
          run(exec_, x, set, choices.ids, choices.weights, all);
        for (const int threads : {1, 2, 3, 19}) {
          ThreadPool pool(threads);
          const Exec exec{Device{}, &pool};
          for (const int64_t count : {1, 3, 37}) {
            const int64_t begin = 11;
            Host part(activation, {count, 256});
            run(exec, x.view().rows(begin, count), set, choices.ids.view().rows(begin, count),
                choices.weights.view().rows(begin, count), part);
            ASSERT_TRUE(same_bytes(part, all.view().rows(begin, count)))
                << name(dtype) << " " << target << " " << threads << " threads, " << count;
          }
        }
      });
    }
  }
}

// More pairs than one product takes, and more inputs than are packed at a time.
TEST_F(ExpertsTest, ManyTokensEqualEachAlone) {
  Random random(4);
  RandomExperts set(random, {DType::f8_e4m3, 3, 64, 3072});
  constexpr int64_t kTokens = 1500;
  Host x(DType::f32, {kTokens, 3072});
  x.fill(random);
  Choices choices(random, kTokens, 2, 3);
  Host all(DType::f32, {kTokens, 3072}), alone(DType::f32, {1, 3072});
  run(exec_, x, set, choices.ids, choices.weights, all);
  for (int64_t t = 0; t < kTokens; t += 113) {
    run(exec_, x.view().rows(t, 1), set, choices.ids.view().rows(t, 1),
        choices.weights.view().rows(t, 1), alone);
    ASSERT_TRUE(same_bytes(alone, all.view().rows(t, 1))) << t;
  }
}

// The choice before the experts and the norm behind them as parts of them: the bytes of one after
// the other.
TEST_F(ExpertsTest, WithTheChoiceAndTheNorm) {
  Random random(6);
  for (const DType dtype : {DType::f32, DType::bf16}) {
    RandomExperts set(random, {DType::f8_e4m3, 4, 64, 256});
    Host x(dtype, {5, 256}), residual(dtype, {5, 256}), norm(DType::bf16, {256});
    Host gate(DType::f32, {4, 256}), bias(DType::f32, {4}), slots(DType::i32, {5});
    for (Host* host : {&x, &residual, &norm, &gate, &bias}) host->fill(random);
    slots.set({0, 1, -1, 2, 3});
    Host ids(DType::i32, {5, 2}), weights(DType::f32, {5, 2});
    Host apart(dtype, {5, 256}), together(dtype, {5, 256});
    for (const Host* copy : {&apart, &together})
      std::memcpy(copy->view().data(), residual.view().data(),
                  static_cast<size_t>(5 * 256 * size_of(dtype)));
    Host delta(dtype, {5, 256}), normed(dtype, {5, 256}), normed_at_once(dtype, {5, 256});
    route(exec_, x, gate, bias, ids, weights, slots);
    run(exec_, x, set, ids, weights, delta);
    add_rms_norm(exec_, apart, delta, norm, 1e-6f, normed);
    Host scratch(DType::u8, {experts_scratch_bytes(Device{}, set.experts, 5, 2)});
    Host ids_at_once(DType::i32, {5, 2}), weights_at_once(DType::f32, {5, 2});
    Host delta_at_once(dtype, {5, 256});
    const AddNorm after{together, norm, 1e-6f, normed_at_once, {}};
    for (const AddNorm* with : {static_cast<const AddNorm*>(nullptr), &after}) {
      route_experts(exec_, x, {gate, bias, slots}, set.experts, ids_at_once, weights_at_once,
                    scratch, delta_at_once, {}, with);
      EXPECT_TRUE(same_bytes(ids_at_once, ids)) << name(dtype);
      EXPECT_TRUE(same_bytes(weights_at_once, weights)) << name(dtype);
      if (!with) {
        EXPECT_TRUE(same_bytes(delta_at_once, delta)) << name(dtype);
      }
    }
    EXPECT_TRUE(same_bytes(together, apart)) << name(dtype);
    EXPECT_TRUE(same_bytes(normed_at_once, normed)) << name(dtype);
  }
}

TEST_F(ExpertsTest, TokensWithoutAnExpertHereGetZeros) {
  Random random(3);
  RandomExperts set(random, {DType::bf16, 2, 16, 24, 4});
  Host x(DType::f32, {3, 24});
  x.fill(random);
  Host ids(DType::i32, {3, 2}), weights(DType::f32, {3, 2});
  ids.set({0, 1, 3, 6, 7, 8});
  weights.fill(random);
  for (const DType dtype : {DType::f32, DType::bf16}) {
    Host out(dtype, {3, 24});
    run(exec_, x, set, ids, weights, out);
    for (int64_t i = 0; i < 3 * 24; ++i) ASSERT_EQ(load(out, i), 0);
  }
}

}  // namespace
}  // namespace m2::ops
