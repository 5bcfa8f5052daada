#include "parallel/mpi.h"

#include <dlfcn.h>

#include <algorithm>
#include <cstring>
#include <mutex>
#include <thread>

#include "base/checked.h"
#include "base/log.h"

namespace m2::parallel {

// What we use of OpenMPI's binary interface, which is the same in its versions 4 and 5: handles are
// addresses of objects that the library exports.
struct MpiWorld::Library {
  using Handle = void*;
  static constexpr int kSuccess = 0;
  static constexpr int kSerialized = 2;  // MPI_THREAD_SERIALIZED

  int (*init_thread)(int*, char***, int, int*);
  int (*finalize)();
  int (*comm_rank)(Handle, int*);
  int (*comm_size)(Handle, int*);
  int (*set_errhandler)(Handle, Handle);
  int (*isend)(const void*, int, Handle, int, int, Handle, Handle*);
  int (*irecv)(void*, int, Handle, int, int, Handle, Handle*);
  int (*testall)(int, Handle*, int*, void*);
  Handle world, byte, errors_return;

  std::mutex mutex;  // one thread in the library at a time
  std::atomic<bool> broken{false};
};

namespace {

// Ahead of each process's part of a call.
struct FrameHeader {
  uint64_t kind = 0;
  uint64_t number = 0;
  int64_t bytes = 0;
};

constexpr int64_t kTermsBytes = 8 << 10;

template <class Function>
bool find(void* library, const char* name, Function& out) {
  void* symbol = ::dlsym(library, name);
  std::memcpy(&out, &symbol, sizeof symbol);
  return symbol != nullptr;
}

}  // namespace

class MpiWire : public Wire {
 public:
  MpiWire(std::shared_ptr<MpiWorld::Library> library, int64_t channel,
          std::vector<int64_t> processes, int64_t own)
      : mpi_(std::move(library)),
        tag_(static_cast<int>(channel)),
        processes_(std::move(processes)),
        own_(own),
        told_(processes_.size()),
        heard_(processes_.size()),
        requests_of_(processes_.size()) {}

  Result<void> exchange(const Call& call, std::span<const Piece> sends,
                        std::span<const Piece> receives, Nanos deadline,
                        const std::atomic<bool>& stop) override {
    M2_TRY_VOID(post(call, sends, receives));
    M2_TRY_VOID(wait(call, deadline, stop));
    for (size_t p = 0; p < processes_.size(); ++p) {
      if (processes_[p] == own_) continue;
      const FrameHeader& header = heard_[p];
      if (header.kind == call.kind && header.number == call.number &&
          header.bytes == bytes_for(p, receives))
        continue;
      return broken(fail(Code::corrupt,
                         "{} is in {} with {} bytes, this process in {} and expects {}", name_of(p),
                         describe(Call{static_cast<uint32_t>(header.kind), header.number}),
                         header.bytes, describe(call), bytes_for(p, receives)));
    }
    return {};
  }

 private:
  Result<void> post(const Call& call, std::span<const Piece> sends,
                    std::span<const Piece> receives) {
    requests_.clear();
    std::lock_guard lock(mpi_->mutex);
    bool good = true;
    for (size_t p = 0; p < processes_.size(); ++p) {
      if (processes_[p] == own_) continue;
      told_[p] = {call.kind, call.number, bytes_for(p, sends)};
      good = good && receive(p, &heard_[p], sizeof(FrameHeader)) &&
             send(p, &told_[p], sizeof(FrameHeader));
    }
    for (const Piece& piece : receives)
      good = good && receive(static_cast<size_t>(piece.process), piece.data, piece.bytes);
    for (const Piece& piece : sends)
      good = good && send(static_cast<size_t>(piece.process), piece.data, piece.bytes);
    if (!good)
      return broken(fail(Code::unavailable, "MPI refused a message of {}", describe(call)));
    return {};
  }

  Result<void> wait(const Call& call, Nanos deadline, const std::atomic<bool>& stop) {
    const SteadyClock clock;
    const Nanos until = clock.now() + deadline;
    for (int round = 0;; ++round) {
      int done = 0, code = 0;
      {
        std::lock_guard lock(mpi_->mutex);
        code = mpi_->testall(static_cast<int>(requests_.size()), requests_.data(), &done, nullptr);
      }
      if (code != MpiWorld::Library::kSuccess)
        return broken(fail(Code::unavailable,
                           "MPI failed in {}: a process is gone, or sent more "
                           "than this one expects",
                           describe(call)));
      if (done) return {};
      if (stop.load(std::memory_order_acquire))
        return broken(fail(Code::unavailable, "{} was given up", describe(call)));
      if (deadline > 0 && clock.now() >= until) return late(call, deadline);
      // MPI has no way to sleep: look often at first, then let others have the core.
      if (round > 20)
        std::this_thread::sleep_for(std::chrono::microseconds(std::min(round, 500)));
      else
        std::this_thread::yield();
    }
  }

  // MPI counts in ints: what is longer is refused, not cut.
  bool send(size_t p, const void* data, int64_t bytes) {
    const auto count = narrow<int>(bytes);
    return count && mpi_->isend(data, *count, mpi_->byte, static_cast<int>(processes_[p]), tag_,
                                mpi_->world, &new_request(p)) == MpiWorld::Library::kSuccess;
  }
  bool receive(size_t p, void* data, int64_t bytes) {
    const auto count = narrow<int>(bytes);
    return count && mpi_->irecv(data, *count, mpi_->byte, static_cast<int>(processes_[p]), tag_,
                                mpi_->world, &new_request(p)) == MpiWorld::Library::kSuccess;
  }
  MpiWorld::Library::Handle& new_request(size_t p) {
    requests_of_.resize(requests_.size() + 1);
    requests_of_.back() = p;
    return requests_.emplace_back(nullptr);
  }

