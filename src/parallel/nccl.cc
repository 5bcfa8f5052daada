#include "parallel/nccl.h"

#include <dlfcn.h>

#include <chrono>
#include <cstring>
#include <functional>
#include <mutex>
#include <thread>

#include "parallel/hosted_comm.h"
#include "parallel/nccl_api.h"
#include "parallel/peers.h"
#include "tensor/buffer.h"
#include "tensor/stream.h"

namespace m2::parallel {
namespace {

template <class Function>
bool find(void* library, const char* name, Function& out) {
  void* symbol = ::dlsym(library, name);
  std::memcpy(&out, &symbol, sizeof symbol);
  return symbol != nullptr;
}

Result<const Nccl*> load() {
  static Nccl nccl;
  static const Result<void> loaded = []() -> Result<void> {
    void* file = ::dlopen("libnccl.so.2", RTLD_NOW | RTLD_LOCAL);
    if (!file) return fail(Code::unavailable, "ranks on GPUs need libnccl.so.2: {}", ::dlerror());
    const bool whole =
        find(file, "ncclGetErrorString", nccl.error_string) &&
        find(file, "ncclGetUniqueId", nccl.get_unique_id) &&
        find(file, "ncclCommInitRank", nccl.init_rank) && find(file, "ncclCommAbort", nccl.abort) &&
        find(file, "ncclCommGetAsyncError", nccl.async_error) &&
        find(file, "ncclAllReduce", nccl.all_reduce) &&
        find(file, "ncclBroadcast", nccl.broadcast) && find(file, "ncclReduce", nccl.reduce) &&
        find(file, "ncclSend", nccl.send) && find(file, "ncclRecv", nccl.receive) &&
        find(file, "ncclGroupStart", nccl.group_start) &&
        find(file, "ncclGroupEnd", nccl.group_end);
    if (!whole) return fail(Code::unsupported, "libnccl.so.2 lacks functions of NCCL 2.10");
    return {};
  }();
  if (!loaded.ok()) return loaded.error();
  return &nccl;
}

int type_of(DType dtype) {
  switch (dtype) {
    case DType::f32:
      return Nccl::kFloat32;
    case DType::bf16:
      return Nccl::kBfloat16;
    case DType::f16:
      return Nccl::kFloat16;
    case DType::i32:
      return Nccl::kInt32;
    case DType::i64:
      return Nccl::kInt64;
    default:
      return Nccl::kUint8;
  }
}

std::byte* at(const Tensor& tensor, int64_t elements) {
  return static_cast<std::byte*>(tensor.data()) + elements * size_of(tensor.dtype());
}

class NcclComm : public Comm {
 public:
  NcclComm(const Nccl& nccl, Nccl::Handle handle, Device device, int64_t rank, int64_t size)
      : nccl_(nccl), rank_(rank), size_(size), mark_(device, 64), handle_(handle) {}
  // ncclCommDestroy would wait for ranks that may be gone.
  ~NcclComm() override {
    if (status_of_group().ok()) end_handle();
    if (ending_.joinable()) ending_.join();
  }

  int64_t rank() const override { return rank_; }
  int64_t size() const override { return size_; }

  void all_reduce(const Exec& exec, Tensor x) override {
    call("all_reduce", [&] {
      return nccl_.all_reduce(x.data(), x.data(), count_of(x), type_of(x.dtype()), Nccl::kSum,
                              handle_, exec.stream);
    });
  }

  // Parts may differ in size, so each rank's is broadcast; NCCL runs the group as one.
  void all_gather(const Exec& exec, Tensor part, Rows rows, Tensor out) override {
    const int64_t row = out.row_stride();
    group("all_gather", [&](GroupCall& each) {
      for (int64_t r = 0, first = 0; r < size_; first += rows[static_cast<size_t>(r++)] * row) {
        const auto count = static_cast<size_t>(rows[static_cast<size_t>(r)] * row);
        std::byte* to = at(out, first);
        const void* from = r == rank_ ? part.data() : to;
        if (count > 0)
          each(nccl_.broadcast(from, to, count, type_of(out.dtype()), static_cast<int>(r), handle_,
                               exec.stream));
      }
    });
  }

