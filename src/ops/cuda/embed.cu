#include "ops/cuda/device.cuh"

namespace m2::ops::cuda {
namespace {

// Bytes: one table row and one output row a token. FLOPs: none. Bound by latency.
__global__ void embed_kernel(const int32_t* ids, Matrix table, int64_t first_id, Matrix out) {
  wait_for_previous();
  let_next_start();
  const int64_t token = blockIdx.x;
  const int64_t row = ids[token] - first_id;
  const bool here = row >= 0 && row < table.rows;
  for (int64_t c = threadIdx.x; c < out.columns; c += blockDim.x) {
    const float value = here ? load_number(table.data, table.dtype, row * table.stride + c) : 0.0f;
    store_number(out.data, out.dtype, token * out.stride + c, value);
  }
}

// Bytes: 2 * R * H * element. FLOPs: none. Bound by latency.
__global__ void gather_rows_kernel(Matrix x, const int32_t* rows, Matrix out) {
  wait_for_previous();
  let_next_start();
  const int64_t from = static_cast<int64_t>(rows[blockIdx.x]) * x.stride;
  const int64_t to = blockIdx.x * out.stride;
  for (int64_t c = threadIdx.x; c < out.columns; c += blockDim.x) {
    if (x.dtype == DType::bf16)
      static_cast<uint16_t*>(out.data)[to + c] = static_cast<const uint16_t*>(x.data)[from + c];
    else
      static_cast<uint32_t*>(out.data)[to + c] = static_cast<const uint32_t*>(x.data)[from + c];
  }
}

// Bytes: a row of x for each that is added, and one output row a token. Bound by latency.
__global__ void sum_rows_kernel(Matrix x, const int32_t* rows, int most, Matrix out) {
  wait_for_previous();
  let_next_start();
  const int32_t* row = rows + static_cast<int64_t>(blockIdx.x) * most;
  for (int64_t c = threadIdx.x; c < out.columns; c += blockDim.x) {
    float sum = 0.0f;
    for (int k = 0; k < most; ++k)
      if (row[k] >= 0) sum += load_number(x.data, x.dtype, row[k] * x.stride + c);
    store_number(out.data, out.dtype, blockIdx.x * out.stride + c, sum);
  }
}

}  // namespace

void launch_embed(void* stream, const int32_t* ids, Matrix table, int64_t first_id, Matrix out) {
  if (out.rows == 0) return;
  launch(stream, embed_kernel, {dim3(static_cast<unsigned>(out.rows)), dim3(256)}, ids, table,
         first_id, out);
}

void launch_gather_rows(void* stream, Matrix x, const int32_t* rows, Matrix out) {
  if (out.rows == 0) return;
  launch(stream, gather_rows_kernel, {dim3(static_cast<unsigned>(out.rows)), dim3(256)}, x, rows,
         out);
}

void launch_sum_rows(void* stream, Matrix x, const int32_t* rows, int most, Matrix out) {
  if (out.rows == 0) return;
  launch(stream, sum_rows_kernel, {dim3(static_cast<unsigned>(out.rows)), dim3(256)}, x, rows, most,
         out);
}

}  // namespace m2::ops::cuda
