#pragma once

#include "ops/cuda/attention/words.cuh"
#include "ops/cuda/mma.cuh"

namespace m2::ops::cuda {

constexpr int kDecodeWarps = 4;

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
  __device__ __forceinline__ void load(const uint8_t* keys, const uint8_t* values, Read read) {
    load_keys(keys, read);
    load_values(values, read);
  }
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
  __device__ __forceinline__ void load(const uint8_t* keys, const uint8_t* values, Read read) {
    load_keys(keys, read);
    load_values(values, read);
  }
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

// Four dims of one token and q head, from dim on; the warp has them all.
__device__ __forceinline__ void store_dims(const AttentionArgs& args, int64_t token, int q_head,
                                           int dim, float (&value)[4]) {
  const int64_t row = token * args.out.stride + q_head * kDim + dim;
  float most = 0.0f;
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    store_number(args.out.data, args.out.dtype, row + i, value[i]);
    value[i] = to_float(__float2bfloat16_rn(value[i]));
    most = fmaxf(most, fabsf(value[i]));
  }
  if (!args.quantised.values) return;
#pragma unroll
  for (int offset = 16; offset; offset /= 2) most = fmaxf(most, __shfl_xor_sync(~0u, most, offset));
  const float scale = f8_scale(most, args.quantised.powers);
  const int64_t cell = token * args.heads.q + q_head;  // a head is a block of 128
  *reinterpret_cast<uint32_t*>(args.quantised.values + cell * kDim + dim) =
      to_f8(value[0], value[1], value[2], value[3], 1.0f / scale);
  if (dim == 0) args.quantised.scales[cell] = scale;
}

// Joins the parts of one token and q head, first to last; a warp has a head. Other multiprocessors
// may have written the parts while this kernel ran: nothing is read through L1.
__device__ __forceinline__ void join_parts(const AttentionArgs& args, int sequence, int token,
                                           int q_head, int parts) {
  const int dim = threadIdx.x % kWarp * 4;
  const int64_t cell = (static_cast<int64_t>(sequence) * args.heads.q + q_head) * args.splits;
  const float* totals = args.workspace +
                        static_cast<int64_t>(args.sequences) * args.heads.q * args.splits * kDim +
                        cell * 2;
  // Eight parts are asked for at once.
  constexpr int kAhead = 8;
  float largest = -INFINITY, sum = 0.0f, value[4] = {};
  for (int first = 0; first < parts; first += kAhead) {
    float part_largest[kAhead], part_sum[kAhead];
    float4 part_value[kAhead];
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const bool there = first + i < parts;
      part_largest[i] = there ? __ldcg(totals + 2 * (first + i)) : -INFINITY;
      part_sum[i] = there ? __ldcg(totals + 2 * (first + i) + 1) : 0.0f;
      part_value[i] = there ? __ldcg(reinterpret_cast<const float4*>(
                                  args.workspace + (cell + first + i) * kDim + dim))
                            : float4{};
    }
    float top = largest;
#pragma unroll
    for (int i = 0; i < kAhead; ++i) top = fmaxf(top, part_largest[i]);
    const float before = exp2f(largest - top);
    sum *= before;
#pragma unroll
    for (int i = 0; i < 4; ++i) value[i] *= before;
    largest = top;
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      const float factor = exp2f(part_largest[i] - top);
      sum = fmaf(part_sum[i], factor, sum);
      value[0] = fmaf(part_value[i].x, factor, value[0]);
      value[1] = fmaf(part_value[i].y, factor, value[1]);
      value[2] = fmaf(part_value[i].z, factor, value[2]);
      value[3] = fmaf(part_value[i].w, factor, value[3]);
    }
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) value[i] *= args.cache.v_scale / sum;
  store_dims(args, token, q_head, dim, value);
}

// How many parts of a sequence and KV head have been left; zeros between launches, since counting
// wraps. Only for who is alone on the GPU (Exec::alone): two launches never count at once.
__device__ unsigned int parts_left[kMostJoins];

// The part of a sequence and KV head that a block attends to.
struct DecodePart {
  int part, head, sequence, token, context;
  int pages, each;  // of the context, of a part
  int begin, end;   // the part's pages
  bool there;       // the sequence decodes and has the part

  DecodePart() = default;
  __device__ __forceinline__ explicit DecodePart(const AttentionArgs& args)
      : part(blockIdx.y), head(blockIdx.x), sequence(blockIdx.z) {
    token = args.query_starts[sequence];
    const int next = args.query_starts[sequence + 1];
    context = args.context_lens[sequence];
    pages = (context + kPage - 1) / kPage;
    each = args.splits == 1 ? pages : pages_per_split(pages, args.heads.kv);
    begin = part * each;
    end = min(pages, begin + each);
    there = next - token == 1 && begin < end;
  }
};

