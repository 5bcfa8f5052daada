#pragma once

#include "ops/cuda/attention/words.cuh"
#include "ops/cuda/mma.cuh"

// One page of the cache and what a warp makes of it: what the kernels that decode have in common.
namespace m2::ops::cuda {

// b^T of an 8x8 matrix of 16-bit numbers whose row g lies in lanes 4 g .. 4 g + 3.
__device__ __forceinline__ uint32_t transpose8x8(uint32_t rows) {
  uint32_t columns = 0;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("movmatrix.sync.aligned.m8n8.trans.b16 %0, %1;" : "=r"(columns) : "r"(rows));
#endif
  return columns;
}

// Keys and values of one page of one KV head, as a lane holds them: K rows g and g + 8, a quarter
// of the 16-byte pieces each; V rows 2t, 2t+1, 2t+8, 2t+9.
struct Bf16Page {
  uint4 upper[4], lower[4];
  uint4 v[4][2];  // dims 8g.. and 64 + 8g..

  static constexpr int kBytes = kPage * kDim * 2;  // of K, and as many of V

  // read(address): 16 bytes
  template <class Read>
  __device__ __forceinline__ void load_keys(const uint8_t* keys, Read read) {
    const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      upper[j] = read(keys + g * 256 + t * 16 + j * 64);
      lower[j] = read(keys + (g + 8) * 256 + t * 16 + j * 64);
    }
  }
  template <class Read>
  __device__ __forceinline__ void load_values(const uint8_t* values, Read read) {
    const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int row = 2 * t + i % 2 + i / 2 * 8;
      v[i][0] = read(values + row * 256 + g * 16);
      v[i][1] = read(values + row * 256 + g * 16 + 128);
    }
  }
  // Rows from `valid` on hold nothing that may be looked at, not even times zero.
  __device__ __forceinline__ void clear_values_from(int valid) {
    const int t = threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (2 * t + i % 2 + i / 2 * 8 >= valid) v[i][0] = v[i][1] = uint4{};
  }
  // Steps 2 j and 2 j + 1 of the query's part that a lane multiplies with its part of a key. `row`:
  // 128 numbers.
  static __device__ __forceinline__ uint4 load_query(const uint8_t* row, int j) {
    return *reinterpret_cast<const uint4*>(row + threadIdx.x % 4 * 16 + j * 64);
  }
  // Operands of the matrix units: step `step` of the keys' dims; 16 dims of all keys' values.
  __device__ __forceinline__ void keys(int step, uint32_t (&a)[4]) const {
    a[0] = word(upper[step / 2], step % 2 * 2);
    a[1] = word(lower[step / 2], step % 2 * 2);
    a[2] = word(upper[step / 2], step % 2 * 2 + 1);
    a[3] = word(lower[step / 2], step % 2 * 2 + 1);
  }
  __device__ __forceinline__ void values(int m, uint32_t (&a)[4]) const {
    const uint32_t select = m % 2 ? 0x7632 : 0x5410;
    a[0] = __byte_perm(word(v[0][0], m / 2), word(v[1][0], m / 2), select);
    a[1] = __byte_perm(word(v[0][1], m / 2), word(v[1][1], m / 2), select);
    a[2] = __byte_perm(word(v[2][0], m / 2), word(v[3][0], m / 2), select);
    a[3] = __byte_perm(word(v[2][1], m / 2), word(v[3][1], m / 2), select);
  }
  // Dim that row `row` (0..15) of values(m) stands for.
  static __device__ __forceinline__ int dim_of(int m, int row) {
    return row / 8 * 64 + row % 8 * 8 + m;
  }
  // Four dims in a row of the sums that a lane has of head `h` of its two; they begin at
  // dim_of(...).
  static __device__ __forceinline__ float4 dims(const float (&sums)[8][4], int i, int h, int& dim) {
    const int m = i % 2 * 4, r = i / 2 * 2 + h;
    dim = dim_of(m, threadIdx.x % kWarp / 4 + i / 2 * 8);
    return {sums[m][r], sums[m + 1][r], sums[m + 2][r], sums[m + 3][r]};
  }
  static __device__ __forceinline__ uint32_t pack(float low, float high) {
    return pack_bf16(low, high);
  }
  static __device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&a)[4],
                                                  uint32_t b0, uint32_t b1) {
    mma_bf16(d, a, b0, b1);
  }
};

