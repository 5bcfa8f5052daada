#include "text/vocabulary.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <limits>

namespace m2::text {
namespace {

template <class Word>
uint64_t load(const char* p) {
  Word word;
  std::memcpy(&word, p, sizeof word);
  return word;
}

// Both halves of a 128-bit product: every input bit reaches every output bit.
uint64_t mix(uint64_t a, uint64_t b) {
  const auto product = static_cast<unsigned __int128>(a) * b;
  return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

uint64_t hash_bytes(std::string_view bytes) {
  constexpr uint64_t kA = 0x9e3779b97f4a7c15, kB = 0xd6e8feb86659fd93;
  const char* p = bytes.data();
  size_t n = bytes.size();
  uint64_t seed = n * kB;
  for (; n > 16; n -= 16, p += 16) seed = mix(load<uint64_t>(p) ^ seed, load<uint64_t>(p + 8) ^ kA);
  if (n >= 8) return mix(load<uint64_t>(p) ^ seed, load<uint64_t>(p + n - 8) ^ kA);
  if (n >= 4) return mix(load<uint32_t>(p) ^ seed, load<uint32_t>(p + n - 4) ^ kA);
  if (n >= 2) return mix(load<uint16_t>(p) ^ seed, load<uint16_t>(p + n - 2) ^ kA);
  return mix((n == 1 ? load<uint8_t>(p) : 0) ^ seed, kA);
}

bool same_bytes(const char* a, const char* b, size_t n) {
  if (n < 4 || n > 16) return std::memcmp(a, b, n) == 0;
  if (n < 8)
    return load<uint32_t>(a) == load<uint32_t>(b) &&
           load<uint32_t>(a + n - 4) == load<uint32_t>(b + n - 4);
  return load<uint64_t>(a) == load<uint64_t>(b) &&
         load<uint64_t>(a + n - 8) == load<uint64_t>(b + n - 8);
}

}  // namespace

void Vocabulary::reserve(size_t tokens, size_t bytes) {
  tokens = std::min(tokens, static_cast<size_t>(kMaxIds));
  text_.reserve(bytes);
  spans_.reserve(tokens);
  if (slots_.size() < 2 * tokens) grow(std::bit_ceil(2 * tokens));
}

Result<void> Vocabulary::add(std::string_view bytes, TokenId id) {
  if (slots_.size() < 2 * (static_cast<size_t>(count_) + 1))
    grow(std::max<size_t>(64, 2 * slots_.size()));
  const uint64_t hash = hash_bytes(bytes);
  Slot& slot = slot_for(bytes, hash);
  if (slot.id >= 0) return fail(Code::corrupt, "tokens {} and {} have the same bytes", slot.id, id);
  M2_TRY_VOID(add_hidden(bytes, id));
  slot = {static_cast<uint32_t>(hash >> 32), id, spans_[static_cast<size_t>(id)]};
  return {};
}

Result<void> Vocabulary::add_hidden(std::string_view bytes, TokenId id) {
  if (id < 0 || id >= kMaxIds)
    return fail(Code::unsupported, "token id {} is outside 0..{}", id, kMaxIds - 1);
  if (bytes.empty()) return fail(Code::corrupt, "token {} is empty", id);
  if (text_.size() + bytes.size() > std::numeric_limits<uint32_t>::max())
    return fail(Code::resource_exhausted, "the vocabulary is larger than 4 GiB");
  if (id >= id_limit()) spans_.resize(static_cast<size_t>(id) + 1);
  Span& span = spans_[static_cast<size_t>(id)];
  if (span.size != 0) return fail(Code::corrupt, "two tokens have the id {}", id);
  span = {static_cast<uint32_t>(text_.size()), static_cast<uint32_t>(bytes.size())};
  text_ += bytes;
  longest_ = std::max(longest_, bytes.size());
  ++count_;
  return {};
}

TokenId Vocabulary::find(std::string_view bytes) const {
  if (bytes.size() > longest_ || slots_.empty()) return -1;
  return const_cast<Vocabulary*>(this)->slot_for(bytes, hash_bytes(bytes)).id;
}

std::string_view Vocabulary::bytes(TokenId id) const {
  if (id < 0 || id >= id_limit()) return {};
  const Span span = spans_[static_cast<size_t>(id)];
  return {text_.data() + span.begin, span.size};
}

// The slot that holds `bytes`, or the free one where they belong.
Vocabulary::Slot& Vocabulary::slot_for(std::string_view bytes, uint64_t hash) {
  const size_t mask = slots_.size() - 1;
  Slot* const slots = slots_.data();
  for (size_t i = hash & mask;; i = (i + 1) & mask) {
    Slot& slot = slots[i];
    if (slot.id < 0) return slot;
    if (slot.tag == hash >> 32 && slot.span.size == bytes.size() &&
        same_bytes(text_.data() + slot.span.begin, bytes.data(), bytes.size()))
      return slot;
  }
}

void Vocabulary::grow(size_t slots) {
  const std::vector<Slot> old = std::exchange(slots_, std::vector<Slot>(slots));
  for (const Slot& slot : old)
    if (slot.id >= 0) {
      const uint64_t hash = hash_bytes(bytes(slot.id));
      slot_for(bytes(slot.id), hash) = slot;
    }
}

}  // namespace m2::text
