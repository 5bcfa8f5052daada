#include "parallel/hosted_comm.h"

#include "parallel/nccl.h"
#include "parallel/shared_comm.h"
#include "tests/parallel/comm_contract.h"

namespace m2::parallel {
namespace {

// Over the CPU's memory, taken for a device's; tests/model/cuda has a GPU's.
struct Hosted {
  explicit Hosted(int64_t size) : hosts(make_thread_comms(size)) {
    for (const auto& host : hosts) {
      comms.push_back(make_hosted_comm(*host, Device{}));
      pointers.push_back(comms.back().get());
    }
  }

  std::vector<std::unique_ptr<Comm>> hosts, comms;
  Comms pointers;
};

TEST(HostedComms, KeepTheContract) {
  for (const int64_t size : {1, 2, 3, 8}) check_contract(Hosted(size).pointers);
}

TEST(HostedComms, AbortFreesWaitingRanks) {
  const Hosted hosted(2);
  on_every_rank(hosted.pointers, [](Comm& comm) {
    std::vector<float> x(100, 1.0f);
    if (comm.rank() == 1) comm.abort({Code::unavailable, "rank 1 has had enough", {}});
    comm.all_reduce(host(), view(x, 1, 100));
    ASSERT_EQ(comm.status().error().text, "rank 1 has had enough");
  });
}

TEST(HostedComms, StandBesideTheGroupsOfARank) {
  Topology shape;
  shape.tensor_size = 2;
  shape.data_size = 2;
  for (LocalRank& rank : make_local_ranks(shape)) {
    ASSERT_TRUE(add_device_groups(rank, Device{}, SumsBy::host).ok());
    EXPECT_EQ(rank.device_tensor->size(), 2);
    EXPECT_EQ(rank.device_tensor->rank(), rank.topology.tensor_rank);
    EXPECT_EQ(rank.device_engines->size(), 4);
    EXPECT_EQ(rank.device_engines->rank(), rank.topology.expert_rank());
    EXPECT_EQ(&rank.model_groups().tensor, rank.device_tensor.get());
  }
}

}  // namespace
}  // namespace m2::parallel
