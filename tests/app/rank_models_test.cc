#include "app/rank_models.h"

#include <gtest/gtest.h>

#include <latch>
#include <string>
#include <thread>

#include "parallel/tcp.h"
#include "tests/model/small_model.h"
#include "tests/parallel/free_port.h"

namespace m2::app {
namespace {

// One of two "processes" of one rank each, threads here; what their flags would say.
Spread half(int64_t process, int port, const parallel::Topology& shape, Nanos patience) {
  Spread out;
  out.shape = shape;
  out.share = {process, 1};
  out.first = process == 0;
  out.nodes = 2;
  out.address = "127.0.0.1";
  out.port = port;
  out.start_patience = patience;
  return out;
}

World meet(const Spread& spread) {
  parallel::Meeting meeting;
  meeting.first = spread.first;
  meeting.share = spread.share;
  meeting.ranks = spread.ranks();
  meeting.port = spread.port;
  meeting.channels = parallel::channels_of(spread.shape);
  meeting.patience = 20 * kSecond;
  auto mesh = parallel::TcpMesh::connect(meeting);
  M2_CHECK(mesh.ok(), "{}", mesh.error().text);
  World out;
  out.where = (*mesh)->placement();
  out.links = *std::move(mesh);
  return out;
}

Result<void> build(RankModels& ranks, const RankModels::MakeWeights& make_weights) {
  const model::ModelConfig config = model::small_config();
  return ranks.build(config, make_weights, model::small_memory(config), {});
}

Result<model::Weights> weights_of(const parallel::Topology& topology, Device device) {
  return model::dummy_weights(model::small_config(), topology, device, 7);
}

// A rank of another process that meets this one and then never answers: it loads for good.
void expect_a_late_process_to_be_named(const parallel::Topology& shape) {
  const int port = parallel::free_port();
  std::latch given_up{1};
  std::jthread other([&] {
    const Spread spread = half(1, port, shape, 60 * kSecond);
    const World world = meet(spread);
    RankModels ranks(spread, world, Device{}, 1);
    (void)build(ranks, [&](const parallel::Topology& topology, Device device) {
      given_up.wait();
      return weights_of(topology, device);
    });
  });
  const Spread spread = half(0, port, shape, kSecond / 2);
  {
    const World world = meet(spread);
    RankModels ranks(spread, world, Device{}, 1);
    const Nanos start = SteadyClock().now();
    const Result<void> built = build(ranks, weights_of);
    EXPECT_LT(seconds(SteadyClock().now() - start), 20);
    ASSERT_FALSE(built.ok());
    const std::string& text = built.error().text;
    EXPECT_TRUE(
        text.starts_with("waiting for ranks of other processes to load their weights: "
                         "process 1 (127.0.0.1) did not answer all_gather"))
        << text;
    EXPECT_NE(text.find("within 0.5 s (--rank-start-seconds"), std::string::npos) << text;
  }
  given_up.count_down();
}

TEST(RankModels, ALateProcessOfAnEngineIsNamed) {
  parallel::Topology shape;
  shape.tensor_size = 2;
  expect_a_late_process_to_be_named(shape);
}

TEST(RankModels, ALateProcessOfAnotherEngineIsNamed) {
  parallel::Topology shape;
  shape.data_size = 2;
  shape.expert_parallel = true;
  expect_a_late_process_to_be_named(shape);
}

// Who takes its time, but less than is given, is waited for.
TEST(RankModels, ASlowProcessIsWaitedFor) {
  parallel::Topology shape;
  shape.tensor_size = 2;
  const int port = parallel::free_port();
  std::jthread other([&] {
    const Spread spread = half(1, port, shape, 60 * kSecond);
    const World world = meet(spread);
    RankModels ranks(spread, world, Device{}, 1);
    const Result<void> built = build(ranks, [](const parallel::Topology& topology, Device device) {
      std::this_thread::sleep_for(std::chrono::milliseconds(300));
      return weights_of(topology, device);
    });
    EXPECT_TRUE(built.ok()) << built.error().text;
  });
  const Spread spread = half(0, port, shape, 60 * kSecond);
  const World world = meet(spread);
  RankModels ranks(spread, world, Device{}, 1);
  const Result<void> built = build(ranks, weights_of);
  EXPECT_TRUE(built.ok()) << built.error().text;
}

// A follower that loses its engine gives all groups of the process up. The ranks they belong to
// must still be there, in a process that ends at the same time, too.
TEST(RankModels, EndWhileTheirRanksAreLost) {
  parallel::Topology shape;
  shape.tensor_size = 6;
  const int port = parallel::free_port();
  const auto live_and_end = [&](int64_t process) {
    Spread spread = half(process, port, shape, 60 * kSecond);
    spread.share = {process * 3, 3};
    const World world = meet(spread);
    RankModels ranks(spread, world, Device{}, 1);
    const Result<void> built = build(ranks, weights_of);
    EXPECT_TRUE(built.ok()) << built.error().text;
    ranks.start(kSecond / 10);
    // Nobody schedules: the other process's followers wait in vain, and this one's are let go.
    if (process == 0) ranks.abort_all({Code::unavailable, "enough", {}});
  };
  std::jthread other([&] { live_and_end(1); });
  live_and_end(0);
}

}  // namespace
}  // namespace m2::app
