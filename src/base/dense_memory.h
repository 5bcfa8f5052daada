#pragma once

#include <cstddef>
#include <string>
#include <vector>

namespace m2 {

// Memory for what a thousand streams have one of each and every step visits: all of it beside each
// other, in huge pages. Spread over the heap, each such object stands on a page of its own, and its
// address must be translated before it can be read or even asked for ahead. In whole cache lines.
// Any thread. What is freed is kept for the next that asks; it does not go back to the system.
// More than kMostDense bytes come from the heap. Without memory the process ends.
constexpr size_t kMostDense = 4096;
void* allocate_dense(size_t bytes);
void free_dense(void* memory, size_t bytes);

// For containers and std::allocate_shared().
template <class T>
struct DenseAllocator {
  using value_type = T;

  DenseAllocator() = default;
  template <class U>
  DenseAllocator(const DenseAllocator<U>&) {}  // NOLINT: as allocators are
  T* allocate(size_t count) { return static_cast<T*>(allocate_dense(count * sizeof(T))); }
  void deallocate(T* memory, size_t count) { free_dense(memory, count * sizeof(T)); }
  bool operator==(const DenseAllocator&) const = default;
};
template <class T>
using DenseVector = std::vector<T, DenseAllocator<T>>;
using DenseString = std::basic_string<char, std::char_traits<char>, DenseAllocator<char>>;

// Base of classes whose objects are made by `new`.
struct Dense {
  static void* operator new(size_t bytes) { return allocate_dense(bytes); }
  static void operator delete(void* memory, size_t bytes) { free_dense(memory, bytes); }
};

}  // namespace m2
