#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <string>

#include "base/result.h"

namespace m2::app::doctor {

// How fast files come from where they are stored.
struct DiskRate {
  int64_t bytes = 0;  // read
  double seconds = 0;
  int threads = 0;
  // False: the file system reads through the page cache only (a tmpfs, say), which was asked to
  // forget the files but need not have.
  bool direct = true;
  double rate() const { return static_cast<double>(bytes) / seconds; }
};

// Reads the files one after another with several threads, as loading does, past the page cache
// (O_DIRECT), until all is read or the time is over. `progress`: bytes done, of all; from the
// calling thread.
Result<DiskRate> read_files(std::span<const std::string> paths, double most_seconds,
                            const std::function<void(int64_t, int64_t)>& progress);

}  // namespace m2::app::doctor
