#include "parallel/shared_comm.h"

#include <algorithm>
#include <cstring>
#include <mutex>
#include <numeric>

#include "base/thread_pool.h"
#include "tensor/buffer.h"

namespace m2::parallel {
namespace {

// Sums of no more bytes than this, over all ranks, are made by every rank for itself: one barrier
// instead of two.
constexpr int64_t kSmallSum = 32 << 10;
constexpr int64_t kLine = 64;

// How long a rank spins at a barrier before it sleeps, where every rank may have a core.
constexpr int kSpins = 2000;

enum Kind : uint32_t {
  kNone,
  kAllReduce,
  kAllGather,
  kReduceScatter,
  kAllToAll,
  kGather,
  kBroadcast,
  kBarrier
};

void relax() {
#if defined(__x86_64__)
  __builtin_ia32_pause();
#endif
}

int64_t bytes_of(const Tensor& tensor) {
  return tensor.elements() * size_of(tensor.dtype());
}

// Bytes of one index of axis 0.
int64_t row_bytes(const Tensor& tensor) {
  int64_t bytes = size_of(tensor.dtype());
  for (int i = 1; i < tensor.rank(); ++i) bytes *= tensor.size(i);
  return bytes;
}

int64_t sum(Rows rows) {
  return std::accumulate(rows.begin(), rows.end(), int64_t{0});
}
int64_t rows_before(Rows rows, int64_t rank) {
  return sum(rows.first(static_cast<size_t>(rank)));
}
int64_t rows_of(Rows rows, Range ranks) {
  return sum(rows.subspan(static_cast<size_t>(ranks.begin), static_cast<size_t>(ranks.count)));
}

void copy(void* to, const void* from, int64_t bytes) {
  if (bytes > 0 && to != from) std::memcpy(to, from, static_cast<size_t>(bytes));
}

float load(const float* from) {
  return *from;
}
float load(const BF16* from) {
  return to_float(*from);
}
void store(float value, float* to) {
  *to = value;
}
void store(float value, BF16* to) {
  *to = to_bf16(value);
}

// to[i] = sum of parts[r][i] in ascending order of r. `to` may be one of the parts.
template <class T>
void sum_parts(std::span<const std::byte* const> parts, std::byte* to, int64_t count) {
  constexpr int64_t kTile = 512;
  float sums[kTile];
  for (int64_t begin = 0; begin < count; begin += kTile) {
    const int64_t n = std::min(kTile, count - begin);
    const auto at = [&](size_t r) { return reinterpret_cast<const T*>(parts[r]) + begin; };
    for (int64_t i = 0; i < n; ++i) sums[i] = load(at(0) + i);
    for (size_t r = 1; r < parts.size(); ++r)
      for (int64_t i = 0; i < n; ++i) sums[i] += load(at(r) + i);
    T* out = reinterpret_cast<T*>(to) + begin;
    for (int64_t i = 0; i < n; ++i) store(sums[i], out + i);
  }
}

void sum_parts(DType dtype, std::span<const std::byte* const> parts, std::byte* to, int64_t count) {
  M2_CHECK(dtype == DType::f32 || dtype == DType::bf16, "a sum of {}", name_of(dtype));
  dtype == DType::f32 ? sum_parts<float>(parts, to, count) : sum_parts<BF16>(parts, to, count);
}

// Memory that grows to the largest use and stays.
class Growing {
 public:
  std::byte* at_least(int64_t bytes) {
    if (bytes > buffer_.bytes()) buffer_ = Buffer(Device{}, bytes + bytes / 2);
    return buffer_.data();
  }

 private:
  Buffer buffer_;
};

// What a rank shows the others during one collective.
struct Posting {
  const std::byte* data = nullptr;
  Rows send_rows{}, recv_rows{};
  Call call{};
  int64_t base = 0;  // where in the rank's data the bytes begin that are here

  const std::byte* at(int64_t offset) const { return data + (offset - base); }
};

struct Bytes {
  int64_t offset, count;
};

// What the ranks of a group share within one process.
class Group {
 public:
  Group(Placement where, std::unique_ptr<Wire> the_wire)
      : placement(std::move(where)),
        local(placement.local()),
        wire(std::move(the_wire)),
        board(static_cast<size_t>(placement.size())),
        small_slots(Device{}, 2 * kSmallSum + 2 * kLine * placement.size()),
        inbox_(board.size()),
        spins_(local.count <= usable_cpus() ? kSpins : 0) {}

  int64_t size() const { return static_cast<int64_t>(board.size()); }

