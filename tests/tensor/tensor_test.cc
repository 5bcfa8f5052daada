#include "tensor/tensor.h"

#include <gtest/gtest.h>

#include <numeric>
#include <vector>

namespace m2 {
namespace {

class TensorTest : public testing::Test {
 protected:
  TensorTest() : numbers_(24) { std::iota(numbers_.begin(), numbers_.end(), 0); }
  Tensor make(std::initializer_list<int64_t> shape) {
    return Tensor(numbers_.data(), DType::i32, shape);
  }
  std::vector<int32_t> numbers_;
};

TEST_F(TensorTest, DenseView) {
  const Tensor t = make({2, 3, 4});
  EXPECT_EQ(t.rank(), 3);
  EXPECT_EQ(t.size(1), 3);
  EXPECT_EQ(t.elements(), 24);
  EXPECT_EQ(t.row_stride(), 12);
  EXPECT_TRUE(t.dense());
  EXPECT_EQ(t.as<int32_t>()[23], 23);
  EXPECT_EQ(t.describe(), "I32[2, 3, 4]");
}

TEST_F(TensorTest, RowsAndElementsOfTheFirstAxis) {
  const Tensor t = make({4, 3, 2});
  EXPECT_EQ(t.rows(1, 2).as<int32_t>()[0], 6);
  EXPECT_EQ(t.rows(1, 2).size(0), 2);
  EXPECT_EQ(t.rows(4, 0).elements(), 0);
  EXPECT_EQ(t.at(2).as<int32_t>()[0], 12);
  EXPECT_EQ(t.at(2).rank(), 2);
  EXPECT_EQ(t.at(2).size(0), 3);
}

TEST_F(TensorTest, ColumnsKeepTheStride) {
  const Tensor t = make({4, 6}).columns(2, 3);
  EXPECT_FALSE(t.dense());
  EXPECT_EQ(t.row_stride(), 6);
  EXPECT_EQ(t.elements(), 12);
  EXPECT_EQ(t.as<int32_t>()[t.row_stride()], 8);
  EXPECT_EQ(t.rows(2, 1).as<int32_t>()[0], 14);
  EXPECT_EQ(t.columns(1, 1).as<int32_t>()[0], 3);
  EXPECT_EQ(t.at(3).as<int32_t>()[0], 20);
  EXPECT_EQ(t.describe(), "I32[4, 3] with row stride 6");
}

TEST_F(TensorTest, Reshape) {
  EXPECT_EQ(make({4, 6}).reshaped({2, 12}).at(1).as<int32_t>()[0], 12);
}

TEST_F(TensorTest, EmptyOnes) {
  EXPECT_TRUE(Tensor().empty());
  EXPECT_EQ(Tensor().elements(), 0);
  EXPECT_EQ(make({0, 5}).elements(), 0);
}

using TensorDeathTest = TensorTest;

TEST_F(TensorDeathTest, MisuseIsNamed) {
  const Tensor t = make({4, 6});
  EXPECT_DEATH((void)t.as<float>(), "I32\\[4, 6\\] read as F32");
  EXPECT_DEATH((void)t.rows(3, 2), "rows \\[3, \\+2\\) of I32\\[4, 6\\]");
  EXPECT_DEATH((void)t.columns(5, 2), "columns");
  EXPECT_DEATH((void)t.at(4), "element 4");
  EXPECT_DEATH((void)t.size(2), "axis 2");
  EXPECT_DEATH((void)t.reshaped({5, 5}), "reshaped");
  EXPECT_DEATH((void)t.columns(0, 2).reshaped({8}), "reshaped");
  EXPECT_DEATH(make({2, -1}), "negative size");
}

}  // namespace
}  // namespace m2
