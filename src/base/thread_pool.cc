#include "base/thread_pool.h"

#include <sched.h>

#include <algorithm>

#include "base/check.h"

namespace m2 {
namespace {

// How long a waiting thread spins before it sleeps: operations of one step follow each other within
// microseconds, and a futex wake costs about as much as this.
constexpr int kSpins = 4000;

uint64_t share_of(uint64_t begin, uint64_t end) {
  return end << 32 | begin;
}
uint64_t first_of(uint64_t share) {
  return share & 0xffffffff;
}
uint64_t end_of(uint64_t share) {
  return share >> 32;
}

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

}  // namespace

int usable_cpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) != 0) return 1;
  return std::max(1, CPU_COUNT(&set));
}

ThreadPool::ThreadPool(int threads) {
  const int count = threads > 0 ? threads : usable_cpus();
  shares_ = std::vector<Share>(static_cast<size_t>(count));
  threads_.reserve(static_cast<size_t>(count - 1));
  for (int i = 1; i < count; ++i) threads_.emplace_back([this, i] { work(i); });
}

ThreadPool::~ThreadPool() {
  stopping_.store(true, std::memory_order_relaxed);
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  for (std::thread& thread : threads_) thread.join();
}

// Returns once value != old. Spins first, then sleeps in the kernel.
void ThreadPool::wait_for(const std::atomic<uint64_t>& value, uint64_t old) {
  for (int i = 0; i < kSpins; ++i) {
    if (value.load(std::memory_order_acquire) != old) return;
    relax();
  }
  while (value.load(std::memory_order_acquire) == old) value.wait(old, std::memory_order_acquire);
}

void ThreadPool::run_job(Job job, void* context) {
  M2_CHECK(running_.load(std::memory_order_relaxed) == 0, "a pool runs one job at a time");
  job_ = job;
  context_ = context;
  running_.store(static_cast<int>(threads_.size()), std::memory_order_relaxed);
  generation_.fetch_add(1, std::memory_order_release);
  generation_.notify_all();
  job(context, 0);
  // The other threads started with this one and have equal shares: their ends are near, so the
  // caller spins and yields instead of sleeping.
  for (int spins = 0; running_.load(std::memory_order_acquire) != 0; ++spins) {
    relax();
    if (spins > kSpins) std::this_thread::yield();
  }
}

void ThreadPool::work(int thread) {
  uint64_t seen = 0;
  while (true) {
    wait_for(generation_, seen);
    ++seen;
    if (stopping_.load(std::memory_order_relaxed)) return;
    job_(context_, thread);
    running_.fetch_sub(1, std::memory_order_release);
  }
}

void ThreadPool::deal(int64_t count) {
  M2_CHECK(count >> 32 == 0, "{} indices", count);
  const auto all = static_cast<uint64_t>(count);
  const uint64_t threads = shares_.size();
  for (uint64_t t = 0; t < threads; ++t)
    shares_[t].left.store(share_of(t * all / threads, (t + 1) * all / threads),
                          std::memory_order_relaxed);
}

int64_t ThreadPool::take(int thread) {
  const size_t threads = shares_.size();
  for (size_t t = 0; t < threads; ++t) {
    std::atomic<uint64_t>& left = shares_[(static_cast<size_t>(thread) + t) % threads].left;
    uint64_t share = left.load(std::memory_order_relaxed);
    while (first_of(share) < end_of(share)) {
      const uint64_t first = first_of(share), last = end_of(share) - 1;
      const uint64_t rest = t == 0 ? share_of(first + 1, last + 1) : share_of(first, last);
      if (left.compare_exchange_weak(share, rest, std::memory_order_relaxed))
        return static_cast<int64_t>(t == 0 ? first : last);
    }
  }
  return -1;
}

void ThreadPool::barrier() {
  if (threads_.empty()) return;
  const uint64_t phase = barrier_phase_.load(std::memory_order_relaxed);
  if (barrier_arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == size()) {
    barrier_arrived_.store(0, std::memory_order_relaxed);
    barrier_phase_.fetch_add(1, std::memory_order_release);
    barrier_phase_.notify_all();
    return;
  }
  wait_for(barrier_phase_, phase);
}

}  // namespace m2
