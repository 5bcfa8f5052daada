#pragma once

#include <atomic>
#include <cstddef>
#include <memory>
#include <utility>

namespace m2::server {

// Bytes that many holders may have together. Thread-safe.
class ByteBudget {
 public:
  explicit ByteBudget(size_t max_bytes) : max_bytes_(max_bytes) {}

  size_t used() const { return used_; }

 private:
  friend class HeldBytes;
  // False, and nothing taken, if they are not there.
  bool take(size_t bytes);
  void give_back(size_t bytes) { used_ -= bytes; }

  const size_t max_bytes_;
  std::atomic<size_t> used_{0};
};

// What one holder has of a budget, given back at its end. One thread at a time.
class HeldBytes {
 public:
  explicit HeldBytes(std::shared_ptr<ByteBudget> budget) : budget_(std::move(budget)) {}
  ~HeldBytes() { (void)resize(0); }
  HeldBytes(const HeldBytes&) = delete;
  HeldBytes& operator=(const HeldBytes&) = delete;

  // Holds so many from now on; false, and nothing changes, if there are not so many. Fewer there
  // always are.
  bool resize(size_t bytes);
  size_t bytes() const { return bytes_; }

 private:
  const std::shared_ptr<ByteBudget> budget_;
  size_t bytes_ = 0;
};

}  // namespace m2::server
