#include "engine/engine.h"

#include <algorithm>
#include <map>
#include <mutex>
#include <random>

#include "base/inbox.h"
#include "base/log.h"
#include "base/thread_name.h"
#include "engine/admission.h"
#include "engine/drafter.h"
#include "engine/engine_metrics.h"
#include "engine/random.h"
#include "engine/sampler.h"
#include "engine/scheduler.h"
#include "engine/stats_lines.h"
#include "engine/step_batch.h"
#include "engine/step_sampling.h"
#include "kv/paged_cache.h"

namespace m2::engine {
namespace {

constexpr Nanos kIdleWait = kSecond;

// What other threads tell the engine's thread.
struct Message {
  std::unique_ptr<Sequence> submitted;
  RequestId cancelled = 0;
  // Neither: a wake-up.
};

EngineConfig completed(EngineConfig config, const model::StepModel::Limits& limits) {
  config.max_num_batched_tokens = std::min(config.max_num_batched_tokens, limits.max_step_tokens);
  config.max_num_seqs =
      std::min({config.max_num_seqs, limits.max_sequences, config.max_num_batched_tokens});
  // A prompt the model can take must fit in an empty queue.
  config.max_queued_tokens = std::max(config.max_queued_tokens, limits.max_model_len);
  if (config.id_limit <= 0) config.id_limit = static_cast<TokenId>(limits.vocab_size);
  M2_CHECK(config.id_limit <= limits.vocab_size && config.max_num_seqs > 0);
  for (const TokenId eos : config.eos_token_ids)
    M2_CHECK(eos >= 0 && eos < config.id_limit, "eos id {} is outside the vocabulary", eos);
  return config;
}

Scheduler::Options scheduler_options(const EngineConfig& config) {
  const bool limited = config.chunked_prefill && config.long_prefill_token_threshold > 0;
  return {config.max_num_seqs, config.max_num_batched_tokens,
          limited ? config.long_prefill_token_threshold : config.max_num_batched_tokens,
          config.chunked_prefill, config.prefix_caching ? config.shared_prefill_tokens : 0};
}

kv::PagedCache::Options cache_options(const EngineConfig& config,
                                      const model::StepModel::Limits& limits) {
  std::random_device random;
  const uint64_t seed = (static_cast<uint64_t>(random()) << 32) ^ random();
  return {limits.num_blocks, limits.block_size, config.prefix_caching, seed};
}

int64_t longest_table(const model::StepModel::Limits& limits) {
  return std::min(limits.num_blocks,
                  (limits.max_model_len + limits.block_size - 1) / limits.block_size);
}

// A step between its enqueueing and its commit.
struct Flight {
  struct Share {
    Sequence* sequence;  // null once it has ended
    int64_t computed;    // its tokens in the blocks when the step is done, without its draft
  };
  std::vector<Share> shares;
  std::vector<StepBatch::Row> rows;
  int64_t tokens = 0;
  bool drafted = false;  // some of the rows stand for drafted tokens
  Nanos begun = 0;

