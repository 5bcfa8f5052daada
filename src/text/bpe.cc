#include "text/bpe.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <functional>

namespace m2::text {
namespace {

// Below this many bytes a scan over all pairs beats keeping them in order.
constexpr size_t kShortWord = 96;

}  // namespace

Result<MergeRanks> MergeRanks::build(std::span<const Merge> merges) {
  if (merges.size() >= kNone)
    return fail(Code::unsupported, "{} merges are more than {}", merges.size(), kNone - 1);
  MergeRanks ranks;
  const size_t size = std::bit_ceil(2 * merges.size() + 2);
  ranks.words_.assign(size, kFree);
  ranks.mask_ = size - 1;
  ranks.shift_ = 64 - std::countr_zero(size);
  for (uint32_t rank = 0; rank < merges.size(); ++rank) {
    const uint64_t key = pack(merges[rank].left, merges[rank].right);
    uint64_t i = ranks.start(key);
    for (; ranks.words_[i] != kFree; i = (i + 1) & ranks.mask_)
      if (ranks.words_[i] >> 24 == key)
        return fail(Code::corrupt, "merges {} and {} are the same", ranks.words_[i] & kNone, rank);
    ranks.words_[i] = key << 24 | rank;
  }
  return ranks;
}

Result<Bpe> Bpe::build(Vocabulary vocabulary, std::vector<Merge> merges, bool whole_words_first) {
  Bpe bpe;
  for (size_t byte = 0; byte < 256; ++byte) {
    const char text = static_cast<char>(byte);
    bpe.byte_tokens_[byte] = vocabulary.find({&text, 1});
    if (bpe.byte_tokens_[byte] < 0)
      return fail(Code::unsupported, "the vocabulary has no token for the byte {:#04x}", byte);
  }
  M2_TRY(bpe.ranks_, MergeRanks::build(merges));
  for (const TokenId first : bpe.byte_tokens_)
    for (const TokenId second : bpe.byte_tokens_)
      bpe.byte_pair_ranks_.push_back(bpe.ranks_.find(first, second));
  bpe.results_.reserve(merges.size());
  for (const Merge& merge : merges) bpe.results_.push_back(merge.result);
  bpe.vocabulary_ = std::move(vocabulary);
  bpe.is_whole_word_.assign(static_cast<size_t>(bpe.vocabulary_.id_limit()), whole_words_first);
  if (!whole_words_first) bpe.find_whole_words();
  return bpe;
}

// In a trained vocabulary nearly every token is what its own bytes merge to, but nothing in the
// file promises that, so each is tried.
void Bpe::find_whole_words() {
  std::vector<TokenId> ids;
  for (TokenId id = 0; id < vocabulary_.id_limit(); ++id) {
    ids.clear();
    merge(vocabulary_.bytes(id), ids);
    is_whole_word_[static_cast<size_t>(id)] = ids.size() == 1 && ids[0] == id;
  }
}

void Bpe::encode(std::string_view word, std::vector<TokenId>& out) const {
  const TokenId id = vocabulary_.find(word);
  if (id >= 0 && is_whole_word_.data()[id] != 0)
    out.push_back(id);
  else
    merge(word, out);
}

void Bpe::merge(std::string_view word, std::vector<TokenId>& out) const {
  if (word.size() <= kShortWord)
    merge_short(word, out);
  else
    merge_long(word, out);
}

void Bpe::merge_short(std::string_view word, std::vector<TokenId>& out) const {
  TokenId tokens[kShortWord];
  uint32_t ranks[kShortWord];  // of each token with the next
  size_t n = word.size();
  for (size_t i = 0; i < n; ++i) tokens[i] = byte_token(word.data()[i]);
  for (size_t i = 0; i + 1 < n; ++i) ranks[i] = byte_pair_rank(word.data() + i);
  while (n > 1) {
    uint32_t rank = MergeRanks::kNone;  // the least, found without branches
    for (size_t i = 0; i + 1 < n; ++i) rank = std::min(rank, ranks[i]);
    if (rank == MergeRanks::kNone) break;
    const auto best = static_cast<size_t>(std::find(ranks, ranks + n - 1, rank) - ranks);
    tokens[best] = result(rank);
    --n;
    std::copy(tokens + best + 2, tokens + n + 1, tokens + best + 1);
    std::copy(ranks + best + 1, ranks + n, ranks + best);
    if (best + 1 < n) ranks[best] = ranks_.find(tokens[best], tokens[best + 1]);
    if (best > 0) ranks[best - 1] = ranks_.find(tokens[best - 1], tokens[best]);
  }
  out.insert(out.end(), tokens, tokens + n);
}

namespace {

// The tokens of a long word in a doubly linked list, and its pairs in a heap. A pair that has been
// changed by a merge beside it stays in the heap and is known by its old rank.
struct LinkedToken {
  TokenId token;
  uint32_t previous;
  uint32_t next;
  uint32_t rank;  // of this token with the next; kNone at the end and for tokens merged away
};

uint64_t heap_entry(uint32_t rank, uint32_t position) {
  return static_cast<uint64_t>(rank) << 32 | position;
}

}  // namespace

void Bpe::merge_long(std::string_view word, std::vector<TokenId>& out) const {
  M2_CHECK(word.size() < UINT32_MAX, "a word of {} bytes", word.size());
  const auto size = static_cast<uint32_t>(word.size());
  std::vector<LinkedToken> list(size);
  std::vector<uint64_t> heap;  // least rank first, then leftmost
  const std::greater<> later;

  const auto rank_pair = [&](uint32_t at) {
    const uint32_t next = list[at].next;
    const uint32_t rank =
        next == size ? MergeRanks::kNone : ranks_.find(list[at].token, list[next].token);
    list[at].rank = rank;
    return rank;
  };
  const auto push_pair = [&](uint32_t at) {
    const uint32_t rank = rank_pair(at);
    if (rank == MergeRanks::kNone) return;
    heap.push_back(heap_entry(rank, at));
    std::push_heap(heap.begin(), heap.end(), later);
  };

  for (uint32_t i = 0; i < size; ++i) list[i] = {byte_token(word[i]), i - 1, i + 1, 0};
  for (uint32_t i = 0; i < size; ++i)
    if (const uint32_t rank = rank_pair(i); rank != MergeRanks::kNone)
      heap.push_back(heap_entry(rank, i));
  std::make_heap(heap.begin(), heap.end(), later);

  while (!heap.empty()) {
    std::pop_heap(heap.begin(), heap.end(), later);
    const auto at = static_cast<uint32_t>(heap.back());
    const auto rank = static_cast<uint32_t>(heap.back() >> 32);
    heap.pop_back();
    if (list[at].rank != rank) continue;
    LinkedToken& left = list[at];
    LinkedToken& right = list[left.next];
    left.token = result(rank);
    left.next = right.next;
    right.rank = MergeRanks::kNone;
    if (left.next != size) list[left.next].previous = at;
    push_pair(at);
    if (at != 0) push_pair(left.previous);
  }
  for (uint32_t i = 0; i != size; i = list[i].next) out.push_back(list[i].token);
}

}  // namespace m2::text
