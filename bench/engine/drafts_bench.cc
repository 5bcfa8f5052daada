// What drafts are worth: texts that were written are written again, token by token, by the real
// engine over a model that knows them, whose steps take the time that steps take on GPUs.
//
//   drafts_bench TOKENIZER.json CASES.jsonl [tokens of a draft]
//
// A case: {"kind", "prompt", "output"} (edits_from_git.py makes them). One request at a time.
#include <algorithm>
#include <deque>
#include <fstream>
#include <iostream>
#include <map>
#include <memory>
#include <numeric>
#include <vector>

#include "base/json.h"
#include "base/log.h"
#include "engine/engine.h"
#include "text/tokenizer.h"

namespace m2::engine {
namespace {

// Microseconds of a decoding step at 2k of context by its rows, on H200s (steps-cuda.md; between
// the sizes measured whole by the shape of shares of 8 layers, notes/ranks.md).
struct Machine {
  const char* name;
  std::vector<std::pair<double, double>> times;

  Nanos time(int64_t rows) const {
    const auto x = static_cast<double>(rows);
    size_t i = 1;
    while (i + 1 < times.size() && times[i].first < x) ++i;
    const auto [x0, y0] = times[i - 1];
    const auto [x1, y1] = times[i];
    return static_cast<Nanos>((y0 + (y1 - y0) * (x - x0) / (x1 - x0)) * 1000);
  }
};

const std::vector<Machine> kMachines = {
    {"TP4", {{1, 2867}, {2, 3595}, {8, 6455}, {10, 7960}, {16, 9853}}},
    {"TP8", {{1, 2645}, {2, 2965}, {8, 5128}, {10, 6039}, {16, 7114}}},
    {"one, 30 layers", {{1, 2270}, {2, 3270}, {8, 8261}, {10, 9800}, {16, 12400}}},
};
constexpr Nanos kWait = 50'000;  // of a GPU for a step that was not there when it was free

// Samples what was written: the token behind each position.
class Replay : public model::StepModel {
 public:
  Replay(const Machine& machine, const std::vector<TokenId>& text, ManualClock& clock)
      : machine_(machine), text_(text), clock_(clock) {}

  Limits limits() const override {
    return {200064, 1 << 14, 16, 200000, 8192, 64, 1 << 20, 200064 / 32, 20};
  }
  bool samples() const override { return true; }
  Result<void> step(const model::StepInput&, model::LogitsSink&) override {
    return fail(Code::internal, "this model samples");
  }

  void enqueue(const model::StepInput& input, const model::StepSampling&) override {
    const auto tokens = static_cast<int64_t>(input.token_ids.size());
    const Nanos start = free_at_ > clock_.now() ? free_at_ : clock_.now() + kWait;
    free_at_ = start + machine_.time(tokens);
    steps += 1;
    Made made{free_at_, {}};
    for (const int32_t row : input.logit_rows) {
      const auto next = static_cast<size_t>(input.positions[static_cast<size_t>(row)]) + 1;
      made.rows.push_back({});
      made.rows.back().token = next < text_.size() ? text_[next] : 0;
    }
    under_way_.push_back(std::move(made));
  }

  Result<model::StepResult> collect() override {
    collected_ = std::move(under_way_.front());
    under_way_.pop_front();
    clock_.advance(std::max<Nanos>(collected_.done - clock_.now(), 0));
    return model::StepResult{collected_.rows, {}, {}, 20};
  }

  int64_t steps = 0;

 private:
  struct Made {
    Nanos done;
    std::vector<ops::SampledRow> rows;
  };

  const Machine& machine_;
  const std::vector<TokenId>& text_;
  ManualClock& clock_;
  Nanos free_at_ = 0;
  std::deque<Made> under_way_;
  Made collected_;
};

struct Case {
  std::string kind;
  std::vector<TokenId> text;
  size_t prompt = 0;
};

struct Outcome {
  double seconds = 0;  // of decoding
  int64_t tokens = 0, steps = 0, drafted = 0, came = 0;
};

// Nanoseconds between the first token and the last.
class Watch : public EventSink {
 public:
  explicit Watch(const ManualClock& clock) : clock_(clock) {}
  void on_events(std::vector<Event>&& events) override {
    for (const Event& event : events) {
      if (event.token >= 0 && tokens++ == 0) first = clock_.now();
      last = clock_.now();
      ended = ended || event.finish != FinishReason::none;
    }
  }
  Nanos first = 0, last = 0;
  int64_t tokens = 0;
  bool ended = false;

