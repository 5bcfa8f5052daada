// Covers: server/event_log
#include "server/event_log.h"

#include <gtest/gtest.h>

#include <thread>

namespace m2::server {
namespace {

std::string frame(int number) {
  return "data: " + std::to_string(number) + std::string(static_cast<size_t>(number % 7), 'x') +
         "\n\n";
}

std::shared_ptr<ByteBudget> budget(size_t bytes = 1 << 20) {
  return std::make_shared<ByteBudget>(bytes);
}

TEST(EventLog, AnyPieceSizeFromAnyEventGivesTheRest) {
  constexpr int kEvents = 40;
  EventLog log(budget());
  std::string all;
  for (int i = 0; i < kEvents; i += 2) {
    log.append(frame(i) + frame(i + 1));
    all += frame(i) + frame(i + 1);
  }
  log.end();
  for (size_t max : {1u, 9u, 10u, 33u, 100u, 10'000u}) {
    std::string rest = all;
    for (size_t first = 0; first < kEvents; ++first) {
      std::string read;
      EventLog::Piece piece;
      piece.next = first;
      while (!piece.over) {
        const size_t before = piece.next;
        piece = log.read(before, max);
        EXPECT_TRUE(piece.frames.size() <= max || piece.next == before + 1);
        ASSERT_GT(piece.next, before);
        read += piece.frames;
      }
      EXPECT_EQ(read, rest) << first << " by " << max;
      rest.erase(0, frame(static_cast<int>(first)).size());
    }
  }
  EXPECT_TRUE(log.read(kEvents + 5, 100).over);
}

TEST(EventLog, WaitersAreWokenOnceByWhatTheyWaitFor) {
  EventLog log(budget());
  int first = 0, third = 0, forgotten = 0;
  log.wait(0, [&] { ++first; });
  log.wait(2, [&] { ++third; });
  log.forget(log.wait(0, [&] { ++forgotten; }));
  log.append(frame(0));
  log.append(frame(1));
  EXPECT_EQ(first, 1);
  EXPECT_EQ(third, 0);
  log.append(frame(2));
  EXPECT_EQ(third, 1);
  log.wait(1, [&] { ++third; });  // there already
  EXPECT_EQ(third, 2);
  log.wait(9, [&] { ++third; });
  log.end();
  EXPECT_EQ(third, 3);
  EXPECT_EQ(forgotten, 0);
}

TEST(EventLog, WhatOutgrowsTheBudgetIsLostAndNothingElse) {
  const auto shared = budget(100);
  EventLog small(shared);
  small.append(std::string(40, 'a'));
  {
    EventLog large(shared);
    large.append(std::string(50, 'b'));
    int woken = 0;
    large.wait(1, [&] { ++woken; });
    large.append(std::string(50, 'c'));
    EXPECT_EQ(woken, 1);
    EXPECT_TRUE(large.read(0, 1000).lost);
    EXPECT_EQ(shared->used(), 40u);
    large.append("more\n\n");
    EXPECT_EQ(large.bytes(), 0u);
  }
  EXPECT_EQ(small.read(0, 1000).frames.size(), 40u);
}

TEST(EventLog, AFollowerOnAnotherThreadReadsAll) {
  constexpr int kEvents = 2000;
  EventLog log(budget());
  std::string all, read;
  for (int i = 0; i < kEvents; ++i) all += frame(i);
  std::jthread writer([&] {
    for (int i = 0; i < kEvents; ++i) log.append(frame(i));
    log.end();
  });
  EventLog::Piece piece;
  while (!piece.over) {
    piece = log.read(piece.next, 100);
    read += piece.frames;
    if (piece.over || !piece.frames.empty()) continue;
    const auto woken = std::make_shared<std::atomic_flag>();
    log.wait(piece.next, [woken] {
      woken->test_and_set();
      woken->notify_one();
    });
    woken->wait(false);
  }
  EXPECT_EQ(read, all);
}

}  // namespace
}  // namespace m2::server