  void reduce_scatter(const Exec& exec, Tensor x, Rows rows, Tensor part) override {
    const int64_t row = x.row_stride();
    group("reduce_scatter", [&](GroupCall& each) {
      for (int64_t r = 0, first = 0; r < size_; first += rows[static_cast<size_t>(r++)] * row) {
        const auto count = static_cast<size_t>(rows[static_cast<size_t>(r)] * row);
        void* to = r == rank_ ? part.data() : nullptr;
        if (count > 0)
          each(nccl_.reduce(at(x, first), to, count, type_of(x.dtype()), Nccl::kSum,
                            static_cast<int>(r), handle_, exec.stream));
      }
    });
  }

  void all_to_all(const Exec& exec, Tensor send, Rows send_rows, Tensor recv,
                  Rows recv_rows) override {
    const int64_t row = send.row_stride();
    group("all_to_all", [&](GroupCall& each) {
      for (int64_t r = 0, from = 0, to = 0; r < size_; ++r) {
        const int64_t sent = send_rows[static_cast<size_t>(r)] * row;
        const int64_t received = recv_rows[static_cast<size_t>(r)] * row;
        each(send_to(exec, at(send, from), sent, send.dtype(), r));
        each(receive_from(exec, at(recv, to), received, recv.dtype(), r));
        from += sent;
        to += received;
      }
    });
  }

  // Row by row, straight into place: rows are long (a rank's part of the vocabulary) and few.
  void gather_columns(const Exec& exec, Tensor part, Rows columns, Tensor out,
                      int64_t root) override {
    const int64_t own = columns[static_cast<size_t>(rank_)];
    group("gather", [&](GroupCall& each) {
      for (int64_t i = 0; i < part.size(0); ++i) {
        each(send_to(exec, at(part, i * own), own, part.dtype(), root));
        for (int64_t r = 0, first = 0; rank_ == root && r < size_;
             first += columns[static_cast<size_t>(r++)])
          each(receive_from(exec, at(out, i * out.size(1) + first), columns[static_cast<size_t>(r)],
                            out.dtype(), r));
      }
    });
  }

  void broadcast(const Exec& exec, Tensor x, int64_t root) override {
    call("broadcast", [&] {
      return nccl_.broadcast(x.data(), x.data(), count_of(x), type_of(x.dtype()),
                             static_cast<int>(root), handle_, exec.stream);
    });
  }

  // NCCL has none: a sum over all ranks, waited for, is one.
  void barrier(const Exec& exec) override {
    all_reduce(exec, Tensor(mark_.data(), DType::f32, {1}));
    synchronize(exec);
  }

  Result<void> status() const override {
    std::lock_guard lock(state_);
    if (!failed_.text.empty()) return failed_;
    int code = Nccl::kSuccess;
    nccl_.async_error(handle_, &code);
    if (code == Nccl::kSuccess || code == Nccl::kInProgress) return {};
    return fail(Code::unavailable, "NCCL: {}", nccl_.error_string(code));
  }

  // What is under way on the device ends, undone. NCCL wants no other call at the same time, but a
  // call can itself wait for ranks that do not come, and then this is what ends it.
  void abort(const Error& why) override {
    if (!note(why)) return;
    // Not a timed lock, which the thread sanitizer does not know.
    std::unique_lock lock(calls_, std::try_to_lock);
    for (int i = 0; i < 1000 && !lock; ++i) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      (void)lock.try_lock();
    }
    end_handle();
  }

  void set_deadline(Nanos) override {}

 private:
  using GroupCall = const std::function<void(int)>;
  static size_t count_of(const Tensor& x) { return static_cast<size_t>(x.elements()); }

  // Nothing to send is no call, on both sides.
  int send_to(const Exec& exec, const void* data, int64_t count, DType dtype, int64_t rank) {
    if (count == 0) return Nccl::kSuccess;
    return nccl_.send(data, static_cast<size_t>(count), type_of(dtype), static_cast<int>(rank),
                      handle_, exec.stream);
  }
  int receive_from(const Exec& exec, void* data, int64_t count, DType dtype, int64_t rank) {
    if (count == 0) return Nccl::kSuccess;
    return nccl_.receive(data, static_cast<size_t>(count), type_of(dtype), static_cast<int>(rank),
                         handle_, exec.stream);
  }

