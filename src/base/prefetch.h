#pragma once

#include <cstddef>

namespace m2 {

// Asks for the cache lines from `begin` to before `end`, to be written as a rule. Only an address:
// nothing is read, and nothing need be there.
inline void fetch_lines(const void* begin, const void* end) {
  constexpr std::ptrdiff_t kLine = 64;
  for (auto* at = static_cast<const char*>(begin); at < end; at += kLine) __builtin_prefetch(at, 1);
}

}  // namespace m2
