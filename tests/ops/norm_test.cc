#include "ops/norm.h"

#include "tests/ops/oracle.h"

namespace m2::ops {
namespace {

using namespace test;

class NormTest : public testing::Test {
 protected:
  // x and out may have gaps between rows.
  void expect_norm(const Tensor& x, const Tensor& weight, double eps, const Tensor& out,
                   const std::string& where) {
    for (int64_t t = 0; t < x.size(0); ++t) {
      double squares = 0;
      for (int64_t c = 0; c < x.size(1); ++c) squares += load(x, t, c) * load(x, t, c);
      const double factor = 1 / std::sqrt(squares / static_cast<double>(x.size(1)) + eps);
      for (int64_t c = 0; c < x.size(1); ++c) {
        const double expected = load(weight, c) * load(x, t, c) * factor;
        expect_close(load(out, t, c), expected, std::fabs(expected), out.dtype(), where);
      }
    }
  }
  ThreadPool pool_{2};
  Exec exec_{Device{}, &pool_};
};

TEST_F(NormTest, MatchesDoublePrecision) {
  Random random(1);
  for (const int64_t width : {1, 15, 64, 100, 3072}) {
    for (const DType dtype : {DType::f32, DType::bf16}) {
      for (const DType weight_dtype : {DType::f32, DType::bf16}) {
        for (const double scale : {1.0, 1e-4}) {  // eps matters in the second
          Host x(dtype, {9, width}, 2), weight(weight_dtype, {width}), out(dtype, {9, width}, 1);
          x.fill(random, scale);
          weight.fill(random);
          for_each_target([&](const char* target, bool) {
            out.poison();
            rms_norm(exec_, x, weight, 1e-6f, out);
            expect_norm(x, weight, 1e-6f, out, x.view().describe() + " " + target);
          });
          rms_norm(exec_, x, weight, 1e-6f, x);  // in place
          EXPECT_TRUE(same_bytes(x, out) || HasFailure());
        }
      }
    }
  }
}

TEST_F(NormTest, AddEqualsTheTwoSteps) {
  Random random(2);
  for (const DType dtype : {DType::f32, DType::bf16}) {
    Host residual(dtype, {5, 333}), delta(dtype, {5, 333}), weight(DType::bf16, {333});
    residual.fill(random);
    delta.fill(random);
    weight.fill(random);
    Host sum(dtype, {5, 333}), two(dtype, {5, 333});
    for (int64_t i = 0; i < 5 * 333; ++i) store(sum, i, load(residual, i) + load(delta, i));
    rms_norm(exec_, sum, weight, 1e-6f, two);
    // out may be delta
    add_rms_norm(exec_, residual, delta, weight, 1e-6f, delta);
    EXPECT_TRUE(same_bytes(residual, sum));
    EXPECT_TRUE(same_bytes(delta, two));
  }
}

TEST_F(NormTest, ARowsResultDoesNotDependOnItsBatchThreadsOrInstructionSet) {
  Random random(3);
  Host x(DType::f32, {37, 1000}), weight(DType::bf16, {1000}), all(DType::f32, {37, 1000});
  x.fill(random);
  weight.fill(random);
  rms_norm(exec_, x, weight, 1e-6f, all);
  for_each_target([&](const char* target, bool has_fma) {
    if (!has_fma) return;
    for (const int threads : {1, 2, 3}) {
      ThreadPool pool(threads);
      Host one(DType::f32, {1, 1000});
      rms_norm({Device{}, &pool}, x.view().rows(20, 1), weight, 1e-6f, one);
      EXPECT_TRUE(same_bytes(one, all.view().rows(20, 1))) << target;
    }
  });
}

}  // namespace
}  // namespace m2::ops
