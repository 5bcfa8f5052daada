#include "engine/sampler.h"

#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "base/check.h"

namespace m2::engine {
namespace {

constexpr float kMasked = -std::numeric_limits<float>::infinity();
constexpr float kLargest = std::numeric_limits<float>::max();
constexpr float kGreedyBelow = 1e-5f;
constexpr float kLowestTemperature = 0.01f;
// Up to here candidates are sorted; beyond, the row is cut by passes over it.
constexpr int64_t kMostSorted = 1024;
// A nucleus is first looked for among so many: as a rule they hold nearly all of the probability.
constexpr int64_t kFirstNucleus = 64;
// Logits this far below the largest, in units of the temperature, weigh nothing in a float.
constexpr float kNegligible = 100;
constexpr int kBisections = 14;

size_t at(TokenId id) {
  return static_cast<size_t>(id);
}

RowStatus status_of(const RowScan& scan) {
  return scan.has_nan || !std::isfinite(scan.max) ? RowStatus::not_finite : RowStatus::ok;
}

// Masks what would complete one of the sequences, given the output so far.
void mask_bad_words(std::span<float> row, const SampleInput& input) {
  for (const std::vector<TokenId>& word : input.params.bad_words) {
    if (completes(word, input.output)) row[at(word.back())] = kMasked;
  }
}

// Penalties as Keskar et al. (CTRL, 2019) and the OpenAI API define them.
void penalise(std::span<float> row, const SamplingParams& params, const TokenCounts& counts) {
  for (const auto& [id, seen] : counts.seen()) {
    float& logit = row[at(id)];
    if (logit == kMasked) continue;
    logit = logit > 0 ? logit / params.repetition_penalty : logit * params.repetition_penalty;
    logit -= params.frequency_penalty * static_cast<float>(seen.in_output);
    if (seen.in_output > 0) logit -= params.presence_penalty;
    logit = std::clamp(logit, -kLargest, kLargest);
  }
}

bool ends_too_early(const SampleInput& input) {
  return static_cast<int64_t>(input.output.size()) + input.ahead < input.params.min_tokens;
}

bool changes_row(const SampleInput& input) {
  const SamplingParams& params = input.params;
  return !params.allowed_token_ids.empty() || !params.bad_words.empty() ||
         !params.logit_bias.empty() || ends_too_early(input) || has_penalties(params);
}

bool more_likely(const Candidate& a, const Candidate& b) {
  return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
}

// Probability relative to a logit of `max`, not normalised.
double weight(float logit, float max, float scale) {
  return std::exp(static_cast<double>(logit - max) * static_cast<double>(scale));
}

// Removes candidates less likely than `cutoff` from the sorted list.
void drop_below(float cutoff, std::vector<Candidate>& candidates) {
  const auto end = std::ranges::partition_point(
      candidates, [&](const Candidate& candidate) { return candidate.logit >= cutoff; });
  candidates.erase(end, candidates.end());
}

double total_weight(const std::vector<Candidate>& candidates, float scale) {
  double total = 0;
  for (const Candidate& candidate : candidates)
    total += weight(candidate.logit, candidates.front().logit, scale);
  return total;
}

// Keeps the shortest head of the sorted list that weighs `wanted`, at least one candidate. False,
// with all kept, if they do not weigh as much.
bool keep_weight(double wanted, float scale, std::vector<Candidate>& candidates) {
  double sum = 0;
  for (size_t i = 0; i < candidates.size(); ++i) {
    sum += weight(candidates[i].logit, candidates.front().logit, scale);
    if (sum < wanted) continue;
    candidates.resize(i + 1);
    return true;
  }
  return false;
}

// argmax(p / Exp(1)) among few.
TokenId race_candidates(const std::vector<Candidate>& candidates, float scale, NoiseKey key) {
  TokenId winner = -1;
  double best = -1;
  for (const Candidate& candidate : candidates) {
    const float uniform = noise_uniform(key, static_cast<uint32_t>(candidate.id));
    const double time = -std::log1p(-static_cast<double>(uniform));
    const double score = weight(candidate.logit, candidates.front().logit, scale) / time;
    if (score > best || (score == best && candidate.id < winner)) {
      best = score;
      winner = candidate.id;
    }
  }
  return winner;
}

}  // namespace

// Looks at the output once a request.
TokenId forced_token(const SampleInput& input) {
  const SamplingParams& params = input.params;
  if (static_cast<int64_t>(input.output.size()) != params.thinking_budget) return -1;
  const bool over =
      std::find_first_of(input.output.begin(), input.output.end(), params.thinking_ends.begin(),
                         params.thinking_ends.end()) != input.output.end();
  return over || params.thinking_ends.empty() ? -1 : params.thinking_ends.front();
}

bool completes(const std::vector<TokenId>& word, std::span<const TokenId> output) {
  const size_t before = word.size() - 1;
  return before <= output.size() && std::equal(word.begin(), word.end() - 1,
                                               output.end() - static_cast<std::ptrdiff_t>(before));
}

Sampler::Sampler(TokenId id_limit, std::vector<TokenId> eos_token_ids, int threads)
    : id_limit_(id_limit),
      eos_token_ids_(std::move(eos_token_ids)),
      scratch_(static_cast<size_t>(threads)) {
  M2_CHECK(id_limit > 0 && threads > 0);
  for (Scratch& scratch : scratch_) {
    scratch.maxima.resize(static_cast<size_t>(row_blocks(id_limit)));
    scratch.order.reserve(scratch.maxima.size());
    scratch.words.resize(mask_words(static_cast<size_t>(id_limit)));
    scratch.candidates.reserve(kMostSorted + 4 * kRowBlock);
  }
}

Sampled Sampler::sample(std::span<float> full_row, const SampleInput& input, int thread) {
  const Row row = full_row.first(static_cast<size_t>(id_limit_));
  const SamplingParams& params = input.params;
  Scratch& scratch = scratch_[static_cast<size_t>(thread)];

  RowScan scan = scan_row(row, scratch.maxima);
  if (status_of(scan) != RowStatus::ok) return {status_of(scan), -1, std::nullopt};
  const TokenId forced = forced_token(input);
  std::span<const uint32_t> mask = input.mask;
  if (forced < 0 && input.constraint && input.constraint->fill(scratch.words))
    mask = scratch.words;
  if (forced < 0 && !mask.empty()) {
    mask_row(row, mask);
    scan = scan_row(row, scratch.maxima);
    if (scan.max == kMasked) return {RowStatus::all_masked, -1, std::nullopt};
  }
  ConstRow raw = row;
  if (forced < 0 && changes_row(input)) {
    if (params.logprobs >= 0) {
      scratch.raw.assign(row.begin(), row.end());
      raw = scratch.raw;
    }
    process(row, input, scratch);
    scan = scan_row(row, scratch.maxima);
    if (scan.max == kMasked) return {RowStatus::all_masked, -1, std::nullopt};
  }

  Sampled result;
  result.token = forced >= 0                         ? forced
                 : params.temperature < kGreedyBelow ? argmax(row, scan.max, scratch)
                                                     : draw(row, scan.max, input, scratch);
  if (params.logprobs >= 0)
    score(raw, result.token, params.logprobs, result.logprobs.emplace(), thread);
  return result;
}

RowStatus Sampler::score(std::span<const float> full_row, TokenId token, int32_t top, Logprobs& out,
                         int thread) {
  const ConstRow row = full_row.first(static_cast<size_t>(id_limit_));
  Scratch& scratch = scratch_[static_cast<size_t>(thread)];
  const RowScan scan = scan_row(row, scratch.maxima);
  if (status_of(scan) != RowStatus::ok) return status_of(scan);

  const double log_sum =
      static_cast<double>(scan.max) + std::log(sum_exp(row, scan.max, 1.0f, kMasked));
  const auto logprob = [&](float logit) {
    return static_cast<float>(static_cast<double>(logit) - log_sum);
  };
  const float chosen = row[at(token)];
  out.chosen = {token, logprob(chosen), static_cast<int32_t>(count_greater(row, chosen)) + 1};
  out.top.clear();
  if (top <= 0) return RowStatus::ok;
  select(row, top, scratch);
  for (const Candidate& candidate : scratch.candidates) {
    const auto rank = static_cast<int32_t>(out.top.size()) + 1;
    out.top.push_back({candidate.id, logprob(candidate.logit), rank});
  }
  return RowStatus::ok;
}

// The request's masks, biases and penalties, in place.
void Sampler::process(Row row, const SampleInput& input, Scratch& scratch) const {
  const SamplingParams& params = input.params;
  if (!params.allowed_token_ids.empty()) {
    scratch.values.clear();
    for (const TokenId id : params.allowed_token_ids) scratch.values.push_back(row[at(id)]);
    std::ranges::fill(row, kMasked);
    for (size_t i = 0; i < scratch.values.size(); ++i)
      row[at(params.allowed_token_ids[i])] = scratch.values[i];
  }
  mask_bad_words(row, input);
  if (ends_too_early(input)) {
    for (const TokenId id : eos_token_ids_) row[at(id)] = kMasked;
    for (const TokenId id : params.stop_token_ids) row[at(id)] = kMasked;
  }
  for (const auto& [id, bias] : params.logit_bias) row[at(id)] += bias;
  if (has_penalties(params)) {
    M2_CHECK(input.counts, "a request with penalties has no token counts");
    penalise(row, params, *input.counts);
  }
}

TokenId Sampler::argmax(ConstRow row, float max, const Scratch& scratch) const {
  const auto block = std::ranges::find(scratch.maxima, max) - scratch.maxima.begin();
  const auto found = std::find(row.begin() + block * kRowBlock, row.end(), max);
  return static_cast<TokenId>(found - row.begin());
}

TokenId Sampler::draw(Row row, float max, const SampleInput& input, Scratch& scratch) const {
  const SamplingParams& params = input.params;
  const float scale = 1 / std::max(params.temperature, kLowestTemperature);
  const bool limited = params.top_k > 0 && params.top_k < id_limit_;
  // p >= min_p * p_max, seen on the logits.
  float cutoff = params.min_p > 0 ? max + std::log(params.min_p) / scale : kMasked;
  const NoiseKey key =
      noise_key(input.seed, input.output.size() + static_cast<uint64_t>(input.ahead));

  if (limited && params.top_k <= kMostSorted) {
    select(row, params.top_k, scratch);
    drop_below(cutoff, scratch.candidates);
    if (params.top_p < 1) {
      const double total = total_weight(scratch.candidates, scale);
      keep_weight(static_cast<double>(params.top_p) * total, scale, scratch.candidates);
    }
    return race_candidates(scratch.candidates, scale, key);
  }
  if (limited) cutoff = std::max(cutoff, cut_at_rank(row, params.top_k, scratch));
  if (params.top_p < 1) {
    const double wanted = static_cast<double>(params.top_p) * sum_exp(row, max, scale, cutoff);
    select(row, kFirstNucleus, scratch);
    drop_below(cutoff, scratch.candidates);
    if (keep_weight(wanted, scale, scratch.candidates))
      return race_candidates(scratch.candidates, scale, key);
    cutoff = cut_at_weight(row, max, scale, cutoff, wanted, scratch);
  }
  return race(row, max, scale, cutoff, key);
}

// The `count` most likely ids that are not masked, the most likely first, into the candidates.
void Sampler::select(ConstRow row, int64_t count, Scratch& scratch) const {
  const auto blocks = static_cast<int64_t>(scratch.maxima.size());
  float floor = kMasked;
  if (count < blocks) {
    scratch.order.assign(scratch.maxima.begin(), scratch.maxima.end());
    const auto kth = scratch.order.begin() + (count - 1);
    std::nth_element(scratch.order.begin(), kth, scratch.order.end(), std::greater<>());
    floor = *kth;
  }
  std::vector<Candidate>& candidates = scratch.candidates;
  candidates.clear();
  for (int64_t block = 0; block < blocks; ++block) {
    if (scratch.maxima[static_cast<size_t>(block)] < floor) continue;
    const int64_t end = std::min(id_limit_, (block + 1) * kRowBlock);
    for (int64_t id = block * kRowBlock; id < end; ++id) {
      const float logit = row[static_cast<size_t>(id)];
      if (logit >= floor && logit > kMasked)
        candidates.push_back({logit, static_cast<TokenId>(id)});
    }
  }
  if (static_cast<int64_t>(candidates.size()) > count) {
    std::nth_element(candidates.begin(), candidates.begin() + count, candidates.end(), more_likely);
    candidates.resize(static_cast<size_t>(count));
  }
  std::sort(candidates.begin(), candidates.end(), more_likely);
}

// Masks all but the `count` most likely ids; returns the least logit left. Precondition: count is
// less than the row's size.
float Sampler::cut_at_rank(Row row, int64_t count, Scratch& scratch) const {
  std::vector<float>& sorted = scratch.values;
  sorted.assign(row.begin(), row.end());
  const auto last = sorted.begin() + (count - 1);
  std::nth_element(sorted.begin(), last, sorted.end(), std::greater<>());
  const float least = *last;
  int64_t ties = count - count_greater(row, least);
  for (float& logit : row) {
    if (logit == least && ties-- <= 0) logit = kMasked;
  }
  return least;
}

// Finds the smallest set of most likely ids, at or above `cutoff`, that weighs `wanted`: returns
// its least logit and masks the ids with logits about as small that are not in it. Bisects over
// sums of the whole row until few ids are left to sort.
float Sampler::cut_at_weight(Row row, float max, float scale, float cutoff, double wanted,
                             Scratch& scratch) const {
  float low = std::max(cutoff, max - kNegligible / scale);  // the set's least logit is in
  float high = max;                                         // [low, high]
  for (int i = 0; i < kBisections; ++i) {
    const float middle = low + (high - low) / 2;
    (sum_exp(row, max, scale, middle) >= wanted ? low : high) = middle;
  }
  double sum = sum_exp(row, max, scale, std::nextafter(high, HUGE_VALF));
  std::vector<Candidate>& edge = scratch.candidates;
  edge.clear();
  for (size_t id = 0; id < row.size(); ++id) {
    if (row[id] >= low && row[id] <= high) edge.push_back({row[id], static_cast<TokenId>(id)});
  }
  std::sort(edge.begin(), edge.end(), more_likely);
  for (const Candidate& candidate : edge) {
    if (sum >= wanted) row[at(candidate.id)] = kMasked;
    sum += weight(candidate.logit, max, scale);
  }
  return low;
}

}  // namespace m2::engine
