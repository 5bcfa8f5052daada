#include "parallel/peers.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <random>
#include <vector>

#include "parallel/cuda/peer_sum.h"
#include "parallel/topology.h"
#include "tensor/buffer.h"
#include "tensor/stream.h"

namespace m2::parallel {
namespace {

constexpr int64_t kSlotBytes = 8 << 20;
// Up to so many bytes every rank sums everything for itself. Beyond, with more than two ranks, less
// travels when each sums a share.
constexpr int64_t kWholeBytes = 1 << 20;

// A rank's memory for sums, and where the parts of any rank's lie in it.
constexpr int64_t kMemoryBytes = 2 * kSlotBytes + cuda::kArrivalBytes + cuda::kRoundBytes;
cuda::PeerMemory parts_of(std::byte* memory) {
  std::byte* arrivals = memory + 2 * kSlotBytes;
  return {memory, reinterpret_cast<uint32_t*>(arrivals),
          reinterpret_cast<uint32_t*>(arrivals + cuda::kArrivalBytes)};
}

class PeerComm : public Comm {
 public:
  PeerComm(std::unique_ptr<Comm> inner, Buffer memory, const cuda::PeerSum& peers)
      : inner_(std::move(inner)),
        memory_(std::move(memory)),
        given_up_(memory_.device(), sizeof(uint32_t)),
        peers_(peers),
        share_rows_(static_cast<size_t>(inner_->size())) {
    *word() = 0;
    peers_.given_up = word();
  }

  int64_t rank() const override { return inner_->rank(); }
  int64_t size() const override { return inner_->size(); }

  void all_reduce(const Exec& exec, Tensor x) override {
    const bool whole = size() == 2 || x.elements() * size_of(x.dtype()) <= kWholeBytes;
    if (whole) return sum(exec, x, 0, x);
    for (int64_t r = 0; r < size(); ++r)
      share_rows_[static_cast<size_t>(r)] = split_evenly(x.size(0), size(), r).count;
    const Range own = split_evenly(x.size(0), size(), rank());
    const Tensor share = x.rows(own.begin, own.count);
    reduce_scatter(exec, x, share_rows_, share);
    inner_->all_gather(exec, share, share_rows_, x);
  }

  void reduce_scatter(const Exec& exec, Tensor x, Rows rows, Tensor part) override {
    int64_t before = 0;
    for (const int64_t n : rows.first(static_cast<size_t>(rank()))) before += n;
    sum(exec, x, before * x.row_stride(), part);
  }

  void all_gather(const Exec& exec, Tensor part, Rows rows, Tensor out) override {
    inner_->all_gather(exec, part, rows, out);
  }
  void all_to_all(const Exec& exec, Tensor send, Rows send_rows, Tensor recv,
                  Rows recv_rows) override {
    inner_->all_to_all(exec, send, send_rows, recv, recv_rows);
  }
  void gather_columns(const Exec& exec, Tensor part, Rows columns, Tensor out,
                      int64_t root) override {
    inner_->gather_columns(exec, part, columns, out, root);
  }
  void broadcast(const Exec& exec, Tensor x, int64_t root) override {
    inner_->broadcast(exec, x, root);
  }
  void barrier(const Exec& exec) override { inner_->barrier(exec); }
  Result<void> status() const override { return inner_->status(); }

  void abort(const Error& why) override {
    std::atomic_ref(*word()).store(1);
    inner_->abort(why);
  }
  void set_deadline(Nanos deadline) override { inner_->set_deadline(deadline); }

 private:
  uint32_t* word() const { return reinterpret_cast<uint32_t*>(given_up_.data()); }

  // out = elements [first, first + out's) of the sum of all ranks' x; as many at a time as fit.
  void sum(const Exec& exec, Tensor x, int64_t first, Tensor out) {
    M2_CHECK(x.dense() && out.dense() && (x.dtype() == DType::f32 || x.dtype() == DType::bf16),
             "a sum of {}", x.describe());
    if (std::atomic_ref(*word()).load() != 0) return;
    const int64_t element = size_of(x.dtype()), most = kSlotBytes / element;
    for (int64_t begin = 0; begin < x.elements(); begin += most) {
      cuda::PeerSum part = peers_;
      part.dtype = x.dtype();
      part.count = std::min(most, x.elements() - begin);
      part.x = static_cast<const std::byte*>(x.data()) + begin * element;
      const int64_t from = std::clamp(first, begin, begin + part.count);
      const int64_t to = std::clamp(first + out.elements(), begin, begin + part.count);
      part.first = from - begin;
      part.length = to - from;
      part.out = static_cast<std::byte*>(out.data()) + (from - first) * element;
      cuda::launch_peer_sum(exec.stream, part);
    }
  }

  const std::unique_ptr<Comm> inner_;
  const Buffer memory_;
  const HostBuffer given_up_;  // a word
  cuda::PeerSum peers_;        // all but what differs from sum to sum
  std::vector<int64_t> share_rows_;
};

// What ranks tell each other. Addresses mean something within one process alone.
struct Introduction {
  uint64_t process;
  int64_t device;
  std::byte* memory;
};

uint64_t this_process() {
  static const uint64_t number = [] {
    std::random_device random;
    return uint64_t{random()} << 32 | random();
  }();
  return number;
}

// Every rank's `own`.
template <class T>
Result<std::vector<T>> gather(Comm& host, T own) {
  const int64_t size = host.size();
  const std::vector<int64_t> ones(static_cast<size_t>(size), 1);
  std::vector<T> all(static_cast<size_t>(size));
  host.all_gather(Exec{}, Tensor(&own, DType::u8, {1, sizeof(T)}), ones,
                  Tensor(all.data(), DType::u8, {size, sizeof(T)}));
  M2_TRY_VOID(host.status());
  return all;
}

}  // namespace

Result<std::unique_ptr<Comm>> sum_through_peers(std::unique_ptr<Comm> inner, Comm& host,
                                                Device device) {
  if (host.size() == 1 || host.size() > cuda::kMostPeers) return inner;
  Buffer memory(device, kMemoryBytes);
  const Exec exec{device, nullptr, nullptr};
  clear(exec, memory.data(), kMemoryBytes);
  synchronize(exec);

  const Introduction own{this_process(), device.index, memory.data()};
  M2_TRY(const std::vector<Introduction> all, gather(host, own));
  const bool reached = std::ranges::all_of(all, [&](const Introduction& peer) {
    return peer.process == own.process &&
           reach_device(device, {device.kind, static_cast<int>(peer.device)});
  });
  M2_TRY(const std::vector<uint8_t> reached_by, gather(host, static_cast<uint8_t>(reached)));
  if (std::ranges::count(reached_by, 0) > 0) return inner;

  cuda::PeerSum peers;
  peers.ranks = static_cast<int>(host.size());
  peers.rank = static_cast<int>(host.rank());
  peers.slot_bytes = kSlotBytes;
  for (size_t r = 0; r < all.size(); ++r) peers.peers[r] = parts_of(all[r].memory);
  return std::unique_ptr<Comm>(
      std::make_unique<PeerComm>(std::move(inner), std::move(memory), peers));
}

}  // namespace m2::parallel
