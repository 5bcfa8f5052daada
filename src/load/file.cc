#include "load/file.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <utility>

#include "base/checked.h"

namespace m2::load {
namespace {

Error system_error(Code code, const std::string& path, const char* what) {
  return Error{code, fmt::format("{}: {}: {}", path, what, std::strerror(errno)), path};
}

}  // namespace

Result<File> File::open(const std::filesystem::path& path) {
  // Non-blocking, so that a named pipe is refused below instead of waited for.
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC | O_NONBLOCK);
  if (descriptor < 0) {
    const bool absent = errno == ENOENT || errno == ENOTDIR;
    const Code code = absent ? Code::not_found : Code::unavailable;
    return system_error(code, path.string(), "cannot open");
  }
  File file(path.string(), descriptor, 0);
  struct stat status;
  if (::fstat(descriptor, &status) != 0)
    return system_error(Code::unavailable, file.path_, "cannot stat");
  if (!S_ISREG(status.st_mode))
    return Error{Code::invalid_argument, fmt::format("{}: not a regular file", file.path_),
                 file.path_};
  file.size_ = static_cast<uint64_t>(status.st_size);
  // Only a hint: a larger read-ahead.
  (void)::posix_fadvise(descriptor, 0, 0, POSIX_FADV_SEQUENTIAL);
  return file;
}

File::~File() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

File::File(File&& other) noexcept
    : path_(std::move(other.path_)),
      descriptor_(std::exchange(other.descriptor_, -1)),
      size_(other.size_) {}

File& File::operator=(File&& other) noexcept {
  std::swap(path_, other.path_);
  std::swap(descriptor_, other.descriptor_);
  std::swap(size_, other.size_);
  return *this;
}

Result<void> File::read(uint64_t offset, std::span<std::byte> to) const {
  const auto end = checked_add<uint64_t>(offset, to.size());
  if (!end || *end > size_)
    return Error{Code::corrupt,
                 fmt::format("{}: {} bytes at offset {} lie outside its {} bytes", path_, to.size(),
                             offset, size_),
                 path_};
  while (!to.empty()) {
    const ssize_t count = ::pread(descriptor_, to.data(), to.size(), static_cast<off_t>(offset));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0) return system_error(Code::unavailable, path_, "cannot read");
    if (count == 0)
      return Error{Code::corrupt,
                   fmt::format("{}: ends at byte {}, but had {} bytes when it was opened: the file "
                               "was shortened meanwhile",
                               path_, offset, size_),
                   path_};
    offset += static_cast<uint64_t>(count);
    to = to.subspan(static_cast<size_t>(count));
  }
  return {};
}

Result<std::string> read_text(const std::filesystem::path& path, uint64_t max_bytes) {
  M2_TRY(const File file, File::open(path));
  if (file.size() > max_bytes)
    return Error{
        Code::resource_exhausted,
        fmt::format("{}: {} bytes exceed the limit of {}", file.path(), file.size(), max_bytes),
        file.path()};
  std::string text(static_cast<size_t>(file.size()), '\0');
  M2_TRY_VOID(file.read(0, std::as_writable_bytes(std::span(text))));
  return text;
}

}  // namespace m2::load