  // False if the group has failed.
  bool meet() {
    if (failed()) return false;
    if (local.count == 1) return true;
    const int phase = phase_.load(std::memory_order_relaxed);
    if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == local.count) {
      arrived_.store(0, std::memory_order_relaxed);
      phase_.fetch_add(1, std::memory_order_release);
      phase_.notify_all();
      return !failed();
    }
    for (int i = 0; i < spins_ && phase_.load(std::memory_order_acquire) == phase; ++i) relax();
    while (phase_.load(std::memory_order_acquire) == phase && !failed())
      phase_.wait(phase, std::memory_order_acquire);
    return !failed();
  }

  bool failed() const { return failed_.load(std::memory_order_acquire); }

  void fail(const Error& why) {
    {
      std::lock_guard lock(mutex_);
      if (failed()) return;
      error_ = why;
      failed_.store(true, std::memory_order_release);
    }
    phase_.fetch_add(1, std::memory_order_release);
    phase_.notify_all();
  }

  Result<void> status() const {
    if (!failed()) return {};
    std::lock_guard lock(mutex_);
    return error_;
  }

  void set_deadline(Nanos deadline) { deadline_.store(deadline, std::memory_order_relaxed); }

  // Whether the ranks of this process are in one and the same call; fails the group if not.
  bool agree() {
    const Posting& first = of(local.begin);
    for (int64_t r = local.begin + 1; r < local.begin + local.count; ++r) {
      if (of(r).call.kind == first.call.kind && of(r).call.number == first.call.number) continue;
      fail({Code::internal,
            fmt::format("rank {} is in {}, rank {} in {}", local.begin, describe(first.call), r,
                        describe(of(r).call)),
            {}});
      return false;
    }
    return true;
  }

  // Carries the postings between processes. outgoing(local rank, process) and incoming(remote rank)
  // say which bytes of a rank's data travel.
  template <class Outgoing, class Incoming>
  void travel(Outgoing&& outgoing, Incoming&& incoming) {
    sends_.clear();
    receives_.clear();
    for (int64_t p = 0; p < static_cast<int64_t>(placement.ranks.size()); ++p) {
      if (p == placement.process) continue;
      for (int64_t r = local.begin; r < local.begin + local.count; ++r) {
        const Bytes bytes = outgoing(r, p);
        auto* data = const_cast<std::byte*>(of(r).data) + bytes.offset;
        if (bytes.count > 0) sends_.push_back({p, data, bytes.count});
      }
      const Range there = placement.ranks[static_cast<size_t>(p)];
      for (int64_t r = there.begin; r < there.begin + there.count; ++r) {
        const Bytes bytes = incoming(r);
        std::byte* data = inbox_[static_cast<size_t>(r)].at_least(bytes.count);
        of(r).data = data;
        of(r).base = bytes.offset;
        if (bytes.count > 0) receives_.push_back({p, data, bytes.count});
      }
    }
    const Result<void> done = wire->exchange(of(local.begin).call, sends_, receives_,
                                             deadline_.load(std::memory_order_relaxed), failed_);
    if (!done.ok()) fail(done.error());
  }

  Posting& of(int64_t rank) { return board[static_cast<size_t>(rank)]; }

  const Placement placement;
  const Range local;
  const std::unique_ptr<Wire> wire;  // null: one process holds all
  std::vector<Posting> board;
  Buffer small_slots;  // two sets of a slot for each rank, used in turn
  Growing results[2];  // sums, used in turn

 private:
  std::vector<Growing> inbox_;
  std::vector<Wire::Piece> sends_, receives_;
  const int spins_;
  alignas(64) std::atomic<int64_t> arrived_{0};
  alignas(64) std::atomic<int> phase_{0};
  alignas(64) std::atomic<bool> failed_{false};
  std::atomic<Nanos> deadline_{0};
  mutable std::mutex mutex_;
  Error error_;
};

class Member : public Comm {
 public:
  Member(std::shared_ptr<Group> group, int64_t rank)
      : group_(std::move(group)), rank_(rank), parts_(static_cast<size_t>(group_->size())) {}

  int64_t rank() const override { return rank_; }
  int64_t size() const override { return group_->size(); }
  Result<void> status() const override { return group_->status(); }
  void abort(const Error& why) override { group_->fail(why); }
  void set_deadline(Nanos deadline) override { group_->set_deadline(deadline); }

  void all_reduce(const Exec&, Tensor x) override {
    const int64_t bytes = bytes_of(x);
    if (bytes * size() <= kSmallSum && !group_->wire) return small_all_reduce(x);
    const auto whole = [&](auto...) { return Bytes{0, bytes}; };
    // Results take turns. The one before last is read by nobody any more, so its memory may move.
    Growing& turn = group_->results[sums_++ % 2];
    if (local_index() == 0) turn.at_least(bytes);
    if (!post({data_of(x)}, kAllReduce, whole, whole)) return;
    const int64_t element = size_of(x.dtype());
    if (group_->local.count == 1) {
      sum_of(x.dtype(), 0, static_cast<std::byte*>(x.data()), x.elements());
      return;
    }
    // Every rank sums a part into the group's memory, and takes the whole from there.
    std::byte* result = turn.at_least(0);
    const Range part = split_evenly(x.elements(), group_->local.count, local_index());
    sum_of(x.dtype(), part.begin * element, result + part.begin * element, part.count);
    if (group_->meet()) copy(x.data(), result, bytes);
  }

