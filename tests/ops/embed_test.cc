#include "ops/embed.h"

#include "tests/ops/oracle.h"

namespace m2::ops {
namespace {

using namespace test;

class EmbedTest : public testing::Test {
 protected:
  ThreadPool pool_{2};
  Exec exec_{Device{}, &pool_};
};

TEST_F(EmbedTest, TakesRowsOfASliceOfTheTable) {
  Random random(1);
  for (const DType table_dtype : {DType::bf16, DType::f16, DType::f32}) {
    for (const DType dtype : {DType::f32, DType::bf16}) {
      Host table(table_dtype, {20, 1100}), ids(DType::i32, {6}), out(dtype, {6, 1100}, 1);
      table.fill(random);
      ids.set({99, 100, 119, 120, 0, 107});
      for_each_target([&](const char* target, bool) {
        out.poison();
        embed(exec_, ids, table, 100, out);
        for (int64_t t = 0; t < 6; ++t)
          for (int64_t c = 0; c < 1100; ++c) {
            const int64_t row = static_cast<int64_t>(load(ids, t)) - 100;
            const bool inside = row >= 0 && row < 20;
            const float value = inside ? static_cast<float>(load(table, row, c)) : 0;
            const float expected = dtype == DType::bf16 ? to_float(to_bf16(value)) : value;
            ASSERT_EQ(load(out, t, c), expected) << target << " " << t << " " << c;
          }
      });
    }
  }
}

TEST_F(EmbedTest, GathersRows) {
  Random random(2);
  for (const DType dtype : {DType::f32, DType::bf16, DType::i32}) {
    Host x(dtype, {9, 77}, 3), rows(DType::i32, {4}), out(dtype, {4, 77});
    x.fill(random);
    rows.set({0, 3, 3, 8});
    gather_rows(exec_, x, rows, out);
    for (int64_t r = 0; r < 4; ++r)
      EXPECT_TRUE(
          same_bytes(out.view().rows(r, 1), x.view().rows(static_cast<int64_t>(load(rows, r)), 1)));
  }
}

TEST_F(EmbedTest, SumsRows) {
  Random random(3);
  for (const DType dtype : {DType::f32, DType::bf16}) {
    Host x(dtype, {9, 1100}, 3), rows(DType::i32, {4, 3}), out(dtype, {4, 1100}, 2);
    x.fill(random);
    rows.set({0, 3, 8, -1, 5, -1, 2, 2, -1, -1, -1, -1});
    sum_rows(exec_, x, rows, out);
    for (int64_t t = 0; t < 4; ++t)
      for (int64_t c = 0; c < 1100; ++c) {
        float sum = 0;
        for (int64_t k = 0; k < 3; ++k)
          if (const double row = load(rows, t, k); row >= 0)
            sum += static_cast<float>(load(x, static_cast<int64_t>(row), c));
        ASSERT_EQ(load(out, t, c), dtype == DType::bf16 ? to_float(to_bf16(sum)) : sum);
      }
  }
}

TEST_F(EmbedTest, ARowOutsideIsABug) {
  Host x(DType::f32, {9, 7}), rows(DType::i32, {1}), out(DType::f32, {1, 7});
  rows.set({9});
  EXPECT_DEATH(gather_rows(exec_, x, rows, out), "row 9 of");
  Host lists(DType::i32, {1, 1});
  lists.set({9});
  EXPECT_DEATH(sum_rows(exec_, x, lists, out), "row 9 of");
}

}  // namespace
}  // namespace m2::ops
