#include "tests/engine/simulation.h"

#include <algorithm>
#include <deque>
#include <map>
#include <memory>
#include <random>
#include <vector>

#include "base/thread_pool.h"
#include "engine/engine.h"
#include "engine/sampler.h"
#include "tests/engine/history_model.h"

namespace m2::engine::test {
namespace {

constexpr int64_t kVocab = 64;
constexpr TokenId kIdLimit = 61;
constexpr TokenId kEos = 2;
constexpr int64_t kMaxModelLen = 96;

class Dice {
 public:
  explicit Dice(uint64_t seed) : state_(seed) {}
  uint64_t bits() { return mix64(state_++); }
  int64_t below(int64_t n) { return static_cast<int64_t>(bits() % static_cast<uint64_t>(n)); }
  int64_t between(int64_t low, int64_t high) { return low + below(high - low + 1); }
  bool chance(double p) { return static_cast<double>(bits() >> 11) * 0x1p-53 < p; }
  template <class T>
  T pick(std::initializer_list<T> options) {
    return *(options.begin() + below(static_cast<int64_t>(options.size())));
  }

 private:
  uint64_t state_;
};

// What a request must come to when nothing else exists: a pure function of the request.
struct Solo {
  std::vector<TokenId> tokens;
  std::vector<Logprobs> logprobs, prompt_logprobs;
  FinishReason finish = FinishReason::none;
  TokenId stop_token = -1;
};

bool alike(const TokenLogprob& a, const TokenLogprob& b) {
  return a.id == b.id && a.logprob == b.logprob && a.rank == b.rank;
}

bool same(const Logprobs& a, const Logprobs& b) {
  return alike(a.chosen, b.chosen) && std::ranges::equal(a.top, b.top, alike);
}

// Decodes one request from the history alone, with no scheduler, blocks, batch or cache.
class SoloRun {
 public:
  explicit SoloRun(const HistoryModel& model) : model_(model) {}

  Solo run(const Request& request, int64_t pool_tokens) {
    solo_ = {};
    uint64_t history = kEmptyHistory;
    TokenCounts counts;
    counts.add_prompt(request.prompt);
    const auto prompt = static_cast<int64_t>(request.prompt.size());
    for (int64_t i = 0; i + 1 < prompt; ++i) {
      history = extend(history, request.prompt[static_cast<size_t>(i)], i);
      if (request.params.prompt_logprobs >= 0 && !score(request, history, i + 1)) return solo_;
    }
    history = extend(history, request.prompt.back(), prompt - 1);
    const int64_t most =
        std::min({request.params.max_tokens, kMaxModelLen - prompt, pool_tokens + 1 - prompt});
    while (solo_.finish == FinishReason::none) {
      if (!sample(request, history, counts)) break;
      end(request, most);
      history = extend(history, solo_.tokens.back(),
                       prompt + static_cast<int64_t>(solo_.tokens.size()) - 1);
    }
    return solo_;
  }

 private:
  bool score(const Request& request, uint64_t history, int64_t position) {
    model_.logits_of(history, row_);
    Logprobs logprobs;
    const RowStatus status = sampler_.score(row_, request.prompt[static_cast<size_t>(position)],
                                            request.params.prompt_logprobs, logprobs, 0);
    if (status != RowStatus::ok) solo_.finish = FinishReason::error;
    solo_.prompt_logprobs.push_back(std::move(logprobs));
    return status == RowStatus::ok;
  }

  bool sample(const Request& request, uint64_t history, TokenCounts& counts) {
    model_.logits_of(history, row_);
    Sampled sampled = sampler_.sample(
        row_, {request.params, solo_.tokens, &counts, request.params.seed.value_or(0)}, 0);
    if (sampled.status != RowStatus::ok) {
      solo_.finish = FinishReason::error;
      return false;
    }
    solo_.tokens.push_back(sampled.token);
    counts.add_output(sampled.token);
    if (sampled.logprobs) solo_.logprobs.push_back(*sampled.logprobs);
    return true;
  }

  void end(const Request& request, int64_t most) {
    const SamplingParams& params = request.params;
    const TokenId last = solo_.tokens.back();
    const auto size = static_cast<int64_t>(solo_.tokens.size());
    const bool listed = std::ranges::count(params.stop_token_ids, last) > 0;
    if (size >= params.min_tokens && last == kEos && !params.ignore_eos) {
      solo_.finish = FinishReason::stop;
    } else if (size >= params.min_tokens && listed) {
      solo_.finish = FinishReason::stop;
      solo_.stop_token = last;
    } else if (size == most) {
      solo_.finish = FinishReason::length;
    }
  }

  const HistoryModel& model_;
  Sampler sampler_{kIdLimit, {kEos}, 1};
  std::vector<float> row_ = std::vector<float>(kVocab);
  Solo solo_;
};

class Simulation : public EventSink {
 public:
  Simulation(uint64_t seed, int64_t steps) : dice_(mix64(seed)), step_limit_(steps) {}

