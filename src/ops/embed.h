#pragma once

#include "tensor/exec.h"
#include "tensor/tensor.h"

namespace m2::ops {

// out[t, :] = table[ids[t] - first_id, :], or zeros where that row is not in the table (a rank's
// slice of the vocabulary).
//   ids    i32 [T]
//   table  bf16 | f16 | f32 [V, H]
//   out    f32 | bf16 [T, H]
// Precondition: every id is >= 0.
void embed(const Exec& exec, Tensor ids, Tensor table, int64_t first_id, Tensor out);

// embed() and rope_angles() (qk_norm_rope.h) of the same tokens: on a GPU one kernel instead of two
// that wait for one another.
//   positions  i32 [T]
//   angles     f32 [T, rotary_dim]
void embed_and_angles(const Exec& exec, Tensor ids, Tensor table, int64_t first_id, Tensor out,
                      Tensor positions, float theta, Tensor angles);

// out[r, :] = x[rows[r], :].   x [T, H], rows i32 [R], out [R, H]; one dtype, f32 | bf16 | i32.
void gather_rows(const Exec& exec, Tensor x, Tensor rows, Tensor out);

// out[t, :] = sum over k, ascending, of x[rows[t, k], :], in FP32 and rounded once; a negative row
// adds nothing.   x [N, H], rows i32 [T, K], out [T, H]; one dtype, f32 | bf16.
void sum_rows(const Exec& exec, Tensor x, Tensor rows, Tensor out);

}  // namespace m2::ops
