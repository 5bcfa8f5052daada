#include "text/grammar/leaving_tokens.h"

#include <fsm.h>  // xgrammar's own: a rule's automaton

#include <algorithm>
#include <map>
#include <string_view>
#include <unordered_set>

namespace m2::text {
namespace {

constexpr size_t kFew = 64;  // tokens that may as well be tried one by one

using States = std::vector<int32_t>;

class Follower {
 public:
  Follower(const xgrammar::CompactFSMWithStartEnd& automaton, int32_t state)
      : automaton_(automaton), state_(state) {}

  // Whether it is a terminal's, and leads from the state back to it, and out.
  bool is_loop() const {
    if (!automaton_.IsEndState(state_)) return false;
    std::unordered_set<int32_t> met;
    States left = {automaton_.GetStart(), state_};
    while (!left.empty()) {
      const int32_t from = left.back();
      left.pop_back();
      for (const xgrammar::FSMEdge& edge : automaton_.GetFsm().GetEdges(from)) {
        if (!edge.IsCharRange()) return false;
        if (met.insert(edge.target).second) left.push_back(edge.target);
      }
    }
    met.clear();
    left = {state_};
    while (!left.empty()) {
      const int32_t from = left.back();
      left.pop_back();
      for (const xgrammar::FSMEdge& edge : automaton_.GetFsm().GetEdges(from)) {
        if (edge.target == state_) return true;
        if (met.insert(edge.target).second) left.push_back(edge.target);
      }
    }
    return false;
  }

  // How many bytes of the text lead to this state alone, without a way out on the way but from it.
  size_t follow(std::string_view text) const {
    size_t back = 0;
    States states = {state_}, next;
    for (size_t at = 0; at < text.size(); ++at) {
      next.clear();
      const auto byte = static_cast<unsigned char>(text[at]);
      for (const int32_t from : states)
        for (const xgrammar::FSMEdge& edge : automaton_.GetFsm().GetEdges(from))
          if (edge.min <= byte && byte <= edge.max &&
              std::ranges::find(next, edge.target) == next.end())
            next.push_back(edge.target);
      std::swap(states, next);
      const bool is_back = states.size() == 1 && states[0] == state_;
      if (is_back) back = at + 1;
      if (states.empty() || (!is_back && std::ranges::any_of(states, [this](int32_t one) {
            return automaton_.IsEndState(one);
          })))
        break;
    }
    return back;
  }

  std::bitset<256> bytes() const {
    std::bitset<256> out;
    for (const xgrammar::FSMEdge& edge : automaton_.GetFsm().GetEdges(state_))
      for (int byte = edge.min; byte <= edge.max; ++byte) out.set(static_cast<size_t>(byte));
    return out;
  }

 private:
  const xgrammar::CompactFSMWithStartEnd& automaton_;
  const int32_t state_;
};

}  // namespace

std::optional<LeavingTokens> LeavingTokens::find(const xgrammar::CompactFSMWithStartEnd& automaton,
                                                 int32_t state,
                                                 const std::vector<int32_t>& uncertain,
                                                 const Vocabulary& vocabulary, CountedAs as) {
  const Follower follower(automaton, state);
  if (uncertain.size() < kFew || !follower.is_loop()) return std::nullopt;
  LeavingTokens out;
  out.goes_on = follower.bytes();
  std::map<std::string_view, Ending> endings;
  for (const int32_t index : uncertain) {
    const auto& [id, text] = vocabulary[static_cast<size_t>(index)];
    const size_t size = follower.follow(text);
    const std::string_view beginning = std::string_view(text).substr(0, size);
    const std::string_view ending = std::string_view(text).substr(size);
    CharacterCount count;
    count.add(beginning);
    if (size == 0 || ending.empty() || out.goes_on[static_cast<unsigned char>(ending[0])] ||
        count.of(as) >= TokenCharacters::kMany) {
      out.others.push_back(index);
      continue;
    }
    endings[ending].tokens.emplace_back(id, static_cast<uint8_t>(count.of(as)));
    if (out.beginning.empty() || size < out.beginning.size()) {
      out.beginning = beginning;
      out.characters = count.of(as);
    }
  }
  if (out.beginning.empty()) return std::nullopt;
  for (auto& [text, ending] : endings) {
    ending.text = text;
    out.endings.push_back(std::move(ending));
  }
  return out;
}

size_t LeavingTokens::bytes() const {
  size_t out = sizeof(*this) + others.size() * sizeof(int32_t);
  for (const Ending& ending : endings) out += sizeof(Ending) + 32 + ending.tokens.size() * 8;
  return out;
}

}  // namespace m2::text
