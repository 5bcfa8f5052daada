#include "parallel/counted_comm.h"

#include <gtest/gtest.h>

#include <string>

#include "parallel/shared_comm.h"
#include "tests/parallel/comm_contract.h"

namespace m2::parallel {
namespace {

TEST(CountedComm, KeepsTheContract) {
  std::array<Progress, 3> progress;
  auto comms = make_thread_comms(3);
  Comms pointers;
  for (size_t r = 0; r < comms.size(); ++r) {
    comms[r] = count_collectives(std::move(comms[r]), progress[r]);
    pointers.push_back(comms[r].get());
  }
  check_contract(pointers);
  EXPECT_GT(progress[0].begun(), 0);
  EXPECT_EQ(progress[0].begun(), progress[2].begun());
}

TEST(CountedComm, CountsBeforeItWaits) {
  Progress progress;
  EXPECT_EQ(progress.begun(), 0);
  EXPECT_EQ(std::string(progress.last()), "nothing");
  auto comms = make_thread_comms(2);
  const auto comm = count_collectives(std::move(comms[0]), progress);
  std::jthread alone([&] {
    std::vector<float> x(1);
    comm->all_reduce(host(), view(x, 1, 1));
  });
  while (progress.begun() == 0) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  EXPECT_EQ(std::string(progress.last()), "all_reduce");
  comm->abort({Code::unavailable, "nobody comes", {}});
}

}  // namespace
}  // namespace m2::parallel