  void all_gather(const Exec&, Tensor part, Rows rows, Tensor out) override {
    const int64_t row = row_bytes(out);
    check_rows(rows, out, part, rank_);
    const auto whole = [&](int64_t r, auto...) {
      return Bytes{0, rows[static_cast<size_t>(r)] * row};
    };
    if (!post({data_of(part)}, kAllGather, whole, whole)) return;
    auto* to = static_cast<std::byte*>(out.data());
    for (int64_t r = 0; r < size(); ++r) {
      const Bytes bytes = whole(r);
      copy(to, group_->of(r).at(0), bytes.count);
      to += bytes.count;
    }
    group_->meet();
  }

  void reduce_scatter(const Exec&, Tensor x, Rows rows, Tensor part) override {
    const int64_t row = row_bytes(x);
    check_rows(rows, x, part, rank_);
    const auto for_process = [&](int64_t, int64_t process) {
      const Range ranks = group_->placement.ranks[static_cast<size_t>(process)];
      return Bytes{rows_before(rows, ranks.begin) * row, rows_of(rows, ranks) * row};
    };
    const auto incoming = [&](int64_t r) { return for_process(r, group_->placement.process); };
    if (!post({data_of(x)}, kReduceScatter, for_process, incoming)) return;
    sum_of(x.dtype(), rows_before(rows, rank_) * row, static_cast<std::byte*>(part.data()),
           part.elements());
    group_->meet();
  }

  void all_to_all(const Exec&, Tensor send, Rows send_rows, Tensor recv, Rows recv_rows) override {
    const int64_t row = row_bytes(send);
    M2_CHECK(row == row_bytes(recv) && sum(send_rows) == send.size(0) &&
             sum(recv_rows) == recv.size(0));
    const auto outgoing = [&](int64_t r, int64_t process) {
      const Range ranks = group_->placement.ranks[static_cast<size_t>(process)];
      const Rows from = group_->of(r).send_rows;
      return Bytes{rows_before(from, ranks.begin) * row, rows_of(from, ranks) * row};
    };
    const auto incoming = [&](int64_t r) {  // base 0: what is here begins with our first rank's
      Bytes bytes{0, 0};
      for (int64_t l = 0; l < group_->local.count; ++l)
        bytes.count += group_->of(group_->local.begin + l).recv_rows[static_cast<size_t>(r)] * row;
      return bytes;
    };
    if (!post({data_of(send), send_rows, recv_rows}, kAllToAll, outgoing, incoming)) return;
    auto* to = static_cast<std::byte*>(recv.data());
    for (int64_t r = 0; r < size(); ++r) {
      const int64_t bytes = recv_rows[static_cast<size_t>(r)] * row;
      copy(to, group_->of(r).at(offset_for_me(r) * row), bytes);
      to += bytes;
    }
    group_->meet();
  }

  void gather_columns(const Exec&, Tensor part, Rows columns, Tensor out, int64_t root) override {
    const int64_t rows = part.size(0);
    const int64_t element = size_of(part.dtype());
    M2_CHECK(part.size(1) == columns[static_cast<size_t>(rank_)], "{}", part.describe());
    const auto width = [&](int64_t r) { return columns[static_cast<size_t>(r)] * element; };
    const auto outgoing = [&](int64_t r, int64_t process) {
      const Range ranks = group_->placement.ranks[static_cast<size_t>(process)];
      const bool there = root >= ranks.begin && root < ranks.begin + ranks.count;
      return Bytes{0, there ? rows * width(r) : 0};
    };
    const auto incoming = [&](int64_t r) { return Bytes{0, is_local(root) ? rows * width(r) : 0}; };
    if (!post({data_of(part)}, kGather, outgoing, incoming)) return;
    if (rank_ == root) {
      M2_CHECK(out.size(0) == rows && out.size(1) == sum(columns), "{}", out.describe());
      auto* to = static_cast<std::byte*>(out.data());
      for (int64_t i = 0; i < rows; ++i)
        for (int64_t r = 0; r < size(); to += width(r++))
          copy(to, group_->of(r).at(i * width(r)), width(r));
    }
    group_->meet();
  }

