#include <cooperative_groups.h>

#include "ops/cuda/route_choice.cuh"

namespace m2::ops::cuda {
namespace {

namespace cg = cooperative_groups;

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / kWarp;

constexpr int kMaxEach = 32;  // experts a lane looks after: up to 1024 in all

// One warp chooses for one token.
template <int kEach>
__device__ void choose_for(const float* scores, const float* bias, const Route& args,
                           int64_t token) {
  const int lane = threadIdx.x % kWarp;
  const bool inert = args.slots && args.slots[token] < 0;
  const Choice choice = choose<kEach>(scores, bias, args.experts, args.top);
  if (lane >= args.top) return;
  args.ids[token * args.top + choice.place] = inert ? -1 : choice.id;
  args.weights[token * args.top + choice.place] = inert ? 0.0f : choice.weight;
}

// Tokens first .. first + kTokens - 1 as floats [kTokens][padded], zeros past the row and the
// batch.
template <int kTokens>
__device__ __forceinline__ void load_tokens(const Matrix& from, int64_t first, int padded,
                                            float* x) {
  const int columns = static_cast<int>(from.columns);
  const bool by_eights = from.dtype == DType::bf16 && columns % 8 == 0 && from.stride % 8 == 0 &&
                         reinterpret_cast<uintptr_t>(from.data) % 16 == 0;
#pragma unroll
  for (int t = 0; t < kTokens; ++t) {
    const int64_t row = (first + t) * from.stride;
    const bool there = first + t < from.rows;
    if (by_eights) {
      for (int c = threadIdx.x * 8; c < padded; c += kThreads * 8) {
        uint4 eight = {};
        if (there && c < columns)
          eight = *reinterpret_cast<const uint4*>(static_cast<const __nv_bfloat16*>(from.data) +
                                                  row + c);
        const uint32_t words[4] = {eight.x, eight.y, eight.z, eight.w};
#pragma unroll
        for (int i = 0; i < 4; ++i)
          *reinterpret_cast<float2*>(x + t * padded + c + 2 * i) = {
              __uint_as_float(words[i] << 16), __uint_as_float(words[i] & 0xffff0000u)};
      }
    } else {
      for (int c = threadIdx.x; c < padded; c += kThreads)
        x[t * padded + c] =
            there && c < columns ? load_number(from.data, from.dtype, row + c) : 0.0f;
    }
  }
}

// A cluster of blocks shares kTokens tokens: each block multiplies them with its share of the
// experts' gate rows (kRows rows a warp at a time), and the first one gathers the scores and
// chooses. Bytes: E * H * 4 per group of kTokens tokens (from L2 but for the first), FLOPs
// 2 T E H in FP32; bound by latency at one token, by shared-memory reads at many. A logit is summed
// lane by lane over H and then over lanes, whatever the batch.
template <int kTokens, int kRows>
__global__ void __launch_bounds__(kThreads) route_kernel(Route args, int cluster) {
  extern __shared__ float4 shared4[];
  const int hidden = static_cast<int>(args.x.columns);
  const int padded = (hidden + 127) / 128 * 128;  // a warp reads 128 numbers at a time
  float* x = reinterpret_cast<float*>(shared4);   // [kTokens][padded]
  float* scores = x + kTokens * padded;           // [kTokens][experts], used in block 0
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int member = blockIdx.x % cluster;
  const int64_t first = static_cast<int64_t>(blockIdx.x / cluster) * kTokens;

  wait_for_previous();
  let_next_start();
  load_tokens<kTokens>(args.x, first, padded, x);
  __syncthreads();

  float* gathered = scores;
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  gathered = cg::this_cluster().map_shared_rank(scores, 0);
  cg::this_cluster().sync();  // block 0 runs before anyone writes into it
#endif
  const int share = (args.experts + cluster - 1) / cluster;
  const int end = min(args.experts, (member + 1) * share);
  const bool wide = hidden % 4 == 0 && reinterpret_cast<uintptr_t>(args.gate) % 16 == 0;
  for (int e = member * share + warp * kRows; e < end; e += kWarps * kRows) {
    float sum[kRows][kTokens] = {};
#pragma unroll(kTokens == 1 ? 12 : kTokens == 4 ? 6 : 4)
    for (int c = lane * 4; c < hidden; c += 128) {
      float4 gate[kRows];
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        const float* row = args.gate + static_cast<int64_t>(min(e + r, end - 1)) * hidden + c;
        if (wide) {
          gate[r] = __ldg(reinterpret_cast<const float4*>(row));
        } else {
          gate[r].x = row[0];
          gate[r].y = c + 1 < hidden ? row[1] : 0.0f;
          gate[r].z = c + 2 < hidden ? row[2] : 0.0f;
          gate[r].w = c + 3 < hidden ? row[3] : 0.0f;
        }
      }
#pragma unroll
      for (int t = 0; t < kTokens; ++t) {
        const float4 value = *reinterpret_cast<const float4*>(x + t * padded + c);
#pragma unroll
        for (int r = 0; r < kRows; ++r) {
          sum[r][t] = fmaf(gate[r].x, value.x, sum[r][t]);
          sum[r][t] = fmaf(gate[r].y, value.y, sum[r][t]);
          sum[r][t] = fmaf(gate[r].z, value.z, sum[r][t]);
          sum[r][t] = fmaf(gate[r].w, value.w, sum[r][t]);
        }
      }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
      for (int t = 0; t < kTokens; ++t) {
        const float logit = warp_sum(sum[r][t]);
        if (lane == 0 && e + r < end)
          gathered[t * args.experts + e + r] = 1.0f / (1.0f + expf(-logit));
      }
    }
  }
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  cg::this_cluster().sync();
#else
  __syncthreads();
#endif
  if (member != 0) return;
  for (int t = warp; t < kTokens && first + t < args.x.rows; t += kWarps)
    if (args.experts <= 8 * kWarp)
      choose_for<8>(scores + t * args.experts, args.bias, args, first + t);
    else
      choose_for<kMaxEach>(scores + t * args.experts, args.bias, args, first + t);
}

// Many tokens: the logits as one product on the FP32 units, a block 16 kEach tokens by 64 experts,
// a thread 8 by kEach; a second kernel chooses. Sums of 256 columns are added up one after another,
// so that errors stay those of short sums. Where tokens are too few to fill the device, kSplit
// blocks of a cluster share the columns, keep the sum of each 256, and add up a part of the results
// each. FLOPs: 2 T E H. Bound: the FP32 units, to which a warp's reads of shared memory (2 + kEach
// / 4 of 512 bytes for 8 kEach FMAs) come close.
constexpr int kDepth = 16, kShortSum = kRouteStretch;
constexpr int kProductThreads = 128, kProductExperts = 64;

template <int kEach, int kSplit>
__global__ void __launch_bounds__(kProductThreads, kEach == 8 ? 2 : 3) route_scores(Route args) {
  constexpr int kTokens = 16 * kEach, kFours = 2 * kEach;  // a thread's results, by fours
  extern __shared__ float4 shared4[];
  auto* tokens = reinterpret_cast<float(*)[kDepth][kTokens]>(shared4);            // [2]
  auto* gates = reinterpret_cast<float(*)[kDepth][kProductExperts]>(tokens + 2);  // [2]
  // kSplit > 1: [stretches of this block][kFours][threads]
  float4* kept = reinterpret_cast<float4*>(gates + 2);
  wait_for_previous();
  let_next_start();
  const int hidden = static_cast<int>(args.x.columns);
  const int rank = blockIdx.x % kSplit, first_token = blockIdx.x / kSplit * kTokens;
  const int first_expert = blockIdx.y * kProductExperts;
  const int stretches = (hidden + kShortSum - 1) / kShortSum;
  const int share = (stretches + kSplit - 1) / kSplit;  // stretches of a block
  const int begin = rank * share * kShortSum, end = min(hidden, begin + share * kShortSum);

  // Loading: a thread takes 2 kEach columns of one token, and 8 of one gate row.
  const int token_row = threadIdx.x % kTokens, token_column = threadIdx.x / kTokens * 8;
  const int gate_row = threadIdx.x % kProductExperts;
  const int gate_column = threadIdx.x / kProductExperts * 8;
  const int64_t token = min(static_cast<int64_t>(first_token + token_row), args.x.rows - 1);
  const auto* from_x =
      static_cast<const __nv_bfloat16*>(args.x.data) + token * args.x.stride + token_column;
  const float* from_gate =
      args.gate + static_cast<int64_t>(min(first_expert + gate_row, args.experts - 1)) * hidden +
      gate_column;
  uint4 x[kEach / 4];
  float4 gate[2];
  const auto load = [&](int k) {
    if (k >= end) return;
#pragma unroll
    for (int i = 0; i < kEach / 4; ++i) x[i] = *reinterpret_cast<const uint4*>(from_x + k + 8 * i);
#pragma unroll
    for (int i = 0; i < 2; ++i)
      gate[i] = __ldg(reinterpret_cast<const float4*>(from_gate + k + 4 * i));
  };
  const auto put = [&](int buffer) {
#pragma unroll
    for (int i = 0; i < kEach / 4; ++i) {
      const uint32_t words[4] = {x[i].x, x[i].y, x[i].z, x[i].w};
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        float* to = &tokens[buffer][token_column + 8 * i + 2 * j][token_row];
        to[0] = __uint_as_float(words[j] << 16);
        to[kTokens] = __uint_as_float(words[j] & 0xffff0000u);
      }
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      float* to = &gates[buffer][gate_column + 4 * i][gate_row];
      to[0] = gate[i].x;
      to[kProductExperts] = gate[i].y;
      to[2 * kProductExperts] = gate[i].z;
      to[3 * kProductExperts] = gate[i].w;
    }
  };

