#include "app/doctor/disk.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <cstring>
#include <mutex>
#include <vector>

#include "base/clock.h"
#include "base/thread_pool.h"
#include "tensor/buffer.h"

namespace m2::app::doctor {
namespace {

constexpr int64_t kPiece = 8 << 20;  // a multiple of every block size that direct reads ask for

struct Source {
  std::string path;
  int descriptor = -1;
  int64_t pieces = 0, bytes = 0;
};

class Sources {
 public:
  ~Sources() {
    for (const Source& source : all) ::close(source.descriptor);
  }
  // Once direct reads were refused, none are asked for any more.
  Result<void> add(const std::string& path, bool& direct) {
    int descriptor = direct ? ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_DIRECT) : -1;
    if (descriptor < 0 && direct && errno == EINVAL) direct = false;
    if (descriptor < 0) descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (descriptor < 0)
      return fail(Code::unavailable, "{}: cannot open: {}", path, std::strerror(errno));
    struct stat status {};
    (void)::fstat(descriptor, &status);
    (void)::posix_fadvise(descriptor, 0, 0, POSIX_FADV_DONTNEED);
    all.push_back({path, descriptor, (status.st_size + kPiece - 1) / kPiece, status.st_size});
    pieces += all.back().pieces;
    bytes += status.st_size;
    return {};
  }
  std::vector<Source> all;
  int64_t pieces = 0, bytes = 0;
};

ssize_t read_piece(const Source& source, int64_t index, const Buffer& to) {
  return ::pread(source.descriptor, to.data(), static_cast<size_t>(kPiece), index * kPiece);
}

}  // namespace

Result<DiskRate> read_files(std::span<const std::string> paths, double most_seconds,
                            const std::function<void(int64_t, int64_t)>& progress) {
  DiskRate out;
  Sources sources;
  for (const std::string& path : paths) M2_TRY_VOID(sources.add(path, out.direct));
  std::atomic<bool> direct = out.direct;
  out.threads = std::clamp(usable_cpus(), 2, 16);
  std::atomic<int64_t> next = 0, done = 0;
  std::mutex mutex;
  Result<void> failed;
  const SteadyClock clock;
  const Nanos start = clock.now();
  const auto passed = [&] { return seconds(clock.now() - start); };

  ThreadPool pool(out.threads);
  pool.run([&](int thread) {
    const Buffer buffer(Device{}, kPiece);  // on a border of 2 MiB
    while (passed() < most_seconds) {
      int64_t index = next++;
      if (index >= sources.pieces) return;
      const Source* source = sources.all.data();
      for (; index >= source->pieces; ++source) index -= source->pieces;
      ssize_t count = read_piece(*source, index, buffer);
      if (count < 0 && errno == EINVAL) {  // a file system that opens so, and does not read so
        (void)::fcntl(source->descriptor, F_SETFL, 0);
        direct = false;
        count = read_piece(*source, index, buffer);
      }
      if (count < 0) {
        const std::lock_guard lock(mutex);
        failed = fail(Code::unavailable, "{}: cannot read: {}", source->path, std::strerror(errno));
        next = sources.pieces;
        return;
      }
      done += count;
      if (thread == 0 && progress) progress(done, sources.bytes);
    }
  });
  M2_TRY_VOID(std::move(failed));
  out.bytes = done;
  out.direct = direct;
  out.seconds = std::max(passed(), 1e-9);
  return out;
}

}  // namespace m2::app::doctor
