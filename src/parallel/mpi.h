#pragma once

#include <memory>

#include "base/json.h"
#include "parallel/world.h"

namespace m2::parallel {

// The processes that OpenMPI's mpirun has started. Its library (libmpi.so.40: OpenMPI 4 and 5) is
// loaded here and nowhere else, so the program starts without it.
//
// A peer that dies is mpirun's to notice: it ends all processes, the first of them by SIGTERM. One
// that does not answer is noticed by the deadline of each collective.
class MpiWorld : public Links {
 public:
  // `terms` must be equal in all processes (parallel/tcp.h). Fails, in words, if the library is not
  // there, the processes are not `processes`, or they do not agree. Once in a process.
  static Result<std::unique_ptr<MpiWorld>> open(int64_t processes, const Json& terms);
  // Takes part in MPI's end if all wires are whole; else leaves without.
  ~MpiWorld() override;

  std::unique_ptr<Wire> wire(int64_t channel, std::vector<int64_t> processes) override;
  std::unique_ptr<Bell> bell(int64_t, Bell::Ears) override { return nullptr; }

 private:
  friend class MpiWire;
  struct Library;
  explicit MpiWorld(std::shared_ptr<Library> library);
  Result<void> agree(const Json& terms);

  std::shared_ptr<Library> library_;
  int64_t process_ = 0;
  int64_t processes_ = 0;
};

}  // namespace m2::parallel
