#include "parallel/hosted_comm.h"

#include "tensor/stream.h"

namespace m2::parallel {
namespace {

// The host's copy of one tensor of the device at a time. Grows to the largest.
class Stage {
 public:
  explicit Stage(Device device) : device_(device) {}

  // Where `there` will be on the host.
  Tensor place(const Tensor& there) {
    if (there.empty() || there.elements() == 0) return there;
    if (bytes_of(there) > memory_.bytes()) memory_ = HostBuffer(device_, bytes_of(there));
    return Tensor(memory_.data(), there.dtype(), {there.size(0), there.row_stride()});
  }
  // `there`, copied; it has arrived when exec's stream has been waited for.
  Tensor fetch(const Exec& exec, const Tensor& there) {
    const Tensor here = place(there);
    if (here.data() != there.data()) copy_to_host(exec, here.data(), there.data(), bytes_of(there));
    return here;
  }
  static void send(const Exec& exec, const Tensor& here, const Tensor& there) {
    if (here.data() != there.data())
      copy_to_device(exec, there.data(), here.data(), bytes_of(there));
  }

 private:
  static int64_t bytes_of(const Tensor& tensor) {
    return tensor.elements() * size_of(tensor.dtype());
  }

  const Device device_;
  HostBuffer memory_;
};

class HostedComm : public Comm {
 public:
  HostedComm(Comm& host, Device device) : host_(host), from_(device), to_(device) {}

  int64_t rank() const override { return host_.rank(); }
  int64_t size() const override { return host_.size(); }

  void all_reduce(const Exec& exec, Tensor x) override {
    in_place(exec, x, [&](Tensor here) { host_.all_reduce({}, here); });
  }
  void all_gather(const Exec& exec, Tensor part, Rows rows, Tensor out) override {
    across(exec, part, out, [&](Tensor from, Tensor to) { host_.all_gather({}, from, rows, to); });
  }
  void reduce_scatter(const Exec& exec, Tensor x, Rows rows, Tensor part) override {
    across(exec, x, part,
           [&](Tensor from, Tensor to) { host_.reduce_scatter({}, from, rows, to); });
  }
  void all_to_all(const Exec& exec, Tensor send, Rows send_rows, Tensor recv,
                  Rows recv_rows) override {
    across(exec, send, recv,
           [&](Tensor from, Tensor to) { host_.all_to_all({}, from, send_rows, to, recv_rows); });
  }
  void gather_columns(const Exec& exec, Tensor part, Rows columns, Tensor out,
                      int64_t root) override {
    across(exec, part, rank() == root ? out : Tensor(),
           [&](Tensor from, Tensor to) { host_.gather_columns({}, from, columns, to, root); });
  }
  void broadcast(const Exec& exec, Tensor x, int64_t root) override {
    in_place(exec, x, [&](Tensor here) { host_.broadcast({}, here, root); });
  }
  void barrier(const Exec& exec) override {
    synchronize(exec);
    host_.barrier({});
  }

  Result<void> status() const override { return host_.status(); }
  void abort(const Error& why) override { host_.abort(why); }
  void set_deadline(Nanos deadline) override { host_.set_deadline(deadline); }

 private:
  template <class Collective>
  void in_place(const Exec& exec, const Tensor& x, Collective&& collective) {
    const Tensor here = from_.fetch(exec, x);
    synchronize(exec);
    collective(here);
    Stage::send(exec, here, x);
    synchronize(exec);  // the stage is the next collective's
  }
  template <class Collective>
  void across(const Exec& exec, const Tensor& from, const Tensor& to, Collective&& collective) {
    const Tensor here = from_.fetch(exec, from);
    const Tensor arrives = to_.place(to);
    synchronize(exec);
    collective(here, arrives);
    Stage::send(exec, arrives, to);
    synchronize(exec);
  }

  Comm& host_;
  Stage from_, to_;
};

}  // namespace

std::unique_ptr<Comm> make_hosted_comm(Comm& host, Device device) {
  if (host.size() == 1) return make_single_comm();
  return std::make_unique<HostedComm>(host, device);
}

}  // namespace m2::parallel
