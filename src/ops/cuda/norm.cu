#include "ops/cuda/part_of_row.cuh"

namespace m2::ops::cuda {
namespace {

// One block a row; a thread keeps to its own columns, so that what it writes to the residual it can
// read back. Bytes: T * H * element * (2, or 4 with a delta). FLOPs: 4 a number. Bound by latency
// below a few hundred rows, then by bandwidth. The row's sum does not depend on the batch.
template <class T, bool kAdd>
__global__ void __launch_bounds__(kNormThreads)
    rms_norm_kernel(Matrix x, Matrix delta, const void* weight, DType weight_dtype, float eps,
                    Matrix out, bool aligned, QuantisedRows quantised) {
  __shared__ float scratch[33];
  const int64_t row = blockIdx.x, columns = x.columns;
  const int64_t packs = aligned ? columns / 8 : 0;
  // A short row is held from one pass to the next, and its weights are there before it is.
  Pack8<T> held;
  float by[8];
  if (threadIdx.x < packs) load_weights(weight, weight_dtype, threadIdx.x * 8, by);
  wait_for_previous();
  let_next_start();
  T* from = static_cast<T*>(x.data) + row * x.stride;
  const T* add = kAdd ? static_cast<const T*>(delta.data) + row * delta.stride : nullptr;
  T* to = static_cast<T*>(out.data) + row * out.stride;

  float sum = 0.0f;
  const auto taken = [&](T value, T change) {
    const T kept = kAdd ? from_float<T>(to_float(value) + to_float(change)) : value;
    sum = fmaf(to_float(kept), to_float(kept), sum);
    return kept;
  };
  for (int64_t p = threadIdx.x; p < packs; p += kNormThreads) {
    auto pack = reinterpret_cast<Pack8<T>*>(from)[p];
    Pack8<T> change = kAdd ? reinterpret_cast<const Pack8<T>*>(add)[p] : pack;
#pragma unroll
    for (int i = 0; i < 8; ++i) pack.values[i] = taken(pack.values[i], change.values[i]);
    if (kAdd) reinterpret_cast<Pack8<T>*>(from)[p] = pack;
    if (p == threadIdx.x) held = pack;
  }
  for (int64_t c = packs * 8 + threadIdx.x; c < columns; c += kNormThreads) {
    const T kept = taken(from[c], kAdd ? add[c] : from[c]);
    if (kAdd) from[c] = kept;
  }

  const float mean = block_sum(sum, scratch) / static_cast<float>(columns);
  const float factor = 1.0f / sqrtf(mean + eps);
  for (int64_t p = threadIdx.x; p < packs; p += kNormThreads) {
    if (p != threadIdx.x) {
      held = reinterpret_cast<const Pack8<T>*>(from)[p];
      load_weights(weight, weight_dtype, p * 8, by);
    }
    store_normed(held, by, factor, to, p, row, columns, quantised);
  }
  for (int64_t c = packs * 8 + threadIdx.x; c < columns; c += kNormThreads)
    to[c] = from_float<T>(to_float(from[c]) * factor * load_number(weight, weight_dtype, c));
}

// The same to the same bytes for many bf16 rows of kPartedColumns, and weights in bf16 at 16 bytes'
// borders.
template <bool kAdd>
__global__ void __launch_bounds__(PartOfRow<4>::kThreads, 10)
    rms_norm_rows_kernel(Matrix x, Matrix delta, const void* weight, float eps, Matrix out,
                         QuantisedRows quantised) {
  using Part = PartOfRow<4>;
  __shared__ alignas(16) float of_warp[kNormThreads / kWarp];
  const Part part;
  const int64_t row = blockIdx.x;
  auto* from = reinterpret_cast<uint4*>(static_cast<__nv_bfloat16*>(x.data) + row * x.stride);
  wait_for_previous();
  let_next_start();
  uint4 kept[4], change[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) kept[i] = from[part.first + i * Part::kStep];
  if constexpr (kAdd) {
    const auto* add = reinterpret_cast<const uint4*>(static_cast<const __nv_bfloat16*>(delta.data) +
                                                     row * delta.stride);
#pragma unroll
    for (int i = 0; i < 4; ++i) change[i] = add[part.first + i * Part::kStep];
  }
  float squares[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    if constexpr (kAdd) {
      kept[i] = sum_of_packs(kept[i], change[i]);
      from[part.first + i * Part::kStep] = kept[i];
    }
    squares[i] = squares_of(kept[i]);
  }
  const float mean = Part::sum(squares, of_warp) / static_cast<float>(kPartedColumns);
  part.store(kept, static_cast<const uint4*>(weight), 1.0f / sqrtf(mean + eps),
             static_cast<__nv_bfloat16*>(out.data) + row * out.stride, row, quantised);
}

bool aligned16(const Matrix& m) {
  return m.data == nullptr || (reinterpret_cast<uintptr_t>(m.data) % 32 == 0 && m.stride % 8 == 0);
}

}  // namespace

void launch_rms_norm(void* stream, Matrix x, Matrix delta, const void* weight, DType weight_dtype,
                     float eps, Matrix out, QuantisedRows quantised) {
  if (x.rows == 0) return;
  const bool aligned = aligned16(x) && aligned16(delta) && aligned16(out);
  const bool bf16 = x.dtype == DType::bf16, add = delta.data != nullptr;
  const bool fused = aligned && bf16 && x.columns % 128 == 0;
  const auto kernel =
      bf16 ? (add ? rms_norm_kernel<__nv_bfloat16, true> : rms_norm_kernel<__nv_bfloat16, false>)
           : (add ? rms_norm_kernel<float, true> : rms_norm_kernel<float, false>);
  if (fused && many_rows(x.rows) && x.columns == kPartedColumns && weight_dtype == DType::bf16 &&
      reinterpret_cast<uintptr_t>(weight) % 16 == 0)
    return launch(stream, add ? rms_norm_rows_kernel<true> : rms_norm_rows_kernel<false>,
                  rows_shape(x.rows, PartOfRow<4>::kThreads), x, delta, weight, eps, out,
                  quantised);
  LaunchShape shape{dim3(static_cast<unsigned>(x.rows)), dim3(kNormThreads)};
  shape.through_l1 = x.rows >= 512;
  launch(stream, kernel, shape, x, delta, weight, weight_dtype, eps, out, aligned,
         fused ? quantised : QuantisedRows());
  if (quantised.values && !fused) launch_quantise(stream, out, quantised);
}

}  // namespace m2::ops::cuda