  // Multiplying: a warp has 4 by 8 places. Tokens m .. m + 3 and as many kTokens / 2 further on,
  // experts n .. n + 3 and (kEach == 8) as many 32 further on.
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int m = warp % (kTokens / 32) * 16 + (lane & 2) * 2 + (lane & 16) / 2;
  const int n = warp / (kTokens / 32) * 32 + (lane & 1) * 4 + (lane & 12) * 2;
  float total[8][kEach] = {}, sum[8][kEach] = {};
  float a[2][8], b[2][kEach];  // of one column and the next
  const auto read = [&](int buffer, int d) {
#pragma unroll
    for (int i = 0; i < 8; i += 4)
      *reinterpret_cast<float4*>(a[d % 2] + i) =
          *reinterpret_cast<const float4*>(&tokens[buffer][d][m + i * (kTokens / 8)]);
#pragma unroll
    for (int j = 0; j < kEach; j += 4)
      *reinterpret_cast<float4*>(b[d % 2] + j) =
          *reinterpret_cast<const float4*>(&gates[buffer][d][n + j * 8]);
  };
  load(begin);
  if (begin < end) put(0);
  load(begin + kDepth);
  __syncthreads();
  for (int k = begin, buffer = 0; k < end; k += kDepth, buffer ^= 1) {
    read(buffer, 0);
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
      if (d + 1 < kDepth) read(buffer, d + 1);
      // In the middle, so that what was asked for a step before is there, and what is put is there
      // by the end.
      if (d == kDepth / 2) {
        if (k + kDepth < end) put(buffer ^ 1);
        load(k + 2 * kDepth);
      }
#pragma unroll
      for (int i = 0; i < 8; ++i)
#pragma unroll
        for (int j = 0; j < kEach; ++j) sum[i][j] = fmaf(a[d % 2][i], b[d % 2][j], sum[i][j]);
    }
    __syncthreads();
    if ((k + kDepth) % kShortSum != 0 && k + kDepth < end) continue;
#pragma unroll
    for (int i = 0; i < 8; ++i)
#pragma unroll
      for (int j = 0; j < kEach; j += 4) {
        if constexpr (kSplit > 1)
          kept[((k - begin) / kShortSum * kFours + (i * kEach + j) / 4) * kProductThreads +
               threadIdx.x] = {sum[i][j], sum[i][j + 1], sum[i][j + 2], sum[i][j + 3]};
#pragma unroll
        for (int c = j; c < j + 4; ++c) {
          total[i][c] += sum[i][c];
          sum[i][c] = 0.0f;
        }
      }
  }
  const auto store = [&](int four, const float4& logits) {
    const int i = four * 4 / kEach, j = four * 4 % kEach;
    const int64_t row = first_token + m + i % 4 + i / 4 * (kTokens / 2);
    const int expert = first_expert + n + j * 8;
    const float logit[4] = {logits.x, logits.y, logits.z, logits.w};
    if (row >= args.x.rows) return;
#pragma unroll
    for (int c = 0; c < 4; ++c)
      if (expert + c < args.experts)
        args.scores[row * args.experts + expert + c] = 1.0f / (1.0f + expf(-logit[c]));
  };
  if constexpr (kSplit == 1) {
#pragma unroll
    for (int four = 0; four < kFours; ++four) {
      const float* from = &total[four * 4 / kEach][four * 4 % kEach];
      store(four, {from[0], from[1], from[2], from[3]});
    }
  } else {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
    const auto cluster = cg::this_cluster();
    cluster.sync();
    constexpr int kMine = kFours / kSplit;
#pragma unroll 1
    for (int four = rank * kMine; four < (rank + 1) * kMine; ++four) {
      float4 logits = {};
#pragma unroll
      for (int r = 0; r < kSplit; ++r) {
        const float4* there =
            cluster.map_shared_rank(kept, r) + four * kProductThreads + threadIdx.x;
        const int count = min(share, stretches - r * share);
#pragma unroll 6
        for (int s = 0; s < count; ++s) {
          const float4 part = there[s * kFours * kProductThreads];
          logits.x += part.x;
          logits.y += part.y;
          logits.z += part.z;
          logits.w += part.w;
        }
      }
      store(four, logits);
    }
    cluster.sync();  // the others may still read here
#endif
  }
}

