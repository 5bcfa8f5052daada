#pragma once

#include <cstdint>
#include <functional>
#include <span>

#include "base/result.h"
#include "load/checkpoint.h"
#include "tensor/exec.h"
#include "tensor/tensor.h"

namespace m2::load {

// One rectangle of a stored tensor of rank 1 or 2, and where it goes. A vector counts as a column.
struct Slice {
  const TensorInfo* from = nullptr;
  int64_t first_row = 0;
  int64_t first_column = 0;
  // Dense; its shape is the rectangle's. dtype: the stored one, or f32 for stored bf16 and f16.
  Tensor to;
};

struct ReadOptions {
  Device device;    // whose memory `to` is
  int threads = 0;  // 0 = one per CPU, but from 2 to 16: reading waits more than it computes
  // Called now and then from the calling thread: bytes done and in all.
  std::function<void(int64_t done, int64_t total)> progress;
};

// Reads all slices, several threads at once, in the order of the files. Whole rows go straight to
// their place; of narrower slices only the wanted part of each row is read, and what lies between
// only where it is less than 512 bytes. Fails, naming file and tensor, if a
// file cannot be read or was shortened, or if an F8_E4M3 tensor holds one of the two NaN codes,
// which no operation looks for in weights; memory is then partly filled.
// Precondition: every slice lies in its tensor, whose shape and dtype the caller has checked.
Result<void> read_slices(const Checkpoint& checkpoint, std::span<const Slice> slices,
                         const ReadOptions& options);

}  // namespace m2::load