  SimulationResult run() {
    while (result_.steps < step_limit_ && ok()) {
      start_world();
      const int64_t end = std::min(step_limit_, result_.steps + dice_.between(100, 1000));
      while (result_.steps < end && ok() && !dead_) {
        arrive();
        cancel_some();
        step();
      }
      if (!dead_ && ok()) drain();
    }
    return std::move(result_);
  }

  void on_events(std::vector<Event>&& events) override {
    for (const Event& event : events) on_event(event);
  }

 private:
  struct Live {
    Request request;
    Solo solo;
    size_t tokens = 0;
    bool announced = false;
    int64_t cancelled_at = -1;  // step count
    int64_t submitted_at = 0;
  };

  bool ok() const { return result_.failure.empty(); }
  void expect(bool good, const std::string& what) {
    if (!good && ok()) result_.failure = fmt::format("step {}: {}", result_.steps, what);
  }

  void start_world() {
    engine_.reset();
    live_.clear();
    stems_.clear();
    last_id_ = 0;
    dead_ = false;
    limits_ = {kVocab,       dice_.between(4, 40), dice_.pick<int64_t>({1, 2, 3, 4, 8, 16}),
               kMaxModelLen, dice_.between(1, 48), dice_.between(1, 10)};
    config_ = {};
    config_.max_num_seqs = dice_.between(1, 10);
    config_.max_num_batched_tokens = dice_.between(1, 48);
    config_.max_queued_requests = dice_.between(1, 24);
    config_.prefix_caching = dice_.chance(0.8);
    config_.chunked_prefill = dice_.chance(0.8);
    config_.long_prefill_token_threshold = dice_.pick<int64_t>({0, 0, 1, 5});
    config_.shared_prefill_tokens = dice_.pick<int64_t>({0, 1, 20});
    config_.policy = dice_.chance(0.5) ? SchedulingPolicy::fcfs : SchedulingPolicy::priority;
    config_.eos_token_ids = {kEos};
    config_.id_limit = kIdLimit;
    if (dice_.chance(0.5))
      config_.speculation = SpeculationConfig{dice_.pick<int64_t>({1, 2, 5, 20}),
                                              dice_.between(1, 3), dice_.between(3, 40)};
    busy_ = dice_.pick<double>({0.05, 0.3, 1.0, 3.0});
    metrics_ = std::make_unique<Metrics>();
    model_ = std::make_unique<HistoryModel>(limits_, kIdLimit);
    if (dice_.chance(0.2)) model_->set_nan_every(300);
    model_->set_slice(dice_.pick<int64_t>({1, 3, 1000}));
    engine_ = std::make_unique<Engine>(config_, *model_, pool_, clock_, *this, *metrics_);
    for (int i = 0; i < 4; ++i) stems_.push_back(random_tokens(dice_.between(1, 60)));
  }

  std::vector<TokenId> random_tokens(int64_t count) {
    std::vector<TokenId> tokens;
    for (int64_t i = 0; i < count; ++i)
      tokens.push_back(static_cast<TokenId>(dice_.below(kIdLimit)));
    return tokens;
  }

  // A beginning of a known text, and some of its own.
  std::vector<TokenId> random_prompt() {
    const auto& stem =
        stems_[static_cast<size_t>(dice_.below(static_cast<int64_t>(stems_.size())))];
    std::vector<TokenId> prompt = stem;
    if (dice_.chance(0.5))
      prompt.resize(static_cast<size_t>(dice_.between(0, static_cast<int64_t>(stem.size()))));
    for (const TokenId token : random_tokens(dice_.pick<int64_t>({0, 0, 1, 4, 20})))
      prompt.push_back(token);
    return prompt;
  }

