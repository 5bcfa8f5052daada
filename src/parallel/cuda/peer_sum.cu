#include "parallel/cuda/peer_meet.cuh"

namespace m2::parallel::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int64_t kStride = static_cast<int64_t>(kSumBlocks) * kThreads;

template <class T>
__device__ Group<T> load_at(const void* from, int64_t group, int64_t count) {
  const int64_t begin = group * Group<T>::kSize;
  return load_group<Group<T>>(static_cast<const T*>(from) + begin, count - begin);
}
template <class T>
__device__ void store_at(const Group<T>& numbers, void* to, int64_t group, int64_t count) {
  const int64_t begin = group * Group<T>::kSize;
  store_group(numbers, static_cast<T*>(to) + begin, 0, count - begin);
}

// Each rank puts its numbers into its slot, and reads everyone's in the order of ranks; out may be
// x. A slot is written again in the round after next: all peers have then come to the next, so they
// are done with this one.
// Bytes: count twice here, and count from each peer over the link. Small sums: one flight there and
// one back.
template <class T>
__global__ void __launch_bounds__(kThreads) peer_sum_kernel(const PeerSum sum) {
  wait_for_previous();
  let_next_start();
  const Place place(sum);
  const int64_t groups = (sum.count + Group<T>::kSize - 1) / Group<T>::kSize;
  Group<T>* const own = place.slot_of<T>(sum, sum.rank);
  for (int64_t g = place.thread; g < groups; g += kStride) own[g] = load_at<T>(sum.x, g, sum.count);
  meet(sum, place.round);
  if (threadIdx.x == 0) *place.rounds = place.round;
  for (int64_t g = place.thread; g < groups; g += kStride) {
    Group<T> parts[kMostPeers];
#pragma unroll
    for (int r = 0; r < kMostPeers; ++r)
      if (r < sum.ranks) parts[r] = fetch(place.slot_of<T>(sum, r) + g);
    store_at(total_of<T>(parts, sum.ranks), sum.out, g, sum.count);
  }
}

// Each rank puts the others' shares into its slot, and sums its own from everyone's. Bytes: count
// twice here, and the share from each peer over the link, for all ranks at the same time.
template <class T>
__global__ void __launch_bounds__(kThreads) scattered_sum_kernel(const PeerShares shares) {
  const PeerSum& sum = shares.sum;
  wait_for_previous();
  let_next_start();
  const Place place(sum);
  const int64_t most = sum.slot_bytes / 16 / sum.ranks;  // groups of a share
  const auto groups = [&](int r) {
    return (shares.count[r] + Group<T>::kSize - 1) / Group<T>::kSize;
  };
  const auto share = [&](int r) { return static_cast<const T*>(sum.x) + shares.begin[r]; };
  Group<T>* const own = place.slot_of<T>(sum, sum.rank);
  for (int r = 0; r < sum.ranks; ++r)
    for (int64_t g = place.thread; r != sum.rank && g < groups(r); g += kStride)
      own[r * most + g] = load_at<T>(share(r), g, shares.count[r]);
  meet(sum, place.round);
  if (threadIdx.x == 0) *place.rounds = place.round;
  for (int64_t g = place.thread; g < groups(sum.rank); g += kStride) {
    Group<T> parts[kMostPeers];
#pragma unroll
    for (int r = 0; r < kMostPeers; ++r)
      if (r < sum.ranks)
        parts[r] = r == sum.rank ? load_at<T>(share(r), g, shares.count[r])
                                 : fetch(place.slot_of<T>(sum, r) + sum.rank * most + g);
    store_at(total_of<T>(parts, sum.ranks), sum.out, g, shares.count[sum.rank]);
  }
}

// A number that a peer wrote, not from a cache of this SM.
__device__ float fetch_number(const float* from) {
  return __ldcv(from);
}
__device__ float fetch_number(const __nv_bfloat16* from) {
  return to_float(__ushort_as_bfloat16(__ldcv(reinterpret_cast<const unsigned short*>(from))));
}