 private:
  const ManualClock& clock_;
};

Outcome write_again(const Machine& machine, const Case& one,
                    const std::optional<SpeculationConfig>& speculation) {
  ManualClock clock;
  Replay model(machine, one.text, clock);
  Watch watch(clock);
  ThreadPool pool(1);
  Metrics metrics;
  EngineConfig config;
  config.max_num_seqs = 16;
  config.max_num_batched_tokens = 8192;
  config.log_interval = 0;
  config.speculation = speculation;
  Engine engine(config, model, pool, clock, watch, metrics);
  Request request;
  request.prompt.assign(one.text.begin(), one.text.begin() + static_cast<ptrdiff_t>(one.prompt));
  request.params.temperature = 0;
  request.params.ignore_eos = true;
  request.params.max_tokens = static_cast<int64_t>(one.text.size() - one.prompt);
  M2_CHECK(engine.submit(std::move(request)).ok());
  while (!watch.ended) engine.step();
  const EngineStats stats = engine.stats();
  return {seconds(watch.last - watch.first), watch.tokens, model.steps, stats.drafted_tokens,
          std::reduce(stats.drafted_came.begin(), stats.drafted_came.end())};
}

void add(Outcome& to, const Outcome& one) {
  to.seconds += one.seconds;
  to.tokens += one.tokens;
  to.steps += one.steps;
  to.drafted += one.drafted;
  to.came += one.came;
}

std::vector<Case> read_cases(const text::Tokenizer& tokenizer, const std::string& path) {
  std::vector<Case> out;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) {
    const Result<Json> json = parse_json(line);
    M2_CHECK(json.ok(), "{}: not JSON lines", path);
    Case one{(*json)["kind"], {}, 0};
    const std::string prompt = "\n" + (*json)["prompt"].get<std::string>();
    one.text = tokenizer.encode(prompt, text::AddedTokens::none);
    one.prompt = one.text.size();
    const auto output =
        tokenizer.encode((*json)["output"].get<std::string>(), text::AddedTokens::none);
    one.text.insert(one.text.end(), output.begin(), output.end());
    if (output.size() >= 50) out.push_back(std::move(one));
  }
  return out;
}

void print(const Machine& machine, const std::vector<Case>& cases,
           const SpeculationConfig& speculation) {
  std::map<std::string, std::pair<Outcome, Outcome>> by_kind;
  std::map<std::string, double> slowest;
  for (const Case& one : cases) {
    const Outcome plain = write_again(machine, one, std::nullopt);
    const Outcome drafting = write_again(machine, one, speculation);
    add(by_kind[one.kind].first, plain);
    add(by_kind[one.kind].second, drafting);
    double& least = slowest.emplace(one.kind, 1e9).first->second;
    least = std::min(least, plain.seconds / drafting.seconds);
  }
  for (const auto& [kind, both] : by_kind) {
    const auto& [plain, drafting] = both;
    const auto count = std::ranges::count(cases, kind, &Case::kind);
    std::cout << fmt::format(
        "| {} | {} | {} | {} | {:.2f} | {:.0f} % | {:.0f} | {:.0f} | {:.2f} | {:.3f} |\n",
        machine.name, kind, count, plain.tokens,
        static_cast<double>(drafting.tokens) / static_cast<double>(drafting.steps),
        100.0 * static_cast<double>(drafting.came) /
            static_cast<double>(std::max<int64_t>(drafting.drafted, 1)),
        static_cast<double>(plain.tokens) / plain.seconds,
        static_cast<double>(drafting.tokens) / drafting.seconds, plain.seconds / drafting.seconds,
        slowest[kind]);
  }
}

int main(int argc, char** argv) {
  if (argc < 3) {
    std::cerr << "drafts_bench TOKENIZER.json CASES.jsonl [tokens of a draft]\n";
    return 2;
  }
  const auto tokenizer = text::Tokenizer::load(argv[1]);
  M2_CHECK(tokenizer.ok(), "{}", tokenizer.error().text);
  SpeculationConfig speculation;
  if (argc > 3) speculation.most_tokens = std::stoll(argv[3]);
  if (argc > 4) speculation.least_match = std::stoll(argv[4]);
  const std::vector<Case> cases = read_cases(**tokenizer, argv[2]);
  std::cout << "| steps as on | text | texts | tokens | tokens a step | drafted tokens that came | "
               "tokens/s without | with | | of the worst text |\n"
               "| --- | --- | --: | --: | --: | --: | --: | --: | --: | --: |\n";
  for (const Machine& machine : kMachines) print(machine, cases, speculation);
  return 0;
}

}  // namespace
}  // namespace m2::engine

int main(int argc, char** argv) {
  return m2::engine::main(argc, argv);
}
