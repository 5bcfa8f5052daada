#include <algorithm>

#include "ops/cuda/part_of_row.cuh"
#include "ops/cuda/qk_row.cuh"
#include "ops/cuda/rope_angle.cuh"

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
  store_angle(positions[token], rope_frequency(i, rotary, theta), i, rotary, out + token * rotary);
}

// This thread's share of the sum of squares of `width` numbers from element `begin` on.
__device__ __forceinline__ float share_of_squares(const Matrix& from, int64_t begin, int width) {
  float sum = 0.0f;
  const auto* bf16 = static_cast<const __nv_bfloat16*>(from.data) + begin;
  if (from.dtype == DType::bf16 && width % 8 == 0 && reinterpret_cast<uintptr_t>(bf16) % 16 == 0) {
    for (int c = threadIdx.x * 8; c < width; c += blockDim.x * 8) {
      const uint4 eight = *reinterpret_cast<const uint4*>(bf16 + c);
      const uint32_t words[4] = {eight.x, eight.y, eight.z, eight.w};
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const float low = __uint_as_float(words[i] << 16);
        const float high = __uint_as_float(words[i] & 0xffff0000u);
        sum = fmaf(low, low, fmaf(high, high, sum));
      }
    }
    return sum;
  }
  for (int c = threadIdx.x; c < width; c += blockDim.x) {
    const float value = load_number(from.data, from.dtype, begin + c);
    sum = fmaf(value, value, sum);
  }
  return sum;
}

// One block a token. Bytes: T * (q + k) * element. Bound by latency.
__global__ void qk_sum_squares_kernel(Matrix qkv, Heads heads, float* sums) {
  __shared__ float scratch[33];
  wait_for_previous();
  let_next_start();
  const int64_t row = blockIdx.x * qkv.stride;
  const int q_width = heads.q * heads.dim, k_width = heads.kv * heads.dim;
  const float q_share = share_of_squares(qkv, row, q_width);
  const float k_share = share_of_squares(qkv, row + q_width, k_width);
  const float q_sum = block_sum(q_share, scratch);
  __syncthreads();
  const float k_sum = block_sum(k_share, scratch);
  if (threadIdx.x == 0) {
    sums[2 * blockIdx.x] = q_sum;
    sums[2 * blockIdx.x + 1] = k_sum;
  }
}

// The same to the same bytes for many tokens: one warp a token, in which eight lanes have the
// numbers of one of those kSumThreads / kWarp warps. bf16 rows at 16 bytes' borders, widths that
// are multiples of eight and at most 8 kSumThreads.
constexpr int kSumThreads = 512;

__device__ __forceinline__ float sum_by_warp(const uint4* row, int width) {
  constexpr int kWarps = kSumThreads / kWarp, kPasses = kWarps / 4;
  const int lane = threadIdx.x % kWarp;
  float mine = 0.0f;  // of warp `lane`
#pragma unroll
  for (int pass = 0; pass < kPasses; ++pass) {
    if (pass * 4 * kWarp * 8 >= width) continue;
    const int first = (pass * 4 + lane / 8) * kWarp + lane % 8;
    float share[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int pack = first + i * 8;
      const uint4 eight = pack * 8 < width ? row[pack] : uint4{};
      const uint32_t words[4] = {eight.x, eight.y, eight.z, eight.w};
      share[i] = 0.0f;
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const float low = __uint_as_float(words[j] << 16);
        const float high = __uint_as_float(words[j] & 0xffff0000u);
        share[i] = fmaf(low, low, fmaf(high, high, share[i]));
      }
    }
    float sum = (share[0] + share[2]) + (share[1] + share[3]);
#pragma unroll
    for (int offset = 4; offset; offset /= 2) sum += __shfl_xor_sync(~0u, sum, offset);
    const float of_warp = __shfl_sync(~0u, sum, lane % 4 * 8);
    if (lane / 4 == pass) mine = of_warp;
  }
  return warp_sum(mine);
}