  template <class Body>
  void call(const char* name, Body&& body) {
    const std::lock_guard lock(calls_);
    if (!status_of_group().ok()) return;
    const int code = body();
    if (code == Nccl::kSuccess || code == Nccl::kInProgress) return;
    if (note(fail(Code::unavailable, "NCCL's {} failed: {}", name, nccl_.error_string(code))))
      end_handle();
  }

  // The calls that body makes, with each, run as one.
  template <class Body>
  void group(const char* name, Body&& body) {
    call(name, [&] {
      int first = nccl_.group_start();
      GroupCall each = [&first](int code) {
        if (first == Nccl::kSuccess) first = code;
      };
      body(each);
      each(nccl_.group_end());
      return first;
    });
  }

  // Ends what is under way. NCCL then frees the handle, for which it waits until no recorded graph
  // holds it any more: on a thread of its own, since the graphs live as long as the model.
  void end_handle() {
    ending_ = std::thread([abort = nccl_.abort, handle = handle_] { abort(handle); });
  }

  // True for the first failure. The handle is used no more: who noted it ends it.
  bool note(const Error& why) {
    std::lock_guard lock(state_);
    if (!failed_.text.empty()) return false;
    failed_ = why;
    return true;
  }
  Result<void> status_of_group() const {
    std::lock_guard lock(state_);
    if (failed_.text.empty()) return {};
    return failed_;
  }

  const Nccl& nccl_;
  const int64_t rank_, size_;
  const Buffer mark_;  // for barriers
  const Nccl::Handle handle_;
  std::thread ending_;        // once the group has failed
  std::mutex calls_;          // held during a call
  mutable std::mutex state_;  // of failed_
  Error failed_;
};

}  // namespace

Result<NcclId> make_nccl_id() {
  M2_TRY(const Nccl* nccl, load());
  Nccl::Id id{};
  if (const int code = nccl->get_unique_id(&id); code != Nccl::kSuccess)
    return fail(Code::unavailable, "NCCL: {}", nccl->error_string(code));
  NcclId out;
  std::memcpy(out.data(), id.bytes, sizeof id.bytes);
  return out;
}

Result<std::unique_ptr<Comm>> make_nccl_comm(const NcclId& id, Device device, int64_t rank,
                                             int64_t size) {
  M2_TRY(const Nccl* nccl, load());
  Nccl::Id raw;
  std::memcpy(raw.bytes, id.data(), sizeof raw.bytes);
  Nccl::Handle handle = nullptr;
  use_device(device);
  const int code = nccl->init_rank(&handle, static_cast<int>(size), raw, static_cast<int>(rank));
  if (code != Nccl::kSuccess)
    return fail(Code::unavailable, "NCCL: rank {} of {}: {}", rank, size, nccl->error_string(code));
  return std::unique_ptr<Comm>(std::make_unique<NcclComm>(*nccl, handle, device, rank, size));
}

namespace {

// The device's group of the ranks of `host`, whose first one makes NCCL's id.
Result<std::unique_ptr<Comm>> like(Comm& host, Device device, SumsBy sums) {
  if (host.size() == 1) return make_single_comm();
  if (sums == SumsBy::host) return make_hosted_comm(host, device);
  NcclId id{};
  if (host.rank() == 0) {
    M2_TRY(id, make_nccl_id());
  }
  host.broadcast(Exec{}, Tensor(id.data(), DType::u8, {static_cast<int64_t>(id.size())}), 0);
  M2_TRY_VOID(host.status());
  M2_TRY(std::unique_ptr<Comm> nccl, make_nccl_comm(id, device, host.rank(), host.size()));
  if (sums == SumsBy::nccl || host_addressable(device)) return nccl;
  return sum_through_peers(std::move(nccl), host, device);
}

}  // namespace

Result<void> add_device_groups(LocalRank& rank, Device device, SumsBy sums) {
  const auto add = [&]() -> Result<void> {
    M2_TRY(rank.device_tensor, like(*rank.tensor, device, sums));
    if (rank.engines) {
      M2_TRY(rank.device_engines, like(*rank.engines, device, sums));
    }
    return {};
  };
  Result<void> added = add();
  if (!added.ok()) {
    rank.tensor->abort(added.error());
    if (rank.engines) rank.engines->abort(added.error());
  }
  return added;
}

}  // namespace m2::parallel
