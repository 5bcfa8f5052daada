#include "app/bench/sim_words.h"

#include <string.h>
#include <sys/mman.h>
#include <time.h>

#include <algorithm>
#include <new>

#include "app/bench/statistics.h"
#include "base/check.h"

namespace m2::app::bench {
namespace {

// So many steps must have passed before a word comes again; the first tokens of a vocabulary have
// more than enough.
constexpr int32_t kIdLimit = 2048;

// `count` objects in memory that processes forked later share.
template <class T>
T* share(size_t count) {
  void* memory = mmap(nullptr, std::max<size_t>(1, count) * sizeof(T), PROT_READ | PROT_WRITE,
                      MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  M2_CHECK(memory != MAP_FAILED, "no memory to share");
  T* out = static_cast<T*>(memory);
  for (size_t i = 0; i < count; ++i) new (out + i) T();
  return out;
}

template <class T>
void unshare(T* memory, size_t count) {
  munmap(memory, std::max<size_t>(1, count) * sizeof(T));
}

}  // namespace

StepWords::StepWords(const text::Tokenizer& tokenizer) {
  for (int32_t id = 0; id < std::min(kIdLimit, tokenizer.base_vocab_size()); ++id) {
    const std::string_view bytes = tokenizer.bytes(id);
    const bool word = bytes.size() >= 2 &&
                      std::ranges::all_of(bytes, [](char c) { return c >= 'a' && c <= 'z'; });
    if (!word) continue;
    index_.emplace(std::string(bytes), tokens_.size());
    tokens_.push_back(id);
  }
  counts_ = share<Counts>(1);
  ended_ = share<std::atomic<Nanos>>(tokens_.size());
}

StepWords::~StepWords() {
  unshare(ended_, tokens_.size());
  unshare(counts_, 1);
}

void StepWords::set_ended(size_t word, Nanos moment, size_t sequences) {
  ended_[word].store(moment, std::memory_order_relaxed);
  counts_->written += static_cast<int64_t>(sequences);
}

void StepWords::add_sent(size_t tokens) {
  counts_->sent += static_cast<int64_t>(tokens);
}

void StepWords::wait_until_sent() const {
  constexpr int kMostNaps = 30;
  constexpr timespec kNap{0, 100'000};
  for (int i = 0; i < kMostNaps && counts_->sent < counts_->written; ++i) nanosleep(&kNap, nullptr);
}

Nanos StepWords::ended(std::string_view word) const {
  const auto found = index_.find(std::string(word));
  return found == index_.end() ? 0 : ended_[found->second].load(std::memory_order_relaxed);
}

AddedLatency::AddedLatency(const StepWords& words, std::string key, size_t most)
    : words_(words), key_(std::move(key)), micros_(most) {}

size_t AddedLatency::record(std::string_view bytes, Nanos moment) {
  size_t words = 0;
  while (const void* found = memmem(bytes.data(), bytes.size(), key_.data(), key_.size())) {
    const auto at = static_cast<size_t>(static_cast<const char*>(found) - bytes.data());
    bytes.remove_prefix(at + key_.size());
    const size_t end = std::min(bytes.find('"'), bytes.size());
    words += record_word(bytes.substr(0, end), moment);
    bytes.remove_prefix(end);
  }
  return words;
}

bool AddedLatency::record_word(std::string_view word, Nanos moment) {
  const Nanos ended = words_.ended(word);
  if (ended == 0) return false;
  const size_t i = next_.fetch_add(1, std::memory_order_relaxed);
  if (i < micros_.size()) micros_[i] = static_cast<float>(moment - ended) * 1e-3f;
  return true;
}

size_t AddedLatency::count() const {
  return std::min(next_.load(), micros_.size());
}

double AddedLatency::percentile_ms(double percent) const {
  std::vector<double> sorted(micros_.begin(),
                             micros_.begin() + static_cast<std::ptrdiff_t>(count()));
  std::ranges::sort(sorted);
  return percentile(sorted, percent) / 1000;
}

}  // namespace m2::app::bench
