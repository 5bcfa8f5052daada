#include "ops/cuda/device.cuh"

namespace m2::ops::cuda {
namespace {

__global__ void rope_angles_kernel(const int32_t* positions, int64_t tokens, int rotary,
                                   float theta, float* out) {
  wait_for_previous();
  let_next_start();
  const int half = rotary / 2;
  const int64_t item = blockIdx.x * static_cast<int64_t>(blockDim.x) + threadIdx.x;
  if (item >= tokens * half) return;
  const int64_t token = item / half;
  const int i = static_cast<int>(item % half);
  // The inverse frequency is rounded once from double; the angle is then a product of floats.
  const float inverse =
      static_cast<float>(pow(static_cast<double>(theta), -2.0 * i / static_cast<double>(rotary)));
  const float angle = static_cast<float>(positions[token]) * inverse;
  float sine, cosine;
  sincosf(angle, &sine, &cosine);
  out[token * rotary + i] = cosine;
  out[token * rotary + half + i] = sine;
}

// One block a token. Bytes: T * (q + k) * element. Bound by latency.
__global__ void qk_sum_squares_kernel(Matrix qkv, Heads heads, float* sums) {
  __shared__ float scratch[33];
  wait_for_previous();
  let_next_start();
  const int64_t row = blockIdx.x * qkv.stride;
  const int q_width = heads.q * heads.dim, k_width = heads.kv * heads.dim;
  float q_sum = 0.0f, k_sum = 0.0f;
  for (int c = threadIdx.x; c < q_width; c += blockDim.x) {
    const float value = load_number(qkv.data, qkv.dtype, row + c);
    q_sum = fmaf(value, value, q_sum);
  }
  for (int c = threadIdx.x; c < k_width; c += blockDim.x) {
    const float value = load_number(qkv.data, qkv.dtype, row + q_width + c);
    k_sum = fmaf(value, value, k_sum);
  }
  q_sum = block_sum(q_sum, scratch);
  k_sum = block_sum(k_sum, scratch);
  if (threadIdx.x == 0) {
    sums[2 * blockIdx.x] = q_sum;
    sums[2 * blockIdx.x + 1] = k_sum;
  }
}

// The head's value at c, normalised in FP32.
struct NormedHead {
  const void* data;
  DType dtype;
  int64_t begin;
  const void* weight;
  DType weight_dtype;
  int weight_begin;
  float factor;

  __device__ float at(int c) const {
    return load_number(data, dtype, begin + c) * factor *
           load_number(weight, weight_dtype, weight_begin + c);
  }
};

// Lanes take pairs (i, i + rotary / 2), then the dims that do not turn. A lane reads both numbers
// of a pair before it writes them, so `store` may overwrite the head.
template <class Store>
__device__ void turn_head(const NormedHead& head, const float* angles, int dim, int rotary,
                          Store store) {
  const int lane = threadIdx.x % kWarp, half = rotary / 2;
  for (int i = lane; i < half; i += kWarp) {
    const float a = head.at(i), b = head.at(i + half);
    const float cosine = angles[i], sine = angles[half + i];
    store(i, a * cosine - b * sine);
    store(i + half, b * cosine + a * sine);
  }
  for (int c = rotary + lane; c < dim; c += kWarp) store(c, head.at(c));
}

// One warp a head of a token: q heads, then k heads, then v heads.
// Bytes: T * (q + 2 kv) * dim * 2 elements. Bound by latency.
__global__ void qk_norm_rope_kernel(QkNormRope args) {
  wait_for_previous();
  let_next_start();
  const Heads heads = args.heads;
  const int64_t token = blockIdx.x;
  const int head = blockIdx.y * (blockDim.x / kWarp) + threadIdx.x / kWarp;
  if (head >= heads.q + 2 * heads.kv) return;
  const int64_t begin = token * args.qkv.stride + static_cast<int64_t>(head) * heads.dim;
  const float* angles = args.angles + token * heads.rotary;
  if (head < heads.q) {
    const float mean = args.sums[2 * token] / static_cast<float>(args.full_q);
    const NormedHead q{args.qkv.data,
                       args.qkv.dtype,
                       begin,
                       args.q_norm,
                       args.q_norm_dtype,
                       head * heads.dim,
                       1.0f / sqrtf(mean + args.eps)};
    turn_head(q, angles, heads.dim, heads.rotary, [&](int c, float value) {
      store_number(args.qkv.data, args.qkv.dtype, begin + c, value);
    });
    return;
  }
  const int slot = args.slots[token];
  if (slot < 0) return;  // a padding token of a captured graph
  const int kv_head = (head - heads.q) % heads.kv;
  const int64_t cell = ((slot / args.cache.block_size * static_cast<int64_t>(heads.kv) + kv_head) *
                            args.cache.block_size +
                        slot % args.cache.block_size) *
                       heads.dim;
  if (head < heads.q + heads.kv) {
    auto* to = static_cast<__nv_bfloat16*>(args.cache.k) + cell;
    const float mean = args.sums[2 * token + 1] / static_cast<float>(args.full_k);
    const NormedHead k{args.qkv.data,
                       args.qkv.dtype,
                       begin,
                       args.k_norm,
                       args.k_norm_dtype,
                       kv_head * heads.dim,
                       1.0f / sqrtf(mean + args.eps)};
    turn_head(k, angles, heads.dim, heads.rotary,
              [&](int c, float value) { to[c] = __float2bfloat16_rn(value); });
  } else {
    auto* to = static_cast<__nv_bfloat16*>(args.cache.v) + cell;
    for (int c = threadIdx.x % kWarp; c < heads.dim; c += kWarp)
      to[c] = __float2bfloat16_rn(load_number(args.qkv.data, args.qkv.dtype, begin + c));
  }
}

}  // namespace

void launch_rope_angles(void* stream, const int32_t* positions, int64_t tokens, int rotary,
                        float theta, float* out) {
  if (tokens == 0 || rotary == 0) return;
  launch(stream, rope_angles_kernel, {dim3(blocks_for(tokens * (rotary / 2), 128)), dim3(128)},
         positions, tokens, rotary, theta, out);
}

void launch_qk_sum_squares(void* stream, Matrix qkv, Heads heads, float* sums) {
  if (qkv.rows == 0) return;
  launch(stream, qk_sum_squares_kernel, {dim3(static_cast<unsigned>(qkv.rows)), dim3(512)}, qkv,
         heads, sums);
}

void launch_qk_norm_rope(void* stream, const QkNormRope& args) {
  if (args.qkv.rows == 0) return;
  constexpr int kWarpsPerBlock = 8;
  const unsigned blocks = blocks_for(args.heads.q + 2 * args.heads.kv, kWarpsPerBlock);
  launch(stream, qk_norm_rope_kernel,
         {dim3(static_cast<unsigned>(args.qkv.rows), blocks), dim3(kWarpsPerBlock * kWarp)}, args);
}

}  // namespace m2::ops::cuda