  bool empty() const { return shares.empty(); }
  bool only_decodes() const { return tokens == std::ssize(rows); }
  void clear() {
    shares.clear();
    rows.clear();
  }
  void forget(const Sequence* sequence) {
    for (Share& share : shares)
      if (share.sequence == sequence) share.sequence = nullptr;
    for (StepBatch::Row& row : rows)
      if (row.sequence == sequence) row.sequence = nullptr;
  }
};

// Changes so many logits that a full batch of such sequences could be too much for the device. Not
// run ahead of, so that the host can always take over. Nor is a constrained one, whose mask depends
// on every token before.
bool is_heavy(const Sequence& sequence) {
  constexpr size_t kLight = 512;
  const SamplingParams& params = sequence.params;
  return has_penalties(params) || sequence.constraint ||
         params.logit_bias.size() + params.stop_token_ids.size() + params.bad_words.size() > kLight;
}

// What became of one row of logits.
struct RowResult {
  RowStatus status = RowStatus::ok;
  TokenId token = -1;
};

RowStatus row_status(ops::SampleStatus status) {
  switch (status) {
    case ops::SampleStatus::ok:
      return RowStatus::ok;
    case ops::SampleStatus::not_finite:
      return RowStatus::not_finite;
    case ops::SampleStatus::all_masked:
      return RowStatus::all_masked;
  }
  return RowStatus::not_finite;
}

constexpr const char* kDeadText = "The engine is dead: a model step failed.";

std::string error_text(RowStatus status) {
  return status == RowStatus::not_finite
             ? "The model's logits for this request were not finite (NaN or infinity)."
             : "The request's own constraints leave no token to choose.";
}

std::string cache_info(const EngineConfig& config, const model::StepModel::Limits& limits) {
  const auto python = [](bool value) { return value ? "True" : "False"; };
  return fmt::format(
      "block_size=\"{}\",cache_dtype=\"{}\",num_gpu_blocks=\"{}\",enable_prefix_caching=\"{}\"",
      limits.block_size, config.cache_dtype, limits.num_blocks, python(config.prefix_caching));
}

}  // namespace

struct Engine::State final : model::LogitsSink {
  State(EngineConfig raw_config, model::StepModel& the_model, ThreadPool& the_pool,
        const Clock& the_clock, EventSink& the_sink, Metrics& registry)
      : limits(the_model.limits()),
        config(completed(std::move(raw_config), limits)),
        model(the_model),
        pool(the_pool),
        clock(the_clock),
        sink(the_sink),
        metrics(registry, config.metric_labels, cache_info(config, limits), limits.max_model_len,
                config.speculation ? std::min(config.speculation->most_tokens, kMostDraft) : 0),
        cache(cache_options(config, limits)),
        scheduler(scheduler_options(config), cache),
        batch(config.max_num_batched_tokens, step_sequences(), longest_table(limits),
              limits.block_size),
        sampler(config.id_limit, config.eos_token_ids, pool.size()),
        sampling(limits, config.eos_token_ids, config.max_num_batched_tokens),
        drafter(config.speculation
                    ? std::optional<Drafter>(std::in_place, *config.speculation, limits.block_size)
                    : std::nullopt),
        results(static_cast<size_t>(config.max_num_batched_tokens)),
        logprobs(static_cast<size_t>(config.max_num_batched_tokens)) {
    for (Flight* flight : {&present, &coming}) {
      flight->shares.reserve(static_cast<size_t>(config.max_num_seqs));
      flight->rows.reserve(static_cast<size_t>(config.max_num_batched_tokens));
    }
    stats.kv_blocks_total = limits.num_blocks;
    stats.last_tick = clock.now();
    shown = stats;
  }

  // Any thread.
  Result<RequestId> submit(Request request);
  std::unique_ptr<Sequence> make_sequence(Request request) const;
  void refuse(const std::string& why);  // the first reason stays

  // The engine's thread: one step.
  bool step();
  bool take_messages();
  void handle(Message& message);
  bool idle();
  void admit(const std::vector<Scheduler::Share>& plan);
  void leave_queue(Sequence& sequence);
  Result<void> begin(const std::vector<Scheduler::Share>& plan);
  Result<void> enqueue(const std::vector<Scheduler::Share>& plan);
  Result<void> run_model(const model::StepInput& input);
  int64_t step_sequences() const;
  bool must_wait();
  void draft();
  void mask_drafts();
  void take_off(const std::vector<Scheduler::Share>& plan);
  Result<void> land();
  void read_sample(const model::StepResult& sampled, size_t index);
  void on_logits(int64_t first_row, Tensor logits) override;
  void read_row(int64_t index, Tensor logits, int thread);
  void note_time(const Flight& flight);
  void commit(Flight& flight);
  void accept_all(Sequence& sequence, size_t row, size_t end, int64_t computed, Nanos now);
  void publish();
  void reject(Sequence& sequence, RowStatus status);
  bool accept(Sequence& sequence, size_t row, int64_t computed, Nanos now);
  void note_token(Sequence& sequence, Nanos now);
  Event& event_of(Sequence& sequence);
  void finish(Sequence& sequence, FinishReason reason, const std::string& error = {});
  void retire(Sequence& sequence, FinishReason reason);
  void finish_all(FinishReason reason, const std::string& error);
  void send_events();
  void show_stats();

  // The engine's thread: around the steps.
  void run(std::stop_token stop);
  void close();
  void die(const Error& error);
  void log_throughput();
  Result<void> audit() const;

  const model::StepModel::Limits limits;
  const EngineConfig config;
  model::StepModel& model;
  ThreadPool& pool;
  const Clock& clock;
  EventSink& sink;
  EngineMetrics metrics;

  // Between threads. `intake` guards who may still come in, and how much is queued.
  std::mutex intake;
  std::string refusal;  // why submit() refuses everything; empty: it does not
  RequestId last_id = 0;
  int64_t queued_requests = 0, queued_tokens = 0;
  Inbox<Message> inbox;
  mutable std::mutex showing;
  EngineStats shown;

