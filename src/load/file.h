#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>

#include "base/result.h"

namespace m2::load {

// A regular file open for reading. Move-only.
//
// Weights are read with pread(2) into memory of our own, not mapped: a file that another process
// shortens while we hold it then gives an error that names it, where a mapping would end the
// process with SIGBUS; and large parallel reads reach the disk's and the page cache's speed without
// a page fault for every 4 KiB. What a mapping would save, the copy, is wanted anyway: weights live
// in huge pages, placed for the operations, on the device that runs them.
class File {
 public:
  // Fails if the path does not exist, may not be read, or is no regular file. Follows symbolic
  // links, which is how the hub's cache holds its files.
  static Result<File> open(const std::filesystem::path& path);
  ~File();
  File(File&& other) noexcept;
  File& operator=(File&& other) noexcept;

  const std::string& path() const { return path_; }
  uint64_t size() const { return size_; }  // bytes, when it was opened

  // Fills `to` with the bytes from `offset` on. Fails if the file ends before. Any thread.
  Result<void> read(uint64_t offset, std::span<std::byte> to) const;

 private:
  File(std::string path, int descriptor, uint64_t size)
      : path_(std::move(path)), descriptor_(descriptor), size_(size) {}

  std::string path_;
  int descriptor_ = -1;
  uint64_t size_ = 0;
};

// The whole of a small text file. Fails if it is larger than max_bytes.
Result<std::string> read_text(const std::filesystem::path& path, uint64_t max_bytes);

}  // namespace m2::load
