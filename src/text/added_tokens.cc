#include "text/added_tokens.h"

namespace m2::text {

AddedTokenMatcher::AddedTokenMatcher(std::span<const AddedToken> tokens) {
  first_.fill(-1);
  for (const AddedToken& token : tokens) {
    int32_t node = -1;
    for (const char c : token.text) {
      const auto byte = static_cast<unsigned char>(c);
      int32_t next = node < 0 ? first_[byte] : child(nodes_[static_cast<size_t>(node)], byte);
      if (next < 0) {
        next = add_node(byte);
        int32_t& head = node < 0 ? first_[byte] : nodes_[static_cast<size_t>(node)].first_child;
        nodes_[static_cast<size_t>(next)].sibling = node < 0 ? -1 : head;
        head = next;
      }
      node = next;
    }
    nodes_[static_cast<size_t>(node)].token = token.id;
    nodes_[static_cast<size_t>(node)].special = token.special;
  }
}

int32_t AddedTokenMatcher::child(const Node& node, unsigned char byte) const {
  int32_t next = node.first_child;
  while (next >= 0 && nodes_[static_cast<size_t>(next)].byte != byte)
    next = nodes_[static_cast<size_t>(next)].sibling;
  return next;
}

int32_t AddedTokenMatcher::add_node(unsigned char byte) {
  nodes_.push_back({.byte = byte});
  return static_cast<int32_t>(nodes_.size() - 1);
}

}  // namespace m2::text