// The same in FP8. It is widened to f16, which holds every e4m3 number exactly, and queries and
// weights are rounded to f16 as well; so queries beyond 65504 are infinite.
struct F8Page {
  uint4 upper[2], lower[2];
  uint4 v[4];  // dims 16g..

  static constexpr int kBytes = kPage * kDim;

  template <class Read>
  __device__ __forceinline__ void load_keys(const uint8_t* keys, Read read) {
    const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      upper[j] = read(keys + g * 128 + t * 16 + j * 64);
      lower[j] = read(keys + (g + 8) * 128 + t * 16 + j * 64);
    }
  }
  template <class Read>
  __device__ __forceinline__ void load_values(const uint8_t* values, Read read) {
    const int lane = threadIdx.x % kWarp, g = lane / 4, t = lane % 4;
#pragma unroll
    for (int i = 0; i < 4; ++i) v[i] = read(values + (2 * t + i % 2 + i / 2 * 8) * 128 + g * 16);
  }
  __device__ __forceinline__ void clear_values_from(int valid) {
    const int t = threadIdx.x % 4;
#pragma unroll
    for (int i = 0; i < 4; ++i)
      if (2 * t + i % 2 + i / 2 * 8 >= valid) v[i] = uint4{};
  }
  static __device__ __forceinline__ uint4 load_query(const uint8_t* row, int j) {
    const uint4 piece =
        *reinterpret_cast<const uint4*>(row + j / 2 * 128 + threadIdx.x % 4 * 32 + j % 2 * 16);
    const auto halves = [](uint32_t pair) {
      return pack(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
    };
    return {halves(piece.x), halves(piece.y), halves(piece.z), halves(piece.w)};
  }
  __device__ __forceinline__ void keys(int step, uint32_t (&a)[4]) const {
    widen_to_halves(word(upper[step / 4], step % 4), a[0], a[2]);
    widen_to_halves(word(lower[step / 4], step % 4), a[1], a[3]);
  }
  __device__ __forceinline__ void values(int m, uint32_t (&a)[4]) const {
    const uint32_t select = m % 2 ? 0x7362 : 0x5140;
    widen_to_halves(__byte_perm(word(v[0], m / 2), word(v[1], m / 2), select), a[0], a[1]);
    widen_to_halves(__byte_perm(word(v[2], m / 2), word(v[3], m / 2), select), a[2], a[3]);
  }
  static __device__ __forceinline__ int dim_of(int m, int row) {
    return row % 8 * 16 + 2 * m + row / 8;
  }
  static __device__ __forceinline__ float4 dims(const float (&sums)[8][4], int i, int h, int& dim) {
    const int m = 2 * i;
    dim = dim_of(m, threadIdx.x % kWarp / 4);
    return {sums[m][h], sums[m][2 + h], sums[m + 1][h], sums[m + 1][2 + h]};
  }
  static __device__ __forceinline__ uint32_t pack(float low, float high) {
    const __half2 pair = __floats2half2_rn(low, high);
    return reinterpret_cast<const uint32_t&>(pair);
  }
  static __device__ __forceinline__ void multiply(float (&d)[4], const uint32_t (&a)[4],
                                                  uint32_t b0, uint32_t b1) {
    mma_f16(d, a, b0, b1);
  }
};

// The same with a lane's shares from one address each: fewer instructions, but two registers more,
// which not every kernel has.
struct F8PageFromOne : F8Page {
  template <class Read>
  __device__ __forceinline__ void load_keys(const uint8_t* keys, Read read) {
    const uint8_t* const own = keys + threadIdx.x % kWarp / 4 * 128 + threadIdx.x % 4 * 16;
#pragma unroll
    for (int j = 0; j < 2; ++j) {
      upper[j] = read(own + j * 64);
      lower[j] = read(own + 8 * 128 + j * 64);
    }
  }
  template <class Read>
  __device__ __forceinline__ void load_values(const uint8_t* values, Read read) {
    const uint8_t* const own = values + threadIdx.x % 4 * 256 + threadIdx.x % kWarp / 4 * 16;
#pragma unroll
    for (int i = 0; i < 4; ++i) v[i] = read(own + (i % 2 + i / 2 * 8) * 128);
  }
};

