#pragma once

#include "parallel/comm.h"
#include "tensor/buffer.h"
#include "tensor/exec.h"
#include "tensor/stream.h"

// A communicator of device memory as one of host memory, so that the contract runs over it as over
// any other: every tensor is copied to the device and back.

namespace m2::parallel {

// What is in device memory when all that exec's stream has before is complete. A copy into memory
// that is not pinned waits for its stream within the driver, and holds up every other such copy of
// the process: behind a sum, those of the rank that the sum waits for.
inline void bring_to_host(const Exec& exec, void* to_host, const void* from, int64_t bytes) {
  synchronize(exec);
  copy_to_host(exec, to_host, from, bytes);
  synchronize(exec);
}

class StagedComm : public Comm {
 public:
  StagedComm(Comm& device_comm, Device device)
      : comm_(device_comm), stream_(device), exec_{device, nullptr, stream_.handle()} {}

  int64_t rank() const override { return comm_.rank(); }
  int64_t size() const override { return comm_.size(); }
  Result<void> status() const override { return comm_.status(); }
  void abort(const Error& why) override { comm_.abort(why); }
  void set_deadline(Nanos deadline) override { comm_.set_deadline(deadline); }
  const Exec& exec() const { return exec_; }

  void all_reduce(const Exec&, Tensor x) override {
    const Staged staged(*this, x);
    comm_.all_reduce(exec_, staged.there);
    staged.fetch();
  }
  void all_gather(const Exec&, Tensor part, Rows rows, Tensor out) override {
    const Staged from(*this, part), to(*this, out);
    comm_.all_gather(exec_, from.there, rows, to.there);
    to.fetch();
  }
  void reduce_scatter(const Exec&, Tensor x, Rows rows, Tensor part) override {
    const Staged from(*this, x), to(*this, part);
    comm_.reduce_scatter(exec_, from.there, rows, to.there);
    to.fetch();
  }
  void all_to_all(const Exec&, Tensor send, Rows send_rows, Tensor recv, Rows recv_rows) override {
    const Staged from(*this, send), to(*this, recv);
    comm_.all_to_all(exec_, from.there, send_rows, to.there, recv_rows);
    to.fetch();
  }
  void gather_columns(const Exec&, Tensor part, Rows columns, Tensor out, int64_t root) override {
    const Staged from(*this, part), to(*this, out);
    comm_.gather_columns(exec_, from.there, columns, to.there, root);
    to.fetch();
  }
  void broadcast(const Exec&, Tensor x, int64_t root) override {
    const Staged staged(*this, x);
    comm_.broadcast(exec_, staged.there, root);
    staged.fetch();
  }
  void barrier(const Exec&) override { comm_.barrier(exec_); }

 private:
  // A host tensor's copy on the device.
  struct Staged {
    Staged(const StagedComm& owner, Tensor host)
        : owner_(owner), here_(host), buffer_(owner.exec_.device, bytes()) {
      if (host.empty() || host.elements() == 0) {
        there = host;
        return;
      }
      copy_to_device(owner.exec_, buffer_.data(), host.data(), bytes());
      there = Tensor(buffer_.data(), host.dtype(), {host.size(0), host.elements() / host.size(0)});
    }
    ~Staged() { synchronize(owner_.exec_); }
    void fetch() const {
      if (!here_.empty() && here_.elements() > 0)
        bring_to_host(owner_.exec_, here_.data(), buffer_.data(), bytes());
    }
    int64_t bytes() const { return here_.empty() ? 0 : here_.elements() * size_of(here_.dtype()); }

    Tensor there;

   private:
    const StagedComm& owner_;
    Tensor here_;
    Buffer buffer_;
  };

  Comm& comm_;
  Stream stream_;
  Exec exec_;
};

}  // namespace m2::parallel
