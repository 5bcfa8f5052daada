#include "engine/scheduler.h"

#include <algorithm>
#include <iterator>

#include "base/check.h"

namespace m2::engine {
namespace {

// Sequences looked at in one step that wait for another's prefill.
constexpr int64_t kMostHeld = 16;

// Tokens that can be found in the cache: the last one's logits are wanted, so it is computed.
int64_t known_before_last(const Sequence& sequence) {
  return std::min(sequence.known(), sequence.size() - 1);
}

}  // namespace

Scheduler::Scheduler(const Options& options, kv::PagedCache& cache)
    : options_(options), cache_(cache) {
  M2_CHECK(options.max_sequences > 0 && options.max_step_tokens >= options.max_sequences);
  M2_CHECK(options.long_prefill_tokens > 0);
  running_.reserve(static_cast<size_t>(options.max_sequences));
  plan_.reserve(static_cast<size_t>(options.max_sequences));
}

void Scheduler::remove(Sequence* sequence, bool damaged) {
  if (sequence->running) {
    running_.erase(std::ranges::find(running_, sequence));
    sequence->running = false;
  } else {
    waiting_.erase(sequence);
  }
  damaged ? cache_.discard(sequence->table) : cache_.release(sequence->table);
}

const std::vector<Scheduler::Share>& Scheduler::plan(Nanos now) {
  plan_.clear();
  budget_ = options_.max_step_tokens;
  preempted_ = false;
  prefilling_ = false;
  schedule_running(true);
  if (prefilling_) schedule_running(false);
  if (!preempted_) schedule_waiting(now);
  return plan_;
}

// Decoding sequences come first: a long prompt ahead of them must not stop their streams. There are
// never more of them than the budget has tokens.
void Scheduler::schedule_running(bool decoding) {
  for (size_t i = 0; i < running_.size() && budget_ > 0; ++i) {
    Sequence* sequence = running_[i];
    if (sequence->decoding() != decoding) {
      prefilling_ = true;
      continue;
    }
    if (sequence->complete()) continue;
    const int64_t tokens = chunk_of(sequence->pending());
    if (make_room(sequence, sequence->computed + tokens))
      share(sequence, tokens, decoding ? sequence->drafted() : 0);
  }
}

void Scheduler::schedule_waiting(Nanos now) {
  int64_t held = 0;
  for (auto next = waiting_.begin(); next != waiting_.end() && held < kMostHeld;) {
    if (budget_ == 0 || std::ssize(running_) == options_.max_sequences) return;
    Sequence* sequence = *next++;
    if (awaits_prefill(*sequence)) {
      ++held;
    } else if (!admit(sequence, now)) {
      return;
    }
  }
}

// Whether somebody is computing a prefix that this sequence can soon take from the cache, and that
// is worth more than the wait. The other one runs, so the wait ends.
bool Scheduler::awaits_prefill(Sequence& sequence) {
  if (options_.shared_prefill_tokens == 0 || !sequence.reads_cache()) return false;
  const int64_t block_size = cache_.block_size();
  for (Sequence* other : running_) {
    if (other->decoding() || other->cache_salt != sequence.cache_salt) continue;
    const auto own = sequence.tokens.all().first(static_cast<size_t>(known_before_last(sequence)));
    const auto theirs = other->tokens.all();
    const auto differs = std::ranges::mismatch(own, theirs);
    const int64_t shared = (differs.in1 - own.begin()) / block_size * block_size;
    if (shared < options_.shared_prefill_tokens || 2 * shared < other->pending()) continue;
    const auto found = std::ssize(cache_.match(sequence.prefix(), shared).blocks) * block_size;
    if (shared - found >= options_.shared_prefill_tokens) return true;
  }
  return false;
}

// Moves a waiting sequence to the running ones if the blocks it needs for all its tokens are there,
// so that it is not preempted half way through its prompt.
bool Scheduler::admit(Sequence* sequence, Nanos now) {
  if (cache_.available() == 0) return false;
  const int64_t limit = sequence->reads_cache() ? known_before_last(*sequence) : 0;
  const kv::PagedCache::Match& match = cache_.match(sequence->prefix(), limit);
  const auto found = static_cast<int64_t>(match.blocks.size());
  if (cache_.blocks_for(sequence->size()) - found > cache_.available() - match.kept) return false;

  const int64_t pending = sequence->size() - found * cache_.block_size();
  const int64_t tokens = chunk_of(pending);
  const bool split = tokens < pending;
  if (split && !options_.chunked_prefill && pending <= options_.max_step_tokens) return false;

  cache_.attach(sequence->table, match);
  sequence->computed = found * cache_.block_size();
  M2_CHECK(cache_.grow(sequence->table, sequence->computed + tokens));
  if (sequence->scheduled < 0) {
    sequence->scheduled = now;
    sequence->cached_tokens = sequence->computed;
    if (sequence->reads_cache()) prefix_queries_ += sequence->size();
    prefix_hits_ += sequence->computed;
  }
  waiting_.erase(sequence);
  running_.insert(std::ranges::upper_bound(running_, sequence, RunsBefore()), sequence);
  sequence->running = true;
  sequence->admission = ++admissions_;
  share(sequence, tokens);
  return true;
}

// Room for the sequence's first `tokens` tokens, if need be at the cost of those who run after it.
// False if it was itself the last and had to go.
bool Scheduler::make_room(Sequence* sequence, int64_t tokens) {
  while (!cache_.grow(sequence->table, tokens)) {
    Sequence* victim = running_.back();
    preempt(victim);
    if (victim == sequence) return false;
  }
  return true;
}

void Scheduler::preempt(Sequence* victim) {
  const auto planned = std::ranges::find(plan_, victim, &Share::sequence);
  if (planned != plan_.end()) {
    budget_ += planned->tokens + planned->drafted;
    plan_.erase(planned);
  }
  running_.pop_back();
  victim->running = false;
  cache_.release(victim->table);
  victim->computed = 0;
  waiting_.insert(victim);
  preempted_ = true;
  ++preemptions_;
}

void Scheduler::share(Sequence* sequence, int64_t tokens, int64_t drafted) {
  plan_.push_back({sequence, tokens, drafted});
  budget_ -= tokens + drafted;
}

int64_t Scheduler::chunk_of(int64_t pending) const {
  return std::min({pending, budget_, options_.long_prefill_tokens});
}

}  // namespace m2::engine
