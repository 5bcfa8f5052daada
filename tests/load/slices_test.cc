#include "load/slices.h"

#include <gtest/gtest.h>

#include <cstring>

#include "tensor/buffer.h"
#include "tests/load/test_checkpoint.h"

namespace m2::load {
namespace {

namespace fs = std::filesystem;
using test::StoredTensor;
using test::TempFolder;

// Larger than one read, so that it is cut into pieces: 6 MB.
constexpr int64_t kRows = 3000;
constexpr int64_t kColumns = 2001;

// Random codes of e4m3 without its NaNs.
std::string random_codes(size_t count, uint64_t seed) {
  std::string out = test::random_bytes(count, seed);
  for (char& code : out)
    if ((code & 0x7f) == 0x7f) code ^= 1;
  return out;
}

const std::vector<StoredTensor>& some_tensors() {
  static const std::vector<StoredTensor> tensors = {
      {"bytes", "F8_E4M3", {kRows, kColumns}, random_codes(kRows * kColumns, 1)},
      {"vector", "F32", {1000}, test::random_bytes(4000, 2)},
      {"halves", "F16", {5, 7}, test::random_bytes(70, 3)},
      {"brains", "BF16", {5, 7}, test::random_bytes(70, 4)}};
  return tensors;
}

class SlicesTest : public testing::Test {
 protected:
  void SetUp() override {
    test::write_file(folder_ / "config.json", "{}");
    test::write_shards(folder_.path(), some_tensors(), 2);
    auto checkpoint = Checkpoint::open(folder_.path());
    ASSERT_TRUE(checkpoint.ok());
    checkpoint_ = std::move(checkpoint).value();
  }

  Slice slice(const char* name, int64_t row, int64_t column, Tensor to) const {
    return {checkpoint_->find(name), row, column, to};
  }

  TempFolder folder_;
  std::optional<Checkpoint> checkpoint_;
};

void expect_rectangle(const std::string& whole, const Tensor& part, int64_t row, int64_t column) {
  const auto* bytes = static_cast<const char*>(part.data());
  for (int64_t r = 0; r < part.size(0); ++r)
    ASSERT_EQ(0, std::memcmp(bytes + r * part.size(1), whole.data() + (row + r) * kColumns + column,
                             static_cast<size_t>(part.size(1))))
        << "row " << r;
}

TEST_F(SlicesTest, ReadsRectangles) {
  const std::string whole = some_tensors()[0].data;
  const struct {
    int64_t row, rows, column, columns;
  } cases[] = {
      {0, kRows, 0, kColumns}, {1, kRows - 1, 0, kColumns}, {7, 1, 0, kColumns},
      {0, kRows, 192, 192},    {2999, 1, 2000, 1},          {100, 2500, 1, kColumns - 1},
      {5, 0, 0, kColumns},
  };
  for (const int threads : {1, 2, 5}) {
    Buffer buffer({}, 64 << 20);
    Arena arena(buffer);
    std::vector<Slice> slices;
    for (const auto& c : cases)
      slices.push_back(
          slice("bytes", c.row, c.column, arena.place(DType::f8_e4m3, {c.rows, c.columns})));
    slices.push_back(slice("vector", 300, 0, arena.place(DType::f32, {400})));
    int64_t last = 0;
    const auto progress = [&](int64_t done, int64_t total) {
      EXPECT_LE(done, total);
      last = done == total ? total : last;
    };
    ASSERT_TRUE(read_slices(*checkpoint_, slices, {{}, threads, progress}).ok());
    int64_t bytes = 1600;
    for (size_t i = 0; i < std::size(cases); ++i) {
      expect_rectangle(whole, slices[i].to, cases[i].row, cases[i].column);
      bytes += cases[i].rows * cases[i].columns;
    }
    EXPECT_EQ(0, std::memcmp(slices.back().to.data(), some_tensors()[1].data.data() + 1200, 1600));
    EXPECT_EQ(last, bytes) << "the last report says that all is done";
  }
}

TEST_F(SlicesTest, WidensHalfPrecisionToFloat) {
  Buffer buffer({}, 1 << 12);
  Arena arena(buffer);
  const Tensor halves = arena.place(DType::f32, {3, 4});
  const Tensor brains = arena.place(DType::f32, {5, 7});
  ASSERT_TRUE(read_slices(*checkpoint_,
                          std::vector{slice("halves", 1, 2, halves), slice("brains", 0, 0, brains)},
                          {})
                  .ok());
  const auto bits = [](float value) { return std::bit_cast<uint32_t>(value); };
  const auto stored = [](size_t tensor, int64_t index) {
    uint16_t out;
    std::memcpy(&out, some_tensors()[tensor].data.data() + 2 * index, 2);
    return out;
  };
  for (int64_t r = 0; r < 3; ++r)
    for (int64_t c = 0; c < 4; ++c) {
      const float expected = to_float(F16{stored(2, (r + 1) * 7 + c + 2)});
      const float actual = halves.as<float>()[r * 4 + c];
      EXPECT_TRUE(bits(actual) == bits(expected) || (actual != actual && expected != expected));
    }
  for (int64_t i = 0; i < 35; ++i)
    EXPECT_EQ(bits(brains.as<float>()[i]), static_cast<uint32_t>(stored(3, i)) << 16);
}

// One NaN code anywhere is enough, at any place of the eight that are looked at together.
TEST(SlicesNanTest, NanCodesAreRefused) {
  Buffer buffer({}, 1 << 16);
  for (const size_t where : {0, 1, 7, 8, 4001, 5998, 5999}) {
    for (const int code : {0x7f, 0xff}) {
      std::string data = random_codes(6000, where);
      data[where] = static_cast<char>(code);
      TempFolder folder;
      test::write_file(folder / "config.json", "{}");
      test::write_shards(folder.path(), {{"w", "F8_E4M3", {60, 100}, data}}, 1);
      const auto checkpoint = Checkpoint::open(folder.path());
      ASSERT_TRUE(checkpoint.ok());
      Arena arena(buffer);
      const Slice all{checkpoint->find("w"), 0, 0, arena.place(DType::f8_e4m3, {60, 100})};
      const auto result = read_slices(*checkpoint, std::vector{all}, {});
      ASSERT_FALSE(result.ok()) << where;
      EXPECT_NE(result.error().text.find("tensor w has NaN codes"), std::string::npos);
    }
  }
}

TEST_F(SlicesTest, AFileShortenedMeanwhileIsNamed) {
  Buffer buffer({}, kRows * kColumns);
  Arena arena(buffer);
  const Slice all = slice("bytes", 0, 0, arena.place(DType::f8_e4m3, {kRows, kColumns}));
  const std::string path = checkpoint_->file_of(*all.from).path();
  for (const uint64_t size : {fs::file_size(path) - 4001, uint64_t{4096}, uint64_t{0}}) {
    fs::resize_file(path, size);
    const auto result = read_slices(*checkpoint_, std::vector{all}, {});
    ASSERT_FALSE(result.ok()) << size;
    EXPECT_NE(result.error().text.find(path), std::string::npos);
    EXPECT_NE(result.error().text.find("tensor bytes"), std::string::npos);
  }
}

}  // namespace
}  // namespace m2::load