// Few tokens, with the very sums of route_scores: a block has 32 experts, 256 columns and 4 kEach
// tokens, and sums each stretch of 256 by itself; route_join adds the stretches up, first to last.
// The gate is asked for before the kernels in front have ended. Bytes: E H 4 for each 4 kEach
// tokens, from L2 but for the first. FLOPs: 2 T E H. Bound: latency for few tokens.
constexpr int kPartThreads = 128, kPartExperts = 32;

template <int kEach>
__global__ void __launch_bounds__(kPartThreads) route_parts(Route args) {
  constexpr int kRow = kShortSum + 4;  // rows begin in different banks
  constexpr int kPartTokens = kEach * (kPartThreads / kWarp);
  extern __shared__ float4 shared4[];
  float* gates = reinterpret_cast<float*>(shared4);  // [kPartExperts][kRow]
  float* tokens = gates + kPartExperts * kRow;       // [kPartTokens][kShortSum]
  const int hidden = static_cast<int>(args.x.columns);
  const int first = blockIdx.x * kShortSum, width = min(kShortSum, hidden - first);
  const int first_expert = blockIdx.y * kPartExperts;
  const int64_t first_token = static_cast<int64_t>(blockIdx.z) * kPartTokens;
  constexpr int kFours = kShortSum / 4;
  float4 gate[kPartExperts * kFours / kPartThreads];
#pragma unroll
  for (int i = 0; i < kPartExperts * kFours / kPartThreads; ++i) {
    const int item = i * kPartThreads + threadIdx.x, row = item / kFours, c = item % kFours * 4;
    const int expert = min(first_expert + row, args.experts - 1);
    gate[i] = c < width ? __ldg(reinterpret_cast<const float4*>(
                              args.gate + static_cast<int64_t>(expert) * hidden + first + c))
                        : float4{};
  }
  // Experts that choose read nothing that kernels write before they wait, and take a while to
  // start.
  if (!args.ids) let_next_start();
  wait_for_previous();
  if (args.ids) let_next_start();
  const auto eight_of = [&](int item) {
    const int row = item / (kShortSum / 8), c = item % (kShortSum / 8) * 8;
    uint4 eight = {};
    if (first_token + row < args.x.rows && c < width)
      eight = *reinterpret_cast<const uint4*>(static_cast<const __nv_bfloat16*>(args.x.data) +
                                              (first_token + row) * args.x.stride + first + c);
    return eight;
  };
  const auto put = [&](int item, const uint4& eight) {
    const int row = item / (kShortSum / 8), c = item % (kShortSum / 8) * 8;
    const uint32_t words[4] = {eight.x, eight.y, eight.z, eight.w};
#pragma unroll
    for (int j = 0; j < 4; ++j)
      *reinterpret_cast<float2*>(tokens + row * kShortSum + c + 2 * j) = {
          __uint_as_float(words[j] << 16), __uint_as_float(words[j] & 0xffff0000u)};
  };
  // Of few tokens all are asked for at once, and before the gate is put down.
  constexpr int kEights = kPartTokens * kShortSum / 8, kOwnEights = kEights / kPartThreads;
  constexpr bool kAtOnce = kOwnEights <= 2;
  uint4 eights[kOwnEights];
  if constexpr (kAtOnce)
#pragma unroll
    for (int i = 0; i < kOwnEights; ++i) eights[i] = eight_of(i * kPartThreads + threadIdx.x);
#pragma unroll
  for (int i = 0; i < kPartExperts * kFours / kPartThreads; ++i) {
    const int item = i * kPartThreads + threadIdx.x;
    *reinterpret_cast<float4*>(gates + item / kFours * kRow + item % kFours * 4) = gate[i];
  }
  if constexpr (kAtOnce)
#pragma unroll
    for (int i = 0; i < kOwnEights; ++i) put(i * kPartThreads + threadIdx.x, eights[i]);
  else
    for (int item = threadIdx.x; item < kEights; item += kPartThreads) put(item, eight_of(item));
  __syncthreads();
  const int lane = threadIdx.x % kWarp, mine = threadIdx.x / kWarp * kEach;
  if (first_token + mine >= args.x.rows || first_expert + lane >= args.experts) return;
  float sum[kEach] = {};
#pragma unroll 8
  for (int c = 0; c < width; c += 4) {
    const float4 b = *reinterpret_cast<const float4*>(gates + lane * kRow + c);
#pragma unroll
    for (int t = 0; t < kEach; ++t) {
      const float4 a = *reinterpret_cast<const float4*>(tokens + (mine + t) * kShortSum + c);
      sum[t] = fmaf(a.x, b.x, sum[t]);
      sum[t] = fmaf(a.y, b.y, sum[t]);
      sum[t] = fmaf(a.z, b.z, sum[t]);
      sum[t] = fmaf(a.w, b.w, sum[t]);
    }
  }
  // scores: [T, stretches, experts] here
#pragma unroll
  for (int t = 0; t < kEach; ++t)
    if (first_token + mine + t < args.x.rows)
      args.scores[((first_token + mine + t) * gridDim.x + blockIdx.x) * args.experts +
                  first_expert + lane] = sum[t];
}

