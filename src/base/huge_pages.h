#pragma once

#include <cstddef>
#include <cstdlib>
#include <vector>

namespace m2 {

constexpr size_t kHugePage = size_t{2} << 20;

// At least `bytes`, from a huge page's border on, and in huge pages where the system gives them to
// those who ask. Without memory the process ends. For std::free().
void* allocate_huge_pages(size_t bytes);

// For arrays that are large and read at random places: in usual pages each such read waits for the
// translation of its address first.
template <class T>
struct HugePageAllocator {
  using value_type = T;

  HugePageAllocator() = default;
  template <class U>
  explicit HugePageAllocator(const HugePageAllocator<U>&) {}
  T* allocate(size_t count) {
    const size_t bytes = count * sizeof(T);
    return static_cast<T*>(bytes < kHugePage ? ::operator new(bytes) : allocate_huge_pages(bytes));
  }
  void deallocate(T* memory, size_t count) {
    count * sizeof(T) < kHugePage ? ::operator delete(memory) : std::free(memory);
  }
  bool operator==(const HugePageAllocator&) const = default;
};
template <class T>
using LargeArray = std::vector<T, HugePageAllocator<T>>;

}  // namespace m2
