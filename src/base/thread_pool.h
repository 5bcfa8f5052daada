#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <thread>
#include <vector>

namespace m2 {

// A fixed set of threads that run one parallel job at a time, for the operations of a step.
// The calling thread is thread 0. One caller at a time; no allocation per job.
class ThreadPool {
 public:
  // `threads` >= 1 counts the caller. 0 = one per CPU this process may run on.
  explicit ThreadPool(int threads);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int size() const { return static_cast<int>(threads_.size()) + 1; }

  // Runs body(thread) once on every thread, 0..size()-1, and returns when all have returned.
  // `body` must not throw and must not call the pool, except for barrier().
  template <class Body>
  void run(Body&& body) {
    run_job([](void* context,
               int thread) { (*static_cast<std::remove_reference_t<Body>*>(context))(thread); },
            const_cast<void*>(static_cast<const void*>(&body)));
  }

  // Runs body(i) for every i in [0, count), count < 2^32. Each thread has an equal share of
  // consecutive indices and takes them in ascending order, so that what it reads follows in memory;
  // then it takes the last of another's share, so that uneven work spreads. Which thread runs which
  // index is not fixed: results must not depend on it.
  template <class Body>
  void for_each(int64_t count, Body&& body) {
    if (count <= 0) return;
    if (count == 1 || size() == 1) {
      for (int64_t i = 0; i < count; ++i) body(i);
      return;
    }
    deal(count);
    run([&](int thread) {
      for (int64_t i = take(thread); i >= 0; i = take(thread)) body(i);
    });
  }

  // Inside run(): returns when every thread has reached it.
  void barrier();

 private:
  using Job = void (*)(void* context, int thread);
  // The indices left of one thread's share: first in the low half, the one behind the last in the
  // high half.
  struct alignas(64) Share {
    std::atomic<uint64_t> left{0};
  };

  void deal(int64_t count);
  int64_t take(int thread);  // the next index for a thread; -1 when none is left
  void run_job(Job job, void* context);
  void work(int thread);
  void wait_for(const std::atomic<uint64_t>& value, uint64_t old);

  Job job_ = nullptr;
  void* context_ = nullptr;
  alignas(64) std::atomic<uint64_t> generation_{0};
  alignas(64) std::atomic<int> running_{0};
  alignas(64) std::atomic<int> barrier_arrived_{0};
  alignas(64) std::atomic<uint64_t> barrier_phase_{0};
  std::atomic<bool> stopping_{false};
  std::vector<Share> shares_;
  std::vector<std::thread> threads_;
};

// CPUs this process may run on (its affinity mask), at least 1.
int usable_cpus();

}  // namespace m2
