// Ranks on GPUs that talk through NCCL and each other's memory, or through the host's where they
// share a GPU: the communicators' contract, then the model spread over 2 and 4 of them against one
// CPU rank, stepwise and enqueued ahead, with graphs and without. SharedGpu needs one GPU, all else
// two or more and libnccl.so.2; says so and skips without them.
#include <gtest/gtest.h>

#include <algorithm>
#include <functional>
#include <random>
#include <thread>
#include <tuple>

#include "model/runner.h"
#include "ops/decode_layer.h"
#include "ops/norm.h"
#include "ops/route.h"
#include "parallel/hosted_comm.h"
#include "parallel/nccl.h"
#include "parallel/peers.h"
#include "parallel/shared_comm.h"
#include "tensor/stream.h"
#include "tests/model/small_model.h"
#include "tests/parallel/comm_contract.h"
#include "tests/parallel/staged_comm.h"
#include "tests/parallel/whole_rows_comm.h"

namespace m2::model {
namespace {

using parallel::bring_to_host;
using parallel::SumsBy;

int gpus() {
  int count = 0;
  while (check_device({DeviceKind::cuda, count}).ok()) ++count;
  return count;
}

class GpuRanks : public testing::Test {
 protected:
  void SetUp() override {
    load_kernels_early();
    if (gpus() < 2) GTEST_SKIP() << "needs a GPU, and another: there are " << gpus();
  }
};

class SharedGpu : public testing::Test {
 protected:
  void SetUp() override {
    load_kernels_early();
    if (gpus() < 1) GTEST_SKIP() << "needs a GPU";
  }
};

// Ranks of one process, one GPU each, or all on the first if the host sums.
class Fleet {
 public:
  Fleet(int64_t tensor, int64_t data, bool whole_experts, SumsBy sums = SumsBy::peers)
      : shared_(sums == SumsBy::host) {
    parallel::Topology shape;
    shape.tensor_size = tensor;
    shape.data_size = data;
    shape.expert_parallel = whole_experts;
    ranks = parallel::make_local_ranks(shape);
    each([&](size_t r) {
      const Result<void> added = parallel::add_device_groups(ranks[r], device(r), sums);
      M2_CHECK(added.ok(), "{}", added.error().text);
    });
  }

  Device device(size_t rank) const {
    return {DeviceKind::cuda, shared_ ? 0 : static_cast<int>(rank)};
  }
  Exec exec(size_t rank, const Stream& stream) const {
    Exec out{device(rank), nullptr, stream.handle()};
    out.alone = !shared_;
    return out;
  }

  // Runs work(rank) for all, each on a thread of its own.
  void each(const std::function<void(size_t)>& work) const {
    std::vector<std::jthread> threads;
    for (size_t r = 0; r < ranks.size(); ++r)
      threads.emplace_back([&, r] {
        use_device(device(r));
        work(r);
      });
  }

  std::vector<parallel::LocalRank> ranks;

