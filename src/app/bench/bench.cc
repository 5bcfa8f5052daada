#include "app/bench/bench.h"

#include <cstdio>
#include <span>

#include "app/bench/offline.h"
#include "app/bench/ops.h"
#include "app/bench/serve.h"
#include "app/bench/sim.h"
#include "app/environment.h"
#include "app/options.h"

namespace m2::app::bench {
namespace {

struct Entry {
  const Command& (*command)();
  Result<void> (*body)(const Values&);
};

constexpr Entry kEntries[] = {{serve_bench_command, run_serve_bench},
                              {sim_command, run_sim},
                              {latency_command, run_latency},
                              {throughput_command, run_throughput},
                              {ops_command, run_ops}};

void print_overview() {
  std::fputs("usage: m2 bench WHAT [options]\n\n", stdout);
  for (const Entry& entry : kEntries) {
    const Command& command = entry.command();
    std::puts(fmt::format("  m2 {:<17} {}", command.name, command.summary).c_str());
  }
  std::fputs("\nm2 bench WHAT --help tells more.\n", stdout);
}

int report(const Error& error) {
  std::fprintf(stderr, "m2: %s\n", error.text.c_str());
  return 1;
}

}  // namespace

std::vector<const Command*> commands() {
  std::vector<const Command*> out;
  for (const Entry& entry : kEntries) out.push_back(&entry.command());
  return out;
}

int run(const std::vector<std::string>& words) {
  if (words.empty() || words[0] == "--help" || words[0] == "-h") {
    print_overview();
    return 0;
  }
  const std::span<const std::string> rest = std::span(words).subspan(1);
  for (const auto& [make, body] : kEntries) {
    const Command& command = make();
    if ("bench " + words[0] != command.name) continue;
    if (const auto group = help_asked(rest)) {
      std::fputs(help_text(command, *group).c_str(), stdout);
      return 0;
    }
    const Result<Values> values = parse_command_line(command, rest, environment_variable);
    if (!values.ok()) return report(values.error());
    const Result<void> done = body(*values);
    return done.ok() ? 0 : report(done.error());
  }
  print_overview();
  return report(fail(Code::invalid_argument, "no such thing to measure: {}", words[0]));
}

}  // namespace m2::app::bench
