#include "ops/cuda/device.cuh"

namespace m2::ops::cuda {
namespace {

constexpr int kThreads = 384;  // a row of 3072 is 8 numbers a thread

// 8 numbers of a row as one access (bf16) or two (f32).
template <class T>
struct alignas(16) Pack8 {
  T values[8];
};

// One block a row; a thread keeps to its own columns, so that what it writes to the residual it can
// read back. Bytes: T * H * element * (2, or 4 with a delta). FLOPs: 4 a number. Bound by latency
// below a few hundred rows, then by bandwidth. The row's sum does not depend on the batch.
template <class T, bool kAdd>
__global__ void __launch_bounds__(kThreads)
    rms_norm_kernel(Matrix x, Matrix delta, const void* weight, DType weight_dtype, float eps,
                    Matrix out, bool aligned, QuantisedRows quantised) {
  __shared__ float scratch[33];
  wait_for_previous();
  let_next_start();
  const int64_t row = blockIdx.x, columns = x.columns;
  T* from = static_cast<T*>(x.data) + row * x.stride;
  const T* add = kAdd ? static_cast<const T*>(delta.data) + row * delta.stride : nullptr;
  T* to = static_cast<T*>(out.data) + row * out.stride;

  const int64_t packs = aligned ? columns / 8 : 0;
  float sum = 0.0f;
  const auto taken = [&](T value, T change) {
    const T kept = kAdd ? from_float<T>(to_float(value) + to_float(change)) : value;
    sum = fmaf(to_float(kept), to_float(kept), sum);
    return kept;
  };
  for (int64_t p = threadIdx.x; p < packs; p += kThreads) {
    auto pack = reinterpret_cast<Pack8<T>*>(from)[p];
    Pack8<T> change = kAdd ? reinterpret_cast<const Pack8<T>*>(add)[p] : pack;
#pragma unroll
    for (int i = 0; i < 8; ++i) pack.values[i] = taken(pack.values[i], change.values[i]);
    if (kAdd) reinterpret_cast<Pack8<T>*>(from)[p] = pack;
  }
  for (int64_t c = packs * 8 + threadIdx.x; c < columns; c += kThreads) {
    const T kept = taken(from[c], kAdd ? add[c] : from[c]);
    if (kAdd) from[c] = kept;
  }

  const float mean = block_sum(sum, scratch) / static_cast<float>(columns);
  const float factor = 1.0f / sqrtf(mean + eps);
  const auto normed = [&](T value, int64_t c) {
    return from_float<T>(to_float(value) * factor * load_number(weight, weight_dtype, c));
  };
  for (int64_t p = threadIdx.x; p < packs; p += kThreads) {
    auto pack = reinterpret_cast<const Pack8<T>*>(from)[p];
#pragma unroll
    for (int i = 0; i < 8; ++i) pack.values[i] = normed(pack.values[i], p * 8 + i);
    reinterpret_cast<Pack8<T>*>(to)[p] = pack;
    if (!quantised.values) continue;
    // Half a warp has 128 columns.
    float value[8];
#pragma unroll
    for (int i = 0; i < 8; ++i) value[i] = to_float(pack.values[i]);
    float most = fmaxf(largest_of(value[0], value[1], value[2], value[3]),
                       largest_of(value[4], value[5], value[6], value[7]));
#pragma unroll
    for (int offset = 8; offset; offset /= 2)
      most = fmaxf(most, __shfl_xor_sync(0xffffu << (threadIdx.x & 16), most, offset));
    const float scale = f8_scale(most, quantised.powers), inverse = 1.0f / scale;
    reinterpret_cast<uint2*>(quantised.values + row * columns)[p] = {
        to_f8(value[0], value[1], value[2], value[3], inverse),
        to_f8(value[4], value[5], value[6], value[7], inverse)};
    if (threadIdx.x % 16 == 0) quantised.scales[row * (columns / 128) + p / 16] = scale;
  }
  for (int64_t c = packs * 8 + threadIdx.x; c < columns; c += kThreads) to[c] = normed(from[c], c);
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
  LaunchShape shape{dim3(static_cast<unsigned>(x.rows)), dim3(kThreads)};
  shape.through_l1 = x.rows >= 512;
  launch(stream, kernel, shape, x, delta, weight, weight_dtype, eps, out, aligned,
         fused ? quantised : QuantisedRows());
  if (quantised.values && !fused) launch_quantise(stream, out, quantised);
}

}  // namespace m2::ops::cuda
