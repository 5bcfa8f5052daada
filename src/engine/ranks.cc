#include "engine/ranks.h"

#include <algorithm>
#include <array>
#include <numeric>

namespace m2::engine {
namespace {

using model::StepInput;
using parallel::Comm;

// What an engine that leaves brings to a step instead of tokens.
constexpr int64_t kLeaves = -1;

constexpr Nanos kHeartbeat = kSecond / 2;  // the engine asks once a second

// What goes ahead of a step's arrays.
struct Header {
  enum Kind : int64_t { kStop, kIdle, kLeave, kStep };
  int64_t kind = kStop;
  int64_t tokens = 0, sequences = 0, width = 0, rows = 0;

  int64_t words() const {
    return 3 * tokens + (sequences + 1) + sequences + sequences * width + rows;
  }
};

const Exec& host() {
  static const Exec exec{};
  return exec;
}

Tensor view(std::vector<int32_t>& words, int64_t count) {
  return Tensor(words.data(), DType::i32, {count});
}

void broadcast(Comm& comm, Header& header) {
  std::array<int64_t, 5> words{header.kind, header.tokens, header.sequences, header.width,
                               header.rows};
  comm.broadcast(host(), Tensor(words.data(), DType::i64, {5}), 0);
  header = {words[0], words[1], words[2], words[3], words[4]};
}

void pack(const StepInput& input, std::vector<int32_t>& words) {
  words.clear();
  for (const std::span<const int32_t>& part :
       {input.token_ids, input.positions, input.slots, input.query_starts, input.context_lens,
        input.block_tables, input.logit_rows})
    words.insert(words.end(), part.begin(), part.end());
}

StepInput unpack(const Header& header, const std::vector<int32_t>& words) {
  size_t at = 0;
  const auto take = [&](int64_t count) {
    const std::span part(words.data() + at, static_cast<size_t>(count));
    at += part.size();
    return part;
  };
  StepInput out;
  out.token_ids = take(header.tokens);
  out.positions = take(header.tokens);
  out.slots = take(header.tokens);
  out.query_starts = take(header.sequences + 1);
  out.context_lens = take(header.sequences);
  out.block_tables = take(header.sequences * header.width);
  out.max_blocks_per_sequence = header.width;
  out.logit_rows = take(header.rows);
  return out;
}

bool within(std::span<const int32_t> values, int64_t low, int64_t high) {
  return std::ranges::all_of(values, [&](int32_t v) { return v >= low && v < high; });
}

// A plan comes from another process: nothing in it may reach beyond this rank's memory.
bool fits(const Header& header, const model::StepModel::Limits& limits) {
  const int64_t widest = std::max<int64_t>(
      1, std::min(limits.num_blocks,
                  (limits.max_model_len + limits.block_size - 1) / limits.block_size));
  return header.tokens > 0 && header.tokens <= limits.max_step_tokens && header.sequences > 0 &&
         header.sequences <= limits.max_sequences && header.width > 0 && header.width <= widest &&
         header.rows >= 0 && header.rows <= header.tokens;
}

bool fits(const StepInput& input, const model::StepModel::Limits& limits) {
  const auto tokens = static_cast<int64_t>(input.token_ids.size());
  const int64_t slots = limits.num_blocks * limits.block_size;
  bool good = within(input.token_ids, 0, limits.vocab_size) &&
              within(input.positions, 0, limits.max_model_len) && within(input.slots, 0, slots) &&
              within(input.logit_rows, 0, tokens) && std::ranges::is_sorted(input.query_starts) &&
              input.query_starts.front() == 0 && input.query_starts.back() == tokens;
  for (size_t s = 0; good && s < input.context_lens.size(); ++s) {
    const int64_t blocks = (input.context_lens[s] + limits.block_size - 1) / limits.block_size;
    good = input.context_lens[s] > 0 && blocks <= input.max_blocks_per_sequence &&
           within(input.block_tables.subspan(s * static_cast<size_t>(input.max_blocks_per_sequence),
                                             static_cast<size_t>(blocks)),
                  0, limits.num_blocks);
  }
  return good;
}

// Every rank of every engine says how many tokens its engine brings. True if all engines leave.
bool meet_engines(const StepRanks& ranks, int64_t tokens, std::vector<int64_t>& rank_tokens,
                  std::vector<int64_t>& engine_tokens) {
  Comm& all = *ranks.groups.engines;
  const auto size = static_cast<size_t>(all.size());
  rank_tokens.resize(size);
  const std::vector<int64_t> ones(size, 1);
  all.all_gather(host(), Tensor(&tokens, DType::i64, {1}), ones,
                 Tensor(rank_tokens.data(), DType::i64, {all.size()}));
  engine_tokens.clear();
  for (size_t rank = 0; rank < size; rank += static_cast<size_t>(ranks.topology.tensor_size))
    engine_tokens.push_back(std::max<int64_t>(0, rank_tokens[rank]));
  return std::ranges::all_of(rank_tokens, [](int64_t n) { return n == kLeaves; });
}

int64_t sum(const std::vector<int64_t>& numbers) {
  return std::accumulate(numbers.begin(), numbers.end(), int64_t{0});
}

// Ranks without the logits sample nothing.
class NoLogits : public model::LogitsSink {
  void on_logits(int64_t, Tensor) override { M2_CHECK(false, "logits on a rank that follows"); }
};

constexpr std::array<int32_t, 1> kNoStarts{0};

StepInput no_tokens() {
  StepInput out;
  out.query_starts = kNoStarts;
  out.max_blocks_per_sequence = 1;
  return out;
}

}  // namespace

FirstRank::FirstRank(model::StepModel& own, const StepRanks& ranks,
                     std::function<void(uint64_t)> call_others)
    : own_(own), ranks_(ranks), call_others_(std::move(call_others)) {
  M2_CHECK(ranks.groups.tensor.rank() == 0);
}

Result<void> FirstRank::step(const StepInput& input, model::LogitsSink& sink) {
  M2_TRY_VOID(announce(Header::kStep, input));
  StepInput step = input;
  if (engines_in_step()) {
    M2_TRY([[maybe_unused]] const int64_t total,
           meet(static_cast<int64_t>(input.token_ids.size())));
    step.engine_tokens = engine_tokens_;
  }
  return own_.step(step, sink);
}

Result<bool> FirstRank::idle() {
  const Nanos now = SteadyClock().now();
  const bool called = wanted_.load(std::memory_order_acquire) > round_;
  if (last_total_ == 0 && !called && now - last_meeting_ < kHeartbeat) return false;
  M2_TRY_VOID(announce(Header::kIdle, no_tokens()));
  last_meeting_ = now;
  if (!engines_in_step()) return false;
  M2_TRY(const int64_t total, meet(0));
  if (total == 0) return false;
  M2_TRY_VOID(run_empty_step());
  return true;
}

Result<void> FirstRank::run_empty_step() {
  StepInput step = no_tokens();
  step.engine_tokens = engine_tokens_;
  NoLogits none;
  return own_.step(step, none);
}

// Gives the plan to the engine's other ranks.
Result<void> FirstRank::announce(int64_t kind, const StepInput& input) {
  Comm& comm = ranks_.groups.tensor;
  if (comm.size() == 1) return {};
  Header header{kind, static_cast<int64_t>(input.token_ids.size()),
                static_cast<int64_t>(input.context_lens.size()), input.max_blocks_per_sequence,
                static_cast<int64_t>(input.logit_rows.size())};
  broadcast(comm, header);
  if (kind == Header::kStep) {
    pack(input, payload_);
    comm.broadcast(host(), view(payload_, header.words()), 0);
  }
  return comm.status();
}

// Returns the tokens of all engines. If the others may be asleep they are called.
Result<int64_t> FirstRank::meet(int64_t tokens) {
  ++round_;
  if (last_total_ == 0) call_others_(round_);
  all_leave_ = meet_engines(ranks_, tokens, rank_tokens_, engine_tokens_);
  M2_TRY_VOID(ranks_.groups.engines->status());
  last_meeting_ = SteadyClock().now();
  last_total_ = sum(engine_tokens_);
  return last_total_;
}

void FirstRank::want(uint64_t round) {
  uint64_t known = wanted_.load(std::memory_order_relaxed);
  while (known < round && !wanted_.compare_exchange_weak(known, round, std::memory_order_release)) {
  }
  if (wake_) wake_();
}

void FirstRank::stop() {
  if (!ranks_.groups.tensor.status().ok()) return;
  if (engines_in_step()) {
    for (Result<bool> left = false; left.ok() && !*left;) left = leave();
  } else if (ranks_.groups.tensor.size() > 1) {
    Header header{};
    broadcast(ranks_.groups.tensor, header);
  }
}

// One more round, as a leaving engine. True if all engines leave.
Result<bool> FirstRank::leave() {
  M2_TRY_VOID(announce(Header::kLeave, no_tokens()));
  M2_TRY(const int64_t total, meet(kLeaves));
  if (total > 0) M2_TRY_VOID(run_empty_step());
  return all_leave_;
}

Result<void> follow(model::StepModel& own, const StepRanks& ranks) {
  Comm& comm = ranks.groups.tensor;
  const model::StepModel::Limits limits = own.limits();
  std::vector<int32_t> words;
  std::vector<int64_t> rank_tokens, engine_tokens;
  NoLogits none;
  while (true) {
    Header header;
    broadcast(comm, header);
    M2_TRY_VOID(comm.status());
    if (header.kind == Header::kStop) return {};
    StepInput input = no_tokens();
    if (header.kind == Header::kStep) {
      if (!fits(header, limits))
        return fail(Code::corrupt, "the first rank's plan does not fit this rank's model");
      words.resize(static_cast<size_t>(header.words()));
      comm.broadcast(host(), view(words, header.words()), 0);
      M2_TRY_VOID(comm.status());
      input = unpack(header, words);
      if (!fits(input, limits))
        return fail(Code::corrupt, "the first rank's plan does not fit this rank's model");
    }
    if (ranks.groups.engines) {
      const bool leaves = header.kind == Header::kLeave;
      const bool all_leave =
          meet_engines(ranks, leaves ? kLeaves : static_cast<int64_t>(input.token_ids.size()),
                       rank_tokens, engine_tokens);
      M2_TRY_VOID(ranks.groups.engines->status());
      if (all_leave) return {};
      if (sum(engine_tokens) == 0) continue;
      input.engine_tokens = engine_tokens;
    } else if (header.kind != Header::kStep) {
      continue;
    }
    M2_TRY_VOID(own.step(input, none));
  }
}

}  // namespace m2::engine
