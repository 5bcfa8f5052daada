#include "base/log.h"

#include <spdlog/pattern_formatter.h>
#include <spdlog/sinks/stdout_color_sinks.h>

#include <algorithm>
#include <optional>
#include <utility>

namespace m2 {
namespace {

// The level's name in upper case, as the log lines that scripts grep for spell it.
class UpperLevel : public spdlog::custom_flag_formatter {
 public:
  void format(const spdlog::details::log_msg& message, const std::tm&,
              spdlog::memory_buf_t& out) override {
    static constexpr std::string_view names[] = {"TRACE", "DEBUG",    "INFO", "WARNING",
                                                 "ERROR", "CRITICAL", "OFF"};
    const std::string_view name = names[message.level];
    out.append(name.data(), name.data() + name.size());
  }
  std::unique_ptr<custom_flag_formatter> clone() const override {
    return std::make_unique<UpperLevel>();
  }
};

constexpr std::pair<std::string_view, spdlog::level::level_enum> kLevels[] = {
    {"trace", spdlog::level::debug},       {"debug", spdlog::level::debug},
    {"info", spdlog::level::info},         {"warning", spdlog::level::warn},
    {"warn", spdlog::level::warn},         {"error", spdlog::level::err},
    {"critical", spdlog::level::critical}, {"fatal", spdlog::level::critical}};

std::optional<spdlog::level::level_enum> level_named(std::string name) {
  std::transform(name.begin(), name.end(), name.begin(),
                 [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
  for (const auto& [known, level] : kLevels)
    if (name == known) return level;
  return std::nullopt;
}

}  // namespace

bool is_log_level(const std::string& name) {
  return level_named(name).has_value();
}

void start_logging(const std::string& level, const std::string& process) {
  auto logger = std::make_shared<spdlog::logger>(
      "m2", std::make_shared<spdlog::sinks::stderr_color_sink_mt>());
  auto formatter = std::make_unique<spdlog::pattern_formatter>();
  const std::string prefix = process.empty() ? "" : "(" + process + ") ";
  formatter->add_flag<UpperLevel>('*').set_pattern(prefix + "%^%*%$ %m-%d %H:%M:%S %v");
  logger->set_formatter(std::move(formatter));

  logger->set_level(level_named(level).value_or(spdlog::level::info));
  logger->flush_on(spdlog::level::info);
  spdlog::set_default_logger(std::move(logger));
}

std::string printable(std::string_view text, size_t limit) {
  std::string out;
  for (const char c : text.substr(0, limit)) {
    const auto byte = static_cast<unsigned char>(c);
    if (byte < 0x20 || byte == 0x7f) {
      out += fmt::format("\\x{:02x}", byte);
    } else {
      out += c;
    }
  }
  if (text.size() > limit) out += "...";
  return out;
}

}  // namespace m2