// All numbers of a large sum on every rank, x and out being one. Each rank reads its share of
// everyone's x, and writes the total into every x, where nobody but it reads or writes that share.
// So 2 (ranks - 1) / ranks of the numbers come over the link and as many leave, both at the same
// time, and nothing is copied at home. Two rounds: all x are there to read, and all totals have
// been written.
template <class T, int kMost>
__global__ void __launch_bounds__(kThreads) shared_sum_kernel(const PeerSum sum) {
  constexpr int kAtOnce = 8 / kMost;  // groups of a thread, so that enough is under way
  __shared__ void* all_places[1][kMostPeers];
  wait_for_previous();
  let_next_start();
  const Place place(sum);
  if (!meet_at(sum, place.round, {sum.out}, all_places)) return;
  void* const(&places)[kMostPeers] = all_places[0];

  bool whole_groups = true;
  for (int r = 0; r < sum.ranks; ++r) whole_groups &= aligned<Group<T>>(places[r]);
  const int64_t groups = whole_groups ? sum.count / Group<T>::kSize : 0;
  const int64_t share = (groups + sum.ranks - 1) / sum.ranks;
  const int64_t end = min((sum.rank + 1) * share, groups);
  for (int64_t first = sum.rank * share + place.thread; first < end; first += kAtOnce * kStride) {
    Group<T> parts[kAtOnce][kMost];
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i)
#pragma unroll
      for (int r = 0; r < kMost; ++r)
        if (r < sum.ranks && first + i * kStride < end)
          parts[i][r] = fetch(static_cast<const Group<T>*>(places[r]) + first + i * kStride);
#pragma unroll
    for (int i = 0; i < kAtOnce; ++i) {
      if (first + i * kStride >= end) break;
      const Group<T> total = total_of<T>(parts[i], sum.ranks);
      for (int r = 0; r < sum.ranks; ++r)  // not all to the same rank at once
        static_cast<Group<T>*>(places[(sum.rank + r) % sum.ranks])[first + i * kStride] = total;
    }
  }
  // What is no whole group.
  for (int64_t i = groups * Group<T>::kSize + sum.rank * kStride + place.thread; i < sum.count;
       i += sum.ranks * kStride) {
    float total = fetch_number(static_cast<const T*>(places[0]) + i);
    for (int r = 1; r < sum.ranks; ++r) total += fetch_number(static_cast<const T*>(places[r]) + i);
    for (int r = 0; r < sum.ranks; ++r) static_cast<T*>(places[r])[i] = from_float<T>(total);
  }
  meet(sum, place.round + 1);
  if (threadIdx.x == 0) *place.rounds = place.round + 1;
}

// Each rank sends its numbers into all the others' memory, and waits at home: one flight. A rank
// sends for a small sum when its kernels before are complete, so who has had a word of the sum
// before from it knows that it has cleared those of the one before that, which lay where it now
// sends.
template <class T, int kRanks>
__global__ void __launch_bounds__(kThreads) small_sum_kernel(const __grid_constant__ PeerSum sum) {
  Summands<kRanks> words(sum);
  wait_for_previous();
  let_next_start();
  words.begin(blockIdx.x);
  const auto own = [&](int64_t word) {
    const Group<T> numbers = load_at<T>(sum.x, word, sum.count);
    return under_way(reinterpret_cast<const uint4&>(numbers));
  };
  const int64_t first = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
  const int64_t count = (sum.count + Group<T>::kSize - 1) / Group<T>::kSize;
  for (int64_t w = first; w < count; w += kStride) words.send_to_all(w, own(w));
  __syncthreads();
  if (threadIdx.x < kWarp) words.count(blockIdx.x, gridDim.x);
  for (int64_t w = first; w < count; w += kStride)
    store_at(words.template sum_of_all<T>(w, own(w)), sum.out, w, sum.count);
}

