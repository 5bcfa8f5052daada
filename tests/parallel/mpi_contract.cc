// One of the processes that mpirun starts: the contract over MPI, one rank a process, several, and
// the groups of engines within and across processes; then what differs is refused.
#include <cstdlib>

#include "parallel/mpi.h"
#include "tests/parallel/comm_contract.h"

namespace m2::parallel {
namespace {

int64_t number(const char* name) {
  const char* text = std::getenv(name);
  return text ? std::atoll(text) : 0;
}

class Mpi : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    processes = number("OMPI_COMM_WORLD_SIZE");
    process = number("OMPI_COMM_WORLD_RANK");
    ASSERT_GT(processes, 1) << "start this with mpirun";
    auto opened = MpiWorld::open(processes, {{"version", "1"}});
    ASSERT_TRUE(opened.ok()) << opened.error().text;
    world = std::move(opened).value();
  }
  static void TearDownTestSuite() { world.reset(); }

  static std::vector<LocalRank> ranks_of(int64_t tensor, int64_t data) {
    Topology shape;
    shape.tensor_size = tensor;
    shape.data_size = data;
    return make_local_ranks(shape, place_evenly(shape.expert_size(), processes, process),
                            world.get(), true);
  }

  static int64_t processes, process;
  static std::unique_ptr<MpiWorld> world;
};
int64_t Mpi::processes = 0, Mpi::process = 0;
std::unique_ptr<MpiWorld> Mpi::world;

void check(const std::vector<LocalRank>& ranks) {
  Comms tensor, engines;
  for (const LocalRank& rank : ranks) {
    tensor.push_back(rank.tensor.get());
    if (rank.engines) engines.push_back(rank.engines.get());
  }
  check_contract(tensor);
  if (!engines.empty()) check_contract(engines);
  ASSERT_FALSE(testing::Test::HasFailure());
}

TEST_F(Mpi, OneRankAProcess) {
  check(ranks_of(processes, 1));
}

TEST_F(Mpi, SeveralRanksAProcess) {
  check(ranks_of(2 * processes, 1));
}

TEST_F(Mpi, EnginesWithinAndAcrossProcesses) {
  check(ranks_of(1, 2 * processes));
  check(ranks_of(processes, 2));
}

TEST_F(Mpi, AProcessThatDoesNotComeIsNamed) {
  const auto ranks = ranks_of(processes, 1);
  Comm& comm = *ranks[0].tensor;
  comm.barrier(host());
  if (process == 0) {
    comm.set_deadline(kSecond / 5);
    std::vector<float> x(10, 1);
    comm.all_reduce(host(), view(x, 1, 10));
    EXPECT_EQ(comm.status().error().text,
              processes == 2 ? "MPI rank 1 did not answer all_reduce 2 within 0.2 s"
                             : "MPI rank 1, MPI rank 2 did not answer all_reduce 2 within 0.2 s");
  }
}

}  // namespace
}  // namespace m2::parallel