  Request random_request() {
    Request request;
    request.prompt = random_prompt();
    request.priority = static_cast<int32_t>(dice_.between(-1, 1));
    request.cache_salt = dice_.pick<const char*>({"", "", "", "a", "b"});
    SamplingParams& params = request.params;
    params.seed = dice_.bits();
    params.max_tokens = dice_.pick<int64_t>({1, 2, 5, 20, 60, 1000});
    params.temperature = dice_.pick<float>({0, 0, 0.5f, 1});
    params.top_k = dice_.pick<int32_t>({0, 0, 1, 5, 40});
    params.top_p = dice_.pick<float>({1, 1, 0.9f, 0.3f});
    params.min_p = dice_.pick<float>({0, 0, 0.1f});
    params.ignore_eos = dice_.chance(0.3);
    if (dice_.chance(0.1)) params.repetition_penalty = 1.3f;
    if (dice_.chance(0.1)) params.presence_penalty = 0.5f;
    if (dice_.chance(0.1)) params.frequency_penalty = 0.3f;
    if (dice_.chance(0.1)) params.min_tokens = dice_.between(0, params.max_tokens);
    if (dice_.chance(0.2)) params.stop_token_ids = random_tokens(2);
    if (dice_.chance(0.05)) params.logit_bias = {{random_tokens(1)[0], 3.0f}};
    if (dice_.chance(0.05)) params.allowed_token_ids = random_tokens(5);
    // A text of two tokens is drafted rightly every other time.
    if (config_.speculation && dice_.chance(0.5)) params.allowed_token_ids = random_tokens(2);
    if (dice_.chance(0.1)) {
      params.thinking_budget = dice_.between(0, 20);
      params.thinking_ends = random_tokens(1);
    }
    if (dice_.chance(0.05)) params.bad_words = {random_tokens(1), random_tokens(2)};
    if (dice_.chance(0.1)) params.logprobs = static_cast<int32_t>(dice_.between(0, 5));
    if (dice_.chance(0.1)) params.prompt_logprobs = static_cast<int32_t>(dice_.between(0, 5));
    return request;
  }

  void arrive() {
    int64_t count = dice_.chance(busy_ - static_cast<double>(static_cast<int64_t>(busy_)));
    count += static_cast<int64_t>(busy_);
    for (; count > 0; --count) {
      Request request = random_request();
      const int64_t siblings = dice_.chance(0.1) ? dice_.between(2, 4) : 1;
      for (int64_t i = 0; i < siblings; ++i) {
        submit(request);
        request.params.seed = dice_.bits();
      }
    }
  }

  void submit(const Request& request) {
    const auto size = static_cast<int64_t>(request.prompt.size());
    const int64_t pool = limits_.num_blocks * limits_.block_size;
    const Result<RequestId> id = engine_->submit(request);
    if (size == 0 || size + 1 > kMaxModelLen || size > pool) {
      expect(!id.ok() && id.error().code == Code::invalid_argument,
             "a request that can never run was taken");
      return;
    }
    if (!id.ok()) {
      expect(id.error().code == Code::resource_exhausted &&
                 static_cast<int64_t>(live_.size()) >= config_.max_queued_requests,
             "refused without cause: " + id.error().text);
      return;
    }
    expect(*id > last_id_, "an id was used twice");
    last_id_ = *id;
    ++result_.requests;
    Live live;
    live.request = request;
    live.solo = SoloRun(*model_).run(request, pool);
    live.submitted_at = result_.steps;
    live_.emplace(*id, std::move(live));
  }

  void cancel_some() {
    const RequestId other = dice_.bits() % (last_id_ + 5);  // finished, or not there yet
    if (dice_.chance(0.05) && !live_.contains(other)) engine_->cancel(other);
    if (live_.empty() || !dice_.chance(0.05)) return;
    auto victim = std::next(live_.begin(), dice_.below(static_cast<int64_t>(live_.size())));
    engine_->cancel(victim->first);
    if (victim->second.cancelled_at < 0) victim->second.cancelled_at = result_.steps;
  }

  void step() {
    if (dice_.chance(0.0005)) {
      model_->break_next_step();
      breaking_ = true;
    }
    const int64_t before = model_->steps();
    const bool had_work = !live_.empty();
    clock_.advance(kSecond / 1000);
    const bool worked = engine_->step();
    ++result_.steps;
    if (had_work && !breaking_) {
      // I8, unless all that was there has just been cancelled.
      expect(worked, "work exists but nothing was done");
      expect(model_->steps() == before + 1 || live_.empty(), "work exists but no token ran");
    }
    check_step(model_->steps() > before);
    if (breaking_ && engine_->stats().dead) on_death();
  }

  void check_step(bool ran) {
    expect(model_->fault().empty(), model_->fault());
    if (ran) {
      expect(model_->tokens() <= config_.max_num_batched_tokens, "I5: too many tokens");
      const int64_t most = config_.speculation ? limits_.max_sequences : config_.max_num_seqs;
      expect(model_->sequences() <= most, "I5: too many sequences");
    }
    const Result<void> audit = engine_->audit();
    expect(audit.ok(), audit.ok() ? "" : audit.error().text);
    for (const auto& [id, live] : live_)
      expect(live.cancelled_at < 0, fmt::format("I11: {} lives on after its cancellation", id));
    const EngineStats stats = engine_->stats();
    expect(stats.running + stats.waiting == static_cast<int64_t>(live_.size()),
           "I6: a request without its last event, or gone without one");
    expect(stats.last_tick == clock_.now(), "the tick is old");
  }

  void on_death() {
    expect(live_.empty(), "I6: a dead engine left requests without an end");
    expect(!engine_->submit(random_request()).ok(), "a dead engine took a request");
    ++result_.deaths;
    dead_ = true;
    breaking_ = false;
  }

