#include "tensor/buffer.h"

#include <gtest/gtest.h>

#include <cstring>
#include <utility>

namespace m2 {
namespace {

bool aligned(const void* p, uintptr_t to) {
  return reinterpret_cast<uintptr_t>(p) % to == 0;
}

TEST(BufferTest, IsAlignedAndWritable) {
  for (const int64_t bytes : {1, 63, 100000, 20 << 20}) {
    const Buffer buffer(Device{}, bytes);
    ASSERT_NE(buffer.data(), nullptr);
    EXPECT_TRUE(aligned(buffer.data(), 64));
    EXPECT_EQ(buffer.bytes(), bytes);
    std::memset(buffer.data(), 1, static_cast<size_t>(bytes));
  }
  EXPECT_EQ(Buffer(Device{}, 0).data(), nullptr);
}

TEST(BufferTest, Moves) {
  Buffer a(Device{}, 100);
  std::byte* data = a.data();
  Buffer b(std::move(a));
  EXPECT_EQ(b.data(), data);
  Buffer c(Device{}, 7);
  c = std::move(b);
  EXPECT_EQ(c.data(), data);
  EXPECT_EQ(c.bytes(), 100);
}

// The same calls, dry and placed, agree on the bytes; nothing overlaps.
TEST(ArenaTest, PlansWhatItPlaces) {
  const auto place_all = [](Arena& arena) {
    const Tensor first = arena.place(DType::f8_e4m3, {3, 5});
    return std::pair(first, arena.place(DType::f32, {7}));
  };
  Arena dry;
  EXPECT_TRUE(place_all(dry).first.empty());
  EXPECT_EQ(dry.bytes(), 64 + 28);
  const Buffer buffer(Device{}, dry.bytes());
  Arena arena(buffer);
  const auto [a, b] = place_all(arena);
  EXPECT_EQ(arena.bytes(), dry.bytes());
  EXPECT_EQ(static_cast<std::byte*>(a.data()), buffer.data());
  EXPECT_EQ(static_cast<std::byte*>(b.data()), buffer.data() + 64);
  EXPECT_TRUE(aligned(b.data(), 64));
}

TEST(ArenaDeathTest, AFullOneIsABug) {
  const Buffer buffer(Device{}, 100);
  Arena arena(buffer);
  arena.place(DType::f32, {16});
  EXPECT_DEATH(arena.place(DType::f32, {10}), "arena of 100 bytes is full");
}

}  // namespace
}  // namespace m2
