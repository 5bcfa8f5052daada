#include "parallel/comm.h"

namespace m2::parallel {
namespace {

class SingleComm : public Comm {
 public:
  int64_t rank() const override { return 0; }
  int64_t size() const override { return 1; }
  void all_reduce(const Exec&, Tensor) override {}
  void all_gather(const Exec&, Tensor part, Tensor out) override {
    M2_CHECK(part.data() == out.data(), "a group of one gathers in place");
  }
};

}  // namespace

std::unique_ptr<Comm> make_single_comm() { return std::make_unique<SingleComm>(); }

}  // namespace m2::parallel
