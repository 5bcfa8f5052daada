#include "base/descriptors.h"

#include <sys/resource.h>

#include <algorithm>

namespace m2 {

int64_t allow_descriptors(int64_t count) {
  rlimit limit{};
  getrlimit(RLIMIT_NOFILE, &limit);
  const auto needed = static_cast<rlim_t>(count);
  if (limit.rlim_cur < needed) {
    // More than the hard limit is root's to give.
    const rlimit enough{needed, std::max(limit.rlim_max, needed)};
    const rlimit most{std::min(limit.rlim_max, needed), limit.rlim_max};
    if (setrlimit(RLIMIT_NOFILE, &enough) != 0) setrlimit(RLIMIT_NOFILE, &most);
    getrlimit(RLIMIT_NOFILE, &limit);
  }
  return static_cast<int64_t>(std::min<rlim_t>(limit.rlim_cur, INT64_MAX));
}

}  // namespace m2