// Steps 2 j and 2 j + 1 of the query's rows of the KV head, as a lane multiplies them.
template <class Page>
__device__ __forceinline__ uint4 load_queries(const AttentionArgs& args, const DecodePart& of,
                                              int j) {
  const int group = args.heads.q / args.heads.kv, g = threadIdx.x % kWarp / 4;
  if (g >= group) return uint4{};
  return Page::load_query(static_cast<const uint8_t*>(args.q.data) +
                              (of.token * args.q.stride + (of.head * group + g) * kDim) * 2,
                          j);
}
template <class Page>
__device__ __forceinline__ void load_queries(const AttentionArgs& args, const DecodePart& of,
                                             uint32_t (&q)[8][2]) {
#pragma unroll
  for (int j = 0; j < 4; ++j) {
    const uint4 piece = load_queries<Page>(args, of, j);
    q[2 * j][0] = piece.x;
    q[2 * j][1] = piece.y;
    q[2 * j + 1][0] = piece.z;
    q[2 * j + 1][1] = piece.w;
  }
}

// What the block's threads wrote before they met is seen by who sees what this thread writes next.
__device__ __forceinline__ void fence() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 700
  asm volatile("fence.acq_rel.gpu;" ::: "memory");
#endif
}

// Largest logits and sums of weights of each warp's heads.
using WarpTotals = float[kDecodeWarps][2][8];

// The warp's sums into shared memory. values: of each warp [8][kDim + 4], warp_floats apart.
template <class Page>
__device__ __forceinline__ void hand_over(Running& state, float* values, int warp_floats,
                                          WarpTotals& totals) {
  constexpr int kRow = kDim + 4;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, g = lane / 4, t = lane % 4;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
#pragma unroll
    for (int offset = 4; offset < kWarp; offset *= 2)
      state.sum[h] += __shfl_xor_sync(~0u, state.sum[h], offset);
    if (g == 0) {
      totals[warp][0][2 * t + h] = state.largest[h];
      totals[warp][1][2 * t + h] = state.sum[h];
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      int dim;
      const float4 four = Page::dims(state.values, i, h, dim);
      *reinterpret_cast<float4*>(values + warp * warp_floats + (2 * t + h) * kRow + dim) = four;
    }
  }
}

// What the block's warps have handed over becomes the part's share of the output, or the output, of
// heads first, first + step, ...: a warp a head, four dims a lane.
__device__ __forceinline__ void store_heads(const AttentionArgs& args, const DecodePart& of,
                                            const float* values, int warp_floats,
                                            const WarpTotals& totals, int first, int step) {
  constexpr int kRow = kDim + 4;
  const int lane = threadIdx.x % kWarp, group = args.heads.q / args.heads.kv, dim = lane * 4;
  static_assert(kWarp * 4 == kDim, "a warp has a head's dims");
  for (int h = first; h < group; h += step) {
    float largest = totals[0][0][h];
    for (int w = 1; w < kDecodeWarps; ++w) largest = fmaxf(largest, totals[w][0][h]);
    float sum = 0.0f, value[4] = {};
#pragma unroll
    for (int w = 0; w < kDecodeWarps; ++w) {
      const float factor = exp2f(totals[w][0][h] - largest);  // 0 for a warp without pages
      sum = fmaf(totals[w][1][h], factor, sum);
      const float4 own =
          *reinterpret_cast<const float4*>(values + w * warp_floats + h * kRow + dim);
      value[0] = fmaf(own.x, factor, value[0]);
      value[1] = fmaf(own.y, factor, value[1]);
      value[2] = fmaf(own.z, factor, value[2]);
      value[3] = fmaf(own.w, factor, value[3]);
    }
    const int q_head = of.head * group + h;
    if (of.each >= of.pages) {
#pragma unroll
      for (int i = 0; i < 4; ++i) value[i] *= args.cache.v_scale / sum;
      store_dims(args, of.token, q_head, dim, value);
      continue;
    }
    const int64_t cell =
        (static_cast<int64_t>(of.sequence) * args.heads.q + q_head) * args.splits + of.part;
    *reinterpret_cast<float4*>(args.workspace + cell * kDim + dim) =
        float4{value[0], value[1], value[2], value[3]};
    if (lane < 2) {
      float* part_totals =
          args.workspace + static_cast<int64_t>(args.sequences) * args.heads.q * args.splits * kDim;
      part_totals[cell * 2 + lane] = lane ? sum : largest;
    }
  }
}

