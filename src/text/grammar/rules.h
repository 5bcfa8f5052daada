#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "text/grammar/text_limits.h"

namespace m2::text {

// Named rules in xgrammar's EBNF. Equal bodies share a name.
class Rules {
 public:
  static constexpr size_t kMaxRules = 10'000;
  static constexpr size_t kMaxBytes = 1 << 20;

  // A rule with this body; its name.
  std::string add(const std::string& body);
  // A name whose body define() gives later.
  std::string reserve();
  void define(const std::string& name, const std::string& body);
  // A text of `limit`'s lengths and what follows it, limit.close: a rule. `body` is one terminal.
  std::string add_limited(const std::string& body, TextLimit limit);
  // `symbol` so many times (`high` < 0: or more). Repetition in the grammar's own way would keep a
  // state for each of the last hundred counts.
  std::string times(const std::string& symbol, int64_t low, int64_t high);

  bool full() const { return count_ > kMaxRules || text_.size() > kMaxBytes; }
  // The grammar whose whole text is `root`.
  GrammarText grammar(const std::string& root) const;

 private:
  std::string up_to(const std::string& symbol, int64_t high);
  std::map<std::string, std::string> names_;  // by body
  std::string text_;
  std::vector<TextLimit> limits_;
  size_t count_ = 0;
};

// An expression of EBNF; nothing: no text at all fits.
using Language = std::optional<std::string>;

// "text" as an expression.
std::string ebnf_literal(std::string_view text);

}  // namespace m2::text
