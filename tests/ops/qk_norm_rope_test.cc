#include "ops/qk_norm_rope.h"

#include "tests/ops/oracle.h"

namespace m2::ops {
namespace {

using namespace test;

class QkNormRopeTest : public testing::Test {
 protected:
  ThreadPool pool_{2};
  Exec exec_{Device{}, &pool_};
};

TEST_F(QkNormRopeTest, AnglesMatchDoublePrecision) {
  Host positions(DType::i32, {5}), out(DType::f32, {5, 64});
  positions.set({0, 1, 77, 4095, 196607});
  rope_angles(exec_, positions, 5e6f, out);
  for (int64_t t = 0; t < 5; ++t)
    for (int64_t i = 0; i < 32; ++i) {
      const double angle = load(positions, t) * std::pow(5e6, -2.0 * static_cast<double>(i) / 64);
      // The angle is an FP32 number: off by up to three roundings.
      const double allowed = 1e-7 + angle * 3 * 0x1p-24;
      EXPECT_NEAR(load(out, t, i), std::cos(angle), allowed) << t << " " << i;
      EXPECT_NEAR(load(out, t, 32 + i), std::sin(angle), allowed) << t << " " << i;
    }
}

struct Case {
  HeadShape heads;
  DType dtype;
  DType norm_dtype;
};

TEST_F(QkNormRopeTest, MatchesDoublePrecision) {
  constexpr int64_t kTokens = 7, kBlocks = 4, kBlockSize = 16;
  Random random(1);
  for (const Case& c :
       {Case{{48, 8, 128, 64}, DType::bf16, DType::bf16},
        Case{{48, 8, 128, 64}, DType::f32, DType::f32},
        Case{{6, 1, 128, 64}, DType::f32, DType::bf16},
        Case{{3, 1, 20, 6}, DType::f32, DType::bf16}, Case{{2, 2, 16, 0}, DType::bf16, DType::f32},
        Case{{2, 1, 256, 256}, DType::f32, DType::f32}}) {
    const HeadShape& h = c.heads;
    const int64_t dim = h.head_dim, q_width = h.q_heads * dim, k_width = h.kv_heads * dim;
    const double full_q = static_cast<double>(2 * q_width), full_k = static_cast<double>(k_width);
    Host input(c.dtype, {kTokens, q_width + 2 * k_width}, 2), q_norm(c.norm_dtype, {q_width}),
        k_norm(c.norm_dtype, {k_width}), angles(DType::f32, {kTokens, h.rotary_dim}),
        slots(DType::i32, {kTokens}), sums(DType::f32, {kTokens, 2});
    input.fill(random, 3);
    q_norm.fill(random);
    k_norm.fill(random);
    angles.fill(random);
    slots.set({5, 6, 63, 0, 16, 31, 40});
    for_each_target([&](const char* target, bool) {
      Host qkv(c.dtype, {kTokens, q_width + 2 * k_width});
      for (int64_t t = 0; t < kTokens; ++t)
        std::memcpy(qkv.view().rows(t, 1).data(), input.view().rows(t, 1).data(),
                    static_cast<size_t>((q_width + 2 * k_width) * size_of(c.dtype)));
      Host k(DType::bf16, {kBlocks, h.kv_heads, kBlockSize, dim});
      Host v(DType::bf16, {kBlocks, h.kv_heads, kBlockSize, dim});
      sums.poison();
      qk_sum_squares(exec_, qkv, h, sums);
      qk_norm_rope_store(exec_, qkv, sums, q_norm, k_norm, 2 * q_width, k_width, 1e-6f, angles,
                         slots, h, {k, v});
      for (int64_t t = 0; t < kTokens; ++t) {
        double squares[2] = {0, 0};
        for (int64_t i = 0; i < q_width + k_width; ++i)
          squares[i >= q_width] += load(input, t, i) * load(input, t, i);
        for (const int64_t i : {0, 1})
          expect_close(load(sums, t, i), squares[i], squares[i], DType::f32, "sums");
        const int64_t slot = static_cast<int64_t>(load(slots, t));
        for (int64_t head = 0; head < h.q_heads + h.kv_heads; ++head) {
          const bool is_q = head < h.q_heads;
          const int64_t first = head * dim;
          const double factor =
              1 / std::sqrt((is_q ? squares[0] / full_q : squares[1] / full_k) + 1e-6);
          const auto normalised = [&](int64_t d) {
            return load(input, t, first + d) * factor *
                   (is_q ? load(q_norm, first + d) : load(k_norm, first - q_width + d));
          };
          const int64_t at = ((slot / kBlockSize * h.kv_heads + head - h.q_heads) * kBlockSize +
                              slot % kBlockSize) *
                             dim;
          for (int64_t d = 0; d < dim; ++d) {
            const int64_t half = h.rotary_dim / 2;
            double expected = normalised(d);
            double magnitude = std::fabs(expected);
            if (d < h.rotary_dim) {
              const int64_t i = d % half;
              const double a = normalised(i), b = normalised(i + half);
              const double cosine = load(angles, t, i), sine = load(angles, t, half + i);
              expected = d < half ? a * cosine - b * sine : b * cosine + a * sine;
              magnitude = std::fabs(a) + std::fabs(b);
            }
            const double actual = is_q ? load(qkv, t, first + d) : load(k, at + d);
            expect_close(actual, expected, 4 * magnitude, is_q ? c.dtype : DType::bf16,
                         std::string(target) + " head " + std::to_string(head));
            if (is_q) continue;
            const float value = static_cast<float>(load(input, t, first + k_width + d));
            ASSERT_EQ(load(v, at + d), to_float(to_bf16(value))) << target;
          }
        }
      }
      // Nothing else was stored.
      int64_t written = 0;
      for (int64_t i = 0; i < k.view().elements(); ++i) written += !std::isnan(load(k, i));
      EXPECT_EQ(written, kTokens * k_width);
    });
    if (HasFailure()) return;
  }
}

// Sums and all at once: the bytes of the two operations.
TEST_F(QkNormRopeTest, AtOnceForWhoHasAllHeads) {
  constexpr int64_t kTokens = 3;
  const HeadShape h{4, 2, 32, 16};
  Random random(8);
  Host input(DType::bf16, {kTokens, 256}), q_norm(DType::bf16, {128}), k_norm(DType::bf16, {64});
  Host angles(DType::f32, {kTokens, 16}), slots(DType::i32, {kTokens});
  for (Host* host : {&input, &q_norm, &k_norm, &angles}) host->fill(random);
  slots.set({17, 2, 30});
  const auto copy = [&] {
    Host qkv(DType::bf16, {kTokens, 256});
    std::memcpy(qkv.view().data(), input.view().data(), kTokens * 256 * 2);
    return qkv;
  };
  Host apart = copy(), together = copy();
  Host sums(DType::f32, {kTokens, 2});
  Host k(DType::bf16, {2, 2, 16, 32}), v(DType::bf16, {2, 2, 16, 32});
  Host k_at_once(DType::bf16, {2, 2, 16, 32}), v_at_once(DType::bf16, {2, 2, 16, 32});
  qk_sum_squares(exec_, apart, h, sums);
  qk_norm_rope_store(exec_, apart, sums, q_norm, k_norm, 128, 64, 1e-6f, angles, slots, h, {k, v});
  sums.poison();
  qk_norm_rope_store_whole(exec_, together, sums, q_norm, k_norm, 1e-6f, angles, slots, h,
                           {k_at_once, v_at_once});
  EXPECT_TRUE(same_bytes(together, apart));
  EXPECT_TRUE(same_bytes(k_at_once, k));
  EXPECT_TRUE(same_bytes(v_at_once, v));
}

// The e4m3 code nearest to x, ties to the even one; beyond the largest, that.
uint8_t nearest_code(double x) {
  const double magnitude = std::min(std::fabs(x), 448.0);
  const auto distance = [&](int code) {
    return std::fabs(magnitude - to_float(F8E4M3{static_cast<uint8_t>(code)}));
  };
  int best = 0;
  for (int code = 1; code < 127; ++code)
    if (distance(code) < distance(best) || (distance(code) == distance(best) && code % 2 == 0))
      best = code;
  return static_cast<uint8_t>(best | (std::signbit(x) ? 0x80 : 0));
}

// Every BF16 number as a value: what FP8 keeps of it is the nearest code of value / scale.
TEST_F(QkNormRopeTest, Fp8StoresTheNearestCodeOfEveryValue) {
  constexpr int64_t kTokens = 32, kDim = 256, kHeads = 8;
  const HeadShape heads{1, kHeads, kDim, 0};
  Host qkv(DType::bf16, {kTokens, 17 * kDim}), sums(DType::f32, {kTokens, 2}),
      q_norm(DType::f32, {kDim}), k_norm(DType::f32, {kHeads * kDim}),
      angles(DType::f32, {kTokens, 0}), slots(DType::i32, {kTokens});
  Random random(3);
  qkv.fill(random);
  sums.fill(random);
  q_norm.fill(random);
  k_norm.fill(random);
  for (int64_t t = 0; t < kTokens; ++t) {
    store(slots, t, static_cast<double>(t));
    for (int64_t i = 0; i < kHeads * kDim; ++i)
      qkv.view().as<BF16>()[t * 17 * kDim + 9 * kDim + i] = {
          static_cast<uint16_t>(t * kHeads * kDim + i)};
  }
  for_each_target([&](const char* target, bool) {
    for (const float scale : {1.0f, 0.25f, 0.0123f}) {
      Host k(DType::f8_e4m3, {2, kHeads, 16, kDim}), v(DType::f8_e4m3, {2, kHeads, 16, kDim});
      Host copy(DType::bf16, {kTokens, 17 * kDim});
      std::memcpy(copy.view().data(), qkv.view().data(), kTokens * 17 * kDim * 2);
      qk_norm_rope_store(exec_, copy, sums, q_norm, k_norm, kDim, kHeads * kDim, 1e3f, angles,
                         slots, heads, {k, v, 1, scale});
      for (int64_t i = 0; i < 0x10000; ++i) {
        const float value = to_float(BF16{static_cast<uint16_t>(i)});
        const int64_t t = i / (kHeads * kDim), h = i / kDim % kHeads;
        const int64_t at = ((t / 16 * kHeads + h) * 16 + t % 16) * kDim + i % kDim;
        const uint8_t code = v.view().as<F8E4M3>()[at].bits;
        if (std::isnan(value)) {
          ASSERT_EQ(code, 0x7f) << target;
        } else {
          // The quotient is an FP32 number (a scale of a power of two is exact).
          ASSERT_EQ(code, nearest_code(value / scale)) << target << " " << value << " / " << scale;
        }
      }
    }
  });
}

// K, normalised and turned: within half a step of the format, and what FP32 is off by.
TEST_F(QkNormRopeTest, Fp8KeysAreTheTurnedOnesRounded) {
  const HeadShape heads{6, 2, 128, 64};
  Random random(4);
  Host input(DType::f32, {5, 1280}), q_norm(DType::bf16, {768}), k_norm(DType::bf16, {256}),
      angles(DType::f32, {5, 64}), slots(DType::i32, {5}), sums(DType::f32, {5, 2});
  input.fill(random);
  q_norm.fill(random);
  k_norm.fill(random);
  angles.fill(random);
  slots.set({3, 0, 17, 30, 9});
  const float k_scale = 0.04f;
  for_each_target([&](const char* target, bool) {
    Host a(DType::f32, {5, 1280}), b(DType::f32, {5, 1280});
    for (Host* copy : {&a, &b}) std::memcpy(copy->view().data(), input.view().data(), 5 * 1280 * 4);
    Host k16(DType::bf16, {2, 2, 16, 128}), v16(DType::bf16, {2, 2, 16, 128});
    Host k8(DType::f8_e4m3, {2, 2, 16, 128}), v8(DType::f8_e4m3, {2, 2, 16, 128});
    qk_sum_squares(exec_, a, heads, sums);
    qk_norm_rope_store(exec_, a, sums, q_norm, k_norm, 768, 256, 1e-6f, angles, slots, heads,
                       {k16, v16});
    qk_norm_rope_store(exec_, b, sums, q_norm, k_norm, 768, 256, 1e-6f, angles, slots, heads,
                       {k8, v8, k_scale, 1});
    EXPECT_TRUE(same_bytes(a, b)) << target;  // q is not touched by the cache's dtype
    int64_t written = 0;
    for (int64_t i = 0; i < k8.view().elements(); ++i) {
      ASSERT_EQ(std::isnan(load(k16, i)), std::isnan(load(k8, i)));
      if (std::isnan(load(k16, i))) continue;
      ++written;
      const double exact = load(k16, i) / k_scale, magnitude = std::fabs(exact);
      // Half a step of either format.
      const double half = std::max(0x1p-10, magnitude * 0x1p-4) + magnitude * 0x1p-8;
      if (magnitude >= 448) continue;
      ASSERT_NEAR(load(k8, i), exact, half) << target;
    }
    EXPECT_EQ(written, 5 * 256);
  });
}

TEST_F(QkNormRopeTest, ATokensResultDoesNotDependOnItsBatchThreadsOrInstructionSet) {
  const HeadShape heads{6, 2, 128, 64};
  Random random(2);
  Host input(DType::f32, {37, 1280}), q_norm(DType::bf16, {768}), k_norm(DType::bf16, {256}),
      angles(DType::f32, {37, 64}), slots(DType::i32, {37});
  input.fill(random);
  q_norm.fill(random);
  k_norm.fill(random);
  angles.fill(random);
  for (int64_t t = 0; t < 37; ++t) store(slots, t, static_cast<double>(t));
  const auto run = [&](const Exec& exec, int64_t begin, int64_t count, Host& qkv, Host& k,
                       Host& v) {
    std::memcpy(qkv.view().data(), input.view().rows(begin, count).data(),
                static_cast<size_t>(count * 1280 * 4));
    Host sums(DType::f32, {count, 2});
    qk_sum_squares(exec, qkv, heads, sums);
    qk_norm_rope_store(exec, qkv, sums, q_norm, k_norm, 768, 256, 1e-6f,
                       angles.view().rows(begin, count), slots.view().rows(begin, count), heads,
                       {k, v});
  };
  Host all(DType::f32, {37, 1280}), all_k(DType::bf16, {3, 2, 16, 128}),
      all_v(DType::bf16, {3, 2, 16, 128});
  run(exec_, 0, 37, all, all_k, all_v);
  for_each_target([&](const char* target, bool has_fma) {
    if (!has_fma) return;
    for (const int threads : {1, 2, 3}) {
      ThreadPool pool(threads);
      Host one(DType::f32, {1, 1280}), k(DType::bf16, {3, 2, 16, 128}),
          v(DType::bf16, {3, 2, 16, 128});
      run({Device{}, &pool}, 20, 1, one, k, v);
      EXPECT_TRUE(same_bytes(one, all.view().rows(20, 1))) << target;
      for (int64_t h = 0; h < 2; ++h) {
        const int64_t at = ((1 * 2 + h) * 16 + 4) * 128;  // slot 20
        for (int64_t d = 0; d < 128; ++d) ASSERT_EQ(load(k, at + d), load(all_k, at + d));
      }
    }
  });
}

}  // namespace
}  // namespace m2::ops
