#include <cooperative_groups.h>

#include <cfloat>

#include "ops/cuda/device.cuh"

namespace m2::ops::cuda {
namespace {

namespace cg = cooperative_groups;

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / kWarp;

// One warp chooses for one token. scores: sigmoid(logit) [experts] in shared memory.
__device__ void choose(const float* scores, uint32_t* taken, const Route& args, int64_t token) {
  const int lane = threadIdx.x % kWarp;
  int my_id = 0x7fffffff;  // lane i < top keeps the i-th choice
  for (int word = lane; word < (args.experts + 31) / 32; word += kWarp) taken[word] = 0;
  __syncwarp();
  for (int pick = 0; pick < args.top; ++pick) {
    float best = -FLT_MAX;
    int best_id = 0x7fffffff;
    for (int e = lane; e < args.experts; e += kWarp) {
      if (taken[e / 32] >> (e % 32) & 1) continue;
      float value = scores[e] + args.bias[e];
      if (!(value > -FLT_MAX)) value = -FLT_MAX;  // NaN and -inf lose, but remain valid choices
      if (value > best || best_id == 0x7fffffff) {
        best = value;
        best_id = e;
      }
    }
#pragma unroll
    for (int offset = 16; offset; offset /= 2) {
      const float other = __shfl_xor_sync(~0u, best, offset);
      const int other_id = __shfl_xor_sync(~0u, best_id, offset);
      if (other_id != 0x7fffffff &&
          (best_id == 0x7fffffff || other > best || (other == best && other_id < best_id))) {
        best = other;
        best_id = other_id;
      }
    }
    if (lane == pick) my_id = best_id;
    if (lane == 0) taken[best_id / 32] |= 1u << (best_id % 32);
    __syncwarp();
  }
  // Ascending order of id; then the sum in that order.
  int rank = 0;
  for (int i = 0; i < args.top; ++i) rank += __shfl_sync(~0u, my_id, i) < my_id;
  float sum = 0.0f;
  for (int place = 0; place < args.top; ++place) {
    const unsigned owner = __ballot_sync(~0u, lane < args.top && rank == place);
    const int id = __shfl_sync(~0u, my_id, __ffs(owner) - 1);
    sum += scores[id];
  }
  if (lane < args.top) {
    const float divisor = sum > 0.0f ? sum : 1.0f;
    args.ids[token * args.top + rank] = my_id;
    args.weights[token * args.top + rank] = scores[my_id] / divisor;
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
  auto* taken = reinterpret_cast<uint32_t*>(scores + kTokens * args.experts);  // [kTokens][words]
  const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const int member = blockIdx.x % cluster;
  const int64_t first = static_cast<int64_t>(blockIdx.x / cluster) * kTokens;

  wait_for_previous();
  let_next_start();
  for (int i = threadIdx.x; i < kTokens * padded; i += kThreads) {
    const int64_t token = first + i / padded;
    const int c = i % padded;
    x[i] = token < args.x.rows && c < hidden
               ? load_number(args.x.data, args.x.dtype, token * args.x.stride + c)
               : 0.0f;
  }
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
#pragma unroll 4
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
  const int words = (args.experts + 31) / 32;
  for (int t = warp; t < kTokens && first + t < args.x.rows; t += kWarps)
    choose(scores + t * args.experts, taken + t * words, args, first + t);
}

template <int kTokens, int kRows>
void launch_form(void* stream, const Route& args, int cluster) {
  const int64_t padded = (args.x.columns + 127) / 128 * 128;
  const int64_t bytes = 4 * kTokens * (padded + args.experts + (args.experts + 31) / 32);
  LaunchShape shape;
  shape.cluster = device_major() >= 9 ? cluster : 1;
  shape.grid = dim3(blocks_for(args.x.rows, kTokens) * static_cast<unsigned>(shape.cluster));
  shape.block = dim3(kThreads);
  shape.shared_bytes = static_cast<int>(bytes);
  launch(stream, route_kernel<kTokens, kRows>, shape, args, shape.cluster);
}

}  // namespace

void launch_route(void* stream, const Route& args) {
  if (args.x.rows == 0) return;
  // Few tokens: spread the gate over many blocks. Many: share what is read of it.
  if (args.x.rows <= 4)
    launch_form<1, 1>(stream, args, 16);
  else if (args.x.rows <= 64 || device_major() < 9)  // older chips have less shared memory
    launch_form<4, 1>(stream, args, 8);
  else
    launch_form<8, 4>(stream, args, 4);
}

}  // namespace m2::ops::cuda
