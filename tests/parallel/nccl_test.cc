// Over a stand-in for NCCL's library (stand_in_nccl.cc); tests/parallel/cuda has the real one.
#include "parallel/nccl.h"

#include <dlfcn.h>

#include <chrono>

#include "parallel/shared_comm.h"
#include "tests/parallel/comm_contract.h"

namespace m2::parallel {
namespace {

// Ranks of one process with groups "of devices", which here are host memory.
struct Group {
  explicit Group(const Topology& shape) : ranks(make_local_ranks(shape)) {
    std::vector<std::thread> threads;
    for (LocalRank& rank : ranks)
      threads.emplace_back([&rank] {
        const Result<void> added = add_device_groups(rank, Device{});
        EXPECT_TRUE(added.ok()) << added.error().text;
      });
    for (std::thread& thread : threads) thread.join();
  }
  std::vector<LocalRank> ranks;
};

TEST(NcclComm, KeepsTheContractInEveryGroup) {
  for (const auto& [tensor, data] : {std::pair{2, 1}, {5, 1}, {2, 3}, {1, 4}}) {
    Topology shape;
    shape.tensor_size = tensor;
    shape.data_size = data;
    const Group group(shape);
    Comms all;
    for (int64_t engine = 0; engine < data; ++engine) {
      Comms own;
      for (int64_t r = 0; r < tensor; ++r) {
        const LocalRank& rank = group.ranks[static_cast<size_t>(engine * tensor + r)];
        own.push_back(rank.device_tensor.get());
        if (rank.device_engines) all.push_back(rank.device_engines.get());
      }
      if (tensor > 1) check_contract(own, Bf16Sums::in_bf16);
    }
    ASSERT_EQ(all.size(), data > 1 ? static_cast<size_t>(tensor * data) : 0u);
    if (data > 1) check_contract(all, Bf16Sums::in_bf16);
  }
}

void expect_abort_ends_a_call(Comm& comm) {
  std::thread aborts([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    comm.abort({Code::unavailable, "rank 1 did not come", {}});
  });
  std::vector<float> x(10, 1);
  comm.all_reduce(host(), view(x, 1, 10));
  aborts.join();
  EXPECT_EQ(comm.status().error().text, "rank 1 did not come");
}

// A call that waits for a rank that does not come (NCCL connects ranks in their first) is ended by
// abort(), from another thread.
TEST(NcclComm, AbortEndsACallThatWaits) {
  Topology shape;
  shape.tensor_size = 2;
  const Group group(shape);
  expect_abort_ends_a_call(*group.ranks[0].device_tensor);
}

// NCCL frees a group that it has aborted when no recorded graph holds it any more; the graphs live
// as long as the model, which waits for the collective that abort() is to end.
TEST(NcclComm, AbortDoesNotWaitForRecordedGraphs) {
  Topology shape;
  shape.tensor_size = 2;
  const Group group(shape);
  void* library = ::dlopen("libnccl.so.2", RTLD_NOW);
  ASSERT_NE(library, nullptr);
  auto* const hold = reinterpret_cast<void (*)(int)>(::dlsym(library, "stand_in_hold_by_graphs"));
  ASSERT_NE(hold, nullptr);
  hold(1);
  expect_abort_ends_a_call(*group.ranks[0].device_tensor);
  hold(0);
  ::dlclose(library);
}

TEST(NcclComm, AfterAbortNothingIsCalled) {
  Topology shape;
  shape.tensor_size = 2;
  const Group group(shape);
  Comm& comm = *group.ranks[0].device_tensor;
  comm.abort({Code::unavailable, "rank 1 did not finish", {}});
  std::vector<float> x(10, 1);
  comm.all_reduce(host(), view(x, 1, 10));
  comm.barrier(host());
  EXPECT_EQ(comm.status().error().text, "rank 1 did not finish");
  EXPECT_EQ(x, std::vector<float>(10, 1));
}

}  // namespace
}  // namespace m2::parallel
