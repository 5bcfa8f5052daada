#include "ops/cuda/device.cuh"
#include "parallel/cuda/peer_sum.h"

namespace m2::parallel::cuda {
namespace {

using namespace ops::cuda;

constexpr int kThreads = 512;

// 16 bytes of numbers.
template <class T>
struct alignas(16) Group {
  static constexpr int kSize = 16 / sizeof(T);
  T number[kSize];
};

__device__ bool aligned(const void* pointer) {
  return reinterpret_cast<uintptr_t>(pointer) % 16 == 0;
}

// The first `count` numbers, at most a group; past them anything.
template <class T>
__device__ Group<T> load_group(const T* from, int64_t count) {
  if (count >= Group<T>::kSize && aligned(from)) return *reinterpret_cast<const Group<T>*>(from);
  Group<T> out = {};
  for (int i = 0; i < Group<T>::kSize && i < count; ++i) out.number[i] = from[i];
  return out;
}

// Numbers [begin, end) of a group.
template <class T>
__device__ void store_group(const Group<T>& from, T* to, int64_t begin, int64_t end) {
  if (begin <= 0 && end >= Group<T>::kSize && aligned(to)) {
    *reinterpret_cast<Group<T>*>(to) = from;
    return;
  }
  for (int i = 0; i < Group<T>::kSize; ++i)
    if (i >= begin && i < end) to[i] = from.number[i];
}

__device__ void tell(uint32_t* word, uint32_t round) {
  asm volatile("st.release.sys.global.u32 [%0], %1;" ::"l"(word), "r"(round) : "memory");
}
__device__ uint32_t hear(const uint32_t* word) {
  uint32_t value;
  asm volatile("ld.acquire.sys.global.u32 %0, [%1];" : "=r"(value) : "l"(word) : "memory");
  return value;
}

// Returns when this block of every rank has come to the round: what they wrote before is then there
// to read. A later round is as good; the difference is signed, for rounds come around.
__device__ void meet(const PeerSum& sum, uint32_t round) {
  constexpr int kLooks = 4096;  // at peers, for one at the host
  __syncthreads();
  if (threadIdx.x < sum.ranks) {
    const int64_t own = static_cast<int64_t>(blockIdx.x) * kMostPeers;
    tell(sum.peers[threadIdx.x].arrivals + own + sum.rank, round);
    const uint32_t* peer = sum.peers[sum.rank].arrivals + own + threadIdx.x;
    for (int looks = 1; static_cast<int32_t>(hear(peer) - round) < 0; ++looks)
      if (looks % kLooks == 0 && hear(sum.given_up) != 0) break;
  }
  __syncthreads();
}

// Each rank puts its numbers into its slot, and reads everyone's in the order of ranks. Group g is
// always the same thread's, so a block needs only the same block of its peers, and out may be x. A
// slot is written again in the round after next: all peers have then come to the next, so they are
// done with this one.
// Bytes: count twice here, and count from each peer over the link. Small sums: one flight there and
// one back.
template <class T>
__global__ void __launch_bounds__(kThreads) peer_sum_kernel(const PeerSum sum) {
  using Numbers = Group<T>;
  wait_for_previous();
  let_next_start();
  uint32_t* const rounds = sum.peers[sum.rank].rounds + blockIdx.x;
  const uint32_t round = *rounds + 1;
  const int64_t groups_a_slot = sum.slot_bytes / 16;
  const int64_t slot = round % 2 * groups_a_slot;
  const int64_t thread = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  constexpr int64_t kStride = static_cast<int64_t>(kSumBlocks) * kThreads;

  auto* const own = static_cast<Numbers*>(sum.peers[sum.rank].slots) + slot;
  for (int64_t g = thread; g * Numbers::kSize < sum.count; g += kStride)
    own[g] = load_group(static_cast<const T*>(sum.x) + g * Numbers::kSize,
                        sum.count - g * Numbers::kSize);

  meet(sum, round);
  if (threadIdx.x == 0) *rounds = round;

  const int64_t first_group = sum.first / Numbers::kSize;
  const int64_t skipped = first_group > thread ? (first_group - thread + kStride - 1) / kStride : 0;
  const int64_t end = sum.first + sum.length;
  for (int64_t g = thread + skipped * kStride; g * Numbers::kSize < end; g += kStride) {
    Numbers parts[kMostPeers];
#pragma unroll
    for (int r = 0; r < kMostPeers; ++r)
      if (r < sum.ranks) {
        const uint4 bytes = load_written(static_cast<Numbers*>(sum.peers[r].slots) + slot + g);
        parts[r] = reinterpret_cast<const Numbers&>(bytes);
      }
    Numbers out;
#pragma unroll
    for (int i = 0; i < Numbers::kSize; ++i) {
      float total = to_float(parts[0].number[i]);
#pragma unroll
      for (int r = 1; r < kMostPeers; ++r)
        if (r < sum.ranks) total += to_float(parts[r].number[i]);
      out.number[i] = from_float<T>(total);
    }
    const int64_t begin = g * Numbers::kSize - sum.first;
    store_group(out, static_cast<T*>(sum.out) + begin, -begin, sum.length - begin);
  }
}

}  // namespace

void launch_peer_sum(void* stream, const PeerSum& sum) {
  const LaunchShape shape{dim3(kSumBlocks), dim3(kThreads)};
  sum.dtype == DType::bf16 ? launch(stream, peer_sum_kernel<__nv_bfloat16>, shape, sum)
                           : launch(stream, peer_sum_kernel<float>, shape, sum);
}

}  // namespace m2::parallel::cuda