__global__ void __launch_bounds__(256) qk_sums_rows_kernel(Matrix qkv, Heads heads, float* sums) {
  wait_for_previous();
  let_next_start();
  const int64_t token = static_cast<int64_t>(blockIdx.x) * (256 / kWarp) + threadIdx.x / kWarp;
  if (token >= qkv.rows) return;
  const auto* row = reinterpret_cast<const uint4*>(static_cast<const __nv_bfloat16*>(qkv.data) +
                                                   token * qkv.stride);
  const int q_width = heads.q * heads.dim;
  const float q_sum = sum_by_warp(row, q_width);
  const float k_sum = sum_by_warp(row + q_width / 8, heads.kv * heads.dim);
  if (threadIdx.x % kWarp == 0) reinterpret_cast<float2*>(sums)[token] = {q_sum, k_sum};
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

// The same for bf16, 4 neighbouring dims an access: the first lanes turn 4 pairs each, the next
// ones pass 4 dims on.
__device__ __forceinline__ float4 four(const __nv_bfloat16* from) {
  const uint2 pairs = *reinterpret_cast<const uint2*>(from);
  return {__uint_as_float(pairs.x << 16), __uint_as_float(pairs.x & 0xffff0000u),
          __uint_as_float(pairs.y << 16), __uint_as_float(pairs.y & 0xffff0000u)};
}

// Where a head's numbers go: as BF16, or divided by a scale as FP8.
struct Bf16Row {
  __nv_bfloat16* to;
  __device__ __forceinline__ void one(int i, float value) const {
    to[i] = __float2bfloat16_rn(value);
  }
  __device__ __forceinline__ void four(int i, float4 value) const {
    const __nv_bfloat162 low = __floats2bfloat162_rn(value.x, value.y);
    const __nv_bfloat162 high = __floats2bfloat162_rn(value.z, value.w);
    *reinterpret_cast<uint2*>(to + i) =
        uint2{reinterpret_cast<const uint32_t&>(low), reinterpret_cast<const uint32_t&>(high)};
  }
};
struct F8Row {
  uint8_t* to;
  float scale;
  __device__ __forceinline__ void one(int i, float value) const {
    to[i] = __nv_fp8_e4m3(value / scale).__x;
  }
  __device__ __forceinline__ void four(int i, float4 value) const {
    *reinterpret_cast<uint32_t*>(to + i) =
        __nv_fp8x4_e4m3(float4{value.x / scale, value.y / scale, value.z / scale, value.w / scale})
            .__x;
  }
};
__device__ __forceinline__ float4 scaled(const __nv_bfloat16* from, const __nv_bfloat16* weight,
                                         float factor) {
  const float4 value = four(from), by = four(weight);
  return {value.x * factor * by.x, value.y * factor * by.y, value.z * factor * by.z,
          value.w * factor * by.w};
}
template <class Row>
__device__ void turn_head_by_fours(const NormedHead& head, const float* angles, int dim, int rotary,
                                   const Row& to) {
  const auto* from = static_cast<const __nv_bfloat16*>(head.data) + head.begin;
  const auto* weight = static_cast<const __nv_bfloat16*>(head.weight) + head.weight_begin;
  const int half = rotary / 2, turning = half / 4;
  for (int item = threadIdx.x % kWarp; item < turning + (dim - rotary) / 4; item += kWarp) {
    if (item < turning) {
      const int i = item * 4;
      const float4 a = scaled(from + i, weight + i, head.factor);
      const float4 b = scaled(from + half + i, weight + half + i, head.factor);
      const float4 c = *reinterpret_cast<const float4*>(angles + i);
      const float4 s = *reinterpret_cast<const float4*>(angles + half + i);
      to.four(i, float4{a.x * c.x - b.x * s.x, a.y * c.y - b.y * s.y, a.z * c.z - b.z * s.z,
                        a.w * c.w - b.w * s.w});
      to.four(half + i, float4{b.x * c.x + a.x * s.x, b.y * c.y + a.y * s.y, b.z * c.z + a.z * s.z,
                               b.w * c.w + a.w * s.w});
    } else {
      const int i = rotary + (item - turning) * 4;
      to.four(i, scaled(from + i, weight + i, head.factor));
    }
  }
}

// A key, normalised and turned, or a value as it is. `begin`: where it is in qkv.
template <class Row>
__device__ void store_head(const QkNormRope& args, int64_t begin, bool is_key, int kv_head,
                           bool by_fours, const Row& to) {
  const int64_t token = blockIdx.x;
  const int lane = threadIdx.x % kWarp, dim = args.heads.dim, rotary = args.heads.rotary;
  if (is_key) {
    const float* angles = args.angles + token * rotary;
    const float mean = args.sums[2 * token + 1] / static_cast<float>(args.full_k);
    const NormedHead k{args.qkv.data,
                       args.qkv.dtype,
                       begin,
                       args.k_norm,
                       args.k_norm_dtype,
                       kv_head * dim,
                       1.0f / sqrtf(mean + args.eps)};
    if (by_fours)
      turn_head_by_fours(k, angles, dim, rotary, to);
    else
      turn_head(k, angles, dim, rotary, [&](int c, float value) { to.one(c, value); });
  } else if (by_fours) {
    const auto* from = static_cast<const __nv_bfloat16*>(args.qkv.data) + begin;
    for (int c = lane * 4; c < dim; c += kWarp * 4) to.four(c, four(from + c));
  } else {
    for (int c = lane; c < dim; c += kWarp)
      to.one(c, load_number(args.qkv.data, args.qkv.dtype, begin + c));
  }
}

// One warp a head of a token: q heads, then k heads, then v heads.
// Bytes: T * (q + 2 kv) * dim * 2 elements. Bound by latency.
__global__ void qk_norm_rope_kernel(QkNormRope args, bool by_fours) {
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
    if (by_fours) {
      turn_head_by_fours(q, angles, heads.dim, heads.rotary,
                         Bf16Row{static_cast<__nv_bfloat16*>(args.qkv.data) + begin});
      return;
    }
    turn_head(q, angles, heads.dim, heads.rotary, [&](int c, float value) {
      store_number(args.qkv.data, args.qkv.dtype, begin + c, value);
    });
    return;
  }
  const int slot = args.slots[token];
  if (slot < 0) return;  // a padding token of a captured graph
  const int kv_head = (head - heads.q) % heads.kv;
  const int64_t cell = cache_row(args, slot, kv_head) * heads.dim;
  const bool is_key = head < heads.q + heads.kv;
  void* cache = is_key ? args.cache.k : args.cache.v;
  if (args.cache.dtype == DType::bf16)
    store_head(args, begin, is_key, kv_head, by_fours,
               Bf16Row{static_cast<__nv_bfloat16*>(cache) + cell});
  else
    store_head(args, begin, is_key, kv_head, by_fours,
               F8Row{static_cast<uint8_t*>(cache) + cell,
                     is_key ? args.cache.k_scale : args.cache.v_scale});
}

