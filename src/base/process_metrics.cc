#include "base/process_metrics.h"

#include <fmt/format.h>
#include <sys/resource.h>
#include <unistd.h>

#include <algorithm>
#include <charconv>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <optional>
#include <sstream>
#include <string_view>
#include <vector>

namespace m2 {
namespace {

void append(std::string& out, std::string_view name, std::string_view type, std::string_view help,
            double value) {
  out += fmt::format("# HELP {} {}\n# TYPE {} {}\n{} {}\n", name, help, name, type, name, value);
}

// The numbers of /proc/self/stat behind the name, which may hold blanks: the first is field 3.
std::vector<std::string> stat_fields() {
  std::ifstream file("/proc/self/stat");
  std::string line;
  std::getline(file, line);
  std::istringstream rest(line.substr(std::min(line.rfind(')') + 1, line.size())));
  return {std::istream_iterator<std::string>(rest), std::istream_iterator<std::string>()};
}

// Seconds since 1970 at which the machine was started.
std::optional<double> boot_time() {
  std::ifstream file("/proc/stat");
  for (std::string word; file >> word;) {
    double seconds = 0;
    if (word == "btime" && file >> seconds) return seconds;
  }
  return std::nullopt;
}

std::optional<double> open_descriptors() {
  std::error_code error;
  const std::filesystem::directory_iterator entries("/proc/self/fd", error);
  if (error) return std::nullopt;
  // One is the listing's own.
  return static_cast<double>(std::distance(entries, std::filesystem::directory_iterator())) - 1;
}

}  // namespace

std::string process_metrics() {
  std::string out;
  const std::vector<std::string> fields = stat_fields();
  // proc(5): numbers count from 1, and ours begin with 3.
  constexpr size_t kUser = 14 - 3, kSystem = 15 - 3, kStart = 22 - 3, kVirtual = 23 - 3,
                   kResident = 24 - 3;
  if (fields.size() > kResident) {
    const auto number = [&](size_t i) {
      double value = 0;
      std::from_chars(fields[i].data(), fields[i].data() + fields[i].size(), value);
      return value;
    };
    const auto ticks = static_cast<double>(sysconf(_SC_CLK_TCK));
    append(out, "process_virtual_memory_bytes", "gauge", "Virtual memory size in bytes.",
           number(kVirtual));
    append(out, "process_resident_memory_bytes", "gauge", "Resident memory size in bytes.",
           number(kResident) * static_cast<double>(sysconf(_SC_PAGESIZE)));
    if (const std::optional<double> boot = boot_time())
      append(out, "process_start_time_seconds", "gauge",
             "Start time of the process since unix epoch in seconds.",
             *boot + number(kStart) / ticks);
    append(out, "process_cpu_seconds_total", "counter",
           "Total user and system CPU time spent in seconds.",
           (number(kUser) + number(kSystem)) / ticks);
  }
  if (const std::optional<double> count = open_descriptors())
    append(out, "process_open_fds", "gauge", "Number of open file descriptors.", *count);
  rlimit limit{};
  if (getrlimit(RLIMIT_NOFILE, &limit) == 0)
    append(out, "process_max_fds", "gauge", "Maximum number of open file descriptors.",
           static_cast<double>(limit.rlim_cur));
  return out;
}

}  // namespace m2
