#include "app/eval/run.h"

#include <algorithm>
#include <atomic>
#include <mutex>
#include <numeric>
#include <thread>

#include "app/eval/judge.h"
#include "base/clock.h"

namespace m2::app::eval {
namespace {

constexpr const char* kPath = "/v1/chat/completions";

// The first choice of an answer that is one, and its usage added to the outcome.
Result<Json> choice_of(const HttpAnswer& answer, Outcome& outcome) {
  M2_TRY(const Json body, parse_json(answer.body));
  if (answer.status != 200)
    return fail(Code::unavailable, "the server answered {}: {}", answer.status,
                answer.body.substr(0, 300));
  try {
    outcome.completion_tokens += body.at("usage").at("completion_tokens").get<int64_t>();
    Json choice = body.at("choices").at(0);
    if (!choice.at("message").is_object() || !choice.at("finish_reason").is_string())
      return fail(Code::corrupt, "the answer has no message or no finish_reason");
    return choice;
  } catch (const Json::exception& fault) {
    return fail(Code::corrupt, "not an answer of this protocol: {}", fault.what());
  }
}

void note_calls(const Json& calls, const Json& tools, Outcome& outcome) {
  for (const Json& call : calls) {
    outcome.calls.push_back(call);
    outcome.valid_calls += misfit_of_call(call, tools).empty();
  }
}

// The answer and what its calls gave, as messages of the next request: by the ids of the calls,
// whatever those are.
void go_on(Json& messages, const Json& message, const Step& step) {
  messages.push_back(message);
  const Json& calls = message["tool_calls"];
  for (size_t i = 0; i < step.results.size(); ++i)
    messages.push_back({{"role", "tool"},
                        {"tool_call_id", calls[i].value("id", Json(""))},
                        {"content", step.results[i]}});
}

Result<void> ask(const HttpClient& client, const Item& item, const Json& parameters,
                 Outcome& outcome) {
  Json body = parameters;
  body["messages"] = item.messages;
  if (!item.tools.is_null()) body["tools"] = item.tools;
  for (size_t turn = 0; turn <= item.steps.size(); ++turn) {
    M2_TRY(const HttpAnswer answer, client.post(kPath, body));
    M2_TRY(const Json choice, choice_of(answer, outcome));
    const Json& message = choice["message"];
    const Json content = message.value("content", Json());
    outcome.content = content.is_string() ? content.get<std::string>() : "";
    outcome.ended = outcome.ended && choice["finish_reason"] != "length";
    const Json calls = message.value("tool_calls", Json());
    if (calls.is_array()) note_calls(calls, item.tools, outcome);
    if (turn == item.steps.size()) {
      outcome.right =
          (!calls.is_array() || calls.empty()) && is_right_answer(item, outcome.content);
      return {};
    }
    if (!are_right_calls(item.steps[turn], calls)) return {};
    go_on(body["messages"], message, item.steps[turn]);
  }
  return {};
}

int64_t sum(const SetOutcome& set, const std::function<int64_t(const Outcome&)>& of) {
  return std::transform_reduce(set.outcomes.begin(), set.outcomes.end(), int64_t{0}, std::plus{},
                               of);
}

}  // namespace

int64_t SetOutcome::right() const {
  return sum(*this, [](const Outcome& one) { return one.right; });
}
int64_t SetOutcome::ended() const {
  return sum(*this, [](const Outcome& one) { return one.ended && one.error.empty(); });
}
int64_t SetOutcome::failed() const {
  return sum(*this, [](const Outcome& one) { return !one.error.empty(); });
}
int64_t SetOutcome::calls() const {
  return sum(*this, [](const Outcome& one) { return static_cast<int64_t>(one.calls.size()); });
}
int64_t SetOutcome::valid_calls() const {
  return sum(*this, [](const Outcome& one) { return one.valid_calls; });
}
int64_t SetOutcome::completion_tokens() const {
  return sum(*this, [](const Outcome& one) { return one.completion_tokens; });
}

SetOutcome run_set(const HttpClient& client, const ItemSet& set, const RunOptions& options,
                   const std::function<void()>& on_done) {
  SetOutcome out{set.name, std::vector<Outcome>(set.items.size()), 0};
  const SteadyClock clock;
  const Nanos start = clock.now();
  std::atomic<size_t> next{0};
  std::mutex mutex;
  const auto work = [&] {
    for (size_t i = next++; i < set.items.size(); i = next++) {
      const Result<void> asked = ask(client, set.items[i], options.parameters, out.outcomes[i]);
      if (!asked.ok()) out.outcomes[i].error = asked.error().text;
      std::lock_guard lock(mutex);
      on_done();
    }
  };
  std::vector<std::thread> threads;
  const auto most = static_cast<int64_t>(set.items.size());
  for (int64_t i = 0; i < std::min(options.concurrency, most); ++i) threads.emplace_back(work);
  for (std::thread& thread : threads) thread.join();
  out.seconds = seconds(clock.now() - start);
  return out;
}

}  // namespace m2::app::eval
