#pragma once

#include <atomic>
#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "base/clock.h"
#include "text/tokenizer.h"

namespace m2::app::bench {

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

  // When the last step that wrote `word` ended; 0 if none did, or it is no such word.
  Nanos ended(std::string_view word) const;

 private:
  std::vector<int32_t> tokens_;
  std::unordered_map<std::string, size_t> index_;
  // Memory shared with the other processes.
  struct Counts {
    alignas(64) std::atomic<int64_t> written{0};
    alignas(64) std::atomic<int64_t> sent{0};
  };
  Counts* counts_;
  std::atomic<Nanos>* ended_;  // [tokens]
};

// How long tokens took from the end of their step to a moment on their way out. record() may be
// called from any thread; the rest once they have ended.
class AddedLatency {
 public:
  // Keeps the first `most` of them. `key` stands before a token's text: "\"text\":\"".
  AddedLatency(const StepWords& words, std::string key, size_t most);

  // The tokens in a piece of a stream that was under way at `moment`; returns how many.
  size_t record(std::string_view bytes, Nanos moment);
  bool record_word(std::string_view word, Nanos moment);

  size_t count() const;
  double percentile_ms(double percent) const;

 private:
  const StepWords& words_;
  const std::string key_;
  std::vector<float> micros_;
  std::atomic<size_t> next_{0};
};

}  // namespace m2::app::bench