// The very same sums of more tokens: a block has 64 experts, 256 columns and 8 kEach tokens, a
// thread kEach tokens by four experts, so that what is read of shared memory, which is what
// route_parts waits for, serves several products. Bytes: E H 4 for each 8 kEach tokens, from L2 but
// for the first. FLOPs: 2 T E H. Bound: the FP32 units, with one widening of a token's number for
// four products.
constexpr int kTiledExperts = 64;

__device__ __forceinline__ void copy_piece(void* to, const void* from) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(
                   static_cast<uint32_t>(__cvta_generic_to_shared(to))),
               "l"(from)
               : "memory");
#else
  *static_cast<uint4*>(to) = *static_cast<const uint4*>(from);
#endif
}
__device__ __forceinline__ void commit_pieces() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
template <int kLeft>
__device__ __forceinline__ void wait_for_pieces() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kLeft) : "memory");
#endif
}

// Rows begin in different banks.
constexpr int kGateRow = kShortSum + 4, kTokenRow = kShortSum + 8;
template <int kEach>
constexpr int kTiledTokens = 8 * kEach;
template <int kEach>
constexpr int kTiledBytes = kTiledExperts* kGateRow * 4 + kTiledTokens<kEach>* kTokenRow * 2;

template <int kEach>
__global__ void __launch_bounds__(kPartThreads, 2) route_tiled_parts(Route args) {
  constexpr int kTokens = kTiledTokens<kEach>;
  extern __shared__ float4 shared4[];
  float* gates = reinterpret_cast<float*>(shared4);  // [kTiledExperts][kGateRow]
  auto* tokens = reinterpret_cast<__nv_bfloat16*>(gates + kTiledExperts * kGateRow);
  const int hidden = static_cast<int>(args.x.columns);
  const int first = blockIdx.x * kShortSum, width = min(kShortSum, hidden - first);
  const int first_expert = blockIdx.y * kTiledExperts;
  const int64_t first_token = static_cast<int64_t>(blockIdx.z) * kTokens;
  constexpr int kGateCopies = kShortSum / 4;  // of a row
  for (int item = threadIdx.x; item < kTiledExperts * kGateCopies; item += kPartThreads) {
    const int row = item / kGateCopies, c = item % kGateCopies * 4;
    const int expert = min(first_expert + row, args.experts - 1);
    if (c < width)
      copy_piece(gates + row * kGateRow + c,
                 args.gate + static_cast<int64_t>(expert) * hidden + first + c);
  }
  wait_for_previous();
  let_next_start();
  // By halves of the columns.
  constexpr int kHalf = kShortSum / 2, kTokenCopies = kHalf / 8;
  for (int half = 0; half < 2; ++half) {
    for (int item = threadIdx.x; item < kTokens * kTokenCopies; item += kPartThreads) {
      const int row = item / kTokenCopies, c = half * kHalf + item % kTokenCopies * 8;
      const int64_t token = min(first_token + row, args.x.rows - 1);
      if (c < width)
        copy_piece(tokens + row * kTokenRow + c, static_cast<const __nv_bfloat16*>(args.x.data) +
                                                     token * args.x.stride + first + c);
    }
    commit_pieces();
  }
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  // A warp has four by eight places.
  const int t = warp % 2 * (4 * kEach) + lane / 8, e = warp / 2 * 32 + lane % 8;
  const __nv_bfloat16* of_tokens = tokens + t * kTokenRow;
  const float* of_gates = gates + e * kGateRow;
  float sum[kEach][4] = {};
  const auto multiply = [&](int begin, int end) {
#pragma unroll 1
    for (int c = begin; c < end; c += 8) {
      uint4 eight[kEach];
#pragma unroll
      for (int i = 0; i < kEach; ++i)
        eight[i] = *reinterpret_cast<const uint4*>(of_tokens + i * 4 * kTokenRow + c);
#pragma unroll
      for (int four = 0; four < 2; ++four) {
        float4 b[4];
#pragma unroll
        for (int j = 0; j < 4; ++j)
          b[j] = *reinterpret_cast<const float4*>(of_gates + j * 8 * kGateRow + c + 4 * four);
#pragma unroll
        for (int i = 0; i < kEach; ++i) {
          const uint32_t low = four ? eight[i].z : eight[i].x,
                         high = four ? eight[i].w : eight[i].y;
          const float a[4] = {__uint_as_float(low << 16), __uint_as_float(low & 0xffff0000u),
                              __uint_as_float(high << 16), __uint_as_float(high & 0xffff0000u)};
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            sum[i][j] = fmaf(a[0], b[j].x, sum[i][j]);
            sum[i][j] = fmaf(a[1], b[j].y, sum[i][j]);
            sum[i][j] = fmaf(a[2], b[j].z, sum[i][j]);
            sum[i][j] = fmaf(a[3], b[j].w, sum[i][j]);
          }
        }
      }
    }
  };
  wait_for_pieces<1>();
  __syncthreads();
  multiply(0, min(kHalf, width));
  wait_for_pieces<0>();
  __syncthreads();
  multiply(kHalf, width);
  // scores: [T, stretches, experts] here
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int64_t token = first_token + t + i * 4;
    if (token >= args.x.rows) continue;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int expert = first_expert + e + j * 8;
      if (expert < args.experts)
        args.scores[(token * gridDim.x + blockIdx.x) * args.experts + expert] = sum[i][j];
    }
  }
}

