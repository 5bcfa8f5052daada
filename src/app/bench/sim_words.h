#pragma once

#include <atomic>
#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "text/tokenizer.h"

namespace m2::app::bench {

// Counts and lists of a thread's own, for as many threads; more share them.
constexpr size_t kLanes = 16;

// The words of a simulated model, each one token. It writes one word to everybody in each step, the
// next one in the next, so that whoever reads a token's text knows when the step that wrote it
// ended. Processes forked later share the moments. Thread-safe.
class StepWords {
 public:
  explicit StepWords(const text::Tokenizer& tokenizer);
  ~StepWords();
  StepWords(const StepWords&) = delete;
  StepWords& operator=(const StepWords&) = delete;

  // The words' tokens, in the order of writing.
  std::span<const int32_t> tokens() const { return tokens_; }

  // A step ended that wrote `word`, an index into tokens(), to so many sequences.
  void set_ended(size_t word, Nanos moment, size_t sequences);

  // So many of a step's tokens have been sent.
  void add_sent(size_t tokens);

  // Waits while tokens of ended steps are still to be sent, a few milliseconds at most. For clients
  // that share the server's cores, so that they do not take them while it is writing.
  void wait_until_sent() const;

  // What a reader has seen of them, and when.
  struct Seen {
    int64_t tokens = 0;
    Nanos at = 0, step = 0;  // of the last step; how long after the one before
  };
  // The same for clients that no arrival wakes: until there are more than were seen, too. Sleeps
  // for most of a step at once: each waking costs 20 us, and a client that is awake while the
  // server sends may be given a core, idle priority or not.
  void wait_for_more(Seen& seen) const;

  // When the last step that wrote `word` ended; 0 if none did, or it is no such word.
  Nanos ended(std::string_view word) const;

 private:
  // Words have eight letters at most, so they are numbers here. One probe finds one, in a line that
  // all of a step's tokens share: what is measured must not pay for the measuring.
  struct Entry {
    uint64_t word = 0;
    size_t index = 0;
  };
  static size_t slot_of(uint64_t word);
  const Entry* find(std::string_view word) const;

  std::vector<int32_t> tokens_;
  std::vector<Entry> table_;
  // Memory shared with the other processes; a count for each thread, within bounds, so that they
  // do not wait for one another.
  struct Counts {
    alignas(64) std::atomic<int64_t> written{0};
    struct alignas(64) Sent {
      std::atomic<int64_t> tokens{0};
    } sent[kLanes];
  };
  int64_t sent() const;
  Counts* counts_;
  std::atomic<Nanos>* ended_;  // [tokens]
};

// How long tokens took from the end of their step to a moment on their way out. record() may be
// called from any thread; the rest once they have ended.
class AddedLatency {
 public:
  // `key` stands before a token's text: "\"text\":\"".
  AddedLatency(const StepWords& words, std::string key);

  // The tokens in a piece of a stream that was under way at `moment`; returns how many.
  size_t record(std::string_view bytes, Nanos moment);
  bool record_word(std::string_view word, Nanos moment);

  int64_t count() const;
  // To one part in a thousand; from 1 us to some seconds.
  double percentile_ms(double percent) const;

 private:
  // A count for each range of durations, 512 to a doubling. A list of all of them would have the
  // threads that are measured wait for new pages.
  static constexpr int kRangeBits = 9;
  static constexpr size_t kRanges = size_t{24} << kRangeBits;
  static size_t range_of(double micros);
  static double micros_of(size_t range);
  struct alignas(64) Lane {
    std::atomic<uint32_t> counts[kRanges];
  };
  int64_t count(size_t range) const;

  const StepWords& words_;
  const std::string key_;
  std::atomic<size_t> usual_place_{0};  // where the last piece had its key
  const std::unique_ptr<Lane[]> lanes_ = std::make_unique<Lane[]>(kLanes);
};

}  // namespace m2::app::bench
