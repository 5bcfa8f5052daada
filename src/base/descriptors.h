#pragma once

#include <cstdint>

namespace m2 {

// Raises this process's limit of open file descriptors to `count` where it is lower and may be
// raised. Returns the limit that holds then: shells often begin with 1,024, and each connection is
// one.
int64_t allow_descriptors(int64_t count);

}  // namespace m2