// A page's keys and values; read(address): 16 bytes.
template <class Page, class Read>
__device__ __forceinline__ void load_page(Page& page, const uint8_t* keys, const uint8_t* values,
                                          Read read) {
  page.load_keys(keys, read);
  page.load_values(values, read);
}

// Running softmax of one warp: for heads 2t and 2t+1 the largest logit (base 2), the sum of the
// weights (this lane's keys only), and the weighted sum of V, transposed: tile m, register r holds
// dim of (m, g + r / 2 * 8), head 2t + r % 2.
struct Running {
  float largest[2] = {-INFINITY, -INFINITY};
  float sum[2] = {};
  float values[8][4] = {};
};

// Logits of a page's 16 keys for up to 8 heads on the matrix units, keys standing on the 16-row
// side. query(j): steps 2 j and 2 j + 1.
template <class Page, class Query>
__device__ __forceinline__ void multiply_keys(const Page& page, Query query, float (&logits)[4]) {
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const uint4 q = query(j);
    uint32_t a[4];
    page.keys(2 * j, a);
    Page::multiply(logits, a, q.x, q.y);
    page.keys(2 * j + 1, a);
    Page::multiply(logits, a, q.z, q.w);
  }
}

// The logits become weights, as matrix units take them, and `state` all but the values of the
// page; its values so far are to be multiplied with `factor`.
template <class Page>
__device__ __forceinline__ void weigh(float (&logits)[4], int valid, float log2_scale,
                                      Running& state, float (&factor)[2], uint32_t (&weights)[2]) {
  const int g = threadIdx.x % kWarp / 4;
  float largest[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    logits[h] = g < valid ? logits[h] * log2_scale : -INFINITY;
    logits[2 + h] = g + 8 < valid ? logits[2 + h] * log2_scale : -INFINITY;
    largest[h] = fmaxf(logits[h], logits[2 + h]);
  }
#pragma unroll
  for (int offset = 4; offset < kWarp; offset *= 2)
#pragma unroll
    for (int h = 0; h < 2; ++h)
      largest[h] = fmaxf(largest[h], __shfl_xor_sync(~0u, largest[h], offset));
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    largest[h] = fmaxf(largest[h], state.largest[h]);
    // A page has a valid key, so not inf - inf.
    factor[h] = exp2f(state.largest[h] - largest[h]);
    state.largest[h] = largest[h];
    logits[h] = exp2f(logits[h] - largest[h]);
    logits[2 + h] = exp2f(logits[2 + h] - largest[h]);
    state.sum[h] = state.sum[h] * factor[h] + (logits[h] + logits[2 + h]);
  }
  weights[0] = transpose8x8(Page::pack(logits[0], logits[1]));
  weights[1] = transpose8x8(Page::pack(logits[2], logits[3]));
}

// The weighted values, dims standing on the 16-row side.
template <class Page>
__device__ __forceinline__ void add_values(const Page& page, const float (&factor)[2],
                                           const uint32_t (&weights)[2], Running& state) {
#pragma unroll
  for (int m = 0; m < 8; ++m) {
#pragma unroll
    for (int r = 0; r < 4; ++r) state.values[m][r] *= factor[r % 2];
    uint32_t a[4];
    page.values(m, a);
    Page::multiply(state.values[m], a, weights[0], weights[1]);
  }
}

// One page. Nothing passes through shared memory.
template <class Page>
__device__ __forceinline__ void attend_page(const Page& page, const uint32_t (&q)[8][2], int valid,
                                            float log2_scale, Running& state) {
  float logits[4] = {}, factor[2];
  uint32_t weights[2];
  multiply_keys(
      page,
      [&](int j) {
        return uint4{q[2 * j][0], q[2 * j][1], q[2 * j + 1][0], q[2 * j + 1][1]};
      },
      logits);
  weigh<Page>(logits, valid, log2_scale, state, factor, weights);
  add_values(page, factor, weights, state);
}

}  // namespace m2::ops::cuda