// One block a token: a thread an expert adds up its logits, all parts asked for at once, and one
// warp chooses. What no kernel before writes is read before they have ended.
constexpr int kJoinThreads = 256;

__device__ __forceinline__ float join_parts(const float* parts, int stretches, int experts) {
  float total = 0.0f;
#pragma unroll 12
  for (int s = 0; s < stretches; ++s) total += parts[s * experts];
  return 1.0f / (1.0f + expf(-total));
}

__global__ void __launch_bounds__(kJoinThreads) route_join(Route args, int stretches) {
  __shared__ __align__(16) ChoiceTable table;
  static_assert(kChoiceExperts == kJoinThreads);
  const int e = threadIdx.x;
  const bool there = e < args.experts;
  const float bias = there ? args.bias[e] : 0.0f;
  const int64_t token = blockIdx.x;
  const bool inert = args.slots && args.slots[token] < 0;
  // The experts' blocks take about as long to stand ready as this does.
  if (args.next_reads_late) let_next_start();
  wait_for_previous();
  if (!args.next_reads_late) let_next_start();
  const float* parts = args.scores + token * stretches * args.experts;
  const float score = there ? join_parts(parts + e, stretches, args.experts) : 0.0f;
  table.scores[e] = score;
  table.keys[e] = there ? ordered(score + bias) : 0;
  __syncthreads();
  if (e >= kWarp) return;
  uint32_t key[ChoiceTable::kEach];
  read_keys(table, e, key);
  choose_one(table, key, args.top);
  __syncwarp();
  if (e == 0) table.inert = inert;
  __syncwarp();
  store_few(table, nullptr, args.top, args.ids + token * args.top, args.weights + token * args.top);
}