 private:
  const bool shared_;
};

void check_groups(const Fleet& fleet, bool engines, parallel::Bf16Sums bf16_sums) {
  std::vector<std::unique_ptr<parallel::StagedComm>> staged;
  parallel::Comms comms;
  for (size_t r = 0; r < fleet.ranks.size(); ++r) {
    const auto& rank = fleet.ranks[r];
    auto& comm = engines ? *rank.device_engines : *rank.device_tensor;
    staged.push_back(std::make_unique<parallel::StagedComm>(comm, fleet.device(r)));
    comms.push_back(staged.back().get());
  }
  parallel::check_contract(comms, bf16_sums);
}

void check_groups(SumsBy sums, parallel::Bf16Sums bf16_sums) {
  for (int64_t size = 2; size <= std::min(gpus(), 8); size *= 2) {
    check_groups(Fleet(size, 1, false, sums), false, bf16_sums);
    check_groups(Fleet(1, size, true, sums), true, bf16_sums);
  }
}

TEST_F(GpuRanks, NcclKeepsTheContract) {
  check_groups(SumsBy::nccl, parallel::Bf16Sums::in_bf16);
}

TEST_F(GpuRanks, PeersKeepTheContract) {
  check_groups(SumsBy::peers, parallel::Bf16Sums::in_f32);
}

TEST_F(SharedGpu, HostedGroupsKeepTheContract) {
  for (const int64_t size : {2, 3, 8}) {
    check_groups(Fleet(size, 1, false, SumsBy::host), false, parallel::Bf16Sums::in_f32);
    check_groups(Fleet(1, size, true, SumsBy::host), true, parallel::Bf16Sums::in_f32);
  }
}

// Sums of some rows by `peers` on the GPU, byte for byte as by `host` on the host.
template <class T>
void expect_sums_of_the_host(parallel::Comm& host, parallel::Comm& peers, const Exec& exec,
                             const Buffer& memory, int64_t width) {
  constexpr int64_t kRows = 13;
  const auto numbers = parallel::numbers<T>(host.rank(), kRows * width, width);
  const auto bytes = static_cast<int64_t>(numbers.size() * sizeof(T));
  const Tensor x(memory.data(), dtype_of<T>(), {kRows, width});
  auto expected = numbers, got = numbers;
  host.all_reduce(parallel::host(), parallel::view(expected, kRows, width));
  copy_to_device(exec, x.data(), numbers.data(), bytes);
  peers.all_reduce(exec, x);
  bring_to_host(exec, got.data(), x.data(), bytes);
  EXPECT_EQ(std::memcmp(got.data(), expected.data(), numbers.size() * sizeof(T)), 0)
      << "all_reduce of " << host.size() << " ranks, " << width << " wide";

  std::vector<int64_t> rows(static_cast<size_t>(host.size()), 0);
  rows.front() = 3, rows.back() = kRows - 3;
  const int64_t own = rows[static_cast<size_t>(host.rank())];
  std::vector<T> part(static_cast<size_t>(own * width)), part_got = part;
  auto whole = numbers;
  host.reduce_scatter(parallel::host(), parallel::view(whole, kRows, width), rows,
                      parallel::view(part, own, width));
  copy_to_device(exec, x.data(), numbers.data(), bytes);
  const Tensor out(memory.data() + bytes, dtype_of<T>(), {own, width});
  peers.reduce_scatter(exec, x, rows, out);
  bring_to_host(exec, part_got.data(), out.data(), static_cast<int64_t>(part.size() * sizeof(T)));
  EXPECT_EQ(std::memcmp(part_got.data(), part.data(), part.size() * sizeof(T)), 0)
      << "reduce_scatter of " << host.size() << " ranks, " << width << " wide";
}

// One of several ranks that sum through each other's memory, each on a thread of its own.
struct Peer {
  parallel::Comm& host;
  parallel::Comm& peers;
  Exec exec;
  int64_t rank() const { return peers.rank(); }
  int64_t size() const { return peers.size(); }
};

// Runs work for 2 to `most` ranks. More ranks than GPUs if need be, but two on a GPU at most: their
// blocks wait for each other, and all have to be there at once. So work takes no memory and records
// nothing while another rank may wait on the same GPU.
void each_peer(const std::function<void(const Peer&)>& work, int64_t most = 4) {
  for (int64_t size = 2; size <= std::min<int64_t>(most, 2 * gpus()); ++size) {
    const auto hosts = parallel::make_thread_comms(size);
    std::vector<std::jthread> threads;
    for (int64_t r = 0; r < size; ++r)
      threads.emplace_back([&, r] {
        parallel::Comm& host = *hosts[static_cast<size_t>(r)];
        const Device device{DeviceKind::cuda, static_cast<int>(r % gpus())};
        use_device(device);
        const Stream stream(device);
        auto inner = parallel::make_hosted_comm(host, device);  // NCCL wants a GPU for every rank
        const parallel::Comm* const hosted = inner.get();
        auto peers = parallel::sum_through_peers(std::move(inner), host, device);
        M2_CHECK(peers.ok(), "{}", peers.error().text);
        EXPECT_NE(peers->get(), hosted) << "GPUs do not reach another";
        work({host, **peers, {device, nullptr, stream.handle()}});
        host.barrier(parallel::host());
      });
  }
}

// From five on large sums and sums into norms take other kernels.
constexpr int64_t kMostInTests = 5;

// Whether a kernel of many blocks may follow a sum that ranks wait in. It may begin early, and its
// blocks, which wait for the sum, then keep from a shared GPU those of the peer's sum: a sum's
// block can take most of a multiprocessor's registers, so 128 of 132 are needed for the sums alone.
bool room_behind_sums(const Peer& peer) {
  return peer.size() <= gpus();
}

// On a shared GPU waits until all ranks' work is done. Where a tool makes a wait for one stream one
// for all that the GPU does, as compute-sanitizer seems to, a rank that goes on to its next sum
// would else keep its peer from ever coming to it.
void settle(const Peer& peer) {
  if (room_behind_sums(peer)) return;
  synchronize(peer.exec);
  peer.host.barrier(parallel::host());
}

// Sums of all kinds: sent, fetched, shared out; some larger than a slot.
TEST_F(SharedGpu, PeersSumAsTheHostDoes) {
  const auto check = [](const Peer& peer) {
    constexpr int64_t kWidest = 400'000;
    const Buffer memory(peer.exec.device, 2 * 13 * kWidest * 4);
    for (const int64_t width :
         {int64_t{1}, int64_t{3}, int64_t{129}, int64_t{3072}, int64_t{50'001}, kWidest}) {
      expect_sums_of_the_host<float>(peer.host, peer.peers, peer.exec, memory, width);
      expect_sums_of_the_host<BF16>(peer.host, peer.peers, peer.exec, memory, width);
    }
  };
  each_peer(check, kMostInTests);
}

// Sums of all kinds use the same memory every other time: of any sizes one after another, without
// the host ever waiting, launched and recorded.
TEST_F(SharedGpu, PeersSumManyTimesInARow) {
  constexpr int kSums = 150;
  constexpr int64_t kMost = 1'700'001;
  each_peer([&](const Peer& peer) {
    const Exec exec = peer.exec;
    const Buffer memory(exec.device, kSums * kMost * 2);
    peer.host.barrier(parallel::host());
    std::vector<std::vector<BF16>> got, expected;
    std::mt19937 random(5);
    const auto x = [&](int i) {
      const auto count = static_cast<int64_t>(got[static_cast<size_t>(i)].size());
      return Tensor(memory.data() + i * kMost * 2, DType::bf16, {count});
    };
    for (int i = 0; i < kSums; ++i) {
      constexpr int64_t kCounts[] = {1, 2, 7, 3072, 3 * 3072, 16 * 3072, 65'536, 65'537, kMost};
      const int64_t count = kCounts[random() % std::size(kCounts)];
      got.emplace_back(static_cast<size_t>(count));
      expected.emplace_back(static_cast<size_t>(count));
      for (size_t j = 0; j < got.back().size(); ++j) {
        // Small whole numbers, whose sums are exact.
        const auto number = [&](int64_t rank) {
          return static_cast<float>((static_cast<int64_t>(j) * 7 + i * 3 + rank * 5) % 16);
        };
        float total = 0;
        for (int64_t rank = 0; rank < peer.size(); ++rank) total += number(rank);
        got.back()[j] = to_bf16(number(peer.rank()));
        expected.back()[j] = to_bf16(total);
      }
    }
    for (const bool recorded : {false, true}) {
      for (int i = 0; i < kSums; ++i)
        copy_to_device(exec, x(i).data(), got[static_cast<size_t>(i)].data(), x(i).elements() * 2);
      const auto sums = [&] {
        for (int i = 0; i < kSums; ++i) peer.peers.all_reduce(exec, x(i));
      };
      synchronize(exec);
      Graph graph;
      if (recorded) graph = Graph::record(exec, sums);
      peer.host.barrier(parallel::host());
      recorded ? graph.launch(exec) : sums();
      std::vector<BF16> out(kMost);
      for (int i = 0; i < kSums; ++i) {
        const auto& wanted = expected[static_cast<size_t>(i)];
        bring_to_host(exec, out.data(), x(i).data(), x(i).elements() * 2);
        EXPECT_EQ(std::memcmp(out.data(), wanted.data(), wanted.size() * 2), 0)
            << "sum " << i << " of " << wanted.size() << (recorded ? ", recorded" : "");
      }
    }
  });
}

// Rows of logits come together on the root, more of them than a slot holds, and what is sampled
// goes to all, with sums between, launched and recorded.
TEST_F(SharedGpu, PeersBringColumnsTogether) {
  each_peer([](const Peer& peer) {
    const Exec exec = peer.exec;
    const Device device = exec.device;
    parallel::Comm& comm = peer.peers;
    const int64_t rank = peer.rank(), size = peer.size();
    constexpr int64_t kRows = 64, kColumns = 50'016;
    const Buffer part(device, kRows * kColumns * 4), out(device, kRows * kColumns * size * 4);
    const Buffer chosen(device, kRows * 12), sums(device, 4096);
    std::vector<Graph> graphs;
    peer.host.barrier(parallel::host());
    for (const auto& [rows, columns] :
         {std::pair<int64_t, int64_t>{1, 4}, {3, 1000}, {kRows, kColumns}})
      for (const int64_t root : {int64_t{0}, size - 1}) {
        std::vector<int64_t> widths(static_cast<size_t>(size), columns);
        widths.back() = 4;
        const int64_t own = widths[static_cast<size_t>(rank)], width = columns * (size - 1) + 4;
        std::vector<float> mine, expected(static_cast<size_t>(rows * width));
        for (int64_t i = 0; i < rows; ++i)
          for (int64_t c = 0; c < width; ++c) {
            const auto value = static_cast<float>((i * width + c) % 65'521);
            expected[static_cast<size_t>(i * width + c)] = value;
            if (c >= rank * columns && c < rank * columns + own) mine.push_back(value);
          }
        const std::vector<int32_t> told(static_cast<size_t>(rows * 3), -7 - static_cast<int>(root));
        const auto run = [&] {
          comm.all_reduce(exec, Tensor(sums.data(), DType::f32, {64}));
          comm.gather_columns(exec, Tensor(part.data(), DType::f32, {rows, own}), widths,
                              Tensor(out.data(), DType::f32, {rows, width}), root);
          comm.all_reduce(exec, Tensor(sums.data(), DType::f32, {1024}));
          comm.broadcast(exec, Tensor(chosen.data(), DType::i32, {rows, 3}), root);
        };
        for (const bool recorded : {false, true}) {
          clear(exec, out.data(), out.bytes());
          clear(exec, sums.data(), sums.bytes());
          clear(exec, chosen.data(), chosen.bytes());
          copy_to_device(exec, part.data(), mine.data(), rows * own * 4);
          if (rank == root) copy_to_device(exec, chosen.data(), told.data(), rows * 12);
          synchronize(exec);
          if (recorded) graphs.push_back(Graph::record(exec, run));
          peer.host.barrier(parallel::host());
          for (int times = 0; times < 3; ++times) recorded ? graphs.back().launch(exec) : run();
          std::vector<float> got(expected.size());
          std::vector<int32_t> heard(told.size());
          bring_to_host(exec, got.data(), out.data(), rows * width * 4);
          bring_to_host(exec, heard.data(), chosen.data(), rows * 12);
          if (rank == root) {
            EXPECT_TRUE(got == expected)
                << rows << " x " << columns << (recorded ? ", recorded" : "");
          }
          EXPECT_EQ(heard, told) << rows << " rows" << (recorded ? ", recorded" : "");
          peer.host.barrier(parallel::host());
        }
      }
  });
}

// A sum on its way into a norm leaves the bytes of the two operations: rows of few and of more
// blocks, with and without the same row in FP8.
TEST_F(SharedGpu, PeersSumIntoNormsAsStepByStep) {
  const auto check = [](const Peer& peer) {
    Exec exec = peer.exec;
    const Device device = exec.device;
    parallel::Comm& comm = peer.peers;
    const Buffer memory(device, 8 << 20);
    peer.host.barrier(parallel::host());
    for (const auto& [rows, columns] : {std::pair<int64_t, int64_t>{1, 3072},
                                        {5, 3072},
                                        {64, 3072},
                                        {65, 3072},
                                        {128, 3072},
                                        {129, 3072},
                                        {2, 40'960},
                                        {64, 128},
                                        {3, 200},
                                        {7, 8192}}) {
      if (rows * columns > 65'536 && rows > 2 && !room_behind_sums(peer)) continue;
      const int64_t bytes = rows * columns * 2;
      const auto x = parallel::numbers<BF16>(peer.rank(), rows * columns, columns);
      const auto old = parallel::numbers<BF16>(9, rows * columns, columns);
      const auto weight = parallel::numbers<BF16>(10, columns, columns);
      // What either way leaves: residual, out, out in FP8 and its scales.
      std::vector<std::byte> left[2];
      for (const bool quantises : {true, false})
        for (const ScaleFormat format : {ScaleFormat::f32, ScaleFormat::e8m0}) {
          if (quantises && columns % 128 != 0) continue;
          exec.scales = format;
          for (const bool whole : {false, true}) {
            Arena arena(memory);
            const Tensor residual = arena.place(DType::bf16, {rows, columns});
            const Tensor out = arena.place(DType::bf16, {rows, columns});
            ops::Quantised quantised;
            if (quantises)
              quantised = {arena.place(DType::f8_e4m3, {rows, columns}),
                           arena.place(DType::f32, {rows, columns / 128})};
            const Tensor delta = arena.place(DType::bf16, {rows, columns});
            const Tensor norm = arena.place(DType::bf16, {columns});
            clear(exec, memory.data(), memory.bytes());
            copy_to_device(exec, residual.data(), old.data(), bytes);
            copy_to_device(exec, delta.data(), x.data(), bytes);
            copy_to_device(exec, norm.data(), weight.data(), columns * 2);
            const ops::AddNorm into{residual, norm, 1e-6f, out, quantised};
            if (whole) {
              comm.all_reduce_norm(exec, delta, into);
            } else {
              comm.all_reduce(exec, delta);
              synchronize(exec);  // else the norm's many blocks could keep a peer's from coming
              settle(peer);
              ops::add_rms_norm(exec, residual, delta, norm, into.eps, out, quantised);
            }
            const auto here = static_cast<std::byte*>(delta.data()) - memory.data();
            left[whole].assign(static_cast<size_t>(here), std::byte{});
            bring_to_host(exec, left[whole].data(), memory.data(), here);
            settle(peer);
          }
          EXPECT_TRUE(left[0] == left[1]) << rows << " x " << columns << ", FP8 " << quantises;
        }
    }
  };
  each_peer(check, kMostInTests);
}

// Random weights and tokens for experts(), of which the rank holds 160 of 256; some tokens pad.
struct SomeExperts {
  static constexpr int64_t kHidden = 3072, kInner = 64, kAll = 256, kHeld = 160, kTop = 8;
  static constexpr int64_t kMostRows = 128;
  ops::Experts experts;
  Tensor gate, bias, slots, x, values, scales, ids, weights, scratch, delta;

  SomeExperts(const Exec& exec, Arena& arena, int64_t rank) {
    std::mt19937 random(static_cast<uint32_t>(rank));
    const auto filled = [&](DType dtype, std::initializer_list<int64_t> shape, auto next) {
      const Tensor out = arena.place(dtype, shape);
      std::vector<decltype(next())> numbers(static_cast<size_t>(out.elements()));
      std::ranges::generate(numbers, next);
      copy_to_device(exec, out.data(), numbers.data(), out.elements() * size_of(dtype));
      return out;
    };
    const auto code = [&] {
      const auto bits = static_cast<uint8_t>(random());
      return static_cast<uint8_t>((bits & 0x7f) == 0x7f ? bits - 1 : bits);  // no NaN
    };
    std::uniform_real_distribution<float> number(-1, 1), scale(1e-3f, 4e-3f);
    const auto some = [&] { return number(random); };
    const auto factor = [&] { return scale(random); };
    experts.w13 = filled(DType::f8_e4m3, {kHeld, 2 * kInner, kHidden}, code);
    experts.w2 = filled(DType::f8_e4m3, {kHeld, kHidden, kInner}, code);
    experts.w1_scale = filled(DType::f32, {kHeld, 1, kHidden / 128}, factor);
    experts.w3_scale = filled(DType::f32, {kHeld, 1, kHidden / 128}, factor);
    experts.w2_scale = filled(DType::f32, {kHeld, kHidden / 128, 1}, factor);
    experts.first_expert = 50;
    gate = filled(DType::f32, {kAll, kHidden}, [&] { return 0.1f * some(); });
    bias = filled(DType::f32, {kAll}, some);
    slots = filled(DType::i32, {kMostRows}, [&] { return static_cast<int32_t>(random() % 8) - 1; });
    x = filled(DType::bf16, {kMostRows, kHidden}, [&] { return to_bf16(some()); });
    values = arena.place(DType::f8_e4m3, {kMostRows, kHidden});
    scales = arena.place(DType::f32, {kMostRows, kHidden / 128});
    ops::quantise(exec, x, {values, scales});
    ids = arena.place(DType::i32, {kMostRows, kTop});
    weights = arena.place(DType::f32, {kMostRows, kTop});
    const int64_t bytes = ops::experts_scratch_bytes(exec.device, experts, kMostRows, kTop);
    scratch = arena.place(DType::u8, {bytes});
    clear(exec, scratch.data(), bytes);
    delta = arena.place(DType::bf16, {kMostRows, kHidden});
  }

  void run(const Exec& exec, int64_t rows, ops::UnsummedExperts* left) const {
    ops::route_experts(exec, x.rows(0, rows), {gate, bias, slots.rows(0, rows)}, experts,
                       ids.rows(0, rows), weights.rows(0, rows), scratch, delta.rows(0, rows),
                       ops::Quantised{values.rows(0, rows), scales.rows(0, rows)}, nullptr, left);
  }
};

// A sum that takes up what experts have left leaves the bytes of their sum, its sum over ranks and
// the norm, and the experts' counters as the next call wants them.
TEST_F(SharedGpu, PeersSumExpertsIntoNormsAsStepByStep) {
  const auto check = [](const Peer& peer) {
    Exec exec = peer.exec;
    exec.alone = peer.size() <= gpus();
    parallel::Comm& comm = peer.peers;
    constexpr int64_t kHidden = SomeExperts::kHidden, kMost = SomeExperts::kMostRows;
    const Buffer memory(exec.device, 128 << 20), workspace(exec.device, 16 << 20);
    exec.workspace = workspace.data();
    exec.workspace_bytes = workspace.bytes();
    peer.host.barrier(parallel::host());
    Arena arena(memory);
    const SomeExperts some(exec, arena, peer.rank());
    const Tensor norm = arena.place(DType::bf16, {kHidden});
    const Tensor residual = arena.place(DType::bf16, {kMost, kHidden});
    const Tensor out = arena.place(DType::bf16, {kMost, kHidden});
    const ops::Quantised quantised{arena.place(DType::f8_e4m3, {kMost, kHidden}),
                                   arena.place(DType::f32, {kMost, kHidden / 128})};
    const int64_t bytes = static_cast<std::byte*>(quantised.scales.data()) +
                          quantised.scales.elements() * 4 -
                          static_cast<std::byte*>(residual.data());
    const auto old = parallel::numbers<BF16>(9, kMost * kHidden, 1);
    const auto weight = parallel::numbers<BF16>(10, kHidden, 1);
    copy_to_device(exec, norm.data(), weight.data(), kHidden * 2);
    for (const int64_t rows : {1, 2, 3, 8, 10, 16, 17, 64, 100, 128, 5}) {
      const Tensor delta = some.delta.rows(0, rows);
      const ops::AddNorm into{residual.rows(0, rows), norm, 1e-6f, out.rows(0, rows),
                              quantised.rows(0, rows)};
      if (!comm.takes_experts(delta, into)) {
        EXPECT_GT(rows * kHidden * 2 * (peer.size() - 1), 3 << 20);
        continue;
      }
      std::vector<std::byte> expected;
      for (const bool leaves : {false, true, true, false}) {
        clear(exec, residual.data(), bytes);
        copy_to_device(exec, residual.data(), old.data(), rows * kHidden * 2);
        ops::UnsummedExperts left;
        some.run(exec, rows, leaves ? &left : nullptr);
        // Blocks of a shared GPU's experts need room that those of a peer's sum might have.
        synchronize(exec);
        peer.host.barrier(parallel::host());
        EXPECT_EQ(left.results != nullptr, leaves) << rows << " rows";
        left.results ? comm.all_reduce_experts_norm(exec, delta, left, into)
                     : comm.all_reduce_norm(exec, delta, into);
        std::vector<std::byte> got(static_cast<size_t>(bytes));
        bring_to_host(exec, got.data(), residual.data(), bytes);
        if (expected.empty()) expected = got;
        EXPECT_TRUE(got == expected) << rows << " rows, experts " << (leaves ? "left" : "summed");
        peer.host.barrier(parallel::host());
      }
    }
  };
  each_peer(check, kMostInTests);
}

// Where ranks bring rows: to the owner, behind what ranks before bring it.
TEST_F(SharedGpu, PeersKnowWhereRowsGo) {
  each_peer([](const Peer& peer) {
    constexpr int64_t kRows = 1031, kColumns = 3072;
    const Buffer memory(peer.exec.device, (kRows + 8) * kColumns * 2);
    const Tensor x(memory.data(), DType::bf16, {kRows, kColumns});
    EXPECT_EQ(peer.peers.row_owners(x).ranks, 0) << "nobody has been told";
    peer.peers.introduce(x);
    const ops::RowOwners owners = peer.peers.row_owners(x);
    ASSERT_EQ(owners.ranks, peer.size());
    EXPECT_EQ(owners.rank, peer.rank());
    int64_t rows = 0;
    for (int64_t r = 0; r < peer.size(); rows += owners.count[r++])
      EXPECT_EQ(owners.first[r], rows);
    EXPECT_EQ(rows, kRows);
    const int64_t own = owners.count[peer.rank()];
    EXPECT_EQ(owners.to[peer.rank()], memory.data() + peer.rank() * own * kColumns * 2);
    EXPECT_EQ(peer.peers.row_owners(x.rows(0, 64)).ranks, 0) << "few rows stay";
    peer.host.barrier(parallel::host());
  });
}

// Each rank norms the rows it looks after, for all: the bytes of the operations on whole rows, and
// no other row of its residual is touched. Numbers of rows that do and do not go up in ranks and
// blocks, norms in FP8 and not, wanted everywhere or, by some ranks, at home alone.
TEST_F(SharedGpu, PeersNormTheirOwnRowsAsAllRows) {
  const auto check = [](const Peer& peer) {
    Exec exec = peer.exec;
    parallel::Comm& comm = peer.peers;
    const Buffer memory(exec.device, 48 << 20);
    for (const auto& [rows, columns] :
         {std::pair<int64_t, int64_t>{513, 3072}, {1100, 1536}, {12'301, 128}}) {
      const int64_t count = rows * columns;
      Arena arena(memory);
      const Tensor delta = arena.place(DType::bf16, {rows + 8, columns}).rows(0, rows);
      const Tensor residual = arena.place(DType::bf16, {rows, columns});
      const Tensor out = arena.place(DType::bf16, {rows, columns});
      const Tensor norm = arena.place(DType::bf16, {columns});
      const Tensor values = arena.place(DType::f8_e4m3, {rows, columns});
      const Tensor scales = arena.place(DType::f32, {rows, columns / 128});
      comm.introduce(delta);
      const ops::RowOwners owners = comm.row_owners(delta);
      ASSERT_EQ(owners.ranks, peer.size());
      const int64_t begin = owners.first[owners.rank] * columns;
      const int64_t own = owners.count[owners.rank] * columns;
      const auto old = parallel::numbers<BF16>(9, count, columns);
      const auto weight = parallel::numbers<BF16>(10, columns, columns);
      std::vector<BF16> x, brought;  // this rank's numbers, and everyone's of its rows
      for (int64_t r = 0; r < peer.size(); ++r) {
        auto numbers = parallel::numbers<BF16>(r, count, columns);
        brought.insert(brought.end(), numbers.begin() + begin, numbers.begin() + begin + own);
        if (r == peer.rank()) x = std::move(numbers);
      }
      for (const auto& [quantises, everywhere] :
           {std::pair{true, false}, {true, true}, {false, true}, {false, false}}) {
        exec.scales = rows % 2 == 0 ? ScaleFormat::e8m0 : ScaleFormat::f32;
        const bool whole = everywhere || peer.rank() == 1;
        const ops::AddNorm into{residual, norm, 1e-6f, out,
                                quantises ? ops::Quantised{values, scales} : ops::Quantised()};
        struct Left {
          std::vector<BF16> residual, out;
          std::vector<std::byte> quantised;
        } left[2];
        for (const bool shared : {false, true}) {
          clear(exec, memory.data(), memory.bytes());
          copy_to_device(exec, residual.data(), old.data(), count * 2);
          copy_to_device(exec, norm.data(), weight.data(), columns * 2);
          copy_to_device(exec, delta.data(), shared ? brought.data() : x.data(),
                         std::ssize(shared ? brought : x) * 2);
          synchronize(exec);
          // Nobody writes what another has yet to clear.
          peer.host.barrier(parallel::host());
          if (shared) {
            comm.norm_own_rows(exec, delta, into,
                               whole ? parallel::NormedRows::all : parallel::NormedRows::own);
          } else {
            comm.all_reduce(exec, delta);
            synchronize(exec);  // else the norm's many blocks could keep a peer's from coming
            ops::add_rms_norm(exec, residual, delta, norm, into.eps, out, into.quantised);
          }
          Left& to = left[shared];
          to.residual.resize(old.size());
          to.out.resize(old.size());
          to.quantised.resize(static_cast<size_t>(count + count / 32));
          bring_to_host(exec, to.residual.data(), residual.data(), count * 2);
          bring_to_host(exec, to.out.data(), out.data(), count * 2);
          bring_to_host(exec, to.quantised.data(), values.data(), count);
          bring_to_host(exec, to.quantised.data() + count, scales.data(), count / 32);
          peer.host.barrier(parallel::host());
        }
        const auto same = [](const std::vector<BF16>& a, const std::vector<BF16>& b, int64_t first,
                             int64_t end) {
          return std::memcmp(a.data() + first, b.data() + first,
                             static_cast<size_t>(end - first) * 2) == 0;
        };
        const std::string what = fmt::format("{} x {} of {} ranks, FP8 {}, everywhere {}", rows,
                                             columns, peer.size(), quantises, everywhere);
        const int64_t end = begin + own;
        EXPECT_TRUE(same(left[0].residual, left[1].residual, begin, end)) << what;
        EXPECT_TRUE(same(left[1].residual, old, 0, begin)) << what;
        EXPECT_TRUE(same(left[1].residual, old, end, count)) << what;
        EXPECT_TRUE(same(left[0].out, left[1].out, whole ? 0 : begin, whole ? count : end)) << what;
        EXPECT_TRUE(left[0].quantised == left[1].quantised) << what;
      }
    }
  };
  each_peer(check, kMostInTests);
}

// What ranks make of their own rows comes to all, with sums of other kinds between, so that slots
// are written again; launched and recorded.
TEST_F(SharedGpu, PeersGatherTheirOwnRows) {
  const auto check = [](const Peer& peer) {
    const Exec exec = peer.exec;
    parallel::Comm& comm = peer.peers;
    constexpr int kTimes = 6;
    constexpr int64_t kTop = 8;
    const Buffer memory(exec.device, 64 << 20);
    std::vector<Graph> graphs;
    peer.host.barrier(parallel::host());
    for (const auto& [rows, columns] :
         {std::pair<int64_t, int64_t>{513, 3072}, {1031, 3072}, {12'301, 128}}) {
      Arena arena(memory);
      const Tensor x = arena.place(DType::bf16, {rows + 8, columns}).rows(0, rows);
      const Tensor few = arena.place(DType::f32, {50'000});
      std::vector<Tensor> ids, weights;
      for (int i = 0; i < kTimes; ++i) {
        ids.push_back(arena.place(DType::i32, {rows, kTop}));
        weights.push_back(arena.place(DType::f32, {rows, kTop}));
      }
      comm.introduce(x);
      const ops::RowOwners owners = comm.row_owners(x);
      ASSERT_EQ(owners.ranks, peer.size());
      const parallel::Range own{owners.first[owners.rank], owners.count[owners.rank]};
      const auto number = [&](int i, int64_t at) {
        return static_cast<int32_t>(at * 31 + i * 7 + 1);
      };
      const auto run = [&] {
        for (int i = 0; i < kTimes; ++i) {
          comm.gather_own_rows(
              exec, x, std::array{ids[static_cast<size_t>(i)], weights[static_cast<size_t>(i)]});
          settle(peer);
          if (i % 2 == 0) comm.all_reduce(exec, few);
          settle(peer);
        }
      };
      for (const bool recorded : {false, true}) {
        if (recorded && !room_behind_sums(peer)) continue;
        clear(exec, memory.data(), memory.bytes());
        std::vector<int32_t> told(static_cast<size_t>(own.count * kTop));
        for (int i = 0; i < kTimes; ++i)
          for (const bool second : {false, true}) {
            const auto& tensors = second ? weights : ids;
            for (size_t j = 0; j < told.size(); ++j)
              told[j] = number(i + (second ? 100 : 0), own.begin * kTop + static_cast<int64_t>(j));
            copy_to_device(exec, tensors[static_cast<size_t>(i)].rows(own.begin, own.count).data(),
                           told.data(), std::ssize(told) * 4);
          }
        synchronize(exec);
        if (recorded) graphs.push_back(Graph::record(exec, run));
        peer.host.barrier(parallel::host());
        recorded ? graphs.back().launch(exec) : run();
        std::vector<int32_t> heard(static_cast<size_t>(rows * kTop));
        for (int i = 0; i < kTimes; ++i)
          for (const bool second : {false, true}) {
            const Tensor& from = (second ? weights : ids)[static_cast<size_t>(i)];
            bring_to_host(exec, heard.data(), from.data(), std::ssize(heard) * 4);
            bool same = true;
            for (size_t j = 0; j < heard.size(); ++j)
              same &= heard[j] == number(i + (second ? 100 : 0), static_cast<int64_t>(j));
            EXPECT_TRUE(same) << rows << " rows of " << peer.size() << " ranks, tensor " << second
                              << " of " << i << (recorded ? ", recorded" : "");
          }
        peer.host.barrier(parallel::host());
      }
    }
  };
  each_peer(check, kMostInTests);
}

void* weights_at(const Tensor& weights, int64_t element) {
  return static_cast<BF16*>(weights.data()) + element;
}

// The operations of which all_reduce_qk_norm() has the bytes.
void step_by_step(parallel::Comm& comm, const Exec& exec, const ops::QkNorm& work) {
  ops::qk_sum_squares(exec, work.qkv, work.heads, work.sums);
  comm.all_reduce(exec, work.sums);
  synchronize(exec);  // else blocks of the next could keep a peer's from coming
  ops::qk_norm_rope_store(exec, work.qkv, work.sums, work.q_norm, work.k_norm, work.full_q,
                          work.full_k, work.eps, work.angles, work.slots, work.heads, work.cache);
}

// q and k normed over the heads of all ranks in one kernel leave the bytes of the three operations:
// shapes that the kernel knows, and others; padding tokens; both kinds of cache.
TEST_F(SharedGpu, PeersNormQAndKAsStepByStep) {
  const auto check = [](const Peer& peer) {
    const Exec exec = peer.exec;
    parallel::Comm& comm = peer.peers;
    constexpr int64_t kDim = 128, kRotary = 64, kBlock = 16;
    const Buffer memory(exec.device, 8 << 20);
    peer.host.barrier(parallel::host());
    for (const auto& [q_heads, kv_heads] :
         {std::pair<int64_t, int64_t>{12, 2}, {6, 1}, {24, 4}, {3, 1}, {48, 8}})
      for (const int64_t rows : {1, 5, 64, 65, 128, 129})
        for (const DType dtype : {DType::bf16, DType::f8_e4m3}) {
          const int64_t heads = q_heads + 2 * kv_heads;
          const bool fused = rows <= 128 && q_heads % 2 == 0 && heads <= 32;
          if (!fused && rows * heads > 65 * 16 && !room_behind_sums(peer)) continue;
          const int64_t width = heads * kDim;
          const int64_t blocks = rows / kBlock + 1;
          const auto numbers = parallel::numbers<BF16>(peer.rank(), rows * width, rows);
          const auto weights = parallel::numbers<BF16>(7, (q_heads + kv_heads) * kDim, 1);
          std::vector<float> angles(static_cast<size_t>(rows * kRotary));
          for (size_t i = 0; i < angles.size(); ++i)
            angles[i] = std::cos(0.37f * static_cast<float>(i));
          std::vector<int32_t> slots;
          for (int64_t t = 0; t < rows; ++t)
            slots.push_back(t % 4 == 3 ? -1 : static_cast<int32_t>(rows - 1 - t));
          std::vector<std::byte> left[2];  // qkv and the cache
          for (const bool whole : {false, true}) {
            Arena arena(memory);
            const Tensor qkv = arena.place(DType::bf16, {rows, width});
            const Tensor k = arena.place(dtype, {blocks, kv_heads, kBlock, kDim});
            const Tensor v = arena.place(dtype, {blocks, kv_heads, kBlock, kDim});
            const Tensor sums = arena.place(DType::f32, {rows, 2});
            const Tensor norms = arena.place(DType::bf16, {(q_heads + kv_heads) * kDim});
            const Tensor turns = arena.place(DType::f32, {rows, kRotary});
            const Tensor places = arena.place(DType::i32, {rows});
            clear(exec, memory.data(), memory.bytes());
            const auto copy = [&](const Tensor& to, const auto& from) {
              copy_to_device(exec, to.data(), from.data(),
                             std::ssize(from) * static_cast<int64_t>(sizeof(from[0])));
            };
            copy(qkv, numbers);
            copy(norms, weights);
            copy(turns, angles);
            copy(places, slots);
            const bool f8 = dtype == DType::f8_e4m3;
            const ops::KvCache cache{k, v, f8 ? 0.5f : 1.0f, f8 ? 0.25f : 1.0f};
            const Tensor q_norm(norms.data(), DType::bf16, {q_heads * kDim});
            const Tensor k_norm(weights_at(norms, q_heads * kDim), DType::bf16, {kv_heads * kDim});
            const ops::QkNorm work{qkv,
                                   sums,
                                   q_norm,
                                   k_norm,
                                   peer.size() * q_heads * kDim,
                                   peer.size() * kv_heads * kDim,
                                   1e-6f,
                                   turns,
                                   places,
                                   {q_heads, kv_heads, kDim, kRotary},
                                   cache};
            if (whole)
              comm.all_reduce_qk_norm(exec, work);
            else
              step_by_step(comm, exec, work);
            const auto bytes = static_cast<std::byte*>(sums.data()) - memory.data();
            left[whole].assign(static_cast<size_t>(bytes), std::byte{});
            bring_to_host(exec, left[whole].data(), memory.data(), bytes);
          }
          EXPECT_TRUE(left[0] == left[1])
              << q_heads << " and " << kv_heads << " heads, " << rows << " rows";
        }
  };
  each_peer(check, kMostInTests);
}

// Some tensors of a step as a rank has them, in one memory: sums of few numbers of all kinds use
// the same words of peers' memory, whatever the one before made of them.
struct SmallSums {
  static constexpr int64_t kHidden = 3072, kDim = 128, kQHeads = 6, kKvHeads = 1;
  static constexpr int64_t kWidth = (kQHeads + 2 * kKvHeads) * kDim, kMostRows = 128;
  enum Kind { bf16, f32, told, norm, qk, kinds };
  struct One {
    Kind kind;
    Tensor x, residual, hidden, out, scales, cache;
    int64_t root = 0;
  };
  std::vector<One> sums;
  Tensor weights, angles, slots;

  // Of at most 64 rows where ranks share a GPU: blocks of a larger sum's successor could keep a
  // peer's from coming.
  SmallSums(Arena& arena, int count, int64_t ranks, bool large, uint32_t seed) {
    std::mt19937 random(seed);
    weights = arena.place(DType::bf16, {kHidden});
    angles = arena.place(DType::f32, {kMostRows, 64});
    slots = arena.place(DType::i32, {kMostRows});
    for (int i = 0; i < count; ++i) {
      One one{static_cast<Kind>(random() % kinds), {}, {}, {}, {}, {}, {}};
      constexpr int64_t kSome[] = {1, 2, 3, 8, 10, 16, 22, 33, 64, 65, 97, 128};
      const int64_t most = large ? kMostRows : 64;
      const int64_t rows = std::min(most, kSome[random() % std::size(kSome)]);
      one.root = static_cast<int64_t>(random()) % ranks;
      switch (one.kind) {
        case bf16:
          one.x = arena.place(DType::bf16, {rows * kHidden - static_cast<int64_t>(random() % 9)});
          break;
        case f32:
        case told:
          one.x = arena.place(one.kind == f32 ? DType::f32 : DType::i32,
                              {rows * 300 - static_cast<int64_t>(random() % 9)});
          break;
        case norm:
          one.x = arena.place(DType::bf16, {rows, kHidden});
          one.residual = arena.place(DType::bf16, {rows, kHidden});
          one.hidden = arena.place(DType::bf16, {rows, kHidden});
          one.out = arena.place(DType::f8_e4m3, {rows, kHidden});
          one.scales = arena.place(DType::f32, {rows, kHidden / 128});
          break;
        default:
          one.x = arena.place(DType::bf16, {rows, kWidth});
          one.scales = arena.place(DType::f32, {rows, 2});
          one.cache = arena.place(DType::bf16, {kMostRows / 16, kKvHeads, 16, kDim});
      }
      sums.push_back(one);
    }
  }

  void run(parallel::Comm& comm, const Exec& exec, const One& one) const {
    if (one.kind == told) return comm.broadcast(exec, one.x, one.root);
    if (one.kind == norm)
      return comm.all_reduce_norm(
          exec, one.x,
          {one.residual, weights, 1e-6f, one.hidden, ops::Quantised{one.out, one.scales}});
    if (one.kind != qk) return comm.all_reduce(exec, one.x);
    const int64_t rows = one.x.size(0);
    comm.all_reduce_qk_norm(exec, {one.x,
                                   one.scales,
                                   Tensor(weights.data(), DType::bf16, {kQHeads * kDim}),
                                   Tensor(weights.data(), DType::bf16, {kKvHeads * kDim}),
                                   comm.size() * kQHeads * kDim,
                                   comm.size() * kKvHeads * kDim,
                                   1e-6f,
                                   angles.rows(0, rows),
                                   slots.rows(0, rows),
                                   {kQHeads, kKvHeads, kDim, 64},
                                   ops::KvCache{one.cache, one.cache}});
  }
};

// Thousands of small sums of changing kinds and sizes, recorded and launched again and again
// without a rank waiting for another but in the sums, leave what each leaves alone.
TEST_F(SharedGpu, PeersKeepSmallSumsApart) {
  constexpr int kCount = 60, kTimes = 12;
  constexpr int64_t kBytes = 64 << 20;
  const auto check = [](const Peer& peer) {
    const Exec exec = peer.exec;
    const Buffer at_first(exec.device, kBytes), memory(exec.device, kBytes);
    std::vector<std::byte> image(kBytes), alone(kBytes), got(kBytes);
    for (const uint32_t seed : {1u, 2u, 3u, 4u, 5u}) {
      Arena arena(memory);
      const SmallSums small(arena, kCount, peer.size(), room_behind_sums(peer), seed);
      std::mt19937 random(seed * 100 + static_cast<uint32_t>(peer.rank()));
      for (int64_t i = 0; i < kBytes; i += 2) {
        const BF16 number = to_bf16(static_cast<float>(random() % 4001) / 1000.0f - 2.0f);
        std::memcpy(image.data() + i, &number, 2);
      }
      const auto fill = [&](const Tensor& tensor, auto value) {
        for (int64_t i = 0; i < tensor.elements(); ++i)
          std::memcpy(image.data() + (static_cast<std::byte*>(tensor.data()) - memory.data()) +
                          i * static_cast<int64_t>(sizeof(value)),
                      &value, sizeof(value));
      };
      fill(small.angles, 0.5f);
      for (int64_t i = 0; i < SmallSums::kMostRows; ++i)
        fill(small.slots.rows(i, 1), static_cast<int32_t>(i));
      // Bits that words must not take for signs of their own.
      for (const auto& one : small.sums)
        if (one.kind == SmallSums::told) fill(one.x, static_cast<int32_t>(-(random() % 2)));
      copy_to_device(exec, at_first.data(), image.data(), kBytes);
      const auto begin = [&] {
        copy_between(exec, exec.device, memory.data(), exec.device, at_first.data(), kBytes);
      };
      begin();
      synchronize(exec);
      for (const auto& one : small.sums) {
        peer.host.barrier(parallel::host());
        small.run(peer.peers, exec, one);
        synchronize(exec);
      }
      bring_to_host(exec, alone.data(), memory.data(), kBytes);
      peer.host.barrier(parallel::host());
      const Graph graph = Graph::record(exec, [&] {
        for (const auto& one : small.sums) small.run(peer.peers, exec, one);
      });
      peer.host.barrier(parallel::host());
      for (int times = 0; times < kTimes; ++times) {
        begin();
        graph.launch(exec);
        if (times % 4 != 3) continue;
        bring_to_host(exec, got.data(), memory.data(), kBytes);
        EXPECT_TRUE(got == alone) << "sums " << seed << ", launched " << times + 1 << " times";
      }
      peer.host.barrier(parallel::host());
    }
  };
  each_peer(check, kMostInTests);
}

// Numbers that are none, of all bits, travel too.
TEST_F(SharedGpu, PeersSumWhatAreNoNumbers) {
  each_peer([](const Peer& peer) {
    const Exec exec = peer.exec;
    const Buffer memory(exec.device, 1 << 20);
    std::vector<uint32_t> bits(20'001, ~0u);
    const auto bytes = static_cast<int64_t>(bits.size()) * 4;
    for (const DType dtype : {DType::bf16, DType::f32}) {
      std::ranges::fill(bits, ~0u);
      copy_to_device(exec, memory.data(), bits.data(), bytes);
      synchronize(exec);
      peer.host.barrier(parallel::host());
      peer.peers.all_reduce(exec, Tensor(memory.data(), dtype, {bytes / size_of(dtype)}));
      bring_to_host(exec, bits.data(), memory.data(), bytes);
      const uint32_t none = dtype == DType::bf16 ? 0x7fff7fff : 0x7fffffff;
      EXPECT_EQ(std::ranges::count(bits, none), std::ssize(bits));
    }
  });
}

// Ranks that do not come: abort() ends what waits on the device, recorded or not.
void check_that_abort_frees_the_device(SumsBy sums, bool recorded) {
  const Fleet fleet(2, 1, false, sums);
  parallel::Comm& comm = *fleet.ranks[0].device_tensor;
  use_device(fleet.device(0));
  const Stream stream(fleet.device(0));
  const Exec exec{fleet.device(0), nullptr, stream.handle()};
  // NCCL connects the ranks in their first collective, on the host; the second is alone.
  fleet.each([&](size_t r) {
    const Stream own(fleet.device(r));
    const Exec there{fleet.device(r), nullptr, own.handle()};
    const Buffer first(fleet.device(r), 4096);
    const Tensor x(first.data(), DType::f32, {1024});
    fleet.ranks[r].device_tensor->all_reduce(there, x);
    fleet.ranks[r].device_tensor->broadcast(there, x, 1);
    synchronize(there);
  });
  const Buffer x(fleet.device(0), 4096);
  const auto collectives = [&] {
    comm.all_reduce(exec, Tensor(x.data(), DType::f32, {1024}));
    comm.broadcast(exec, Tensor(x.data(), DType::f32, {1024}), 1);
  };
  Graph graph;
  if (recorded) graph = Graph::record(exec, collectives);
  recorded ? graph.launch(exec) : collectives();
  const std::jthread aborts([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    comm.abort({Code::unavailable, "rank 1 did not finish a step", {}});
  });
  synchronize(exec);
  EXPECT_EQ(comm.status().error().text, "rank 1 did not finish a step");
}

TEST_F(GpuRanks, AbortFreesTheDevice) {
  for (const bool recorded : {false, true})
    check_that_abort_frees_the_device(SumsBy::nccl, recorded);
}

TEST_F(GpuRanks, AbortFreesTheDeviceOfPeers) {
  for (const bool recorded : {false, true})
    check_that_abort_frees_the_device(SumsBy::peers, recorded);
}

// NCCL connects the ranks in their first collective, on the host: the call itself waits for who
// does not come.
TEST_F(GpuRanks, AbortEndsACallThatWaits) {
  const Fleet fleet(2, 1, false, SumsBy::nccl);
  parallel::Comm& comm = *fleet.ranks[0].device_tensor;
  use_device(fleet.device(0));
  const Stream stream(fleet.device(0));
  const Exec exec{fleet.device(0), nullptr, stream.handle()};
  const Buffer x(fleet.device(0), 4096);
  const std::jthread aborts([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(300));
    comm.abort({Code::unavailable, "rank 1 did not come", {}});
  });
  comm.all_reduce(exec, Tensor(x.data(), DType::f32, {1024}));
  synchronize(exec);
  EXPECT_EQ(comm.status().error().text, "rank 1 did not come");
}

ModelConfig config_of() {
  ModelConfig config = small_config();
  config.hidden_size = 512;
  config.intermediate_size = 192 * 4;  // whole and half blocks on 4 ranks
  config.num_layers = 3;
  config.num_heads = 12;
  config.num_kv_heads = 2;  // twice on 4 ranks
  config.head_dim = 128;
  config.rotary_dim = 64;
  config.num_experts = 16;
  config.num_experts_per_token = 4;
  config.vocab_size = 2047;
  config.rope_theta = 5000000;
  return config;
}

constexpr int64_t kMostTokens = 640;

struct Spread {
  int64_t tensor, data;
  bool whole;
  std::vector<int64_t> graph_sizes;
  ExchangeKind exchange = ExchangeKind::all_gather;
  SumsBy sums = SumsBy::peers;
  bool whole_rows = false;  // no rank looks after rows for others

  std::string name() const {
    return fmt::format("TP{} DP{}{}{}{} {} graphs", tensor, data, whole ? " EP" : "",
                       exchange == ExchangeKind::all_to_all ? " all-to-all" : "",
                       sums == SumsBy::nccl   ? " NCCL"
                       : sums == SumsBy::host ? " on one GPU"
                                              : "",
                       graph_sizes.size());
  }
};

// The model on every rank of a fleet.
class Ranks {
 public:
  Ranks(const ModelConfig& config, const Spread& spread)
      : config_(config),
        fleet_(spread.tensor, spread.data, spread.whole, spread.sums),
        spread_(spread) {
    for (size_t r = 0; r < fleet_.ranks.size(); ++r) streams_.emplace_back(fleet_.device(r));
    models_.resize(fleet_.ranks.size());
    whole_.resize(fleet_.ranks.size());
    fleet_.each([&](size_t r) {
      const parallel::LocalRank& rank = fleet_.ranks[r];
      const Device device = fleet_.device(r);
      Weights weights = random_weights(config, rank.topology, device);
      MemoryRequest request = small_memory(config);
      request.max_num_batched_tokens = kMostTokens;
      request.topology = rank.topology;
      request.exchange = spread.exchange;
      request.padded_rows = spread.graph_sizes.empty() ? 0 : spread.graph_sizes.back();
      Result<MemoryPlan> plan = plan_memory(config, weights, request, device);
      M2_CHECK(plan.ok(), "{}", plan.error().text);
      RunnerOptions options;
      options.graph_sizes = spread.graph_sizes;
      const parallel::Groups groups = rank.model_groups();
      whole_[r] = std::make_unique<parallel::WholeRowsComm>(groups.tensor);
      models_[r] = make_runner(fleet_.exec(r, streams_[r]),
                               {spread.whole_rows ? parallel::Groups{*whole_[r]} : groups,
                                rank.topology, spread.exchange},
                               config, std::move(weights), *plan, request.max_model_len, options);
    });
  }

  // Every engine runs the same chunks, or, if `only_first`, the first one alone. The first one's
  // logits.
  Rows run(const std::vector<Chunk>& chunks, bool only_first = false) {
    RowsSink first;
    fleet_.each([&](size_t r) {
      const bool works = !only_first || fleet_.ranks[r].topology.data_rank == 0;
      const StepArrays arrays(works ? chunks : std::vector<Chunk>());
      StepInput input = arrays.input();
      input.engine_tokens = tokens(StepArrays(chunks).input(), only_first);
      RowsSink other;
      const Result<void> done =
          models_[r]->step(input, r == 0 ? static_cast<LogitsSink&>(first) : other);
      M2_CHECK(done.ok(), "{}", done.error().text);
    });
    return first.take();
  }

  // Decodes greedily from `token` at `position`, two steps under way at a time.
  std::vector<int32_t> decode(int32_t token, int32_t position, const std::vector<int32_t>& blocks,
                              int steps) {
    std::vector<int32_t> out;
    fleet_.each([&](size_t r) {
      const auto collect = [&] {
        const Result<StepResult> result = models_[r]->collect();
        M2_CHECK(result.ok(), "{}", result.error().text);
        if (r == 0) out.push_back(result->rows[0].token);
      };
      const std::vector<ops::SampleRow> greedy(1);
      for (int i = 0; i < steps; ++i) {
        const StepArrays arrays({{{i == 0 ? token : 0}, position + i, blocks}});
        StepInput input = arrays.input();
        const int32_t pending = -1;
        if (i > 0) input.token_ids = {&pending, 1};
        input.engine_tokens = tokens(input, false);
        models_[r]->enqueue(input, {greedy, {}, {}});
        if (i > 0) collect();
      }
      collect();
    });
    return out;
  }

 private:
  std::span<const int64_t> tokens(const StepInput& input, bool only_first) {
    thread_local std::vector<int64_t> out;
    out.assign(static_cast<size_t>(spread_.data), static_cast<int64_t>(input.token_ids.size()));
    if (only_first) std::fill(out.begin() + 1, out.end(), 0);
    return spread_.data > 1 ? std::span<const int64_t>(out) : std::span<const int64_t>();
  }

  const ModelConfig config_;
  const Fleet fleet_;
  const Spread spread_;
  std::vector<Stream> streams_;
  std::vector<std::unique_ptr<parallel::WholeRowsComm>> whole_;
  std::vector<std::unique_ptr<StepModel>> models_;
};

// The tolerance of gpu_runner_test.cc for FP8 weights, whose products take FP8 activations. Of few
// rows one near tie of a router moves the middle.
void expect_close(const Rows& rows, const Rows& expected, const std::string& what) {
  ASSERT_EQ(rows.size(), expected.size()) << what;
  std::vector<double> distances;
  for (size_t i = 0; i < rows.size(); ++i) distances.push_back(distance(rows[i], expected[i]));
  std::ranges::sort(distances);
  if (distances.size() >= 10) {
    EXPECT_LT(distances[distances.size() / 2], 0.06) << what;
  }
  EXPECT_LT(distances[distances.size() * 9 / 10], 0.25) << what;
}

void expect_the_model_of_one(const std::vector<Spread>& spreads) {
  const ModelConfig config = config_of();
  SmallModel cpu(config, random_weights(config), 0);
  std::mt19937 random(3);
  const auto some = [&](size_t count) {
    std::vector<int32_t> out(count);
    for (int32_t& id : out) id = static_cast<int32_t>(random() % 2000);
    return out;
  };
  const std::vector<Chunk> prompts{{some(40), 0, {1, 2, 3, 4}}, {some(17), 0, {9, 8}}};
  const std::vector<Chunk> next{{some(1), 40, {1, 2, 3, 4}}, {some(1), 17, {9, 8}}};
  const Rows expected = cpu.run(prompts), expected_next = cpu.run(next);

  for (const Spread& spread : spreads) {
    const std::string name = spread.name();
    Ranks ranks(config, spread);
    expect_close(ranks.run(prompts), expected, name + ", prompts");
    expect_close(ranks.run(next), expected_next, name + ", decoding");
    if (spread.data > 1)
      expect_close(ranks.run(next, true), expected_next, name + ", one engine of several");
    const std::vector<int32_t> decoded = ranks.decode(5, 41, {1, 2, 3, 4}, 12);
    ASSERT_EQ(decoded.size(), 12u);
    // The same arrangement again, with what it wrote before in the cache.
    EXPECT_EQ(ranks.decode(5, 41, {1, 2, 3, 4}, 12), decoded) << name;
  }
}

TEST_F(GpuRanks, TheModelOnManyIsTheModelOnOne) {
  std::vector<Spread> spreads{{2, 1, false, {}},
                              {2, 1, false, {1, 2, 4}},
                              {2, 1, true, {1, 2}},
                              {1, 2, true, {}},
                              {1, 2, true, {}, ExchangeKind::all_to_all},
                              {1, 2, false, {}},
                              {2, 1, false, {1, 2}, ExchangeKind::all_gather, SumsBy::nccl}};
  if (gpus() >= 4)
    for (const Spread& more :
         {Spread{4, 1, false, {}}, Spread{4, 1, false, {1, 2, 4}}, Spread{4, 1, true, {1, 2}},
          Spread{2, 2, true, {}}, Spread{2, 2, true, {}, ExchangeKind::all_to_all},
          Spread{1, 4, true, {}}})
      spreads.push_back(more);
  expect_the_model_of_one(spreads);
}

TEST_F(SharedGpu, TheModelOnManyIsTheModelOnOne) {
  std::vector<Spread> spreads;
  for (const auto& [tensor, data, whole] : {std::tuple{2, 1, false},
                                            {2, 1, true},
                                            {4, 1, false},
                                            {4, 1, true},
                                            {1, 2, false},
                                            {1, 2, true},
                                            {2, 2, true},
                                            {1, 4, true}})
    spreads.push_back({tensor, data, whole, {}, ExchangeKind::all_gather, SumsBy::host});
  spreads.push_back({2, 2, true, {}, ExchangeKind::all_to_all, SumsBy::host});
  expect_the_model_of_one(spreads);
}

// Two numbers have one sum, whoever adds them; and both ways of the exchange add the same.
TEST_F(GpuRanks, TheSameBytesByEveryWayOfTwoRanks) {
  const ModelConfig config = config_of();
  const std::vector<Chunk> prompt{{{3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9}, 0, {1, 2}}};
  const auto run = [&](const Spread& spread) { return Ranks(config, spread).run(prompt); };
  EXPECT_EQ(run({2, 1, false, {}}), run({2, 1, false, {}, ExchangeKind::all_gather, SumsBy::nccl}));
  EXPECT_EQ(run({1, 2, true, {}}), run({1, 2, true, {}, ExchangeKind::all_to_all}));
}

// A rank's part of a layer of M2's shape, with narrow experts, and a token at its last position, or
// two, each of a sequence of its own.
struct DecodedToken {
  static constexpr int64_t kHidden = 3072, kExperts = 256, kInner = 128, kTop = 8, kDim = 128;
  const Exec& exec;
  const int64_t kv_heads, q, kv;
  const ops::HeadShape heads;
  std::mt19937 own, all;  // what differs from rank to rank, and what does not
  Arena arena;
  std::vector<ops::Linear> parts;
  ops::Linear o;
  Tensor q_norm, k_norm, norm, gate, bias, residual, hidden, values, scales, angles, ids, weights,
      delta, scratch, qkv, sums, attended, attended_values, attended_scales, k, v, token, positions,
      slots, starts, lens, tables, rows;
  ops::Experts experts;
  std::byte* left = nullptr;  // what a token leaves begins here
  int64_t left_bytes = 0;

  DecodedToken(const Exec& where, const Buffer& memory, int64_t rank, int64_t of_heads,
               int64_t context, DType cache, int64_t count = 1)
      : exec(where),
        kv_heads(of_heads),
        q(kv_heads * 6 * kDim),
        kv(kv_heads * kDim),
        heads{kv_heads * 6, kv_heads, kDim, 64},
        own(static_cast<uint32_t>(100 * context + rank)),
        all(static_cast<uint32_t>(context)),
        arena(memory) {
    const Tensor weight = codes({q + 2 * kv, kHidden});
    parts = {{weight.rows(0, q), floats(own, {q / 128, 24}, 1e-4f, 4e-4f), 0, 0},
             {weight.rows(q, kv), floats(own, {kv_heads, 24}, 1e-4f, 4e-4f), 0, 0},
             {weight.rows(q + kv, kv), floats(own, {kv_heads, 24}, 1e-4f, 4e-4f), 0, 0}};
    o = {codes({kHidden, q}), floats(own, {24, q / 128}, 1e-4f, 4e-4f), 0, 0};
    q_norm = bf16(own, q);
    k_norm = bf16(own, kv);
    norm = bf16(all, kHidden);
    gate = floats(all, {kExperts, kHidden}, -0.03f, 0.03f);
    bias = floats(all, {kExperts}, -0.01f, 0.01f);
    experts.w13 = codes({kExperts, 2 * kInner, kHidden});
    experts.w2 = codes({kExperts, kHidden, kInner});
    experts.w1_scale = floats(own, {kExperts, 1, 24}, 1e-4f, 4e-4f);
    experts.w3_scale = floats(own, {kExperts, 1, 24}, 1e-4f, 4e-4f);
    experts.w2_scale = floats(own, {kExperts, 24, 1}, 1e-4f, 4e-4f);
    const int64_t pages = (context + 15) / 16;
    std::vector<int32_t> table, at, to, first{0}, length, row;
    for (int64_t r = 0; r < count; ++r) {
      const int64_t own_context = std::max<int64_t>(1, context - 37 * r);
      const auto position = static_cast<int32_t>(own_context - 1);
      const size_t begin = table.size();
      for (int64_t i = 0; i < pages + 2; ++i)
        table.push_back(static_cast<int32_t>(r * (pages + 2) + (i < pages ? i ^ 1 : 0)));
      at.push_back(position);
      to.push_back(table[begin + static_cast<size_t>(position / 16)] * 16 + position % 16);
      first.push_back(static_cast<int32_t>(r + 1));
      length.push_back(static_cast<int32_t>(own_context));
      row.push_back(static_cast<int32_t>(r));
    }
    token = words(std::vector<int32_t>(static_cast<size_t>(count), 5));
    positions = words(at);
    slots = words(to);
    starts = words(first);
    lens = words(length);
    tables = words(table).reshaped({count, pages + 2});
    rows = words(row);
    angles = arena.place(DType::f32, {count, 64});
    ops::rope_angles(exec, positions, 5e6f, angles);
    scratch =
        arena.place(DType::u8, {ops::experts_scratch_bytes(exec.device, experts, count, kTop)});
    clear(exec, scratch.data(), scratch.elements());
    qkv = arena.place(DType::bf16, {count, q + 2 * kv});
    sums = arena.place(DType::f32, {count, 2});
    attended = arena.place(DType::bf16, {count, q});
    attended_values = arena.place(DType::f8_e4m3, {count, q});
    attended_scales = arena.place(DType::f32, {count, q / 128});
    residual = arena.place(DType::bf16, {count, kHidden});
    left = static_cast<std::byte*>(residual.data());
    hidden = arena.place(DType::bf16, {count, kHidden});
    values = arena.place(DType::f8_e4m3, {count, kHidden});
    scales = arena.place(DType::f32, {count, 24});
    ids = arena.place(DType::i32, {count, kTop});
    weights = arena.place(DType::f32, {count, kTop});
    delta = arena.place(DType::bf16, {count, kHidden});
    k = arena.place(cache, {count * (pages + 2), kv_heads, 16, kDim});
    v = arena.place(cache, {count * (pages + 2), kv_heads, 16, kDim});
    left_bytes = static_cast<std::byte*>(v.data()) + v.elements() * size_of(cache) - left;
    synchronize(exec);
  }

  // The input, and K and V before it.
  void begin() {
    std::mt19937 same(7);
    fill_bf16(same, residual);
    fill_bf16(same, hidden);
    ops::quantise(exec, hidden, {values, scales});
    own.seed(8);
    for (const Tensor& cache : {k, v})
      cache.dtype() == DType::bf16 ? fill_bf16(own, cache) : fill_codes(cache);
    synchronize(exec);
  }

  // kLayers of the same weights: as a whole, or in operations.
  void run(parallel::Comm& comm, bool whole) const {
    constexpr int kLayers = 40;
    const float scale = k.dtype() == DType::bf16 ? 1.0f : 0.03f;
    const ops::KvCache cache{k, v, scale, scale};
    const ops::BatchLayout layout{token, positions, slots, starts, lens, tables, rows};
    const ops::Quantised quantised{values, scales};
    const ops::AddNorm next{residual, norm, 1e-6f, hidden, quantised};
    const int64_t size = 8 / kv_heads;
    const ops::DecodeLayer layer{parts, q_norm, k_norm, o, norm, gate, bias, experts, 1e-6f};
    const ops::DecodeTensors tensors{residual, hidden,  quantised, angles,
                                     ids,      weights, delta,     scratch};
    for (int l = 0; l < kLayers; ++l) {
      const ops::DecodeRanks ranks{size, comm.decode_peers()};
      if (whole && layout.tokens() > 1) {
        const ops::UnsummedExperts unsummed =
            ops::decode_rows(exec, layer, cache, layout, heads, tensors, ranks);
        comm.all_reduce_experts_norm(exec, delta, unsummed, next);
      } else if (whole) {
        ops::decode_layer(exec, layer, cache, layout, heads, tensors, nullptr, &next, ranks);
      } else {
        const ops::Quantised small{attended_values, attended_scales};
        ops::linear(exec, hidden, parts, qkv, quantised);
        comm.all_reduce_qk_norm(exec, {qkv, sums, q_norm, k_norm, size * q, size * kv, 1e-6f,
                                       angles, slots, heads, cache});
        ops::paged_attention(exec, qkv.columns(0, q), cache, layout, heads, attended, small);
        ops::linear(exec, attended, o, delta, small);
        comm.all_reduce_norm(exec, delta, next);
        ops::route_experts(exec, hidden, {gate, bias, slots}, experts, ids, weights, scratch, delta,
                           quantised, nullptr);
        comm.all_reduce_norm(exec, delta, next);
      }
    }
  }

  std::vector<std::byte> result() const {
    std::vector<std::byte> out(static_cast<size_t>(left_bytes));
    bring_to_host(exec, out.data(), left, left_bytes);
    return out;
  }

 private:
  void upload(const Tensor& to, const void* from) const {
    copy_to_device(exec, to.data(), from, to.elements() * size_of(to.dtype()));
  }
  void fill_codes(const Tensor& to) {
    // A part of it over and over.
    const int64_t bytes = to.elements(), some = std::min<int64_t>(bytes, 1'000'003);
    std::vector<uint8_t> codes(static_cast<size_t>(some));
    for (uint8_t& code : codes) {
      code = static_cast<uint8_t>(own());
      if ((code & 0x7f) == 0x7f) --code;  // no NaN
    }
    for (int64_t done = 0; done < bytes; done += some)
      copy_to_device(exec, static_cast<std::byte*>(to.data()) + done, codes.data(),
                     std::min(some, bytes - done));
  }
  Tensor codes(std::initializer_list<int64_t> shape) {
    const Tensor out = arena.place(DType::f8_e4m3, shape);
    fill_codes(out);
    return out;
  }
  void fill_bf16(std::mt19937& random, const Tensor& to) const {
    // A part of it over and over.
    std::normal_distribution<float> number;
    const int64_t count = to.elements(), some = std::min<int64_t>(count, 1'000'003);
    std::vector<BF16> numbers(static_cast<size_t>(some));
    for (BF16& one : numbers) one = to_bf16(number(random));
    for (int64_t done = 0; done < count; done += some)
      copy_to_device(exec, static_cast<BF16*>(to.data()) + done, numbers.data(),
                     std::min(some, count - done) * 2);
  }
  Tensor bf16(std::mt19937& random, int64_t count) {
    const Tensor out = arena.place(DType::bf16, {count});
    fill_bf16(random, out);
    return out;
  }
  Tensor floats(std::mt19937& random, std::initializer_list<int64_t> shape, float least,
                float most) {
    const Tensor out = arena.place(DType::f32, shape);
    std::vector<float> numbers(static_cast<size_t>(out.elements()));
    std::uniform_real_distribution<float> number(least, most);
    for (float& one : numbers) one = number(random);
    upload(out, numbers.data());
    return out;
  }
  Tensor words(const std::vector<int32_t>& from) {
    const Tensor out = arena.place(DType::i32, {std::ssize(from)});
    upload(out, from.data());
    return out;
  }
};

// Layers of one token by a kernel for the attention half of each, whose blocks tell all ranks what
// they have: the bytes of the operations and the communicator's sums, launched and recorded.
void expect_layers_as_step_by_step(int64_t count, std::initializer_list<int64_t> shares) {
  each_peer([&](const Peer& peer) {
    if (peer.size() > gpus()) return;
    const Buffer memory(peer.exec.device, int64_t{768} << 20),
        workspace(peer.exec.device, 64 << 20);
    Exec exec = peer.exec;
    exec.workspace = workspace.data();
    exec.workspace_bytes = workspace.bytes();
    for (const int64_t kv_heads : shares)
      for (const DType cache : {DType::bf16, DType::f8_e4m3})
        for (const int64_t context : {1, 300, 2048, 40'000}) {
          if (peer.size() * kv_heads > 8) continue;
          DecodedToken token(exec, memory, peer.rank(), kv_heads, context, cache, count);
          std::vector<std::byte> expected;
          for (const auto& [whole, recorded] :
               {std::pair{false, false}, {true, false}, {true, true}}) {
            token.begin();
            Graph graph;
            if (recorded) graph = Graph::record(exec, [&] { token.run(peer.peers, whole); });
            peer.host.barrier(parallel::host());
            recorded ? graph.launch(exec) : token.run(peer.peers, whole);
            const std::vector<std::byte> got = token.result();
            if (!whole) expected = got;
            EXPECT_TRUE(got == expected)
                << count << " tokens, " << kv_heads << " KV heads, " << context << " positions"
                << (recorded ? ", recorded" : "");
            peer.host.barrier(parallel::host());
          }
        }
  });
}

TEST_F(GpuRanks, PeersDecodeLayersAsStepByStep) {
  expect_layers_as_step_by_step(1, {1, 2, 4});
}

TEST_F(GpuRanks, PeersDecodeLayersOfTwoTokensAsStepByStep) {
  expect_layers_as_step_by_step(2, {1, 2, 4});
}

// A rank that does not come: abort() ends the layers under way, recorded or not, though they wait
// in kernels of their own.
TEST_F(GpuRanks, AbortFreesTheDeviceOfDecodedLayers) {
  for (const auto& [count, recorded] :
       {std::pair<int64_t, bool>{1, false}, {1, true}, {2, false}, {2, true}}) {
    const Fleet fleet(2, 1, false);
    parallel::Comm& comm = *fleet.ranks[0].device_tensor;
    const Device device = fleet.device(0);
    use_device(device);
    const Stream stream(device);
    const Buffer memory(device, int64_t{512} << 20), workspace(device, 64 << 20);
    Exec exec = fleet.exec(0, stream);
    exec.workspace = workspace.data();
    exec.workspace_bytes = workspace.bytes();
    DecodedToken token(exec, memory, 0, 2, 300, DType::bf16, count);
    token.begin();
    Graph graph;
    if (recorded) graph = Graph::record(exec, [&] { token.run(comm, true); });
    recorded ? graph.launch(exec) : token.run(comm, true);
    const std::jthread aborts([&] {
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
      comm.abort({Code::unavailable, "rank 1 did not finish a step", {}});
    });
    synchronize(exec);
    EXPECT_EQ(comm.status().error().text, "rank 1 did not finish a step");
    EXPECT_EQ(comm.decode_peers().ranks, 0) << "nothing waits for it any more";
  }
}

// Prompts of so many rows that each rank norms, and chooses experts of, a share of them for all: as
// if every rank had done all, by sums of the same order.
TEST_F(GpuRanks, TheSameBytesWhoeverNormsARow) {
  ModelConfig config = config_of();
  config.hidden_size = 3072;
  config.intermediate_size = 512;
  config.num_experts = 6;
  config.num_layers = 2;
  config.max_position_embeddings = 1024;
  std::mt19937 random(4);
  std::vector<int32_t> ids(static_cast<size_t>(kMostTokens - 17));
  for (int32_t& id : ids) id = static_cast<int32_t>(random() % 2000);
  const std::vector<int32_t> blocks = [] {
    std::vector<int32_t> out(kMostTokens / kBlockSize);
    for (size_t i = 0; i < out.size(); ++i) out[i] = static_cast<int32_t>(i);
    return out;
  }();
  for (const int64_t size : {2, 4}) {
    if (size > gpus()) continue;
    const auto run = [&](bool whole_rows) {
      Ranks ranks(config,
                  {size, 1, false, {}, ExchangeKind::all_gather, SumsBy::peers, whole_rows});
      const Rows first = ranks.run({{ids, 0, blocks}});
      // What is in the cache, too.
      Rows next = ranks.run({{{7}, static_cast<int32_t>(ids.size()), blocks}});
      next.insert(next.end(), first.begin(), first.end());
      return next;
    };
    EXPECT_EQ(run(true), run(false)) << size << " ranks";
  }
}

}  // namespace
}  // namespace m2::model
