#include "parallel/shared_comm.h"

#include <atomic>

#include "tests/parallel/comm_contract.h"

namespace m2::parallel {
namespace {

Comms pointers(const std::vector<std::unique_ptr<Comm>>& comms) {
  Comms out;
  for (const auto& comm : comms) out.push_back(comm.get());
  return out;
}

TEST(SingleComm, KeepsTheContract) {
  const std::unique_ptr<Comm> comm = make_single_comm();
  check_contract({comm.get()});
}

class ThreadCommsOf : public testing::TestWithParam<int64_t> {};
INSTANTIATE_TEST_SUITE_P(Sizes, ThreadCommsOf, testing::Values(1, 2, 3, 5, 8, 16));

TEST_P(ThreadCommsOf, KeepTheContract) {
  check_contract(pointers(make_thread_comms(GetParam())));
}

// Small sums take turns over two sets of slots, large ones over two results: many in a row, of
// changing sizes, must not run into each other.
TEST(ThreadComms, ManySumsInARow) {
  const auto comms = make_thread_comms(4);
  on_every_rank(pointers(comms), [](Comm& comm) {
    for (int64_t i = 0; i < 3000; ++i) {
      const int64_t count = i % 3 == 0 ? 4000 : 2;
      std::vector<float> x(static_cast<size_t>(count), static_cast<float>(comm.rank() + i));
      comm.all_reduce(host(), view(x, 1, count));
      ASSERT_EQ(x.front(), static_cast<float>(6 + 4 * i));
      ASSERT_EQ(x.back(), x.front());
    }
  });
}

// Every barrier is one: nobody leaves before the last has come.
TEST(ThreadComms, BarrierHoldsEveryone) {
  const auto comms = make_thread_comms(5);
  std::atomic<int> arrived{0};
  on_every_rank(pointers(comms), [&](Comm& comm) {
    for (int round = 1; round <= 200; ++round) {
      ++arrived;
      comm.barrier(host());
      ASSERT_GE(arrived.load(), round * 5);
      comm.barrier(host());
    }
  });
}

TEST(ThreadComms, AbortFreesWaitingRanks) {
  const auto comms = make_thread_comms(3);
  on_every_rank(pointers(comms), [](Comm& comm) {
    if (comm.rank() == 2) {
      comm.abort({Code::unavailable, "rank 2 has had enough", {}});
    } else {
      std::vector<float> x(10000, 1.0f);
      comm.all_reduce(host(), view(x, 1, 10000));
      comm.barrier(host());
    }
    ASSERT_EQ(comm.status().error().text, "rank 2 has had enough");
  });
}

// Ranks in different calls are a bug that must not hang nor pass.
TEST(ThreadComms, NamesRanksInDifferentCalls) {
  const auto comms = make_thread_comms(2);
  on_every_rank(pointers(comms), [](Comm& comm) {
    std::vector<float> x(100000, 1.0f);
    if (comm.rank() == 0) {
      comm.all_reduce(host(), view(x, 1, 100000));
    } else {
      comm.barrier(host());
    }
    ASSERT_EQ(comm.status().error().text, "rank 0 is in all_reduce 1, rank 1 in barrier 1");
  });
}

}  // namespace
}  // namespace m2::parallel