// The same to the same bytes for many tokens of the heads that qk_row.cuh knows: a thread has a
// head's dims 8 p .. 8 p + 7, and the next ones 32, 64 and 96 further on, p from 0 to 3, so that
// dims that turn together are in one thread.
__global__ void __launch_bounds__(256)
    qk_norm_rope_rows_kernel(const __grid_constant__ QkNormRope args) {
  constexpr int kEach = 4;  // threads a head
  wait_for_previous();
  let_next_start();
  const Heads& heads = args.heads;
  const int per_token = (heads.q + 2 * heads.kv) * kEach;
  const int64_t item = static_cast<int64_t>(blockIdx.x) * blockDim.x + threadIdx.x;
  const int64_t token = item / per_token;
  if (token >= args.qkv.rows) return;
  const int head = static_cast<int>(item % per_token) / kEach,
            piece = static_cast<int>(item % kEach);
  const bool is_q = head < heads.q, is_k = !is_q && head < heads.q + heads.kv;
  auto* row = reinterpret_cast<uint4*>(static_cast<__nv_bfloat16*>(args.qkv.data) +
                                       token * args.qkv.stride) +
              head * kHeadThreads + piece;
  uint4 raw[4];
#pragma unroll
  for (int j = 0; j < 4; ++j) raw[j] = row[j * kEach];
  const int slot = is_q ? 0 : args.slots[token];
  if (slot < 0) return;  // a padding token of a captured graph
  float value[4][8];
#pragma unroll
  for (int j = 0; j < 4; ++j) as_floats(raw[j], value[j]);
  if (is_q || is_k) {
    const float2 sums = reinterpret_cast<const float2*>(args.sums)[token];
    const float mean =
        is_q ? sums.x / static_cast<float>(args.full_q) : sums.y / static_cast<float>(args.full_k);
    const float factor = 1.0f / sqrtf(mean + args.eps);
    const auto* weights = reinterpret_cast<const uint4*>(is_q ? args.q_norm : args.k_norm) +
                          (head - (is_q ? 0 : heads.q)) * kHeadThreads + piece;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      float by[8];
      as_floats(weights[j * kEach], by);
#pragma unroll
      for (int i = 0; i < 8; ++i) value[j][i] = value[j][i] * factor * by[i];
    }
    const auto* angles =
        reinterpret_cast<const float4*>(args.angles + token * kQkRotary) + piece * 2;
    float cosine[8], sine[8];
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      *reinterpret_cast<float4*>(cosine + 4 * i) = angles[i];
      *reinterpret_cast<float4*>(sine + 4 * i) = angles[kQkRotary / 8 + i];
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      const float first = value[0][i], second = value[1][i];
      value[0][i] = __fmaf_rn(first, cosine[i], __fmul_rn(second, -sine[i]));
      value[1][i] = __fmaf_rn(first, sine[i], __fmul_rn(second, cosine[i]));
    }
  }
  if (is_q) {
#pragma unroll
    for (int j = 0; j < 4; ++j) row[j * kEach] = as_bf16(value[j]);
    return;
  }
  const int kv_head = (head - heads.q) % heads.kv;
  const int64_t cell = cache_row(args, slot, kv_head) * kHeadThreads + piece;
  void* cache = is_k ? args.cache.k : args.cache.v;
  const float scale = is_k ? args.cache.k_scale : args.cache.v_scale;
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    if (args.cache.dtype == DType::bf16) {
      static_cast<uint4*>(cache)[cell + j * kEach] = is_k ? as_bf16(value[j]) : raw[j];
      continue;
    }
