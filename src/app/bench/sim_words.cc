#include "app/bench/sim_words.h"

#include <sys/mman.h>
#include <time.h>

#include <algorithm>
#include <bit>
#include <cmath>
#include <cstring>
#include <new>

#include "base/check.h"

namespace m2::app::bench {
namespace {

// So many steps must have passed before a word comes again; the first tokens of a vocabulary have
// more than enough.
constexpr int32_t kIdLimit = 2048;
constexpr size_t kLongestWord = sizeof(uint64_t), kTableSize = 4096;

uint64_t as_number(std::string_view word) {
  uint64_t out = 0;
  std::memcpy(&out, word.data(), word.size());
  return out;
}

// The calling thread's lane.
size_t lane() {
  static std::atomic<size_t> threads{0};
  static thread_local const size_t own = threads++ % kLanes;
  return own;
}

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

StepWords::StepWords(const text::Tokenizer& tokenizer) : table_(kTableSize) {
  static_assert(kTableSize > kIdLimit, "an empty slot ends every search");
  for (int32_t id = 0; id < std::min(kIdLimit, tokenizer.base_vocab_size()); ++id) {
    const std::string_view bytes = tokenizer.bytes(id);
    const bool word = bytes.size() >= 2 && bytes.size() <= kLongestWord &&
                      std::ranges::all_of(bytes, [](char c) { return c >= 'a' && c <= 'z'; });
    if (!word) continue;
    size_t slot = slot_of(as_number(bytes));
    while (table_[slot].word != 0) slot = (slot + 1) % kTableSize;
    table_[slot] = {as_number(bytes), tokens_.size()};
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
  counts_->sent[lane()].tokens.fetch_add(static_cast<int64_t>(tokens), std::memory_order_relaxed);
}

int64_t StepWords::sent() const {
  int64_t out = 0;
  for (const auto& sent : counts_->sent) out += sent.tokens.load(std::memory_order_relaxed);
  return out;
}

void StepWords::wait_until_sent() const {
  constexpr int kMostNaps = 30;
  constexpr timespec kNap{0, 100'000};
  for (int i = 0; i < kMostNaps && sent() < counts_->written; ++i) nanosleep(&kNap, nullptr);
}

void StepWords::wait_for_more(Seen& seen) const {
  constexpr int kMostNaps = 10;
  constexpr Nanos kNap = kSecond / 1000, kLongest = 10 * kNap;
  const SteadyClock clock;
  const Nanos expected = seen.at + std::min(seen.step, kLongest) * 7 / 8;
  for (int i = 0; i < kMostNaps; ++i) {
    const timespec nap{0, std::max(expected - clock.now(), kNap)};
    nanosleep(&nap, nullptr);
    const int64_t tokens = sent();
    if (tokens < counts_->written || tokens == seen.tokens) continue;
    const Nanos now = clock.now();
    seen = {tokens, now, now - seen.at};
    return;
  }
}

size_t StepWords::slot_of(uint64_t word) {
  return (word * 0x9e3779b97f4a7c15u) >> 52;  // 12 bits: kTableSize
}

const StepWords::Entry* StepWords::find(std::string_view word) const {
  if (word.empty() || word.size() > kLongestWord) return nullptr;
  const uint64_t number = as_number(word);
  for (size_t slot = slot_of(number); table_[slot].word != 0; slot = (slot + 1) % kTableSize)
    if (table_[slot].word == number) return &table_[slot];
  return nullptr;
}

Nanos StepWords::ended(std::string_view word) const {
  const Entry* found = find(word);
  return found ? ended_[found->index].load(std::memory_order_relaxed) : 0;
}

AddedLatency::AddedLatency(const StepWords& words, std::string key)
    : words_(words), key_(std::move(key)) {}

size_t AddedLatency::record(std::string_view bytes, Nanos moment) {
  size_t words = 0, place = usual_place_.load(std::memory_order_relaxed);
  while (true) {
    // All chunks of a stream are alike up to their text.
    if (bytes.size() < place + key_.size() || bytes.compare(place, key_.size(), key_) != 0) {
      place = bytes.find(key_);
      if (place == bytes.npos) return words;
      if (words == 0) usual_place_.store(place, std::memory_order_relaxed);
    }
    bytes.remove_prefix(place + key_.size());
    const size_t end = std::min(bytes.find('"'), bytes.size());
    words += record_word(bytes.substr(0, end), moment);
    bytes.remove_prefix(end);
    place = 0;
  }
}

bool AddedLatency::record_word(std::string_view word, Nanos moment) {
  const Nanos ended = words_.ended(word);
  if (ended == 0) return false;
  const size_t range = range_of(static_cast<double>(moment - ended) * 1e-3);
  lanes_[lane()].counts[range].fetch_add(1, std::memory_order_relaxed);
  return true;
}

// A floating-point number's exponent and the first bits of its fraction, as an integer, grow with
// its logarithm.
size_t AddedLatency::range_of(double micros) {
  constexpr uint64_t kOne = std::bit_cast<uint64_t>(1.0) >> (52 - kRangeBits);
  const uint64_t place = std::bit_cast<uint64_t>(std::max(micros, 1.0)) >> (52 - kRangeBits);
  return std::min<size_t>(place - kOne, kRanges - 1);
}

double AddedLatency::micros_of(size_t range) {
  const auto in_doubling = static_cast<double>(range % (size_t{1} << kRangeBits)) + 0.5;
  return std::ldexp(1 + std::ldexp(in_doubling, -kRangeBits),
                    static_cast<int>(range >> kRangeBits));
}

int64_t AddedLatency::count(size_t range) const {
  int64_t out = 0;
  for (size_t i = 0; i < kLanes; ++i) out += lanes_[i].counts[range].load();
  return out;
}

int64_t AddedLatency::count() const {
  int64_t out = 0;
  for (size_t range = 0; range < kRanges; ++range) out += count(range);
  return out;
}

double AddedLatency::percentile_ms(double percent) const {
  const int64_t all = count();
  int64_t left = static_cast<int64_t>(percent / 100 * static_cast<double>(all - 1));
  for (size_t range = 0; all > 0 && range < kRanges; ++range) {
    left -= count(range);
    if (left < 0) return micros_of(range) / 1000;
  }
  return 0;
}

}  // namespace m2::app::bench