// The same for more experts.
__global__ void __launch_bounds__(kJoinThreads) route_join_many(Route args, int stretches) {
  extern __shared__ float4 shared4[];
  float* scores = reinterpret_cast<float*>(shared4);
  float* bias = scores + args.experts;
  for (int e = threadIdx.x; e < args.experts; e += kJoinThreads) bias[e] = args.bias[e];
  wait_for_previous();
  let_next_start();
  const int64_t token = blockIdx.x;
  const float* parts = args.scores + token * stretches * args.experts;
  for (int e = threadIdx.x; e < args.experts; e += kJoinThreads)
    scores[e] = join_parts(parts + e, stretches, args.experts);
  __syncthreads();
  if (threadIdx.x < kWarp) choose_for<kMaxEach>(scores, bias, args, token);
}

// One warp a token.
__global__ void __launch_bounds__(256) route_choose(Route args) {
  wait_for_previous();
  let_next_start();
  const int64_t token = static_cast<int64_t>(blockIdx.x) * (256 / kWarp) + threadIdx.x / kWarp;
  if (token >= args.x.rows) return;
  const float* scores = args.scores + token * args.experts;
  if (args.experts <= 8 * kWarp)
    choose_for<8>(scores, args.bias, args, token);
  else
    choose_for<kMaxEach>(scores, args.bias, args, token);
}

