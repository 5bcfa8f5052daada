#include "ops/cuda/rope_angle.cuh"

namespace m2::ops::cuda {
namespace {

constexpr int kEmbedThreads = 384;  // a row of M2's hidden columns by eights

// A table's row to the block's token. `by_eights`: both are bf16 and aligned.
__device__ __forceinline__ void embed_token(int32_t id, const Matrix& table, int64_t first_id,
                                            const Matrix& out, bool by_eights) {
  const int64_t token = blockIdx.x, row = id - first_id;
  const bool here = row >= 0 && row < table.rows;
  if (by_eights) {
    const auto* from = reinterpret_cast<const uint4*>(static_cast<const uint16_t*>(table.data) +
                                                      row * table.stride);
    auto* to = reinterpret_cast<uint4*>(static_cast<uint16_t*>(out.data) + token * out.stride);
    for (int64_t p = threadIdx.x; p < out.columns / 8; p += blockDim.x)
      to[p] = here ? from[p] : uint4{};
    return;
  }
  for (int64_t c = threadIdx.x; c < out.columns; c += blockDim.x) {
    const float value = here ? load_number(table.data, table.dtype, row * table.stride + c) : 0.0f;
    store_number(out.data, out.dtype, token * out.stride + c, value);
  }
}

// Bytes: one table row and one output row a token. FLOPs: none. Bound by latency.
__global__ void embed_kernel(const int32_t* ids, Matrix table, int64_t first_id, Matrix out,
                             bool by_eights) {
  wait_for_previous();
  let_next_start();
  embed_token(ids[blockIdx.x], table, first_id, out, by_eights);
}

// And the angles of the token's position, by the block's first threads.
__global__ void embed_and_angles_kernel(const int32_t* ids, Matrix table, int64_t first_id,
                                        Matrix out, bool by_eights, const int32_t* positions,
                                        int rotary, float theta, float* angles) {
  const int i = threadIdx.x;
  const float frequency = i < rotary / 2 ? rope_frequency(i, rotary, theta) : 0.0f;
  wait_for_previous();
  let_next_start();
  const int32_t position = positions[blockIdx.x];
  embed_token(ids[blockIdx.x], table, first_id, out, by_eights);
  if (i < rotary / 2)
    store_angle(position, frequency, i, rotary, angles + int64_t{1} * blockIdx.x * rotary);
}

// Bytes: 2 * R * H * element. FLOPs: none. Bound by latency. `by_eights`: both are bf16 and
// aligned.
__global__ void gather_rows_kernel(Matrix x, const int32_t* rows, Matrix out, bool by_eights) {
  wait_for_previous();
  let_next_start();
  const int64_t from = static_cast<int64_t>(rows[blockIdx.x]) * x.stride;
  const int64_t to = blockIdx.x * out.stride;
  if (by_eights) {
    const auto* source =
        reinterpret_cast<const uint4*>(static_cast<const uint16_t*>(x.data) + from);
    auto* target = reinterpret_cast<uint4*>(static_cast<uint16_t*>(out.data) + to);
    for (int64_t p = threadIdx.x; p < out.columns / 8; p += blockDim.x) target[p] = source[p];
    return;
  }
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

bool by_eights(const Matrix& table, const Matrix& out) {
  const auto whole = [](const Matrix& m) {
    return m.dtype == DType::bf16 && m.stride % 8 == 0 && m.columns % 8 == 0 &&
           reinterpret_cast<uintptr_t>(m.data) % 16 == 0;
  };
  return whole(table) && whole(out);
}

}  // namespace

void launch_embed(void* stream, const int32_t* ids, Matrix table, int64_t first_id, Matrix out) {
  if (out.rows == 0) return;
  launch(stream, embed_kernel, {dim3(static_cast<unsigned>(out.rows)), dim3(kEmbedThreads)}, ids,
         table, first_id, out, by_eights(table, out));
}

void launch_embed_and_angles(void* stream, const int32_t* ids, Matrix table, int64_t first_id,
                             Matrix out, const int32_t* positions, int rotary, float theta,
                             float* angles) {
  if (out.rows == 0) return;
  if (rotary / 2 > kEmbedThreads) {
    launch_embed(stream, ids, table, first_id, out);
    return launch_rope_angles(stream, positions, out.rows, rotary, theta, angles);
  }
  launch(stream, embed_and_angles_kernel,
         {dim3(static_cast<unsigned>(out.rows)), dim3(kEmbedThreads)}, ids, table, first_id, out,
         by_eights(table, out), positions, rotary, theta, angles);
}

void launch_gather_rows(void* stream, Matrix x, const int32_t* rows, Matrix out) {
  if (out.rows == 0) return;
  launch(stream, gather_rows_kernel, {dim3(static_cast<unsigned>(out.rows)), dim3(kEmbedThreads)},
         x, rows, out, by_eights(x, out));
}

void launch_sum_rows(void* stream, Matrix x, const int32_t* rows, int most, Matrix out) {
  if (out.rows == 0) return;
  launch(stream, sum_rows_kernel, {dim3(static_cast<unsigned>(out.rows)), dim3(256)}, x, rows, most,
         out);
}

}  // namespace m2::ops::cuda
