// A library with the part of NCCL's C interface that parallel/nccl.cc uses, for ranks that are
// threads of one process with tensors in host memory. Without a GPU it shows that our calls say
// what is meant: groups, offsets, uneven parts, roots, and that abort ends what waits. It says
// nothing about NCCL itself; tests/parallel/cuda runs the same contract over the real one.

#include <array>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "tensor/dtype.h"

namespace {

using m2::BF16;
using Bytes = std::vector<std::byte>;

constexpr int kSuccess = 0, kRemoteError = 6;
constexpr std::array<size_t, 10> kSizes{1, 1, 4, 4, 8, 8, 2, 4, 8, 2};  // of ncclDataType_t

struct Id {
  char bytes[128];
};

// Bytes on their way between the ranks of a group.
struct Mail {
  std::mutex mutex;
  std::condition_variable changed;
  std::map<std::pair<int, int>, std::deque<Bytes>> queues;  // from, to
  int joined = 0;
};

struct Communicator {
  std::shared_ptr<Mail> mail;
  int rank = 0, size = 0;
  bool aborted = false;  // under mail->mutex

  void put(int to, const void* data, size_t bytes) {
    const auto* from = static_cast<const std::byte*>(data);
    std::lock_guard lock(mail->mutex);
    mail->queues[{rank, to}].emplace_back(from, from + bytes);
    mail->changed.notify_all();
  }
  // False if it was aborted meanwhile.
  bool get(int from, Bytes& out) {
    std::unique_lock lock(mail->mutex);
    auto& queue = mail->queues[{from, rank}];
    mail->changed.wait(lock, [&] { return aborted || !queue.empty(); });
    if (queue.empty()) return false;
    out = std::move(queue.front());
    queue.pop_front();
    return true;
  }
};

// Recorded graphs that hold a group, of which here there are none but in a test's word.
std::mutex graphs_mutex;
std::condition_variable graphs_changed;
int graphs = 0;

std::mutex registry_mutex;
std::map<std::array<char, 128>, std::shared_ptr<Mail>> registry;
std::vector<std::unique_ptr<Communicator>> communicators;  // to the end: a rank may wait in a call
int ids = 0;

thread_local int depth = 0;
thread_local std::vector<std::function<bool()>> waiting;  // what a group does at its end

int run(std::function<bool()> receive) {
  if (depth > 0) {
    waiting.push_back(std::move(receive));
    return kSuccess;
  }
  return receive() ? kSuccess : kRemoteError;
}

template <class T>
void add(Bytes& to, const Bytes& from) {
  for (size_t i = 0; i + sizeof(T) <= to.size(); i += sizeof(T)) {
    T a, b;
    std::memcpy(&a, &to[i], sizeof a);
    std::memcpy(&b, &from[i], sizeof b);
    if constexpr (std::is_same_v<T, BF16>)
      a = m2::to_bf16(m2::to_float(a) + m2::to_float(b));
    else
      a += b;
    std::memcpy(&to[i], &a, sizeof a);
  }
}

// At the root: the ranks' sum.
bool sum_at(Communicator& comm, const void* own, void* to, size_t count, int type) {
  const auto* begin = static_cast<const std::byte*>(own);
  Bytes sum(begin, begin + count * kSizes[static_cast<size_t>(type)]);
  for (int r = 0; r < comm.size; ++r) {
    if (r == comm.rank) continue;
    Bytes part;
    if (!comm.get(r, part) || part.size() != sum.size()) return false;
    type == 9 ? add<BF16>(sum, part) : add<float>(sum, part);
  }
  std::memcpy(to, sum.data(), sum.size());
  return true;
}

bool copy_from(Communicator& comm, int from, void* to, size_t bytes) {
  Bytes part;
  if (!comm.get(from, part) || part.size() != bytes) return false;
  std::memcpy(to, part.data(), bytes);
  return true;
}

}  // namespace

