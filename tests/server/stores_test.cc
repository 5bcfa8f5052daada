// Covers: server/turn_store, server/response_store
#include <gtest/gtest.h>

#include "server/response_store.h"
#include "server/turn_store.h"

namespace m2::server {
namespace {

Turn turn(const std::string& id, size_t tokens = 1) {
  Turn out;
  out.tokens.assign(tokens, 7);
  out.message.tool_calls = {{id, "f", "{}"}, {id + "b", "f", "{}"}};
  return out;
}

TEST(TurnStore, FindsATurnByAnyOfItsCalls) {
  TurnStore store(8, 1 << 20);
  store.put(turn("a"));
  ASSERT_TRUE(store.find("ab"));
  EXPECT_EQ(store.find("ab"), store.find("a"));
  EXPECT_EQ(store.find("c"), nullptr);
}

TEST(TurnStore, ATurnIsItsTenantsAlone) {
  TurnStore store(8, 1 << 20);
  Turn one = turn("a");
  one.tenant = "key0";
  store.put(std::move(one));
  EXPECT_TRUE(store.find("a", "key0"));
  EXPECT_EQ(store.find("a", "key1"), nullptr);
  EXPECT_EQ(store.find("a"), nullptr);
}

TEST(TurnStore, ForgetsTheLongestUnused) {
  TurnStore store(2, 1 << 20);
  store.put(turn("a"));
  store.put(turn("b"));
  EXPECT_TRUE(store.find("a"));
  store.put(turn("c"));
  EXPECT_TRUE(store.find("a") && store.find("c"));
  EXPECT_FALSE(store.find("b") || store.find("bb"));
  EXPECT_EQ(store.size(), 2u);
}

TEST(TurnStore, BytesAreBounded) {
  TurnStore store(1000, 100'000);
  for (int i = 0; i < 100; ++i) {
    store.put(turn(std::to_string(i), 1000));
    EXPECT_LE(store.bytes(), 100'000u);
  }
  EXPECT_GT(store.size(), 10u);
  EXPECT_TRUE(store.find("99"));
  store.put(turn("large", 100'000));  // larger than the store: leaves the others alone
  EXPECT_FALSE(store.find("large"));
  EXPECT_TRUE(store.find("99"));
  store.put(Turn());  // nothing to find it by
  EXPECT_FALSE(store.find(""));
}

TEST(TurnStore, TheLatestTurnHasAnIdThatCameTwice) {
  TurnStore store(2, 1 << 20);
  store.put(turn("a", 1));
  store.put(turn("a", 2));
  EXPECT_EQ(store.find("a")->tokens.size(), 2u);
  store.put(turn("b"));  // the first "a" goes, its id stays with the second
  ASSERT_TRUE(store.find("a"));
  EXPECT_EQ(store.find("a")->tokens.size(), 2u);
}

StoredResponse response(size_t size, bool running = false) {
  StoredResponse out;
  out.json.assign(size, 'x');
  out.running = running;
  return out;
}

TEST(ResponseStore, KeepsReplacesAndErases) {
  ResponseStore store(8, 1 << 20);
  store.put("a", response(10));
  store.put("a", response(20));
  EXPECT_EQ(store.find("a")->json.size(), 20u);
  EXPECT_EQ(store.size(), 1u);
  EXPECT_TRUE(store.erase("a"));
  EXPECT_FALSE(store.erase("a"));
  EXPECT_EQ(store.bytes(), 0u);
  EXPECT_FALSE(store.update("a", response(10)));  // no longer kept
  EXPECT_FALSE(store.find("a"));
}

TEST(ResponseStore, CountAndBytesAreBoundedAndRunningOnesStay) {
  ResponseStore store(3, 10'000);
  store.put("run", response(10, true));
  for (int i = 0; i < 50; ++i) {
    store.put(std::to_string(i), response(100));
    EXPECT_LE(store.size(), 3u);
  }
  EXPECT_TRUE(store.find("run") && store.find("49") && store.find("48"));
  store.put("big", response(8'000));
  EXPECT_LE(store.bytes(), 10'000u);
  EXPECT_TRUE(store.find("big") && store.find("run"));
  store.put("too big", response(20'000));
  EXPECT_FALSE(store.find("too big"));
}

TEST(ResponseStore, OnlyARunningOneIsReplacedAsRunning) {
  ResponseStore store(8, 1 << 20);
  store.put("a", response(10, true));
  EXPECT_TRUE(store.update_running("a", response(20)));
  EXPECT_FALSE(store.update_running("a", response(30)));  // it has ended
  EXPECT_FALSE(store.update_running("b", response(30)));
  EXPECT_EQ(store.find("a")->json.size(), 20u);
}

TEST(ResponseStore, AResponseIsItsTenantsAlone) {
  ResponseStore store(8, 1 << 20);
  StoredResponse one = response(10);
  one.tenant = "key0";
  store.put("a", std::move(one));
  EXPECT_FALSE(store.find("a", "key1"));
  EXPECT_FALSE(store.find("a"));
  EXPECT_FALSE(store.erase("a", "key1"));
  EXPECT_TRUE(store.find("a", "key0"));
  EXPECT_TRUE(store.erase("a", "key0"));
}

TEST(ResponseStore, EventsCount) {
  ResponseStore store(8, 1 << 20);
  StoredResponse stored = response(10);
  stored.events = std::make_shared<EventLog>(std::make_shared<ByteBudget>(1 << 20));
  stored.events->append(std::string(5000, 'y'));
  store.put("a", std::move(stored));
  EXPECT_GE(store.bytes(), 5'000u);
}

TEST(ResponseStore, ConversationsCount) {
  ResponseStore store(8, 1 << 20);
  StoredResponse stored = response(10);
  api::ChatMessage message;
  message.content = std::string(5000, 'y');
  stored.conversation = std::make_shared<const std::vector<api::ChatMessage>>(3, message);
  store.put("a", std::move(stored));
  EXPECT_GE(store.bytes(), 15'000u);
}

}  // namespace
}  // namespace m2::server
