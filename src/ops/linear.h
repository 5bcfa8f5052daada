#pragma once

#include <span>

#include "ops/quantised.h"
#include "ops/row_owners.h"
#include "tensor/exec.h"
#include "tensor/tensor.h"

namespace m2::ops {

// A weight matrix, possibly one rank's slice of a larger one.
// f8_e4m3 weights have one FP32 scale for each 128x128 block of the FULL matrix (the last block of
// an axis may be ragged): W[r, c] = float(weight[r, c]) * scale[(first_row + r) / 128,
// (first_column + c) / 128]. A slice that begins or ends inside a block thus keeps its scales.
struct Linear {
  Tensor weight;          // f8_e4m3 | bf16 | f16 | f32 [N, K]
  Tensor scale;           // f32, for f8_e4m3 only; otherwise empty
  int64_t first_row = 0;  // of this slice in the matrix that `scale` covers
  int64_t first_column = 0;
};

// Stops the process unless weight and scale fit each other and an input of so many columns.
void check_linear(const Linear& linear, int64_t columns);

// Bytes of Exec::workspace with which linear() takes the fast form for that many tokens of at most
// that many columns. With less it is right but slow; on a CPU with tiles one token must fit.
int64_t linear_workspace_bytes(Device device, int64_t tokens, int64_t columns);

// out = x * W^T, accumulated in FP32. Every output element is summed in an order that depends on K
// alone: a row's result is the same bytes in any batch (CPU always).
//   x    f32 | bf16 [T, K]; rows may be strided
//   out  f32 | bf16 [T, N]; rows may be strided
//   quantised  x again, or empty
//   owners     who gets the rows of out, which itself is not written then (GPUs, more than 64 rows)
void linear(const Exec& exec, Tensor x, const Linear& weight, Tensor out,
            const Quantised& quantised = {}, const RowOwners& owners = {});

// The same for several matrices over one input; their outputs stand side by side in out's columns.
// Equal to one call each. The matrices' rows are consecutive in memory (q, k, v placed together).
//   out  [T, N0 + N1 + ...]
void linear(const Exec& exec, Tensor x, std::span<const Linear> weights, Tensor out,
            const Quantised& quantised = {}, const RowOwners& owners = {});

// Whether linear() of the same, given `quantised`, reads nothing else of x.
bool linear_reads_quantised(const Exec& exec, const Tensor& x, std::span<const Linear> weights,
                            const Quantised& quantised);

}  // namespace m2::ops