extern "C" {

const char* ncclGetErrorString(int code) {
  return code == kSuccess ? "no error" : "remote error";
}

int ncclGetUniqueId(Id* id) {
  std::lock_guard lock(registry_mutex);
  std::memset(id->bytes, 0, sizeof id->bytes);
  std::memcpy(id->bytes, &++ids, sizeof ids);
  return kSuccess;
}

int ncclCommInitRank(void** out, int size, Id id, int rank) {
  std::array<char, 128> key;
  std::memcpy(key.data(), id.bytes, sizeof id.bytes);
  Communicator* comm = nullptr;
  {
    std::lock_guard lock(registry_mutex);
    comm = communicators.emplace_back(std::make_unique<Communicator>()).get();
    auto& mail = registry[key];
    if (!mail) mail = std::make_shared<Mail>();
    comm->mail = mail;
  }
  comm->rank = rank;
  comm->size = size;
  std::unique_lock lock(comm->mail->mutex);
  ++comm->mail->joined;
  comm->mail->changed.notify_all();
  comm->mail->changed.wait(lock, [&] { return comm->mail->joined == size; });
  *out = comm;
  return kSuccess;
}

void stand_in_hold_by_graphs(int count) {
  std::lock_guard lock(graphs_mutex);
  graphs = count;
  graphs_changed.notify_all();
}

// Like NCCL's own from 2.26 on, it returns when no recorded graph holds the group.
int ncclCommAbort(void* handle) {
  auto& comm = *static_cast<Communicator*>(handle);
  {
    std::lock_guard lock(comm.mail->mutex);
    comm.aborted = true;
    comm.mail->changed.notify_all();
  }
  std::unique_lock lock(graphs_mutex);
  graphs_changed.wait(lock, [] { return graphs == 0; });
  return kSuccess;
}

int ncclCommGetAsyncError(void*, int* code) {
  *code = kSuccess;
  return kSuccess;
}

int ncclSend(const void* data, size_t count, int type, int peer, void* handle, void*) {
  auto& comm = *static_cast<Communicator*>(handle);
  comm.put(peer, data, count * kSizes[static_cast<size_t>(type)]);
  return kSuccess;
}

int ncclRecv(void* to, size_t count, int type, int peer, void* handle, void*) {
  auto& comm = *static_cast<Communicator*>(handle);
  const size_t bytes = count * kSizes[static_cast<size_t>(type)];
  return run([=, &comm] { return copy_from(comm, peer, to, bytes); });
}

int ncclBroadcast(const void* from, void* to, size_t count, int type, int root, void* handle,
                  void*) {
  auto& comm = *static_cast<Communicator*>(handle);
  const size_t bytes = count * kSizes[static_cast<size_t>(type)];
  if (comm.rank != root) return run([=, &comm] { return copy_from(comm, root, to, bytes); });
  for (int r = 0; r < comm.size; ++r)
    if (r != root) comm.put(r, from, bytes);
  if (to != from) std::memcpy(to, from, bytes);
  return kSuccess;
}

int ncclReduce(const void* from, void* to, size_t count, int type, int, int root, void* handle,
               void*) {
  auto& comm = *static_cast<Communicator*>(handle);
  if (comm.rank == root) return run([=, &comm] { return sum_at(comm, from, to, count, type); });
  comm.put(root, from, count * kSizes[static_cast<size_t>(type)]);
  return kSuccess;
}

int ncclAllReduce(const void* from, void* to, size_t count, int type, int op, void* handle,
                  void* stream) {
  const int reduced = ncclReduce(from, to, count, type, op, 0, handle, stream);
  if (reduced != kSuccess) return reduced;
  return ncclBroadcast(to, to, count, type, 0, handle, stream);
}

int ncclGroupStart() {
  ++depth;
  return kSuccess;
}

int ncclGroupEnd() {
  if (--depth > 0) return kSuccess;
  int out = kSuccess;
  for (const auto& receive : std::exchange(waiting, {}))
    if (!receive()) out = kRemoteError;
  return out;
}

}  // extern "C"
