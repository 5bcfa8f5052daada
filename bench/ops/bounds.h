#pragma once

#include <cstdint>

#include "base/thread_pool.h"

namespace m2::bench {

// Bytes per second that all threads together can read from memory: the fastest window of 32 MiB in
// passes over `bytes` (well more than the caches hold) with the widest loads this machine has, one
// to eight streams per thread. A window lasts about as long as one operation, so that on a busy
// machine bound and operation have the same chance of a quiet moment.
double read_bandwidth(ThreadPool& pool, const void* memory, int64_t bytes);

// FP32 operations per second (a multiply-add counts two) of all threads, from registers alone.
double multiply_add_rate(ThreadPool& pool);

}  // namespace m2::bench
