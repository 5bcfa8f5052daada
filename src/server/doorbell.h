#pragma once

#include <cstddef>
#include <memory>
#include <vector>

namespace m2::server {

// Wakes several threads by one system call. With a call for each, the first to wake may take the
// caller's core, and the others are woken when it has done its work. The threads wait in epoll
// (each in its own event loop), so a bell is an eventfd that nobody reads, and what a thread
// watches is an epoll instance of its own that takes each ring as an edge.
class Doorbell {
 public:
  // Null where the system has no descriptors left.
  static std::unique_ptr<Doorbell> make(size_t listeners);
  ~Doorbell();
  Doorbell(const Doorbell&) = delete;
  Doorbell& operator=(const Doorbell&) = delete;

  // Wakes everybody, `first` before the others: it is the first to be given a core. Any thread.
  void ring(size_t first);

  // What listener i watches: can be read from each ring on until hush(). The doorbell's own.
  int ear(size_t i) const { return ears_[i]; }
  // Listener i: forgets the rings so far. Call it before looking at what they were rung for.
  void hush(size_t i);

 private:
  Doorbell() = default;
  bool connect(size_t listeners);

  std::vector<int> bells_;  // by who is woken first
  std::vector<int> ears_;
};

}  // namespace m2::server
