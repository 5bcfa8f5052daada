#include "app/eval/eval.h"

#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <filesystem>
#include <fstream>

#include "app/environment.h"
#include "app/eval/report.h"
#include "app/eval/run.h"
#include "app/http_client.h"
#include "app/micro_model.h"
#include "app/own_server.h"
#include "app/serve_options.h"
#include "app/terminal.h"
#include "base/log.h"

namespace m2::app::eval {
namespace {

namespace fs = std::filesystem;
using enum OptionKind;

// clang-format off
constexpr Option kOwnOptions[] = {
  {"compare", "", "eval", text, "", "Ask this server (http://host:port) too, and show where the two differ."},
  {"concurrency", "", "eval", integer, "16", "Items under way."},
  {"limit", "", "eval", integer, "", "Only so many items of each set, the first ones."},
  {"max-tokens", "", "eval", integer, "", "Longest answer; what the context leaves if not given."},
  {"output", "-o", "eval", text, "", "Write every answer here, a JSON line each."},
  {"system-prompt", "", "eval", text, "", "System message of items that have none."},
  {"temperature", "", "eval", number, "0", "Sampling temperature; 0 is greedy."},
  {"top-p", "", "eval", number, "", "Nucleus sampling."},
};
// clang-format on

// The sets that a model brings with it.
Result<fs::path> sets_of(const std::string& model) {
  std::error_code ignored;
  const fs::path own = fs::path(model) / "eval";
  if (!model.empty() && fs::is_directory(own, ignored)) return own;
  M2_TRY(const fs::path micro, micro_model());
  return micro / "eval";
}

Result<std::vector<fs::path>> files_in(const fs::path& folder) {
  std::vector<fs::path> out;
  std::error_code error;
  for (const fs::directory_entry& entry : fs::directory_iterator(folder, error))
    if (entry.path().extension() == ".jsonl") out.push_back(entry.path());
  if (out.empty()) return fail(Code::not_found, "there is no .jsonl file in {}", folder.string());
  std::sort(out.begin(), out.end());
  return out;
}

void add_system_prompt(Item& item, const std::string& text) {
  if (!item.messages.empty() && item.messages[0].is_object() &&
      item.messages[0].value("role", Json()) == "system")
    return;
  item.messages.insert(item.messages.begin(), Json{{"role", "system"}, {"content", text}});
}

Result<std::vector<ItemSet>> read_sets(const Values& values, const std::string& model) {
  std::vector<fs::path> given(values.positionals().begin() + !values.positionals().empty(),
                              values.positionals().end());
  if (given.empty()) {
    M2_TRY(given.emplace_back(), sets_of(model));
  }
  std::vector<ItemSet> out;
  for (const fs::path& path : given) {
    std::vector<fs::path> files{path};
    std::error_code ignored;
    if (fs::is_directory(path, ignored)) {
      M2_TRY(files, files_in(path));
    }
    for (const fs::path& file : files) {
      M2_TRY(out.emplace_back(), read_item_set(file));
    }
  }
  const auto limit = static_cast<size_t>(values.integer("limit").value_or(INT32_MAX));
  const std::string system = values.text("system-prompt");
  for (ItemSet& set : out) {
    if (set.items.size() > limit) set.items.resize(limit);
    if (!system.empty())
      for (Item& item : set.items) add_system_prompt(item, system);
  }
  return out;
}

Result<RunOptions> run_options(const Values& values) {
  RunOptions out;
  out.concurrency = *values.integer("concurrency");
  out.parameters["temperature"] = *values.number("temperature");
  if (const auto top_p = values.number("top-p")) out.parameters["top_p"] = *top_p;
  if (const auto tokens = values.integer("max-tokens")) out.parameters["max_tokens"] = *tokens;
  if (out.concurrency < 1 || out.concurrency > 1024)
    return fail(Code::invalid_argument, "--concurrency must be from 1 to 1024, got {}",
                out.concurrency);
  if (values.integer("limit").value_or(1) < 1)
    return fail(Code::invalid_argument, "--limit must be at least 1");
  return out;
}

Result<std::vector<SetOutcome>> ask_all(const std::string& url, const std::string& key,
                                        const std::vector<ItemSet>& sets, RunOptions options) {
  const HttpClient client(url, key);
  M2_TRY(options.parameters["model"], first_model(client));
  int64_t total = 0, done = 0;
  for (const ItemSet& set : sets) total += static_cast<int64_t>(set.items.size());
  ProgressBar bar("Items", ProgressBar::Unit::items);
  std::vector<SetOutcome> out;
  for (const ItemSet& set : sets)
    out.push_back(run_set(client, set, options, [&] { bar.update(++done, total); }));
  return out;
}

// Errors of items are no errors of the run, unless nothing was answered at all.
Result<void> check_answers(const std::vector<SetOutcome>& outcomes) {
  std::string first;
  bool answered = false;
  for (const SetOutcome& set : outcomes)
    for (const Outcome& one : set.outcomes) {
      answered = answered || one.error.empty();
      if (first.empty() && !one.error.empty()) first = one.error;
    }
  if (!answered) return fail(Code::unavailable, "no item was answered: {}", first);
  if (!first.empty()) std::fprintf(stderr, "m2: items failed, the first: %s\n", first.c_str());
  return {};
}

}  // namespace

const Command& eval_command() {
  static const std::vector<Option> options = [] {
    std::vector<Option> out(std::begin(kOwnOptions), std::end(kOwnOptions));
    out.insert(out.end(), serve_options().begin(), serve_options().end());
    return out;
  }();
  static const Command command{
      "eval",
      "[URL-or-MODEL [FILE-or-FOLDER...]]",
      "Ask a server or a model the questions of files and print how many answers are right.",
      "Without files: the sets in the model's own folder `eval`, or m2-micro's. Without anything: "
      "m2-micro.\nA file has a JSON object a line: {\"question\": ..., \"answer\": ...}, or "
      "{\"messages\": [...], \"ideal\": ...};\nsee docs/eval.md.",
      options,
      serve_options().size()};
  return command;
}

Result<void> run_eval(const Values& values) {
  const std::string asked = values.positionals().empty() ? "" : values.positionals()[0];
  M2_TRY(const std::vector<ItemSet> sets, read_sets(values, asked));
  M2_TRY(const RunOptions options, run_options(values));
  std::string key = client_api_key();
  if (!values.list("api-key").empty()) key = values.list("api-key").front();

  start_logging("warning", "");
  M2_TRY(const ServerToAsk server, server_to_ask(asked, values));
  // Without a terminal the progress is lines of the log.
  if (!is_terminal(STDERR_FILENO)) start_logging("info", "");
  M2_TRY(const std::vector<SetOutcome> outcomes, ask_all(server.url, key, sets, options));
  M2_TRY_VOID(check_answers(outcomes));
  std::fputs(table(outcomes).c_str(), stdout);

  const std::string path = values.text("output");
  if (!path.empty()) {
    std::ofstream file(path, std::ios::binary | std::ios::trunc);
    file << answer_lines(sets, outcomes);
    if (!file.flush()) return fail(Code::unavailable, "cannot write {}", path);
  }
  const std::string other = values.text("compare");
  if (other.empty()) return {};
  M2_TRY(const std::vector<SetOutcome> others, ask_all(other, key, sets, options));
  M2_TRY_VOID(check_answers(others));
  std::fputs("\n", stdout);
  std::fputs(table(others).c_str(), stdout);
  std::fputs("\n", stdout);
  const std::string name = asked.empty() ? kMicroName : asked;
  std::fputs(comparison(sets, name, outcomes, other, others).c_str(), stdout);
  return {};
}

}  // namespace m2::app::eval
