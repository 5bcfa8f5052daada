#include "parallel/peers.h"

#include <algorithm>
#include <array>
#include <atomic>
#include <random>
#include <vector>

#include "ops/cuda/arguments.h"
#include "parallel/cuda/peer_sum.h"
#include "parallel/topology.h"
#include "tensor/buffer.h"
#include "tensor/stream.h"

namespace m2::parallel {
namespace {

constexpr int64_t kSlotBytes = 8 << 20;
// While no more than this travels to a rank, each sums everything for itself. Beyond, it is sooner
// done when each sums a share for all.
constexpr int64_t kWholeBytes = 3 << 20;
static_assert(kWholeBytes <= kSlotBytes);
static_assert(cuda::kMostPeers == ops::RowOwners::kMost);
static_assert(cuda::kMostPeers == ops::DecodePeers::kMost);

// A rank's memory for sums, and where the parts of any rank's lie in it.
constexpr int64_t kDecodeAt =
    2 * kSlotBytes + cuda::kWordBytes + cuda::kPlaceBytes + cuda::kArrivalBytes + cuda::kRoundBytes;
constexpr int64_t kMemoryBytes = kDecodeAt + ops::DecodePeers::kBytes;
static_assert(kDecodeAt % 16 == 0);
cuda::PeerMemory parts_of(std::byte* memory) {
  std::byte* words = memory + 2 * kSlotBytes;
  std::byte* places = words + cuda::kWordBytes;
  std::byte* arrivals = places + cuda::kPlaceBytes;
  return {memory, reinterpret_cast<uint32_t*>(arrivals),
          reinterpret_cast<uint32_t*>(arrivals + cuda::kArrivalBytes),
          reinterpret_cast<void**>(places), reinterpret_cast<cuda::PeerWord*>(words)};
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

class PeerComm : public Comm {
 public:
  PeerComm(std::unique_ptr<Comm> inner, Comm& host, Buffer memory, const cuda::PeerSum& peers,
           const ops::DecodePeers& decode)
      : inner_(std::move(inner)),
        host_(host),
        memory_(std::move(memory)),
        given_up_(memory_.device(), sizeof(uint32_t)),
        peers_(peers),
        decode_(decode) {
    *word() = 0;
    peers_.given_up = decode_.given_up = word();
  }

  int64_t rank() const override { return inner_->rank(); }
  int64_t size() const override { return inner_->size(); }

  void all_reduce(const Exec& exec, Tensor x) override {
    check(x);
    const int64_t bytes = x.elements() * size_of(x.dtype());
    if (given_up() || bytes == 0) return;
    const bool whole = bytes * (size() - 1) <= kWholeBytes;
    if (whole && bytes <= cuda::kSmallSumBytes)
      return cuda::launch_small_peer_sum(exec.stream, sum_of(x));
    if (whole) return cuda::launch_peer_sum(exec.stream, sum_of(x));
    cuda::launch_shared_peer_sum(exec.stream, sum_of(x));
  }

  // Here and in all_reduce_qk_norm() all ranks take the same way: their tensors lie alike.
  void all_reduce_norm(const Exec& exec, Tensor x, const ops::AddNorm& norm) override {
    check(x);
    if (!fits(x, norm)) return Comm::all_reduce_norm(exec, x, norm);
    if (given_up() || x.elements() == 0) return;
    cuda::launch_small_peer_sum_norm(exec.stream, sum_norm_of(exec, x, norm));
  }
  bool takes_experts(const Tensor& x, const ops::AddNorm& norm) const override {
    return fits(x, norm) && !given_up();
  }
  // Also when peers have been given up since: the experts' counters have to be left as they belong.
  void all_reduce_experts_norm(const Exec& exec, Tensor x, const ops::UnsummedExperts& experts,
                               const ops::AddNorm& norm) override {
    check(x);
    cuda::launch_small_peer_experts_norm(exec.stream, {sum_norm_of(exec, x, norm), experts});
  }

  void introduce(const Tensor& x) override {
    const Result<std::vector<std::byte*>> all = gather(host_, static_cast<std::byte*>(x.data()));
    if (all.ok()) introduced_ = *all;  // else host's status says why nothing works any more
  }

  // Of as many rows as are summed by shares.
  ops::RowOwners row_owners(const Tensor& x) const override {
    ops::RowOwners out;
    const auto me = static_cast<size_t>(rank());
    const int64_t row = x.size(1) * size_of(x.dtype());
    const bool shared = x.dtype() == DType::bf16 && x.size(1) % 128 == 0 &&
                        x.size(1) <= cuda::kSumNormColumns &&
                        x.size(0) * row * (size() - 1) > kWholeBytes;
    if (!shared || introduced_.empty() || x.data() != introduced_[me]) return out;
    out.ranks = peers_.ranks;
    out.rank = peers_.rank;
    for (size_t r = 0; r < introduced_.size(); ++r) {
      const auto [begin, count] = split_evenly(x.size(0), size(), static_cast<int64_t>(r));
      out.first[r] = begin;
      out.count[r] = count;
      // A rank finds there what the ranks bring, one after another.
      out.to[r] = introduced_[r] + rank() * count * row;
    }
    return out;
  }

  void norm_own_rows(const Exec& exec, Tensor x, const ops::AddNorm& norm,
                     NormedRows wanted) override {
    const ops::RowOwners owners = row_owners(x);
    if (owners.ranks == 0) return all_reduce_norm(exec, x, norm);
    if (given_up()) return;
    cuda::launch_peer_row_norm(
        exec.stream,
        {sum_norm_of(exec, x, norm), norm.weight.dtype(), static_cast<int>(owners.first[rank()]),
         static_cast<int>(owners.count[rank()]), wanted == NormedRows::all});
  }

  void gather_own_rows(const Exec& exec, const Tensor& x,
                       std::span<const Tensor> tensors) override {
    const ops::RowOwners owners = row_owners(x);
    if (owners.ranks == 0) return;
    const bool fits = std::ranges::all_of(tensors, [&](const Tensor& tensor) {
      const int64_t row = tensor.row_stride() * size_of(tensor.dtype());
      return row % 16 == 0 && owners.count[0] * row <= kSlotBytes / cuda::kMostGathered &&
             reinterpret_cast<uintptr_t>(tensor.data()) % 16 == 0;
    });
    if (!fits || std::ssize(tensors) > cuda::kMostGathered) {
      const Rows counts(owners.count, static_cast<size_t>(owners.ranks));
      for (const Tensor& tensor : tensors)
        inner_->all_gather(exec, tensor.rows(owners.first[rank()], owners.count[rank()]), counts,
                           tensor);
      return;
    }
    if (given_up()) return;
    cuda::PeerRows rows;
    rows.sum = peers_;
    std::ranges::copy(owners.first, rows.first);
    std::ranges::copy(owners.count, rows.count);
    for (const Tensor& tensor : tensors) {
      M2_CHECK(tensor.dense() && tensor.size(0) == x.size(0), "{}", tensor.describe());
      rows.data[rows.tensors] = tensor.data();
      rows.row_bytes[rows.tensors++] = tensor.row_stride() * size_of(tensor.dtype());
    }
    cuda::launch_peer_rows(exec.stream, rows);
  }

  void all_reduce_qk_norm(const Exec& exec, const ops::QkNorm& work) override {
    const ops::cuda::QkNormRope args = ops::cuda::qk_args(work);
    if (!cuda::small_peer_sum_qk_fits(args)) return Comm::all_reduce_qk_norm(exec, work);
    ops::check_qk_norm(work);
    check(work.sums);
    if (given_up() || work.sums.elements() == 0) return;
    cuda::launch_small_peer_sum_qk(exec.stream, {sum_of(work.sums), args});
  }

  ops::DecodePeers decode_peers() const override {
    return given_up() ? ops::DecodePeers() : decode_;
  }

  void reduce_scatter(const Exec& exec, Tensor x, Rows rows, Tensor part) override {
    check(x);
    check(part);
    if (given_up()) return;
    const int64_t row = x.row_stride();
    const int64_t most = kSlotBytes / 16 / size() * 16 / size_of(x.dtype());
    cuda::PeerShares shares;
    shares.sum = sum_of(x);
    const int64_t longest = *std::ranges::max_element(rows) * row;
    for (int64_t done = 0; done < longest; done += most) {
      int64_t begin = done;
      for (size_t r = 0; r < rows.size(); begin += rows[r++] * row) {
        shares.begin[r] = begin;
        shares.count[r] = std::clamp<int64_t>(rows[r] * row - done, 0, most);
      }
      shares.sum.out = element(part, done);
      cuda::launch_scattered_peer_sum(exec.stream, shares);
    }
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
    const int64_t widest = *std::ranges::max_element(columns);
    const bool fits = part.dtype() == DType::f32 && widest * 4 <= kSlotBytes &&
                      std::ranges::all_of(columns, [](int64_t n) { return n % 4 == 0; });
    if (!fits) return inner_->gather_columns(exec, part, columns, out, root);
    if (given_up()) return;
    M2_CHECK(part.dense() && reinterpret_cast<uintptr_t>(part.data()) % 16 == 0, "{}",
             part.describe());
    cuda::PeerColumns parts;
    parts.sum = peers_;
    parts.root = static_cast<int>(root);
    std::ranges::copy(columns, parts.columns);
    const int64_t rows = part.size(0), most = kSlotBytes / (widest * 4);
    for (int64_t row = 0; row < rows; row += most) {
      parts.rows = std::min(most, rows - row);
      parts.sum.x = element(part, row * part.size(1));
      if (rank() == root) {
        M2_CHECK(out.dense() && reinterpret_cast<uintptr_t>(out.data()) % 16 == 0, "{}",
                 out.describe());
        parts.sum.out = element(out, row * out.size(1));
      }
      cuda::launch_peer_columns(exec.stream, parts);
    }
  }
  void broadcast(const Exec& exec, Tensor x, int64_t root) override {
    const int64_t bytes = x.elements() * size_of(x.dtype());
    if (bytes % 4 != 0 || bytes > cuda::kBroadcastBytes) return inner_->broadcast(exec, x, root);
    M2_CHECK(x.dense(), "{}", x.describe());
    if (given_up() || bytes == 0) return;
    cuda::launch_peer_broadcast(exec.stream, sum_of(Tensor(x.data(), DType::f32, {bytes / 4})),
                                static_cast<int>(root));
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

  bool given_up() const { return std::atomic_ref(*word()).load() != 0; }

  // Whether a sum of x can be sent, on its way into the norm.
  bool fits(const Tensor& x, const ops::AddNorm& norm) const {
    return x.dtype() == DType::bf16 && norm.weight.dtype() == DType::bf16 &&
           reinterpret_cast<uintptr_t>(norm.weight.data()) % 16 == 0 &&
           x.size(0) <= cuda::kWordRows && x.size(1) <= cuda::kSumNormColumns &&
           x.elements() * size_of(x.dtype()) * (size() - 1) <= kWholeBytes &&
           x.size(1) % (norm.quantised.empty() ? 8 : 128) == 0;
  }
  static void check(const Tensor& x) {
    M2_CHECK(x.dense() && (x.dtype() == DType::f32 || x.dtype() == DType::bf16), "a sum of {}",
             x.describe());
  }

  static std::byte* element(const Tensor& x, int64_t i) {
    return static_cast<std::byte*>(x.data()) + i * size_of(x.dtype());
  }

  cuda::PeerSumNorm sum_norm_of(const Exec& exec, const Tensor& x, const ops::AddNorm& norm) const {
    for (const Tensor& tensor : {x, norm.residual, norm.out})
      M2_CHECK(tensor.dense() && tensor.dtype() == DType::bf16 && tensor.size(1) == x.size(1) &&
                   reinterpret_cast<uintptr_t>(tensor.data()) % 16 == 0,
               "{}", tensor.describe());
    cuda::PeerSumNorm work;
    work.sum = sum_of(x);
    work.columns = x.size(1);
    work.residual = norm.residual.data();
    work.weight = norm.weight.data();
    work.eps = norm.eps;
    work.out = norm.out.data();
    work.quantised = static_cast<uint8_t*>(norm.quantised.values.data());
    work.quantised_scales = static_cast<float*>(norm.quantised.scales.data());
    work.powers = exec.scales == ScaleFormat::e8m0;
    return work;
  }

  // In place.
  cuda::PeerSum sum_of(const Tensor& x) const {
    cuda::PeerSum out = peers_;
    out.dtype = x.dtype();
    out.count = x.elements();
    out.x = out.out = x.data();
    return out;
  }

  const std::unique_ptr<Comm> inner_;
  Comm& host_;
  const Buffer memory_;
  const HostBuffer given_up_;  // a word
  cuda::PeerSum peers_;        // all but what differs from sum to sum
  ops::DecodePeers decode_;
  std::vector<std::byte*> introduced_;  // where introduce()'s tensor lies on each rank
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

}  // namespace

Result<std::unique_ptr<Comm>> sum_through_peers(std::unique_ptr<Comm> inner, Comm& host,
                                                Device device) {
  if (host.size() > cuda::kMostPeers) return inner;
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
  ops::DecodePeers decode;
  decode.ranks = peers.ranks;
  decode.rank = peers.rank;
  for (size_t r = 0; r < all.size(); ++r) {
    peers.peers[r] = parts_of(all[r].memory);
    decode.memory[r] = all[r].memory + kDecodeAt;
  }
  return std::unique_ptr<Comm>(
      std::make_unique<PeerComm>(std::move(inner), host, std::move(memory), peers, decode));
}

}  // namespace m2::parallel