bool fits_product(const Route& args) {
  const auto aligned = [](const void* data) { return reinterpret_cast<uintptr_t>(data) % 16 == 0; };
  return args.scores && args.x.dtype == DType::bf16 && args.x.columns % kDepth == 0 &&
         args.x.stride % 8 == 0 && aligned(args.x.data) && aligned(args.gate) &&
         args.experts <= kMaxEach * kWarp;
}

int stretches_of(const Route& args) {
  return static_cast<int>((args.x.columns + kShortSum - 1) / kShortSum);
}

void launch_join(void* stream, const Route& args) {
  const int stretches = stretches_of(args);
  LaunchShape join{dim3(static_cast<unsigned>(args.x.rows)), dim3(kJoinThreads)};
  if (args.experts <= kChoiceExperts) return launch(stream, route_join, join, args, stretches);
  join.shared_bytes = 2 * args.experts * 4;
  launch(stream, route_join_many, join, args, stretches);
}

template <int kEach>
void launch_parts(void* stream, const Route& args) {
  constexpr int kPartTokens = kEach * (kPartThreads / kWarp);
  LaunchShape shape{
      dim3(static_cast<unsigned>(stretches_of(args)), blocks_for(args.experts, kPartExperts),
           blocks_for(args.x.rows, kPartTokens)),
      dim3(kPartThreads)};
  shape.shared_bytes = 4 * (kPartExperts * (kShortSum + 4) + kPartTokens * kShortSum);
  launch(stream, route_parts<kEach>, shape, args);
  if (args.ids) launch_join(stream, args);
}

template <int kEach>
void launch_tiled_parts(void* stream, const Route& args) {
  LaunchShape shape{
      dim3(static_cast<unsigned>(stretches_of(args)), blocks_for(args.experts, kTiledExperts),
           blocks_for(args.x.rows, kTiledTokens<kEach>)),
      dim3(kPartThreads)};
  shape.shared_bytes = kTiledBytes<kEach>;
  launch(stream, route_tiled_parts<kEach>, shape, args);
  launch_join(stream, args);
}