  static int64_t bytes_for(size_t p, std::span<const Piece> pieces) {
    int64_t bytes = 0;
    for (const Piece& piece : pieces)
      if (static_cast<size_t>(piece.process) == p) bytes += piece.bytes;
    return bytes;
  }

  // Asks each process's messages apart which are still on their way.
  Error late(const Call& call, Nanos deadline) {
    std::string names;
    std::lock_guard lock(mpi_->mutex);
    for (size_t p = 0; p < processes_.size(); ++p) {
      bool open = false;
      for (size_t r = 0; r < requests_.size(); ++r) {
        int done = 0;
        if (requests_of_[r] != p) continue;
        mpi_->testall(1, &requests_[r], &done, nullptr);
        open = open || !done;
      }
      if (open) names += (names.empty() ? "" : ", ") + name_of(p);
    }
    return broken(fail(Code::unavailable, "{} did not answer {} within {:g} s", names,
                       describe(call), seconds(deadline)));
  }

  std::string name_of(size_t p) const { return fmt::format("MPI rank {}", processes_[p]); }

  Error broken(Error error) {
    mpi_->broken = true;
    return error;
  }

  const std::shared_ptr<MpiWorld::Library> mpi_;
  const int tag_;
  const std::vector<int64_t> processes_;
  const int64_t own_;
  std::vector<FrameHeader> told_, heard_;
  std::vector<MpiWorld::Library::Handle> requests_;
  std::vector<size_t> requests_of_;  // process of each request
};

MpiWorld::MpiWorld(std::shared_ptr<Library> library) : library_(std::move(library)) {}

MpiWorld::~MpiWorld() {
  if (!library_->broken) library_->finalize();
}

Result<std::unique_ptr<MpiWorld>> MpiWorld::open(int64_t processes, const Json& terms) {
  void* file = ::dlopen("libmpi.so.40", RTLD_NOW | RTLD_GLOBAL);
  if (!file)
    return fail(Code::unavailable, "ranks under mpirun need OpenMPI's libmpi.so.40: {}",
                ::dlerror());
  auto library = std::make_shared<Library>();
  const bool whole = find(file, "MPI_Init_thread", library->init_thread) &&
                     find(file, "MPI_Finalize", library->finalize) &&
                     find(file, "MPI_Comm_rank", library->comm_rank) &&
                     find(file, "MPI_Comm_size", library->comm_size) &&
                     find(file, "MPI_Comm_set_errhandler", library->set_errhandler) &&
                     find(file, "MPI_Isend", library->isend) &&
                     find(file, "MPI_Irecv", library->irecv) &&
                     find(file, "MPI_Testall", library->testall) &&
                     find(file, "ompi_mpi_comm_world", library->world) &&
                     find(file, "ompi_mpi_byte", library->byte) &&
                     find(file, "ompi_mpi_errors_return", library->errors_return);
  if (!whole) return fail(Code::unsupported, "libmpi.so.40 is not OpenMPI's");
  int provided = 0, rank = 0, size = 0;
  if (library->init_thread(nullptr, nullptr, Library::kSerialized, &provided) != 0 ||
      provided < Library::kSerialized)
    return fail(Code::unavailable, "MPI does not start, or not with threads");
  library->set_errhandler(library->world, library->errors_return);
  library->comm_rank(library->world, &rank);
  library->comm_size(library->world, &size);
  std::unique_ptr<MpiWorld> world(new MpiWorld(library));
  world->process_ = rank;
  world->processes_ = size;
  if (size != processes)
    return fail(Code::invalid_argument, "MPI has {} processes where {} were expected", size,
                processes);
  M2_TRY_VOID(world->agree(terms));
  return world;
}

// Everyone sends its terms to everyone, so everyone can say what differs.
Result<void> MpiWorld::agree(const Json& terms) {
  std::string own = to_text(terms);
  if (static_cast<int64_t>(own.size()) > kTermsBytes)
    return fail(Code::internal, "terms of {} bytes", own.size());
  own.resize(kTermsBytes, ' ');
  std::vector<int64_t> all(static_cast<size_t>(processes_));
  for (size_t p = 0; p < all.size(); ++p) all[p] = static_cast<int64_t>(p);
  std::vector<std::string> texts(all.size(), std::string(kTermsBytes, ' '));
  std::vector<Wire::Piece> sends, receives;
  for (int64_t p = 0; p < processes_; ++p) {
    if (p == process_) continue;
    auto& text = texts[static_cast<size_t>(p)];
    sends.push_back({p, reinterpret_cast<std::byte*>(own.data()), kTermsBytes});
    receives.push_back({p, reinterpret_cast<std::byte*>(text.data()), kTermsBytes});
  }
  const std::atomic<bool> never{false};
  M2_TRY_VOID(
      MpiWire(library_, 0, all, process_).exchange({7, 0}, sends, receives, 60 * kSecond, never));
  for (int64_t p = 0; p < processes_; ++p) {
    if (p == process_) continue;
    M2_TRY(const Json theirs, parse_json(texts[static_cast<size_t>(p)], {kTermsBytes, 8, 10'000}));
    for (const auto& [name, value] : terms.items())
      if (!theirs.is_object() || theirs.value(name, Json()) != value)
        return fail(Code::invalid_argument,
                    "MPI rank {} differs in {}: it has {}, MPI rank {} has {}", p, name,
                    to_text(theirs.is_object() ? theirs.value(name, Json()) : Json()), process_,
                    to_text(value));
  }
  return {};
}

std::unique_ptr<Wire> MpiWorld::wire(int64_t channel, std::vector<int64_t> processes) {
  return std::make_unique<MpiWire>(library_, 1 + channel, std::move(processes), process_);
}

}  // namespace m2::parallel
