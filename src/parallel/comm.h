#pragma once

#include <memory>

#include "tensor/exec.h"
#include "tensor/tensor.h"

namespace m2::parallel {

// The collectives of a group of ranks. Every rank of the group makes the same calls in the same
// order. Each rank calls from its own thread.
class Comm {
 public:
  virtual ~Comm() = default;
  virtual int64_t rank() const = 0;
  virtual int64_t size() const = 0;

  // x = sum over ranks, in ascending order of rank, in FP32.   x f32 | bf16, dense.
  virtual void all_reduce(const Exec& exec, Tensor x) = 0;

  // out = the ranks' parts one after another along axis 0.   part [n, ...], out [size * n, ...]
  virtual void all_gather(const Exec& exec, Tensor part, Tensor out) = 0;
};

// The group of one: all_reduce leaves x as it is.
std::unique_ptr<Comm> make_single_comm();

}  // namespace m2::parallel
