#pragma once

#include <spdlog/spdlog.h>

#include <string>

// Logging goes to stderr through spdlog: log_info("loaded {} tensors", n). Never from the token
// path of a step; never with prompts, keys or client text unless a flag asks for it.

namespace m2 {

template <class... Args>
void log_debug(fmt::format_string<Args...> format, Args&&... args) {
  spdlog::debug(format, std::forward<Args>(args)...);
}
template <class... Args>
void log_info(fmt::format_string<Args...> format, Args&&... args) {
  spdlog::info(format, std::forward<Args>(args)...);
}
template <class... Args>
void log_warning(fmt::format_string<Args...> format, Args&&... args) {
  spdlog::warn(format, std::forward<Args>(args)...);
}
template <class... Args>
void log_error(fmt::format_string<Args...> format, Args&&... args) {
  spdlog::error(format, std::forward<Args>(args)...);
}

// Sets up the one logger: lines `LEVEL MM-DD HH:MM:SS [process] message` on stderr.
// `level` is a name that is_log_level() knows; anything else means info. `process` is the prefix,
// e.g. "APIServer pid=7".
void start_logging(const std::string& level, const std::string& process);

// debug, info, warning, error and critical in any case, as uvicorn and Python name them; their
// trace, warn and fatal, too.
bool is_log_level(const std::string& name);

// Client text made fit for one log line: control bytes become \xNN, cut at `limit` bytes.
std::string printable(std::string_view text, size_t limit = 200);

}  // namespace m2
