#pragma once

#include <functional>
#include <string>
#include <thread>
#include <vector>

#include "base/clock.h"
#include "base/result.h"
#include "parallel/counted_comm.h"
#include "tensor/exec.h"

namespace m2::app {

// A rank of this process that starts on a device.
struct StartingRank {
  int64_t rank;
  Device device;
  const parallel::Progress* progress;
};

// Which of the ranks has not come, by what they have begun. For the one who started them.
std::string who_is_late(const std::vector<StartingRank>& ranks);

// Ends a start in which ranks wait for each other on devices and one does not come: there a wait
// has no deadline of its own. Watches from its construction to its end.
class StartWatch {
 public:
  struct Limits {
    Nanos patience;                 // for all ranks to come
    Nanos farewell = 10 * kSecond;  // for them to end when told to
  };
  // When patience is over `give_up` is called, on a thread of the watch's, with which rank is late:
  // it frees whatever waits for other ranks. Should the start not end then either (a rank hangs in
  // the driver), the process does, with exit code 1.
  //   doing: what the ranks do, as "prepare their steps"
  StartWatch(std::string doing, std::vector<StartingRank> ranks, Limits limits,
             std::function<void(const Error&)> give_up);

 private:
  void watch(const std::stop_token& stop);

  const std::string doing_;
  const std::vector<StartingRank> ranks_;
  const Limits limits_;
  const std::function<void(const Error&)> give_up_;
  std::jthread thread_;
};

}  // namespace m2::app