#pragma unroll
    for (int i = 0; i < 8; ++i) value[j][i] /= scale;
    static_cast<uint2*>(cache)[cell + j * kEach] = {
        __nv_fp8x4_e4m3(float4{value[j][0], value[j][1], value[j][2], value[j][3]}).__x,
        __nv_fp8x4_e4m3(float4{value[j][4], value[j][5], value[j][6], value[j][7]}).__x};
  }
}

bool aligned16(const void* data) {
  return reinterpret_cast<uintptr_t>(data) % 16 == 0;
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
  const int64_t width = std::max(heads.q, heads.kv) * heads.dim;
  if (many_rows(qkv.rows) && qkv.dtype == DType::bf16 && aligned16(qkv.data) &&
      qkv.stride % 8 == 0 && heads.dim % 8 == 0 && width <= 8 * kSumThreads) {
    const LaunchShape shape = rows_shape(blocks_for(qkv.rows, 256 / kWarp), 256);
    return launch(stream, qk_sums_rows_kernel, shape, qkv, heads, sums);
  }
  launch(stream, qk_sum_squares_kernel, {dim3(static_cast<unsigned>(qkv.rows)), dim3(kSumThreads)},
         qkv, heads, sums);
}

void launch_qk_norm_rope(void* stream, const QkNormRope& args) {
  if (args.qkv.rows == 0) return;
  constexpr int kWarpsPerBlock = 8;
  const unsigned blocks = blocks_for(args.heads.q + 2 * args.heads.kv, kWarpsPerBlock);
  const bool by_fours = args.qkv.dtype == DType::bf16 && args.q_norm_dtype == DType::bf16 &&
                        args.k_norm_dtype == DType::bf16 && args.heads.dim % 4 == 0 &&
                        args.heads.rotary % 8 == 0 && args.qkv.stride % 4 == 0 &&
                        aligned16(args.qkv.data) && aligned16(args.q_norm) &&
                        aligned16(args.k_norm) && aligned16(args.angles) &&
                        aligned16(args.cache.k) && aligned16(args.cache.v);
  if (many_rows(args.qkv.rows) && by_fours && args.qkv.stride % 8 == 0 &&
      args.heads.dim == kQkDim && args.heads.rotary == kQkRotary) {
    const int64_t threads = args.qkv.rows * (args.heads.q + 2 * args.heads.kv) * 4;
    return launch(stream, qk_norm_rope_rows_kernel, rows_shape(blocks_for(threads, 256), 256),
                  args);
  }
  launch(stream, qk_norm_rope_kernel,
         {dim3(static_cast<unsigned>(args.qkv.rows), blocks), dim3(kWarpsPerBlock * kWarp)}, args,
         by_fours);
}

}  // namespace m2::ops::cuda
