#pragma once

#include <cstddef>
#include <cstdint>

#include "base/result.h"

namespace m2::app::bench {

// What the kernel alone takes to send one chunk to every client, as a server's io threads do at
// each step: nothing but send(), over this machine's loopback, which runs the receiver's half of
// TCP within the sender's call. Nobody is woken by an arrival, as in this simulation. No server on
// these cores can be faster.
struct SendFloor {
  double cpu_us = 0;                 // CPU a chunk
  double median_ms = 0, p99_ms = 0;  // from a thread's first send until a chunk was taken
};

// `streams` >= 1 connections shared among `threads` >= 1, chunks of `bytes` >= 1, `rounds` >= 1 of
// them to each. Takes two descriptors a stream while it runs. Fails if sockets cannot be had.
Result<SendFloor> measure_send_floor(int64_t streams, int threads, size_t bytes, int rounds);

}  // namespace m2::app::bench