  // The engine's thread only.
  kv::PagedCache cache;
  Scheduler scheduler;
  StepBatch batch;
  Sampler sampler;
  StepSampling sampling;  // for models that sample
  Flight present;         // the step under way, if the model samples
  Flight coming;          // the step being made
  std::optional<Drafter> drafter;
  std::vector<uint32_t> draft_masks;  // of rows that the host samples, behind their first
  int64_t heavy_sequences = 0;        // that may change more logits than a step can take
  int64_t tied_sequences = 0;         // that may depend on pending tokens
  std::map<RequestId, std::unique_ptr<Sequence>> sequences;
  std::vector<Message> messages;
  std::vector<RowResult> results;  // per logit row of the step
  std::vector<std::optional<Logprobs>>
      logprobs;  // beside them: of tokens whose requests ask for it
  std::vector<kv::PagedCache::Publication> unpublished;  // between a commit and publish()
  int64_t rows_read = 0;
  int64_t step_tokens = 0;
  Nanos landed = 0;  // when a step's tokens were last taken
  std::vector<Event> events;
  EngineStats stats;
  EngineStats logged;  // at the last log line
  Nanos next_log = 0;
};

// ---- Other threads ----------------------------------------------------------------------------

Result<RequestId> Engine::State::submit(Request request) {
  M2_TRY_VOID(check_request(request, config, limits));
  Message message{make_sequence(std::move(request)), 0};
  Sequence& sequence = *message.submitted;
  std::lock_guard lock(intake);
  if (!refusal.empty()) return fail(Code::unavailable, "{}", refusal);
  if (queued_requests >= config.max_queued_requests)
    return fail(Code::resource_exhausted, "{} requests are waiting already. Try again later.",
                queued_requests);
  if (queued_tokens + sequence.prompt_size > config.max_queued_tokens)
    return fail(Code::resource_exhausted, "{} prompt tokens are waiting already. Try again later.",
                queued_tokens);
  ++queued_requests;
  queued_tokens += sequence.prompt_size;
  const RequestId id = (static_cast<RequestId>(config.index) << kEngineShift) | ++last_id;
  sequence.id = id;
  sequence.seed = sequence.params.seed.value_or(mix64(config.seed) ^ id);
  inbox.put(std::move(message));
  return id;
}

std::unique_ptr<Sequence> Engine::State::make_sequence(Request request) const {
  auto sequence = std::make_unique<Sequence>();
  sequence->max_size = max_size_of(request, limits);
  sequence->prompt_size = static_cast<int64_t>(request.prompt.size());
  sequence->priority = config.policy == SchedulingPolicy::priority ? request.priority : 0;
  if (has_penalties(request.params)) sequence->counts.add_prompt(request.prompt);
  sequence->tokens = std::move(request.prompt);
  sequence->params = std::move(request.params);
  sequence->cache_salt = std::move(request.cache_salt);
  sequence->constraint = std::move(request.constraint);
  sequence->arrived = clock.now();
  return sequence;
}

void Engine::State::refuse(const std::string& why) {
  std::lock_guard lock(intake);
  if (refusal.empty()) refusal = why;
}

// ---- One step ---------------------------------------------------------------------------------

// With a model that samples, the next step is planned and enqueued while the present one runs; then
// the present one's tokens are taken.
bool Engine::State::step() {
  const bool told = take_messages();
  Result<void> ran;
  if (must_wait()) {
    ran = land();
    publish();
  }
  const bool flew = !present.empty();
  bool planned = false;
  if (ran.ok()) {
    draft();
    const std::vector<Scheduler::Share>& plan = scheduler.plan(clock.now());
    planned = !plan.empty();
    if (planned) {
      admit(plan);
      ran = begin(plan);
    } else if (flew) {
      ran = land();
    }
  }
  if (!ran.ok()) die(ran.error());
  send_events();
  publish();
  show_stats();
  return told || planned || flew;
}

// Takes what other threads queued; says whether there was anything.
bool Engine::State::take_messages() {
  inbox.drain(messages, 0);
  for (Message& message : messages) handle(message);
  const bool told = !messages.empty();
  messages.clear();
  return told;
}

void Engine::State::handle(Message& message) {
  if (message.submitted) {
    Sequence& sequence = *message.submitted;
    sequences.emplace(sequence.id, std::move(message.submitted));
    heavy_sequences += is_heavy(sequence);
    tied_sequences += may_depend_on_pending(sequence);
    scheduler.add(&sequence);
    if (stats.dead) finish(sequence, FinishReason::error, kDeadText);
    return;
  }
  const auto found = sequences.find(message.cancelled);
  if (found != sequences.end()) finish(*found->second, FinishReason::abort);
}

// Sequences that run for the first time leave the queue that submit() bounds, and get the memory
// that their longest possible output needs, so that later steps allocate none.
void Engine::State::admit(const std::vector<Scheduler::Share>& plan) {
  {
    // Before they leave the queue, so that load() never misses a request that is between the two.
    std::lock_guard lock(showing);
    shown.running = static_cast<int64_t>(scheduler.running().size());
  }
  for (const Scheduler::Share& share : plan) {
    Sequence& sequence = *share.sequence;
    if (!sequence.queued) continue;
    leave_queue(sequence);
    sequence.tokens.reserve(sequence.max_size);
    sequence.table.blocks.reserve(static_cast<size_t>(cache.blocks_for(sequence.max_size)));
    if (sequence.params.prompt_logprobs >= 0)
      sequence.prompt_logprobs.resize(static_cast<size_t>(sequence.prompt_size) - 1);
    if (drafter) drafter->admit(sequence);
  }
}

void Engine::State::leave_queue(Sequence& sequence) {
  std::lock_guard lock(intake);
  --queued_requests;
  queued_tokens -= sequence.prompt_size;
  sequence.queued = false;
}

// Runs a plan, or starts it and finishes the one before.
Result<void> Engine::State::begin(const std::vector<Scheduler::Share>& plan) {
  ++stats.steps;
  if (model.samples()) return enqueue(plan);
  const model::StepInput& input = batch.build(plan);
  take_off(plan);
  M2_TRY_VOID(run_model(input));
  commit(coming);
  return {};
}

Result<void> Engine::State::enqueue(const std::vector<Scheduler::Share>& plan) {
  const model::StepInput& input = batch.build(plan);
  if (sampling.build(batch.rows(), pool)) {
    model.enqueue(input, sampling.view());
    take_off(plan);
    if (!present.empty()) M2_TRY_VOID(land());
    std::swap(present, coming);
    return {};
  }
  // More changed logits than the device takes, or logprobs under a constraint: this step is sampled
  // here, after the one under way.
  M2_CHECK(present.empty(), "only rows that wait for their tokens change so many logits");
  take_off(plan);
  M2_TRY_VOID(run_model(input));
  commit(coming);
  return {};
}

// Sequences of one step, drafted tokens among them.
int64_t Engine::State::step_sequences() const {
  if (!config.speculation) return config.max_num_seqs;
  return std::min(limits.max_sequences, config.max_num_batched_tokens);
}

// Whoever may run has its place in the step; what is left is for drafts.
void Engine::State::draft() {
  if (!drafter) return;
  const auto running = std::ssize(scheduler.running());
  const auto others = std::min(config.max_num_seqs, running + std::ssize(scheduler.waiting()));
  drafter->draft(scheduler.running(), step_sequences() - others);
}

// Notes what the step will have done when it is committed.
void Engine::State::take_off(const std::vector<Scheduler::Share>& plan) {
  coming.clear();
  coming.tokens = 0;
  coming.drafted = false;
  coming.begun = clock.now();
  for (const StepBatch::Row& row : batch.rows()) coming.rows.push_back(row);
  for (const Scheduler::Share& share : plan) {
    Sequence& sequence = *share.sequence;
    sequence.computed += share.tokens;
    sequence.scored = std::max(sequence.scored, sequence.computed);
    coming.shares.push_back({&sequence, sequence.computed});
    coming.tokens += share.tokens + share.drafted;
    coming.drafted = coming.drafted || share.drafted > 0;
  }
  for (size_t i = 0; i < coming.rows.size(); ++i) {
    if (!coming.rows[i].samples || coming.rows[i].ahead > 0) continue;
    Sequence& sequence = *coming.rows[i].sequence;
    ++sequence.unknown;
    sequence.pending_row = static_cast<int32_t>(i);
  }
}

// Whether the next step cannot be planned before the present one's tokens are known.
bool Engine::State::must_wait() {
  if (present.empty()) return false;
  if (heavy_sequences > 0 || present.drafted) return true;
  const auto any = [this](const auto& asks) {
    return std::ranges::any_of(present.rows, [&](const StepBatch::Row& row) {
      return row.samples && row.sequence && asks(*row.sequence);
    });
  };
  if (tied_sequences > 0 && any(depends_on_pending)) return true;
  const auto rows = std::ssize(present.rows);
  return drafter && any([&](Sequence& sequence) { return drafter->wants(sequence, rows); });
}

// Waits for the step under way and enters what it computed.
Result<void> Engine::State::land() {
  M2_TRY(const model::StepResult sampled, model.collect());
  M2_CHECK(sampled.rows.size() == present.rows.size());
  for (size_t i = 0; i < present.rows.size(); ++i) read_sample(sampled, i);
  note_time(present);
  commit(present);
  present.clear();
  return {};
}

// One row of what the device sampled into its result.
void Engine::State::read_sample(const model::StepResult& sampled, size_t index) {
  const StepBatch::Row& row = present.rows[index];
  const ops::SampledRow& from = sampled.rows[index];
  RowResult& result = results[index];
  result = {row_status(from.status), from.token};
  // Nothing of the sequence is looked at without need: its memory has gone cold.
  if (row.logprobs < 0 || !row.sequence || result.status != RowStatus::ok) return;
  Logprobs out;
  out.chosen = {from.token, from.logprob, from.rank};
  for (int32_t i = 0; i < row.logprobs && i < sampled.most_logprobs; ++i) {
    const size_t at = index * static_cast<size_t>(sampled.most_logprobs) + static_cast<size_t>(i);
    if (sampled.top_ids[at] < 0) break;
    out.top.push_back({sampled.top_ids[at], sampled.top_logprobs[at], i + 1});
  }
  if (row.samples) {
    logprobs[index] = std::move(out);
  } else {
    row.sequence->prompt_logprobs[static_cast<size_t>(row.position)] = std::move(out);
  }
}

// The logits arrive, and are sampled, before this returns.
Result<void> Engine::State::run_model(const model::StepInput& input) {
  rows_read = 0;
  for (const StepBatch::Row& row : batch.rows()) (void)row.sequence->tokens.all();  // for threads
  if (coming.drafted) mask_drafts();
  M2_TRY_VOID(model.step(input, *this));
  M2_CHECK(rows_read == static_cast<int64_t>(batch.rows().size()), "a step without its logits");
  note_time(coming);
  return {};
}

// What constraints allow behind drafted tokens, asked before any thread samples: their first rows
// ask for themselves.
void Engine::State::mask_drafts() {
  const size_t words = mask_words(static_cast<size_t>(config.id_limit));
  draft_masks.resize(batch.rows().size() * words);
  const auto mask_of = [&](size_t row) {
    return std::span(draft_masks).subspan(row * words, words);
  };
  for (size_t i = 0; i < batch.rows().size(); ++i) {
    const StepBatch::Row& row = batch.rows()[i];
    if (row.ahead != 1 || !row.sequence->constraint) continue;
    TokenConstraint& constraint = *row.sequence->constraint;
    on_trial(constraint, row.sequence->draft->drafted(), [&](size_t behind) {
      const std::span<uint32_t> mask = mask_of(i + behind);
      if (!constraint.fill(mask)) std::ranges::fill(mask, ~0u);
    });
  }
}

// Steps of decoding tell what a row costs.
void Engine::State::note_time(const Flight& flight) {
  const Nanos now = clock.now();
  if (drafter && flight.only_decodes())
    drafter->note_step(std::ssize(flight.rows), now - std::max(flight.begun, landed));
  landed = now;
}

void Engine::State::on_logits(int64_t first_row, Tensor logits) {
  const int64_t count = logits.size(0);
  M2_CHECK(first_row == rows_read && logits.size(1) == limits.vocab_size);
  M2_CHECK(first_row + count <= static_cast<int64_t>(batch.rows().size()));
  rows_read += count;
  if (count == 1) return read_row(first_row, logits.at(0), 0);
  std::atomic<int64_t> next{0};
  pool.run([&](int thread) {
    for (int64_t i = next++; i < count; i = next++) read_row(first_row + i, logits.at(i), thread);
  });
}

// One row of logits into its result. Runs on any thread of the pool; writes nothing that another
// row's reading touches.
void Engine::State::read_row(int64_t index, Tensor logits, int thread) {
  const StepBatch::Row& row = batch.rows()[static_cast<size_t>(index)];
  Sequence& sequence = *row.sequence;
  RowResult& result = results[static_cast<size_t>(index)];
  const std::span values(logits.as<float>(), static_cast<size_t>(limits.vocab_size));
  if (row.samples) {
    SampleInput input{sequence.params,
                      sequence.output(),
                      &sequence.counts,
                      sequence.seed,
                      row.ahead == 0 ? sequence.constraint.get() : nullptr,
                      row.ahead};
    if (row.ahead > 0 && sequence.constraint) {
      const size_t words = mask_words(static_cast<size_t>(config.id_limit));
      input.mask = std::span(draft_masks).subspan(static_cast<size_t>(index) * words, words);
    }
    Sampled sampled = sampler.sample(values, input, thread);
    result = {sampled.status, sampled.token};
    if (row.logprobs >= 0) logprobs[static_cast<size_t>(index)] = std::move(sampled.logprobs);
    return;
  }
  const auto position = static_cast<size_t>(row.position);
  result.status =
      sampler.score(values, sequence.tokens[row.position + 1], sequence.params.prompt_logprobs,
                    sequence.prompt_logprobs[position], thread);
}

// Enters what the step computed: every sequence's progress, tokens, ends and events.
void Engine::State::commit(Flight& flight) {
  const Nanos now = clock.now();
  constexpr size_t kAhead = 8;
  step_tokens += flight.tokens;
  size_t row = 0;
  // By index: ending a sequence takes it out of the flight.
  for (size_t i = 0; i < flight.shares.size(); ++i) {
    if (i + kAhead < flight.shares.size()) prefetch(flight.shares[i + kAhead].sequence);
    if (events.capacity() > events.size() + kAhead)
      __builtin_prefetch(events.data() + events.size() + kAhead, 1);
    const auto [sequence, computed] = flight.shares[i];
    if (!sequence) continue;
    while (row < flight.rows.size() && !flight.rows[row].sequence) ++row;
    // Rows of the prompt, then the one that samples, then those of its draft.
    RowStatus status = RowStatus::ok;
    for (; row < flight.rows.size() && flight.rows[row].sequence == sequence; ++row) {
      if (flight.rows[row].samples) break;
      if (results[row].status != RowStatus::ok) status = results[row].status;
    }
    const size_t sampled = row;
    while (row < flight.rows.size() && flight.rows[row].sequence == sequence) ++row;
    if (status != RowStatus::ok) {
      reject(*sequence, status);
    } else if (sampled < row) {
      accept_all(*sequence, sampled, row, computed, now);
    }
  }
}

// The token of a row, and of those behind it, which stand for a draft, as long as it comes true: a
// row was computed right if the token sampled in front of it is the one drafted.
void Engine::State::accept_all(Sequence& sequence, size_t row, size_t end, int64_t computed,
                               Nanos now) {
  const size_t first = row;
  const auto drafted = static_cast<int64_t>(end - row) - 1;
  if (drafted > 0) {
    const std::span<const TokenId> draft = sequence.draft->drafted();
    int64_t came = 0;
    while (came < drafted && results[first + static_cast<size_t>(came)].status == RowStatus::ok &&
           results[first + static_cast<size_t>(came)].token == draft[static_cast<size_t>(came)])
      ++came;
    ++stats.drafts;
    stats.drafted_tokens += drafted;
    for (int64_t i = 0; i < came; ++i) ++stats.drafted_came[static_cast<size_t>(i)];
    drafter->note(sequence, came);
    end = first + static_cast<size_t>(came) + 1;
    sequence.draft->size = 0;
  }
  for (; row < end; ++row, ++computed) {
    if (results[row].status != RowStatus::ok) return reject(sequence, results[row].status);
    if (row > first) {
      ++sequence.computed;
      ++sequence.unknown;
      sequence.scored = std::max(sequence.scored, sequence.computed);
    }
    if (!accept(sequence, row, computed, now)) return;
  }
}

// A sequence whose logits cannot be sampled ends alone; if they are damaged, so may be its K and V.
void Engine::State::reject(Sequence& sequence, RowStatus status) {
  const bool damaged = status == RowStatus::not_finite;
  if (damaged) metrics.on_corrupted();
  sequence.damaged = damaged;
  // An output that is whole already has only been kept from ending (by min_tokens, ignore_eos,
  // ...).
  const bool whole = !damaged && sequence.constraint && sequence.constraint->complete();
  if (whole) return finish(sequence, FinishReason::stop);
  EventDetail detail;
  const std::string_view failure =
      damaged || !sequence.constraint ? std::string_view() : sequence.constraint->failure();
  detail.error = failure.empty() ? error_text(status) : std::string(failure);
  detail.unsatisfiable = !damaged;
  Event& event = event_of(sequence);
  event.finish = FinishReason::error;
  event.detail = std::make_shared<const EventDetail>(std::move(detail));
  retire(sequence, FinishReason::error);
}

// `computed`: the sequence's tokens in its blocks, if they have not been taken away since. False:
// it was its last token.
bool Engine::State::accept(Sequence& sequence, size_t row, int64_t computed, Nanos now) {
  M2_CHECK(sequence.unknown > 0 && computed == sequence.known());
  const TokenId token = results[row].token;
  sequence.tokens.push_back(token);
  --sequence.unknown;
  if (has_penalties(sequence.params)) sequence.counts.add_output(token);
  if (sequence.constraint) sequence.constraint->accept(token);
  // Salt and prompt logprobs lie where no step looks: only where there is need for them.
  if (sequence.computed >= computed && cache.has_unpublished(sequence.table, computed)) {
    const bool again = !unpublished.empty() && unpublished.back().table == &sequence.table;
    if (again) unpublished.pop_back();  // of the token before, by the same step
    unpublished.push_back({&sequence.table, sequence.prefix(), computed});
  }
  note_token(sequence, now);

  Event& event = event_of(sequence);
  event.token = token;
  const bool scored = sequence.params.prompt_logprobs >= 0 && !sequence.prompt_logprobs.empty();
  if (sequence.params.logprobs >= 0 || scored) {
    EventDetail detail;
    if (sequence.params.logprobs >= 0) detail.logprobs = std::exchange(logprobs[row], std::nullopt);
    detail.prompt_logprobs = std::exchange(sequence.prompt_logprobs, {});
    event.detail = std::make_shared<const EventDetail>(std::move(detail));
  }
  const Ending ending = ending_of(sequence, config.eos_token_ids);
  if (ending.reason == FinishReason::none) return true;
  event.finish = ending.reason;
  event.stop_token = ending.stop_token;
  publish();  // before its blocks are given back
  retire(sequence, ending.reason);
  return false;
}

// Only now, with finite logits in hand, do the blocks behind them enter the prefix cache; and not
// before clients have been told, unless it matters.
void Engine::State::publish() {
  if (!unpublished.empty()) cache.publish(unpublished);
  unpublished.clear();
}

void Engine::State::note_token(Sequence& sequence, Nanos now) {
  ++stats.generation_tokens;
  if (sequence.first_token < 0) {
    sequence.first_token = now;
    stats.prompt_tokens += sequence.prompt_size;
    metrics.on_prompt_done(sequence);
  } else {
    metrics.on_token(now - sequence.last_token);
  }
  sequence.last_token = now;
}

// A new event of the step for this sequence.
Event& Engine::State::event_of(Sequence& sequence) {
  Event& event = events.emplace_back();
  event.id = sequence.id;
  if (!sequence.announced) event.cached_tokens = sequence.cached_tokens;
  sequence.announced = true;
  return event;
}

// Ends a sequence with an event that carries no token.
void Engine::State::finish(Sequence& sequence, FinishReason reason, const std::string& error) {
  Event& event = event_of(sequence);
  event.finish = reason;
  if (!error.empty())
    event.detail = std::make_shared<const EventDetail>(EventDetail{{}, error, false, {}});
  retire(sequence, reason);
}

// Forgets a sequence whose last event is written. A step under way may still write K and V into its
// blocks; whoever gets them writes after that step.
void Engine::State::retire(Sequence& sequence, FinishReason reason) {
  sequence.unknown = 0;
  heavy_sequences -= is_heavy(sequence);
  tied_sequences -= may_depend_on_pending(sequence);
  present.forget(&sequence);
  coming.forget(&sequence);
  metrics.on_finish(sequence, reason, clock.now());
  if (sequence.queued) leave_queue(sequence);
  scheduler.remove(&sequence, sequence.damaged);
  sequences.erase(sequence.id);
}

void Engine::State::finish_all(FinishReason reason, const std::string& error) {
  while (!sequences.empty()) finish(*sequences.begin()->second, reason, error);
}

void Engine::State::send_events() {
  if (events.empty()) return;
  const size_t usual = events.size();
  sink.on_events(std::move(events));
  events = {};
  events.reserve(usual);
}

void Engine::State::show_stats() {
  stats.running = static_cast<int64_t>(scheduler.running().size());
  stats.waiting = static_cast<int64_t>(scheduler.waiting().size());
  stats.kv_blocks_used = cache.pool().owned_count();
  stats.preemptions = scheduler.preemptions();
  stats.prefix_queries = scheduler.prefix_queries();
  stats.prefix_hits = scheduler.prefix_hits();
  stats.last_tick = clock.now();
  metrics.on_step(stats, std::exchange(step_tokens, 0));
  std::lock_guard lock(showing);
  shown = stats;
}

// ---- Around the steps -------------------------------------------------------------------------

void Engine::State::run(std::stop_token stop) {
  name_thread("m2-engine");
  std::stop_callback wake(stop, [&] { inbox.put({}); });
  next_log = clock.now() + config.log_interval;
  while (!stop.stop_requested()) {
    if (!step() && !idle()) inbox.drain(messages, kIdleWait);
    if (config.log_interval > 0 && clock.now() >= next_log) log_throughput();
  }
  close();
}

// Lets the model see to its ranks. True if it wants to be asked again at once.
bool Engine::State::idle() {
  if (stats.dead) return false;
  const Result<bool> again = model.idle();
  if (!again.ok()) {
    die(again.error());
    send_events();
    show_stats();
  }
  return again.ok() && *again;
}

// Ends everything that is still here, and what came in before the refusal. The step under way comes
// to its end first: behind run() the model is told to stop, or freed.
void Engine::State::close() {
  refuse("The engine has stopped.");
  take_messages();
  if (!present.empty())
    if (const Result<void> last = land(); !last.ok()) die(last.error());
  publish();
  finish_all(FinishReason::abort, {});
  send_events();
  show_stats();
}

// A failed step: the device's state is unknown, so nothing runs any more.
void Engine::State::die(const Error& error) {
  log_error("a model step failed, the engine stops serving: {}", error.text);
  refuse(kDeadText);
  stats.dead = true;
  present.clear();
  coming.clear();
  unpublished.clear();
  finish_all(FinishReason::error, "The engine died: " + error.text);
}

void Engine::State::log_throughput() {
  const Nanos now = clock.now();
  const double elapsed = seconds(now - next_log + config.log_interval);
  const std::string line = throughput_line(config.index, stats, logged, elapsed);
  is_idle(stats, logged) ? log_debug("{}", line) : log_info("{}", line);
  if (stats.drafts > logged.drafts) log_info("{}", drafts_line(stats, logged, elapsed));
  logged = stats;
  next_log = now + config.log_interval;
}

Result<void> Engine::State::audit() const {
  std::vector<kv::PagedCache::Holder> holders;
  for (const auto& [id, sequence] : sequences) {
    const auto listed = std::ranges::count(scheduler.running(), sequence.get());
    const auto waits = scheduler.waiting().count(sequence.get());
    if (listed + static_cast<int64_t>(waits) != 1 || (listed == 1) != sequence->running)
      return fail(Code::internal, "request {} is not in exactly one list", id);
    if (!sequence->running && (!sequence->table.blocks.empty() || sequence->computed != 0))
      return fail(Code::internal, "request {} waits and holds blocks", id);
    if (sequence->computed > sequence->size() || sequence->known() >= sequence->max_size ||
        sequence->size() > sequence->max_size || sequence->unknown < 0)
      return fail(Code::internal, "request {} lost count of its tokens", id);
    if (sequence->running) holders.push_back({&sequence->table, sequence->prefix()});
  }
  if (scheduler.running().size() + scheduler.waiting().size() != sequences.size())
    return fail(Code::internal, "the scheduler holds a request the engine does not");
  if (!std::ranges::is_sorted(scheduler.running(), RunsBefore()))
    return fail(Code::internal, "running requests are out of order");
  if (static_cast<int64_t>(scheduler.running().size()) > config.max_num_seqs)
    return fail(Code::internal, "too many requests run");
  return cache.audit(holders);
}

// ---- The wall ---------------------------------------------------------------------------------

Engine::Engine(EngineConfig config, model::StepModel& model, ThreadPool& pool, const Clock& clock,
               EventSink& sink, Metrics& metrics)
    : state_(std::make_unique<State>(std::move(config), model, pool, clock, sink, metrics)) {}

Engine::~Engine() = default;

Result<RequestId> Engine::submit(Request request) {
  return state_->submit(std::move(request));
}

void Engine::cancel(RequestId id) {
  state_->inbox.put({nullptr, id});
}

void Engine::run(std::stop_token stop) {
  state_->run(std::move(stop));
}

bool Engine::step() {
  return state_->step();
}

void Engine::drain() {
  state_->refuse("The engine is draining. Try another server.");
}

EngineStats Engine::stats() const {
  std::lock_guard lock(state_->showing);
  return state_->shown;
}

int64_t Engine::load() const {
  int64_t queued = 0;
  {
    std::lock_guard lock(state_->intake);
    queued = state_->queued_requests;
  }
  return queued * 4 + stats().running;
}

void Engine::wake() {
  state_->inbox.put({});
}

Result<void> Engine::audit() const {
  return state_->audit();
}

}  // namespace m2::engine
