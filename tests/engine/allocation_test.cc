// Covers: engine/engine
// The steady decode path allocates nothing but the events it hands over.
#include <gtest/gtest.h>

#include <atomic>
#include <cstdlib>
#include <new>

#include "engine/engine.h"
#include "tests/engine/engine_fixture.h"

namespace {

std::atomic<int64_t> allocations{0};

void* counted(std::size_t size) {
  allocations.fetch_add(1, std::memory_order_relaxed);
  void* memory = std::malloc(size ? size : 1);
  if (!memory) std::abort();
  return memory;
}

}  // namespace

// Replaces the program's allocator with one that counts.
void* operator new(std::size_t size) {
  return counted(size);
}
void* operator new[](std::size_t size) {
  return counted(size);
}
// std::stable_sort's kind: all of them, or a sanitizer sees new and free mixed.
void* operator new(std::size_t size, const std::nothrow_t&) noexcept {
  return counted(size);
}
void* operator new[](std::size_t size, const std::nothrow_t&) noexcept {
  return counted(size);
}
void operator delete(void* memory) noexcept {
  std::free(memory);
}
void operator delete(void* memory, const std::nothrow_t&) noexcept {
  std::free(memory);
}
void operator delete[](void* memory) noexcept {
  std::free(memory);
}
void operator delete(void* memory, std::size_t) noexcept {
  std::free(memory);
}
void operator delete[](void* memory, std::size_t) noexcept {
  std::free(memory);
}

namespace m2::engine::test {
namespace {

class DroppingSink : public EventSink {
 public:
  void on_events(std::vector<Event>&& events) override {
    const std::vector<Event> dropped = std::move(events);
    seen += static_cast<int64_t>(dropped.size());
  }
  int64_t seen = 0;
};

TEST(Allocation, SteadyDecodeAllocatesItsEventsOnly) {
  HistoryModel model(World::limits(800, 4, 400), World::kIdLimit);
  ThreadPool pool(2);
  ManualClock clock;
  DroppingSink sink;
  Metrics metrics;
  Engine engine(World::config(), model, pool, clock, sink, metrics);
  for (int i = 0; i < 6; ++i) {
    Request request = greedy_request(10, 300, 5 + i);
    request.params.temperature = i % 2 ? 1.0f : 0.0f;
    request.params.top_k = i % 3 ? 40 : 0;
    request.params.top_p = i > 3 ? 0.9f : 1.0f;
    ASSERT_TRUE(engine.submit(std::move(request)).ok());
  }
  for (int i = 0; i < 10; ++i) engine.step();
  const int64_t before = allocations.load();
  const int64_t seen = sink.seen;
  for (int i = 0; i < 200; ++i) engine.step();
  EXPECT_EQ(sink.seen - seen, 6 * 200);
  EXPECT_EQ(allocations.load() - before, 200) << "one vector of events a step";
}

}  // namespace
}  // namespace m2::engine::test