// Everyone sends to everyone here too, one word if nothing else: that is how ranks know which words
// have been cleared.
__global__ void __launch_bounds__(kThreads)
    broadcast_kernel(const __grid_constant__ PeerSum numbers, int root) {
  using Numbers = Group<float, 8>;
  wait_for_previous();
  let_next_start();
  Words words(numbers);
  words.begin(blockIdx.x);
  __syncthreads();
  if (threadIdx.x < kWarp) words.count(blockIdx.x, gridDim.x);
  for (int64_t w = static_cast<int64_t>(blockIdx.x) * kThreads + threadIdx.x;
       w * Numbers::kSize < numbers.count; w += kStride) {
    const int64_t begin = w * Numbers::kSize, left = numbers.count - begin;
    const auto own = load_group<Numbers>(static_cast<const float*>(numbers.x) + begin, left);
    for (int r = 0; r < numbers.ranks; ++r)
      if (r != numbers.rank)
        send(words.place(r, numbers.rank, w), reinterpret_cast<const uint2&>(own));
    Numbers chosen = own;
    for (int r = 0; r < numbers.ranks; ++r) {
      if (r == numbers.rank) continue;
      const uint2 heard = receive(words.place(numbers.rank, r, w), numbers.given_up);
      if (r == root) chosen = reinterpret_cast<const Numbers&>(heard);
    }
    store_group(chosen, static_cast<float*>(numbers.out) + begin, 0, left);
  }
}

// The others put their parts into their slots, and the root fetches them. Bytes: every part twice
// at home and once over the link, all links at the same time.
__global__ void __launch_bounds__(kThreads) columns_kernel(const PeerColumns parts) {
  using Numbers = Group<float>;
  const PeerSum& sum = parts.sum;
  wait_for_previous();
  let_next_start();
  const Place place(sum);
  const auto* const own = static_cast<const Numbers*>(sum.x);
  if (sum.rank != parts.root) {
    const int64_t groups = parts.rows * (parts.columns[sum.rank] / Numbers::kSize);
    for (int64_t g = place.thread; g < groups; g += kStride)
      place.slot_of<float>(sum, sum.rank)[g] = own[g];
  }
  meet(sum, place.round);
  if (threadIdx.x == 0) *place.rounds = place.round;
  if (sum.rank != parts.root) return;
  int64_t width = 0, before = 0;  // in groups
  for (int r = 0; r < sum.ranks; ++r) width += parts.columns[r] / Numbers::kSize;
  for (int r = 0; r < sum.ranks; before += parts.columns[r++] / Numbers::kSize) {
    const int64_t columns = parts.columns[r] / Numbers::kSize;
    const Numbers* const from = r == sum.rank ? own : place.slot_of<float>(sum, r);
#pragma unroll 4
    for (int64_t g = place.thread; g < parts.rows * columns; g += kStride)
      static_cast<Numbers*>(sum.out)[g / columns * width + before + g % columns] = fetch(from + g);
  }
}

template <class Work, class Kernel>
void launch_by_type(void* stream, DType dtype, const Work& work, Kernel bf16, Kernel f32) {
  launch(stream, dtype == DType::bf16 ? bf16 : f32, LaunchShape{dim3(kSumBlocks), dim3(kThreads)},
         work);
}

}  // namespace

void launch_peer_sum(void* stream, const PeerSum& sum) {
  launch_by_type(stream, sum.dtype, sum, peer_sum_kernel<__nv_bfloat16>, peer_sum_kernel<float>);
}

void launch_shared_peer_sum(void* stream, const PeerSum& sum) {
  const bool few = sum.ranks <= 4;
  launch_by_type(stream, sum.dtype, sum,
                 few ? shared_sum_kernel<__nv_bfloat16, 4> : shared_sum_kernel<__nv_bfloat16, 8>,
                 few ? shared_sum_kernel<float, 4> : shared_sum_kernel<float, 8>);
}

void launch_small_peer_sum(void* stream, const PeerSum& sum) {
  with_ranks(sum.ranks, [&](auto ranks) {
    launch_by_type(stream, sum.dtype, sum, small_sum_kernel<__nv_bfloat16, ranks>,
                   small_sum_kernel<float, ranks>);
  });
}

void launch_peer_broadcast(void* stream, const PeerSum& numbers, int root) {
  launch(stream, broadcast_kernel, LaunchShape{dim3(kSumBlocks), dim3(kThreads)}, numbers, root);
}

void launch_peer_columns(void* stream, const PeerColumns& parts) {
  launch(stream, columns_kernel, LaunchShape{dim3(kSumBlocks), dim3(kThreads)}, parts);
}

void launch_scattered_peer_sum(void* stream, const PeerShares& shares) {
  launch_by_type(stream, shares.sum.dtype, shares, scattered_sum_kernel<__nv_bfloat16>,
                 scattered_sum_kernel<float>);
}

}  // namespace m2::parallel::cuda
