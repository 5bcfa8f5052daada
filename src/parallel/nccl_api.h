#pragma once

#include <cstddef>

namespace m2::parallel {

// NCCL's C interface, as far as it is used: its library is loaded at run time, and nothing needs
// its nccl.h to be built. Enumerations are ints, handles pointers. Where there is an nccl.h, a test
// holds it against this (tests/parallel/nccl_header.cc).
struct Nccl {
  using Handle = void*;
  struct Id {
    char bytes[128];
  };
  static constexpr int kSuccess = 0, kInProgress = 7;
  static constexpr int kSum = 0;
  enum Type {
    kInt8 = 0,
    kUint8 = 1,
    kInt32 = 2,
    kInt64 = 4,
    kFloat16 = 6,
    kFloat32 = 7,
    kBfloat16 = 9
  };

  const char* (*error_string)(int);
  int (*get_unique_id)(Id*);
  int (*init_rank)(Handle*, int, Id, int);
  int (*abort)(Handle);
  int (*async_error)(Handle, int*);
  int (*all_reduce)(const void*, void*, size_t, int, int, Handle, void*);
  int (*broadcast)(const void*, void*, size_t, int, int, Handle, void*);
  int (*reduce)(const void*, void*, size_t, int, int, int, Handle, void*);
  int (*send)(const void*, size_t, int, int, Handle, void*);
  int (*receive)(void*, size_t, int, int, Handle, void*);
  int (*group_start)();
  int (*group_end)();
};

}  // namespace m2::parallel
