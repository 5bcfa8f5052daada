#pragma once

#include <cstdint>

// What the machine itself can do, for the denominators of the tables.
namespace m2::bench {

// Random bytes of which none is an e4m3 NaN.
void fill_f8(void* memory, int64_t bytes, uint32_t seed);
// Random bf16 numbers between -2 and 2.
void fill_bf16(void* memory, int64_t count, uint32_t seed);
// Random floats between low and high.
void fill_f32(void* memory, int64_t count, float low, float high, uint32_t seed);

// Reads every byte once with `blocks` blocks of 512 threads, 16 bytes a thread and access,
// `ahead` accesses in flight.
void read_all(void* stream, const void* memory, int64_t bytes, int blocks, float* sink);
// A kernel that does nothing, with or without overlap (programmatic dependent launch).
void empty_kernel(void* stream, bool overlap);

}  // namespace m2::bench
