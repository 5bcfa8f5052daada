#include "app/app.h"

#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <filesystem>
#include <iostream>
#include <span>
#include <string>
#include <vector>

#include "app/bench/bench.h"
#include "app/chat.h"
#include "app/completion.h"
#include "app/doctor/doctor.h"
#include "app/environment.h"
#include "app/eval/eval.h"
#include "app/http_client.h"
#include "app/inspect.h"
#include "app/micro_model.h"
#include "app/no_effect.h"
#include "app/options.h"
#include "app/own_server.h"
#include "app/plan.h"
#include "app/run_batch.h"
#include "app/serve_options.h"
#include "app/serving.h"
#include "app/terminal.h"
#include "app/version.h"
#include "base/log.h"

namespace m2::app {
namespace {

using enum OptionKind;
using Words = std::vector<std::string>;

// clang-format off
constexpr Option kChatOptions[] = {
  {"url", "", "request", text, "", "The server, as vllm chat takes it."},
  {"model", "", "request", text, "", "Name of the model; the server's first one if not given."},
  {"model-name", "", "request", text, "", "The same, as vllm chat takes it."},
  {"api-key", "", "request", text, "", "Key for the server (else $OPENAI_API_KEY)."},
  {"max-tokens", "", "request", integer, "", "Longest answer."},
  {"temperature", "", "request", number, "", "Sampling temperature; 0 is greedy."},
  {"system-prompt", "", "request", text, "", "The conversation's system message."},
  {"thinking", "", "display", flag, "true", "Show what the model thinks, dimmed on a terminal."},
};
// clang-format on

constexpr Command kCompletion{
    "completion",
    "SHELL",
    "Print the completion script of bash, zsh or fish.",
    "bash: source <(m2 completion bash)\nzsh: m2 completion zsh > a folder of $fpath/_m2\n"
    "fish: m2 completion fish > ~/.config/fish/completions/m2.fish",
    {}};

constexpr Command kMan{"man", "", "Print the manual page, for man -l -.", "", {}};

constexpr Command kChat{
    "chat", "[URL-or-MODEL]",
    "Chat in the terminal with a server (http://host:port), or with a model served just for that; "
    "without either, with m2-micro.",
    "/clear forgets the conversation, /quit ends it. Ctrl-C ends an answer that comes.",
    kChatOptions};

int report(const Error& error) {
  std::fprintf(stderr, "m2: %s\n", error.text.c_str());
  return 1;
}

// What was given, without the secrets among it.
Json loggable(const Values& values) {
  Json out = values.given_values();
  for (const char* secret : {"api-key", "hf-token"})
    if (out.contains(secret)) out[secret] = "***";
  return out;
}

Result<void> serve(const Words& words);

// `m2 serve` without a MODEL: the one that comes with the program, under its name.
Result<void> serve_micro(Words words) {
  M2_TRY(const std::filesystem::path folder, micro_model());
  log_info("No model was given: serving {}, a small model that comes with m2", kMicroName);
  M2_TRY(const Values values, parse_command_line(serve_command(), words, environment_variable));
  if (!values.given("served-model-name"))
    words.insert(words.end(), {"--served-model-name", kMicroName});
  words.insert(words.end(), {"--model", folder.string()});
  return serve(words);
}

// `m2 serve`: the world in reading order is Serving::build.
Result<void> serve(const Words& words) {
  M2_TRY(const Values values, parse_command_line(serve_command(), words, environment_variable));
  M2_TRY(const std::string level, log_level(values.text("uvicorn-log-level")));
  start_logging(level, fmt::format("APIServer pid={}", getpid()));
  std::string model = values.positionals().empty() ? values.text("model") : values.positionals()[0];
  if (values.positionals().size() > 1)
    return fail(Code::invalid_argument, "usage: m2 serve [MODEL] [options] (see m2 serve --help)");
  if (values.given("model") && values.text("model").empty())
    return fail(Code::invalid_argument, "--model: a value is empty");
  if (model.empty()) return serve_micro(words);
  log_info("m2 server version {}, serving model {}", kVersion, model);
  log_info("non-default args: {}", to_text(loggable(values)));
  for (const std::string& note : notes_on_options(values, serve_command().options))
    log_info("{}", note);
  for (const std::string& note : notes_on_environment(environ, serve_command().options))
    log_info("{}", note);
  M2_TRY(const std::unique_ptr<Serving> serving, Serving::start(model, values, SignalsEnd::server));
  if (const Result<void> ended = serving->wait(); !ended.ok()) {
    // There is no orderly way down: GPUs, and NCCL, may wait for ranks that are gone, or stopped.
    std::_Exit(report(ended.error()));
  }
  log_info("Shutting down.");
  return {};
}

Result<void> chat(const Words& words) {
  M2_TRY(const Values values, parse_command_line(kChat, words, environment_variable));
  if (values.positionals().size() + values.given("url") > 1)
    return fail(Code::invalid_argument, "usage: m2 chat [URL-or-MODEL] (see m2 chat --help)");
  const std::string asked =
      values.positionals().empty() ? values.text("url") : values.positionals()[0];
  if (asked.empty()) std::fprintf(stderr, "m2: no model was given; this is %s\n", kMicroName);
  M2_TRY(const Values serve_values,
         parse_command_line(serve_command(), with_private_server({"--served-model-name", "chat"}),
                            environment_variable));
  start_logging("warning", "");
  M2_TRY(const ServerToAsk server, server_to_ask(asked, serve_values));
  const std::string key = values.text("api-key");
  const HttpClient client(server.url, key.empty() ? client_api_key() : key);
  std::string model = values.text(values.given("model-name") ? "model-name" : "model");
  if (model.empty()) {
    M2_TRY(model, first_model(client));
  }
  ChatRequestFields fields;
  if (const auto tokens = values.integer("max-tokens")) fields.parameters["max_tokens"] = *tokens;
  if (const auto heat = values.number("temperature")) fields.parameters["temperature"] = *heat;
  fields.system_prompt = values.text("system-prompt");
  const bool terminal = is_terminal(STDOUT_FILENO);
  const ChatStyle style{terminal, values.flag("thinking"), terminal && is_terminal(STDIN_FILENO)};
  return chat_loop(client, model, fields, style, std::cin, std::cout);
}

// Its own options, and all of `m2 serve` for a model served just for the batch.
const Command& run_batch_command() {
  static const std::vector<Option> options = [] {
    // clang-format off
    std::vector<Option> out = {
      {"input-file", "-i", "batch", text, "", "Requests, one JSON object a line: custom_id, method, url, body."},
      {"output-file", "-o", "batch", text, "", "Answers, a line each, as they come."},
      {"url", "", "batch", text, "", "Ask this server instead of loading MODEL."},
      {"concurrency", "", "batch", integer, "64", "Requests under way."},
      {"resume", "", "batch", flag, "true", "Keep what the output holds and ask only for the rest."},
    };
    // clang-format on
    out.insert(out.end(), serve_options().begin(), serve_options().end());
    return out;
  }();
  static const Command command{
      "run-batch",
      "[MODEL]",
      "Answer a file of requests in OpenAI's batch format, with a model or a server (--url).",
      "Requests that fail have their line too. A run that was stopped goes on where it was.",
      options,
      serve_options().size()};
  return command;
}

Result<BatchJob> batch_job(const Values& values) {
  BatchJob job;
  job.input = values.text("input-file");
  job.output = values.text("output-file");
  job.concurrency = *values.integer("concurrency");
  job.resume = values.flag("resume");
  if (job.input.empty() || job.output.empty())
    return fail(Code::invalid_argument, "m2 run-batch needs -i and -o (see m2 run-batch --help)");
  if (job.concurrency < 1 || job.concurrency > 4096)
    return fail(Code::invalid_argument, "--concurrency must be from 1 to 4096, got {}",
                job.concurrency);
  return job;
}

Result<void> batch(const Words& words) {
  M2_TRY(const Values values,
         parse_command_line(run_batch_command(), with_private_server(words), environment_variable));
  M2_TRY(const BatchJob job, batch_job(values));
  start_logging("info", "");
  std::string url = values.text("url");
  std::string key = client_api_key();
  if (!values.list("api-key").empty()) key = values.list("api-key").front();
  if (url.empty()) {
    url = values.positionals().empty() ? values.text("model") : values.positionals()[0];
    if (url.empty() || values.given("uds") || values.given("ssl-certfile"))
      return fail(Code::invalid_argument,
                  "m2 run-batch needs MODEL or --url, and no --uds or --ssl-certfile");
  }
  M2_TRY(const ServerToAsk server, server_to_ask(url, values));
  M2_TRY(const BatchOutcome outcome, run_batch(job, HttpClient(server.url, key)));
  std::fprintf(stderr, "m2: %ld requests: %ld answered, %ld failed, %ld were there\n",
               outcome.lines, outcome.answered, outcome.failed, outcome.kept);
  if (outcome.stopped) return fail(Code::unavailable, "stopped early; run again for the rest");
  return {};
}

Result<void> evaluate(const Words& words) {
  M2_TRY(const Values values, parse_command_line(eval::eval_command(), with_private_server(words),
                                                 environment_variable));
  return eval::run_eval(values);
}

Result<void> plan(const Words& words) {
  M2_TRY(const Values values, parse_command_line(plan_command(), words, environment_variable));
  M2_TRY(const std::string text, plan_text(values));
  std::fputs(text.c_str(), stdout);
  return {};
}

// Every command there is, for completion and the manual page.
std::vector<const Command*> all_commands() {
  std::vector<const Command*> out = {&serve_command(),      &kChat,
                                     &plan_command(),       &run_batch_command(),
                                     &eval::eval_command(), &doctor_command()};
  for (const Command* command : bench::commands()) out.push_back(command);
  for (const Command& command : inspect_commands()) out.push_back(&command);
  for (const Command* command : {&kCompletion, &kMan}) out.push_back(command);
  return out;
}

Result<void> completion(const Words& words) {
  if (words.size() != 1)
    return fail(Code::invalid_argument, "usage: m2 completion SHELL (bash, zsh or fish)");
  M2_TRY(const std::string script, completion_script(words[0], all_commands()));
  std::fputs(script.c_str(), stdout);
  return {};
}

Result<void> man(const Words&) {
  std::fputs(man_page(all_commands(), kVersion).c_str(), stdout);
  return {};
}

Result<void> check_machine(const Words& words) {
  M2_TRY(const Values values, parse_command_line(doctor_command(), words, environment_variable));
  return run_doctor(values);
}

void print_overview() {
  std::puts(
      "m2 serves the MiniMax-M2 family.\n\n"
      "  m2 serve MODEL         serve a checkpoint over HTTP (OpenAI chat and completions)\n"
      "  m2 chat URL-or-MODEL   chat in the terminal\n"
      "  m2 eval URL-or-MODEL   ask questions of files and count the right answers\n"
      "  m2 plan MODEL          what fits on which GPUs, and how fast it can be\n"
      "  m2 bench WHAT          measure a server, the engine, its parts\n"
      "  m2 run-batch           answer a file of requests\n"
      "  m2 doctor              check this machine: device, memory, what it computes\n"
      "  m2 inspect WHAT MODEL  look at tokens, prompts, outputs, weights\n"
      "  m2 completion SHELL    completion for bash, zsh or fish\n"
      "  m2 man                 the manual page\n"
      "  m2 --version\n\n"
      "Without a MODEL the first three take m2-micro, a small model that comes with m2.\n"
      "m2 COMMAND --help tells more.");
}

int with_help(const Command& command, const Words& words, Result<void> (*body)(const Words&)) {
  if (const auto group = help_asked(words)) {
    std::fputs(help_text(command, *group).c_str(), stdout);
    return 0;
  }
  const Result<void> result = body(words);
  return result.ok() ? 0 : report(result.error());
}

}  // namespace

int run(int argc, char** argv) {
  const Words all(argv + std::min(argc, 1), argv + argc);
  if (all.empty() || all[0] == "--help" || all[0] == "-h" || all[0] == "help") {
    print_overview();
    return 0;
  }
  if (all[0] == "--version" || all[0] == "-v" || all[0] == "version") {
    std::puts(kVersion);
    return 0;
  }
  const Words rest(all.begin() + 1, all.end());
  if (all[0] == "serve") return with_help(serve_command(), rest, serve);
  if (all[0] == "chat") return with_help(kChat, rest, chat);
  if (all[0] == "eval") return with_help(eval::eval_command(), rest, evaluate);
  if (all[0] == "bench") return bench::run(rest);
  if (all[0] == "inspect") return inspect(rest);
  if (all[0] == "plan") return with_help(plan_command(), rest, plan);
  if (all[0] == "run-batch") return with_help(run_batch_command(), rest, batch);
  if (all[0] == "doctor") return with_help(doctor_command(), rest, check_machine);
  if (all[0] == "completion") return with_help(kCompletion, rest, completion);
  if (all[0] == "man") return with_help(kMan, rest, man);
  std::fprintf(stderr, "m2: no command '%s' (see m2 --help)\n", all[0].c_str());
  return 1;
}

}  // namespace m2::app
