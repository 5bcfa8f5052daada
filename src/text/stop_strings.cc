#include "text/stop_strings.h"

#include <bit>
#include <utility>

namespace m2::text {

Result<StopStrings> StopStrings::make(std::vector<std::string> strings, bool include_in_output) {
  if (strings.size() > kMaxStrings)
    return fail(Code::invalid_argument, "{} stop strings are given, at most {} are allowed",
                strings.size(), kMaxStrings);
  for (const std::string& string : strings) {
    if (string.empty()) return fail(Code::invalid_argument, "stop cannot contain an empty string.");
    if (string.size() > kMaxBytes)
      return fail(Code::invalid_argument,
                  "a stop string of {} bytes is given, at most {} are allowed", string.size(),
                  kMaxBytes);
  }
  return StopStrings(std::move(strings), include_in_output);
}

StopStrings::StopStrings(std::vector<std::string> strings, bool include_in_output)
    : strings_(std::move(strings)), include_in_output_(include_in_output), nodes_(1) {
  for (size_t i = 0; i < strings_.size(); ++i) add_to_trie(i);
  link_failures();
}

std::optional<uint32_t> StopStrings::edge(uint32_t node, char byte) const {
  for (const auto& [label, target] : nodes_[node].edges)
    if (label == byte) return target;
  return std::nullopt;
}

void StopStrings::add_to_trie(size_t index) {
  uint32_t node = 0;
  for (const char byte : strings_[index]) {
    std::optional<uint32_t> target = edge(node, byte);
    if (!target) {
      target = static_cast<uint32_t>(nodes_.size());
      nodes_[node].edges.emplace_back(byte, *target);
      nodes_.push_back(Node{{}, 0, nodes_[node].depth + 1, 0});
    }
    node = *target;
  }
  nodes_[node].matched |= 1u << index;
}

// Breadth first: a node's failure is shallower than the node, so it is complete by then.
void StopStrings::link_failures() {
  std::vector<uint32_t> queue{0};
  for (size_t i = 0; i < queue.size(); ++i) {
    const uint32_t parent = queue[i];
    for (const auto& [byte, child] : nodes_[parent].edges) {
      Node& node = nodes_[child];
      node.failure = parent == 0 ? 0 : next_node(nodes_[parent].failure, byte);
      node.matched |= nodes_[node.failure].matched;
      queue.push_back(child);
    }
  }
}

uint32_t StopStrings::next_node(uint32_t node, char byte) const {
  for (;; node = nodes_[node].failure) {
    if (const std::optional<uint32_t> target = edge(node, byte)) return *target;
    if (node == 0) return 0;
  }
}

// Reads `text` to its end; the first occurrence of the string that comes first in the list.
std::optional<StopStrings::Found> StopStrings::advance(std::string_view text) {
  std::optional<Found> found;
  for (size_t i = 0; i < text.size(); ++i) {
    node_ = next_node(node_, text[i]);
    const uint32_t matched = nodes_[node_].matched;
    if (matched == 0) continue;
    const auto first = static_cast<size_t>(std::countr_zero(matched));
    if (!found || first < found->string) found = Found{first, i + 1};
  }
  return found;
}

StopStrings::Step StopStrings::feed(std::string_view text, bool armed) {
  if (strings_.empty()) return {std::string(text), std::nullopt};
  const size_t held_before = held_.size();
  const std::optional<Found> found = advance(text);
  held_ += text;
  if (found && armed) {
    const size_t end = held_before + found->end;
    const size_t cut = include_in_output_ ? end : end - strings_[found->string].size();
    return {held_.substr(0, cut), found->string};
  }
  // With the stop string in the output, whatever comes may be sent at once.
  const size_t keep = include_in_output_ ? 0 : nodes_[node_].depth;
  Step step{held_.substr(0, held_.size() - keep), std::nullopt};
  held_.erase(0, step.text.size());
  return step;
}

std::string StopStrings::finish() {
  return std::exchange(held_, {});
}

}  // namespace m2::text