// The block's part is left, and the block that leaves the last one joins all of them. values: of
// each warp [8][kDim + 4], warp_floats apart.
template <class Page>
__device__ __forceinline__ void leave_part(const AttentionArgs& args, const DecodePart& of,
                                           Running& state, float* values, int warp_floats) {
  const int warp = threadIdx.x / kWarp, group = args.heads.q / args.heads.kv;
  __shared__ WarpTotals totals;
  hand_over<Page>(state, values, warp_floats, totals);
  __syncthreads();
  store_heads(args, of, values, warp_floats, totals, warp, kDecodeWarps);
  if (!args.join || of.each >= of.pages) return;

  __shared__ bool last;
  const int parts = (of.pages + of.each - 1) / of.each;
  __syncthreads();
  if (threadIdx.x == 0) {
    fence();
    last = atomicInc(&parts_left[of.sequence * args.heads.kv + of.head],
                     static_cast<unsigned>(parts - 1)) == static_cast<unsigned>(parts - 1);
    fence();
  }
  __syncthreads();
  if (!last) return;
  for (int h = warp; h < group; h += kDecodeWarps)
    join_parts(args, of.sequence, of.token, of.head * group + h, parts);
}

// Decoded tokens (sequences with one token in this step): one block a (KV head, part of the
// context, sequence), parts that are there first, so that each has a multiprocessor to itself, the
// KV head's q heads packed as mma's 8 columns. Each warp takes every fourth page. Parts, pages and
// their order depend on the token's own context alone. Bytes: S ctx kv 2 * 256 (FP8: 128), FLOPs: 4
// S ctx q 128. Bound: bandwidth of memory.
template <class Page>
__global__ void __launch_bounds__(kDecodeWarps* kWarp, 4)
    sm80_attention_decode(AttentionArgs args) {
  constexpr int kWarpFloats = 8 * (kDim + 4);
  __shared__ __align__(16) float values[kDecodeWarps * kWarpFloats];
  wait_for_previous();
  let_next_start();
  const DecodePart of(args);
  if (!of.there) return;
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;

  // The ids of the warp's first pages are asked for before the query, then group after group.
  const int32_t* table = args.block_tables + of.sequence * args.table_stride;
  const auto page_of_lane = [&](int base) {
    const int mine = base + lane * kDecodeWarps;
    return mine < of.end ? table[mine] : 0;
  };
  int page_id = page_of_lane(of.begin + warp);
  uint32_t q[8][2] = {};
  load_queries<Page>(args, of, q);

  Running state;
  const float log2_scale = args.scale * args.cache.k_scale * kLog2E;
  for (int base = of.begin + warp; base < of.end; base += kDecodeWarps * kWarp) {
    if (base != of.begin + warp) page_id = page_of_lane(base);
    for (int i = 0; i < kWarp; ++i) {
      const int page = base + i * kDecodeWarps;
      if (page >= of.end) break;
      const int64_t at =
          (int64_t{1} * __shfl_sync(~0u, page_id, i) * args.heads.kv + of.head) * Page::kBytes;
      Page registers;
      registers.load(static_cast<const uint8_t*>(args.cache.k) + at,
                     static_cast<const uint8_t*>(args.cache.v) + at,
                     [](const uint8_t* from) { return load_written(from); });
      const int valid = of.context - page * kPage;
      if (valid < kPage) registers.clear_values_from(valid);
      attend_page(registers, q, valid, log2_scale, state);
    }
  }
  leave_part<Page>(args, of, state, values, kWarpFloats);
}

// The same for all tokens, where the blocks of sm80_attention_decode do not. Bytes: parts * 130 * 4
// a head.
constexpr int kJoinHeads = 4;
__global__ void __launch_bounds__(kJoinHeads* kWarp) sm80_attention_join(AttentionArgs args) {
  wait_for_previous();
  let_next_start();
  const int q_head = blockIdx.x * kJoinHeads + threadIdx.x / kWarp, sequence = blockIdx.y;
  if (q_head >= args.heads.q) return;
  const int token = args.query_starts[sequence];
  if (args.query_starts[sequence + 1] - token != 1) return;
  const int pages = (args.context_lens[sequence] + kPage - 1) / kPage;
  const int each = pages_per_split(pages, args.heads.kv);
  if (each >= pages) return;  // written by its only part
  join_parts(args, sequence, token, q_head, (pages + each - 1) / each);
}

}  // namespace m2::ops::cuda