  void broadcast(const Exec&, Tensor x, int64_t root) override {
    const auto from_root = [&](int64_t r, auto...) {
      return Bytes{0, r == root ? bytes_of(x) : 0};
    };
    if (!post({data_of(x)}, kBroadcast, from_root, from_root)) return;
    copy(x.data(), group_->of(root).at(0), bytes_of(x));
    group_->meet();
  }

  void barrier(const Exec&) override {
    const auto nothing = [](auto...) { return Bytes{0, 0}; };
    if (post({}, kBarrier, nothing, nothing)) group_->meet();
  }

 private:
  // Shows this rank's posting to all and waits for theirs. False if the group has failed.
  template <class Outgoing, class Incoming>
  bool post(Posting posting, Kind kind, Outgoing&& outgoing, Incoming&& incoming) {
    posting.call = {kind, ++calls_};
    group_->of(rank_) = posting;
    if (!group_->meet()) return false;
    if (rank_ != group_->local.begin) {
      if (group_->wire && !group_->meet()) return false;
    } else {
      if (!group_->agree()) return false;
      if (!group_->wire) return true;
      group_->travel(outgoing, incoming);
      if (!group_->meet()) return false;
    }
    return true;
  }

  // Each rank puts its numbers into a slot and sums all slots for itself. The slots before last are
  // free again once everyone has come to this barrier.
  void small_all_reduce(Tensor x) {
    const int64_t bytes = bytes_of(x);
    const int64_t pitch = (bytes + kLine - 1) / kLine * kLine;
    std::byte* slots = group_->small_slots.data() + (small_sums_++ % 2) * slots_half();
    copy(slots + rank_ * pitch, x.data(), bytes);
    group_->of(rank_).call = {kAllReduce, ++calls_};
    if (!group_->meet()) return;
    for (int64_t r = 0; r < size(); ++r) parts_[static_cast<size_t>(r)] = slots + r * pitch;
    sum_parts(x.dtype(), parts_, static_cast<std::byte*>(x.data()), x.elements());
  }
  int64_t slots_half() const { return group_->small_slots.bytes() / 2 / kLine * kLine; }

  // to = the sum of `count` elements that begin at byte `offset` of every rank's posting.
  void sum_of(DType dtype, int64_t offset, std::byte* to, int64_t count) {
    for (int64_t r = 0; r < size(); ++r) parts_[static_cast<size_t>(r)] = group_->of(r).at(offset);
    sum_parts(dtype, parts_, to, count);
  }

  // First row of rank r's send that is for this rank. From another process only the rows for our
  // ranks are here.
  int64_t offset_for_me(int64_t r) const {
    if (is_local(r)) return rows_before(group_->of(r).send_rows, rank_);
    int64_t rows = 0;
    for (int64_t l = group_->local.begin; l < rank_; ++l)
      rows += group_->of(l).recv_rows[static_cast<size_t>(r)];
    return rows;
  }

  static void check_rows(Rows rows, Tensor whole, Tensor part, int64_t rank) {
    M2_CHECK(sum(rows) == whole.size(0) && rows[static_cast<size_t>(rank)] == part.size(0) &&
                 row_bytes(whole) == row_bytes(part),
             "{} and {} of rank {}", whole.describe(), part.describe(), rank);
  }

  static const std::byte* data_of(Tensor tensor) {
    return static_cast<const std::byte*>(tensor.data());
  }
  int64_t local_index() const { return rank_ - group_->local.begin; }
  bool is_local(int64_t r) const {
    return r >= group_->local.begin && r < group_->local.begin + group_->local.count;
  }

  const std::shared_ptr<Group> group_;
  const int64_t rank_;
  uint64_t calls_ = 0;
  uint64_t sums_ = 0, small_sums_ = 0;
  std::vector<const std::byte*> parts_;
};

std::vector<std::unique_ptr<Comm>> members_of(const std::shared_ptr<Group>& group) {
  std::vector<std::unique_ptr<Comm>> out;
  for (int64_t r = 0; r < group->local.count; ++r)
    out.push_back(std::make_unique<Member>(group, group->local.begin + r));
  return out;
}

}  // namespace

std::string describe(const Call& call) {
  const size_t kind = std::min<size_t>(call.kind, std::size(kCallNames) - 1);
  return fmt::format("{} {}", kCallNames[kind], call.number);
}

std::vector<std::unique_ptr<Comm>> make_thread_comms(int64_t size) {
  M2_CHECK(size > 0);
  return members_of(std::make_shared<Group>(Placement{{{0, size}}, 0}, nullptr));
}

std::vector<std::unique_ptr<Comm>> make_process_comms(const Placement& placement,
                                                      std::unique_ptr<Wire> wire) {
  M2_CHECK(wire && placement.ranks.size() > 1);
  return members_of(std::make_shared<Group>(placement, std::move(wire)));
}

}  // namespace m2::parallel
