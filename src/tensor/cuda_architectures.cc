#include "tensor/cuda_architectures.h"

#include <algorithm>
#include <charconv>

namespace m2 {
namespace {

bool one_runs(std::string_view architecture, int major, int minor) {
  int number = 0;
  const char* end = architecture.data() + architecture.size();
  const auto [rest, error] = std::from_chars(architecture.data(), end, number);
  if (error != std::errc{}) return false;
  const std::string_view suffix(rest, static_cast<size_t>(end - rest));
  const int own = number / 10 * 100 + number % 10, gpu = major * 100 + minor;
  if (suffix.substr(0, 1) == "a") return own == gpu;
  if (suffix == "-real") return number / 10 == major && own <= gpu;
  return own <= gpu;
}

}  // namespace

bool runs_on_gpu(std::string_view architectures, int major, int minor) {
  while (!architectures.empty()) {
    const size_t comma = std::min(architectures.find(','), architectures.size());
    std::string_view one = architectures.substr(0, comma);
    one.remove_prefix(std::min(one.find_first_not_of(' '), one.size()));
    if (one_runs(one, major, minor)) return true;
    architectures.remove_prefix(std::min(comma + 1, architectures.size()));
  }
  return false;
}

}  // namespace m2
