#include "base/huge_pages.h"

#include <sys/mman.h>

#include "base/check.h"

namespace m2 {

void* allocate_huge_pages(size_t bytes) {
  const size_t rounded = (bytes + kHugePage - 1) / kHugePage * kHugePage;
  void* memory = std::aligned_alloc(kHugePage, rounded);
  M2_CHECK(memory, "out of memory: {} bytes", bytes);
  madvise(memory, rounded, MADV_HUGEPAGE);
  return memory;
}

}  // namespace m2
