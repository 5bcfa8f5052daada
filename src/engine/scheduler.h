#pragma once

#include <cstdint>
#include <set>
#include <span>
#include <vector>

#include "engine/sequence.h"
#include "kv/paged_cache.h"

namespace m2::engine {

// Chooses what each step works on. Both lists are kept in the order of RunsBefore, so the last
// running sequence is always the one to preempt, and a victim's place in the waiting list is at its
// head (fcfs), or at the head of its priority. One thread.
class Scheduler {
 public:
  struct Options {
    int64_t max_sequences;          // running at once
    int64_t max_step_tokens;        // tokens of one step, >= max_sequences
    int64_t long_prefill_tokens;    // of one sequence in one step
    bool chunked_prefill;           // off: prompts that fit in one step are not split
    int64_t shared_prefill_tokens;  // worth waiting for in another's prefill; 0: never
  };

  // `tokens` of `sequence` to compute, from sequence->computed on, and behind the last of them the
  // first `drafted` of its draft.
  struct Share {
    Sequence* sequence;
    int64_t tokens;
    int64_t drafted = 0;
  };

  // `cache` outlives the scheduler. Precondition: a sequence's blocks always fit in an empty cache.
  Scheduler(const Options& options, kv::PagedCache& cache);

  void add(Sequence* sequence) { waiting_.insert(sequence); }

  // Takes a sequence out, wherever it is, with its blocks; damaged ones leave the prefix cache.
  void remove(Sequence* sequence, bool damaged);

  // The next step: decoding sequences one token each, and their drafts, then running prefills, then
  // waiting ones while there is room, none of those in a step that preempted. At least one token if
  // there is any sequence. The reference is good until the next call. Precondition: drafts leave
  // the step's tokens to all that run, and need no further KV block.
  const std::vector<Share>& plan(Nanos now);

  // Sequences in this order: running, and waiting.
  const std::vector<Sequence*>& running() const { return running_; }
  const std::set<Sequence*, RunsBefore>& waiting() const { return waiting_; }

  int64_t preemptions() const { return preemptions_; }
  int64_t prefix_queries() const { return prefix_queries_; }  // tokens
  int64_t prefix_hits() const { return prefix_hits_; }        // tokens

 private:
  void schedule_running(bool decoding);
  void schedule_waiting(Nanos now);
  bool awaits_prefill(Sequence& sequence);
  bool admit(Sequence* sequence, Nanos now);
  bool make_room(Sequence* sequence, int64_t tokens);
  void preempt(Sequence* victim);
  void share(Sequence* sequence, int64_t tokens, int64_t drafted = 0);
  int64_t chunk_of(int64_t pending) const;

  const Options options_;
  kv::PagedCache& cache_;
  std::set<Sequence*, RunsBefore> waiting_;
  std::vector<Sequence*> running_;
  std::vector<Share> plan_;
  int64_t budget_ = 0;       // tokens left in the step being planned
  bool preempted_ = false;   // in the step being planned
  bool prefilling_ = false;  // some of those running are
  uint64_t admissions_ = 0;
  int64_t preemptions_ = 0;
  int64_t prefix_queries_ = 0;
  int64_t prefix_hits_ = 0;
};

}  // namespace m2::engine