// What route_scores keeps in shared memory.
template <int kEach, int kSplit>
int64_t scores_bytes(const Route& args) {
  const int64_t stretches = (args.x.columns + kShortSum - 1) / kShortSum;
  const int64_t kept = kSplit > 1 ? (stretches + kSplit - 1) / kSplit * 2 * kEach * 16 : 0;
  return 2 * kDepth * (16 * kEach + kProductExperts) * 4 + kept * kProductThreads;
}

// Whether the chip has clusters, and the memory for what each block of them keeps.
bool can_share(const Route& args) {
  constexpr int64_t kMost = 227 * 1024;
  return device_major() >= 9 && scores_bytes<8, 2>(args) <= kMost;
}

template <int kEach, int kSplit>
void launch_scores(void* stream, const Route& args) {
  LaunchShape shape{
      dim3(blocks_for(args.x.rows, 16 * kEach) * kSplit, blocks_for(args.experts, kProductExperts)),
      dim3(kProductThreads)};
  shape.shared_bytes = static_cast<int>(scores_bytes<kEach, kSplit>(args));
  shape.cluster = kSplit;
  launch(stream, route_scores<kEach, kSplit>, shape, args);
}

// The more blocks a multiprocessor has to itself, the better it is used, but a second one there
// brings less than a first one elsewhere: so columns are shared until all have one.
void launch_product(void* stream, const Route& args) {
  const int64_t blocks =
      int64_t{blocks_for(args.x.rows, 128)} * blocks_for(args.experts, kProductExperts);
  const int64_t all = multiprocessors();
  if (!can_share(args) || 2 * blocks > 3 * all)
    launch_scores<8, 1>(stream, args);
  else if (3 * blocks > all)
    launch_scores<8, 2>(stream, args);
  else
    launch_scores<4, 2>(stream, args);
  launch(stream, route_choose, {dim3(blocks_for(args.x.rows, 256 / kWarp)), dim3(256)}, args);
}

template <int kTokens, int kRows>
void launch_form(void* stream, const Route& args, int cluster) {
  const int64_t padded = (args.x.columns + 127) / 128 * 128;
  const int64_t bytes = 4 * kTokens * (padded + args.experts);
  LaunchShape shape;
  shape.cluster = device_major() >= 9 ? cluster : 1;
  shape.grid = dim3(blocks_for(args.x.rows, kTokens) * static_cast<unsigned>(shape.cluster));
  shape.block = dim3(kThreads);
  shape.shared_bytes = static_cast<int>(bytes);
  launch(stream, route_kernel<kTokens, kRows>, shape, args, shape.cluster);
}

}  // namespace

bool route_leaves_choice(const Route& args) {
  return args.x.rows == 1 && args.experts <= kChoiceExperts && args.experts % 4 == 0 &&
         fits_product(args);
}

void launch_route(void* stream, const Route& args) {
  if (args.x.rows == 0) return;
  // One order of every sum for all steps: parts and product differ in nothing but speed.
  if (fits_product(args)) {
    if (args.x.rows >= kRouteProductTokens) return launch_product(stream, args);
    // Of few tokens as few each as keep all warps busy; of many as many as leave no multiprocessor
    // idle, where the chip has the memory.
    const bool tiled = device_major() >= 8;
    return args.x.rows <= 4             ? launch_parts<1>(stream, args)
           : args.x.rows <= 8           ? launch_parts<2>(stream, args)
           : args.x.rows < 49 || !tiled ? launch_parts<4>(stream, args)
           : args.x.rows < 128          ? launch_tiled_parts<4>(stream, args)
                                        : launch_tiled_parts<8>(stream, args);
  }
  // Few tokens: spread the gate over many blocks. Many: share what is read of it.
  if (args.x.rows <= 4)
    launch_form<1, 1>(stream, args, 16);
  else if (args.x.rows <= 64 || device_major() < 9)  // older chips have less shared memory
    launch_form<4, 2>(stream, args, 8);
  else
    launch_form<8, 4>(stream, args, 4);
}

}  // namespace m2::ops::cuda
