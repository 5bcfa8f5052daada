// Covers: base/dense_memory
#include "base/dense_memory.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <memory>
#include <random>
#include <set>
#include <thread>
#include <utility>
#include <vector>

#include "base/huge_pages.h"

namespace m2 {
namespace {

// Checkers of memory get each piece from the heap.
#ifdef __SANITIZE_ADDRESS__
constexpr bool kChecked = true;
#else
constexpr bool kChecked = false;
#endif

struct Stream : Dense {
  explicit Stream(int given) : number(given) {}
  virtual ~Stream() = default;
  int number;
  char more[700];
};
struct LongerStream : Stream {
  using Stream::Stream;
  char yet_more[500];
};

TEST(DenseMemory, StandsTogetherInWholeLinesOfHugePages) {
  if (kChecked) GTEST_SKIP() << "not under a checker of memory";
  std::vector<std::unique_ptr<Stream>> streams;
  std::set<uintptr_t> pages;
  for (int i = 0; i < 2000; ++i) {
    streams.push_back(i % 2 ? std::make_unique<LongerStream>(i) : std::make_unique<Stream>(i));
    const auto at = reinterpret_cast<uintptr_t>(streams.back().get());
    EXPECT_EQ(at % 64, 0u);
    pages.insert(at / kHugePage);
  }
  EXPECT_LE(pages.size(), 2000 * 1280 / kHugePage + 2);
  for (int i = 0; i < 2000; ++i) EXPECT_EQ(streams[static_cast<size_t>(i)]->number, i);
}

TEST(DenseMemory, WhatIsFreedIsUsedAgain) {
  if (kChecked) GTEST_SKIP() << "not under a checker of memory";
  std::set<const void*> places;
  for (int i = 0; i < 100; ++i) places.insert(std::make_unique<LongerStream>(i).get());
  EXPECT_EQ(places.size(), 1u);
}

TEST(DenseMemory, ServesContainersOfAnySize) {
  DenseVector<int64_t> numbers;
  for (int64_t i = 0; i < 100'000; ++i) numbers.push_back(i);  // leaves for the heap on the way
  for (int64_t i = 0; i < 100'000; ++i) ASSERT_EQ(numbers[static_cast<size_t>(i)], i);
  DenseString text;
  for (int i = 0; i < 3000; ++i) text += "word ";
  EXPECT_EQ(text.size(), 15'000u);
  const auto shared = std::allocate_shared<Stream>(DenseAllocator<Stream>(), 7);
  EXPECT_EQ(shared->number, 7);
}

// Pieces of all sizes, freed by other threads than took them: none is handed out twice.
TEST(DenseMemory, IsForAllThreads) {
  constexpr int kThreads = 4, kRounds = 20'000;
  struct Piece {
    unsigned char* memory;
    size_t bytes;
    unsigned char mark;
  };
  std::vector<std::vector<Piece>> left(kThreads);
  const auto check_and_free = [](const Piece& piece) {
    EXPECT_TRUE(std::all_of(piece.memory, piece.memory + piece.bytes,
                            [&](unsigned char byte) { return byte == piece.mark; }));
    free_dense(piece.memory, piece.bytes);
  };
  {
    std::vector<std::jthread> threads;
    for (unsigned t = 0; t < kThreads; ++t) {
      threads.emplace_back([&, t] {
        std::mt19937 random(t);
        std::vector<Piece>& own = left[t];
        for (int i = 0; i < kRounds; ++i) {
          if (own.size() < 200 || random() % 2) {
            const size_t bytes = random() % (kMostDense + 200);
            auto* memory = static_cast<unsigned char*>(allocate_dense(bytes));
            own.push_back({memory, bytes, static_cast<unsigned char>(random())});
            std::memset(memory, own.back().mark, bytes);
          } else {
            std::swap(own[random() % own.size()], own.back());
            check_and_free(own.back());
            own.pop_back();
          }
        }
      });
    }
  }
  std::vector<std::jthread> others;
  for (size_t t = 0; t < kThreads; ++t)
    others.emplace_back(
        [&, t] { std::ranges::for_each(left[(t + 1) % kThreads], check_and_free); });
}

}  // namespace
}  // namespace m2