  // No more arrivals: everything must end, and nothing remain (I9, I15).
  void drain() {
    engine_->drain();
    expect(!engine_->submit(random_request()).ok(), "a draining engine took a request");
    const int64_t limit = result_.steps + 100 * static_cast<int64_t>(live_.size()) * kMaxModelLen;
    while (!live_.empty() && !dead_ && ok()) {
      step();
      expect(result_.steps < limit, "I7: requests starve");
    }
    breaking_ = false;
    const EngineStats stats = engine_->stats();
    expect(stats.running == 0 && stats.waiting == 0 && stats.kv_blocks_used == 0,
           "I15: something is owned at idle");
    result_.preemptions += stats.preemptions;
    for (const int64_t came : stats.drafted_came) result_.drafted_came += came;
  }

  void on_event(const Event& event) {
    const auto found = live_.find(event.id);
    if (found == live_.end()) return expect(false, "I6: an event of a finished request");
    Live& live = found->second;
    check_first(event, live);
    if (event.token >= 0) check_token(event, live);
    result_.trace = mix64(result_.trace ^ event.id) + static_cast<uint64_t>(event.token + 7) * 31 +
                    static_cast<uint64_t>(event.finish);
    if (event.finish == FinishReason::none) return;
    check_end(event, live);
    if (dice_trace_ % 3 == 0 && stems_.size() < 40) remember(live);
    ++dice_trace_;
    live_.erase(found);
  }

  void check_first(const Event& event, Live& live) {
    const auto size = static_cast<int64_t>(live.request.prompt.size());
    expect((event.cached_tokens >= 0) == !live.announced, "cached_tokens stand on one event");
    expect(event.cached_tokens < size, "I12: more cached tokens than prompt");
    if (live.request.params.prompt_logprobs >= 0)
      expect(event.cached_tokens <= 0, "prompt logprobs read the cache");
    if (!config_.prefix_caching) expect(event.cached_tokens <= 0, "the cache is off");
    if (!live.announced) result_.cached_tokens += event.cached_tokens;
    live.announced = true;
  }

  void check_token(const Event& event, Live& live) {
    const size_t index = live.tokens++;
    ++result_.tokens;
    expect(index < live.solo.tokens.size() && live.solo.tokens[index] == event.token,
           fmt::format("I10: token {} of request {} differs from its solo run", index, event.id));
    if (!ok()) return;
    const SamplingParams& params = live.request.params;
    expect((event.logprobs() != nullptr) == (params.logprobs >= 0), "logprobs as asked");
    if (event.logprobs() && ok())
      expect(same(*event.logprobs(), live.solo.logprobs[index]), "logprobs differ from solo");
    const std::span<const Logprobs> prompt = event.prompt_logprobs();
    if (index > 0) return expect(prompt.empty(), "prompt logprobs twice");
    expect(std::equal(prompt.begin(), prompt.end(), live.solo.prompt_logprobs.begin(),
                      live.solo.prompt_logprobs.end(), same),
           "prompt logprobs differ from solo");
  }

  void check_end(const Event& event, Live& live) {
    switch (event.finish) {
      case FinishReason::abort:
        ++result_.aborted;
        return expect(live.cancelled_at >= 0, "aborted without a cancellation");
      case FinishReason::error:
        ++result_.failed;
        expect(event.detail && !event.detail->error.empty(), "an error without a text");
        if (breaking_) return;
        break;
      default:
        break;
    }
    expect(event.finish == live.solo.finish && event.stop_token == live.solo.stop_token,
           "the end differs from its solo run");
    expect(live.tokens == live.solo.tokens.size(), "tokens are missing");
  }

  // The conversation goes on: its text is a stem for later prompts.
  void remember(const Live& live) {
    std::vector<TokenId> text = live.request.prompt;
    text.insert(text.end(), live.solo.tokens.begin(), live.solo.tokens.end());
    if (text.size() < 80) stems_.push_back(std::move(text));
  }

  Dice dice_;
  const int64_t step_limit_;
  SimulationResult result_;
  ManualClock clock_;
  ThreadPool pool_{1};
  model::StepModel::Limits limits_{};
  EngineConfig config_;
  double busy_ = 0;
  std::unique_ptr<Metrics> metrics_;
  std::unique_ptr<HistoryModel> model_;
  std::unique_ptr<Engine> engine_;
  std::vector<std::vector<TokenId>> stems_;
  std::map<RequestId, Live> live_;
  RequestId last_id_ = 0;
  int64_t dice_trace_ = 0;
  bool breaking_ = false;  // the model fails at its next step
  bool dead_ = false;
};

}  // namespace

SimulationResult simulate(uint64_t seed, int64_t steps) {
  return Simulation(seed, steps).run();
}

}  // namespace m2::engine::test
