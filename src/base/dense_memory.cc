#include "base/dense_memory.h"

#include <array>
#include <mutex>
#include <new>

#include "base/huge_pages.h"

namespace m2 {
namespace {

constexpr size_t kLine = 64;
// Checkers of memory see only what comes from the heap.
#ifdef __SANITIZE_ADDRESS__
constexpr bool kChecked = true;
#else
constexpr bool kChecked = false;
#endif

bool from_heap(size_t bytes) {
  return kChecked || bytes > kMostDense;
}

size_t lines_of(size_t bytes) {
  return bytes == 0 ? 1 : (bytes + kLine - 1) / kLine;
}

// Free pieces by their number of lines, and a huge page that new ones are cut from.
class Pieces {
 public:
  void* take(size_t lines) {
    const std::lock_guard lock(mutex_);
    if (Free*& first = free_[lines]) {
      Free* const taken = first;
      first = taken->next;
      return taken;
    }
    const size_t bytes = lines * kLine;
    if (left_ < bytes) {
      page_ = static_cast<char*>(allocate_huge_pages(kHugePage));
      left_ = kHugePage;
    }
    left_ -= bytes;
    return page_ + left_;
  }

  void put(void* memory, size_t lines) {
    const std::lock_guard lock(mutex_);
    free_[lines] = new (memory) Free{free_[lines]};
  }

 private:
  struct Free {
    Free* next;
  };
  std::mutex mutex_;
  std::array<Free*, kMostDense / kLine + 1> free_{};
  char* page_ = nullptr;
  size_t left_ = 0;  // of page_, at its beginning
};

// Never destroyed: what is freed last is freed after everything else.
Pieces& pieces() {
  static Pieces& all = *new Pieces;
  return all;
}

}  // namespace

void* allocate_dense(size_t bytes) {
  return from_heap(bytes) ? ::operator new(bytes) : pieces().take(lines_of(bytes));
}

void free_dense(void* memory, size_t bytes) {
  from_heap(bytes) ? ::operator delete(memory) : pieces().put(memory, lines_of(bytes));
}

}  // namespace m2
