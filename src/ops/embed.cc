#include "ops/embed.h"

#include "ops/check_tensor.h"
#include "ops/cpu/ops_cpu.h"
#include "ops/cuda/ops_cuda.h"
#include "ops/qk_norm_rope.h"

namespace m2::ops {

namespace {

void check_embed(Tensor ids, Tensor table, int64_t first_id, Tensor out) {
  M2_CHECK(ids.rank() == 1 && table.rank() == 2 && first_id >= 0);
  check_tensor("ids", ids, {DType::i32}, {ids.size(0)});
  check_tensor("table", table, {DType::bf16, DType::f16, DType::f32},
               {table.size(0), table.size(1)});
  check_tensor("out", out, {DType::f32, DType::bf16}, {ids.size(0), table.size(1)});
}

}  // namespace

void embed(const Exec& exec, Tensor ids, Tensor table, int64_t first_id, Tensor out) {
  check_embed(ids, table, first_id, out);
  if (ids.size(0) == 0) return;
  if (exec.device.kind == DeviceKind::cuda) return cuda::embed(exec, ids, table, first_id, out);
  cpu::embed(exec, ids, table, first_id, out);
}

void embed_and_angles(const Exec& exec, Tensor ids, Tensor table, int64_t first_id, Tensor out,
                      Tensor positions, float theta, Tensor angles) {
  if (exec.device.kind != DeviceKind::cuda) {
    embed(exec, ids, table, first_id, out);
    return rope_angles(exec, positions, theta, angles);
  }
  check_embed(ids, table, first_id, out);
  check_angles(positions, angles);
  M2_CHECK(positions.size(0) == ids.size(0));
  if (ids.size(0) == 0) return;
  cuda::embed_and_angles(exec, ids, table, first_id, out, positions, theta, angles);
}

void gather_rows(const Exec& exec, Tensor x, Tensor rows, Tensor out) {
  M2_CHECK(x.rank() == 2 && rows.rank() == 1);
  check_tensor("x", x, {DType::f32, DType::bf16, DType::i32}, {x.size(0), x.size(1)});
  check_tensor("rows", rows, {DType::i32}, {rows.size(0)});
  check_tensor("out", out, {x.dtype()}, {rows.size(0), x.size(1)});
  if (rows.size(0) == 0) return;
  if (exec.device.kind == DeviceKind::cuda) return cuda::gather_rows(exec, x, rows, out);
  cpu::gather_rows(exec, x, rows, out);
}

void sum_rows(const Exec& exec, Tensor x, Tensor rows, Tensor out) {
  M2_CHECK(x.rank() == 2 && rows.rank() == 2);
  check_tensor("x", x, {DType::f32, DType::bf16}, {x.size(0), x.size(1)});
  check_tensor("rows", rows, {DType::i32}, {rows.size(0), rows.size(1)});
  check_tensor("out", out, {x.dtype()}, {rows.size(0), x.size(1)});
  check_dense("rows", rows);
  if (rows.size(0) == 0) return;
  if (exec.device.kind == DeviceKind::cuda) return cuda::sum_rows(exec, x, rows, out);
  cpu::sum_rows(exec, x, rows, out);
}

}  // namespace m2::ops
