#include "text/grammar/text_limits.h"

#include <algorithm>
#include <bit>
#include <numeric>

#include "base/check.h"

namespace m2::text {
namespace {

bool is_continuation(unsigned char byte) {
  return (byte & 0xC0) == 0x80;
}

bool is_hex(unsigned char byte) {
  return (byte >= '0' && byte <= '9') || (byte >= 'a' && byte <= 'f') ||
         (byte >= 'A' && byte <= 'F');
}

void set(std::vector<uint32_t>& words, size_t id) {
  words[id / 32] |= 1u << (id % 32);
}

// In blocks of a fixed size, which compilers make vectors of.
void keep(std::span<const uint32_t> kept, std::span<uint32_t> words) {
  constexpr size_t kBlock = 16;
  size_t w = 0;
  for (; w + kBlock <= kept.size(); w += kBlock)
    for (size_t i = 0; i < kBlock; ++i) words[w + i] &= kept[w + i];
  for (; w < kept.size(); ++w) words[w] &= kept[w];
}

}  // namespace

std::string GrammarText::key() const {
  std::string out = ebnf;
  for (const TextLimit& limit : limits) {
    out += '\0' + limit.rule + '\0' + std::to_string(static_cast<int>(limit.as)) + ' ';
    out += std::to_string(limit.least) + ' ' + std::to_string(limit.most) + ' ';
    out += limit.patterned ? 'p' : 'f';
    out += limit.open + limit.close;
  }
  return out;
}

// Unicode 16, table 3-7.
Utf8Phase utf8_after(Utf8Phase phase, unsigned char byte) {
  using enum Utf8Phase;
  const auto within = [byte](unsigned char low, unsigned char high, Utf8Phase next) {
    return byte >= low && byte <= high ? next : broken;
  };
  switch (phase) {
    case whole:
      if (byte < 0x80) return whole;
      if (byte < 0xC2 || byte > 0xF4) return broken;
      if (byte < 0xE0) return one_left;
      if (byte < 0xF0) return byte == 0xE0 ? after_e0 : byte == 0xED ? after_ed : two_left;
      return byte == 0xF0 ? after_f0 : byte == 0xF4 ? after_f4 : three_left;
    case one_left:
      return within(0x80, 0xBF, whole);
    case two_left:
      return within(0x80, 0xBF, one_left);
    case after_e0:
      return within(0xA0, 0xBF, one_left);
    case after_ed:
      return within(0x80, 0x9F, one_left);
    case three_left:
      return within(0x80, 0xBF, two_left);
    case after_f0:
      return within(0x90, 0xBF, two_left);
    case after_f4:
      return within(0x80, 0x8F, two_left);
    case broken:
      break;
  }
  return broken;
}

Utf8Phase utf8_after(Utf8Phase phase, std::string_view bytes) {
  for (const char byte : bytes) phase = utf8_after(phase, static_cast<unsigned char>(byte));
  return phase;
}

bool CharacterCount::begins(CountedAs as, unsigned char byte) const {
  if (is_continuation(byte)) return false;
  if (as == CountedAs::code_points || escape == 0) return true;
  return escape > 1 && !is_hex(byte);  // the escape was none
}

void CharacterCount::add(unsigned char byte) {
  if (begins(CountedAs::code_points, byte)) ++code_points;
  if (begins(CountedAs::json_characters, byte)) {
    ++json;
    escape = byte == '\\' ? 1 : 0;
  } else if (escape == 1) {
    escape = byte == 'u' ? 5 : 0;
  } else if (escape > 1) {
    escape = escape == 2 ? 0 : static_cast<uint8_t>(escape - 1);
  }
}

void CharacterCount::add(std::string_view bytes) {
  for (const char byte : bytes) add(static_cast<unsigned char>(byte));
}

TokenCharacters::TokenCharacters(const std::vector<std::string>& texts,
                                 std::span<const int32_t> stop_ids)
    : texts_(texts) {
  const size_t words = (texts_.size() + 31) / 32;
  for (size_t phase = 0; phase < well_formed_.size(); ++phase) {
    well_formed_[phase].resize(words);
    for (size_t id = 0; id < texts_.size(); ++id)
      if (!texts_[id].empty() &&
          utf8_after(static_cast<Utf8Phase>(phase), texts_[id]) != Utf8Phase::broken)
        set(well_formed_[phase], id);
  }
  for (const int32_t id : stop_ids)
    if (id >= 0 && static_cast<size_t>(id) < texts_.size())
      set(well_formed_[0], static_cast<size_t>(id));
  count(CountedAs::code_points);
  count(CountedAs::json_characters);
  for (size_t i = 0; i < within_escape_.size(); ++i)
    for (const std::string& text : texts_) {
      CharacterCount characters{.escape = static_cast<uint8_t>(i + 1)};
      characters.add(text);
      within_escape_[i].push_back(static_cast<uint8_t>(std::min<int32_t>(characters.json, kMany)));
    }
}

void TokenCharacters::count(CountedAs as) {
  std::vector<int32_t> all(texts_.size());
  for (size_t id = 0; id < texts_.size(); ++id) {
    CharacterCount characters;
    characters.add(texts_[id]);
    all[id] = characters.of(as);
    // Read from within an escape a token may hold one more than it does from outside.
    longest_ = std::max<int64_t>(longest_, all[id] + 1);
  }
  Counts& counts = counts_[static_cast<size_t>(as)];
  counts.up_to.resize(kFew, std::vector<uint32_t>((texts_.size() + 31) / 32));
  for (size_t id = 0; id < texts_.size(); ++id) {
    counts.all.push_back(static_cast<uint8_t>(std::min<int32_t>(all[id], kMany)));
    for (auto most = static_cast<size_t>(all[id]); most < kFew; ++most) set(counts.up_to[most], id);
    if (all[id] >= static_cast<int32_t>(kFew)) counts.longer.push_back(static_cast<int32_t>(id));
  }
  std::ranges::stable_sort(counts.longer, std::ranges::greater{},
                           [&](int32_t id) { return all[static_cast<size_t>(id)]; });
  for (const int32_t id : counts.longer) counts.of_longer.push_back(all[static_cast<size_t>(id)]);
}

void TokenCharacters::keep_well_formed(Utf8Phase phase, std::span<uint32_t> words) const {
  M2_CHECK(phase != Utf8Phase::broken);
  keep(well_formed_[static_cast<size_t>(phase)], words);
}

void TokenCharacters::keep_up_to(int64_t most, CountedAs as, const CharacterCount& from,
                                 std::span<uint32_t> words) const {
  if (as == CountedAs::json_characters && from.escape != 0) {
    const std::vector<uint8_t>& counts = within_escape_[from.escape - 1u];
    for (size_t w = 0; w < (texts_.size() + 31) / 32; ++w)
      for (uint32_t left = words[w]; left != 0; left &= left - 1) {
        const auto bit = static_cast<size_t>(std::countr_zero(left));
        if (counts[w * 32 + bit] > most) words[w] &= ~(1u << bit);
      }
    return;
  }
  const Counts& counts = counts_[static_cast<size_t>(as)];
  if (most < static_cast<int64_t>(kFew)) {
    keep(counts.up_to[static_cast<size_t>(std::max<int64_t>(most, 0))], words);
    return;
  }
  for (size_t i = 0; i < counts.longer.size() && counts.of_longer[i] > most; ++i) {
    const auto id = static_cast<size_t>(counts.longer[i]);
    words[id / 32] &= ~(1u << (id % 32));
  }
}

}  // namespace m2::text
