#include "text/grammar/rules.h"

#include <fmt/format.h>

#include <algorithm>

namespace m2::text {

std::string Rules::add(const std::string& body) {
  const auto [found, is_new] = names_.try_emplace(body);
  if (is_new) {
    found->second = reserve();
    define(found->second, body);
  }
  return found->second;
}

std::string Rules::reserve() {
  return fmt::format("r{}", ++count_);
}

void Rules::define(const std::string& name, const std::string& body) {
  if (!full()) text_ += name + " ::= " + body + "\n";
}

std::string Rules::add_limited(const std::string& body, TextLimit limit) {
  const std::string key = fmt::format("{} {} {} {} {} {}", body, limit.least, limit.most,
                                      static_cast<int>(limit.as), limit.patterned, limit.close);
  const auto [found, is_new] = names_.try_emplace(key);
  if (is_new) {
    limit.rule = reserve();
    define(limit.rule, body);
    found->second = add(limit.rule + " " + ebnf_literal(limit.close));
    limits_.push_back(std::move(limit));
  }
  return found->second;
}

namespace {

// {m,n} of an expression that is one symbol, few times.
std::string counted(const std::string& symbol, int64_t low, int64_t high) {
  if (high == 0) return "\"\"";
  if (low == 0 && high < 0) return symbol + "*";
  if (low == 1 && high < 0) return symbol + "+";
  if (low == 1 && high == 1) return symbol;
  if (low == 0 && high == 1) return symbol + "?";
  return high < 0 ? fmt::format("{}{{{},}}", symbol, low)
                  : fmt::format("{}{{{},{}}}", symbol, low, high);
}

constexpr int64_t kGroup = 16;

}  // namespace

// In groups of groups: what has come leaves one state a level, two where the end is near.
std::string Rules::times(const std::string& symbol, int64_t low, int64_t high) {
  if (std::max(low, high) <= kGroup) return counted(symbol, low, high);
  if (low > 0) {
    std::string out;
    if (low >= kGroup)
      out = times(add(counted(symbol, kGroup, kGroup)), low / kGroup, low / kGroup);
    if (low % kGroup > 0) out += " " + counted(symbol, low % kGroup, low % kGroup);
    if (high != low) out += " " + times(symbol, 0, high < 0 ? -1 : high - low);
    return add(out);
  }
  return up_to(symbol, high);
}

std::string Rules::up_to(const std::string& symbol, int64_t high) {
  if (high <= kGroup) return counted(symbol, 0, high);
  const std::string group = add(counted(symbol, kGroup, kGroup));
  const int64_t groups = (high + 1) / kGroup - 1, rest = (high + 1) % kGroup;
  std::string out = up_to(group, groups) + " " + counted(symbol, 0, kGroup - 1);
  if (rest > 0)
    out += " | " + times(group, groups + 1, groups + 1) + " " + counted(symbol, 0, rest - 1);
  return add(out);
}

GrammarText Rules::grammar(const std::string& root) const {
  GrammarText out("root ::= " + root + "\n" + text_);
  out.limits = limits_;
  return out;
}

std::string ebnf_literal(std::string_view text) {
  std::string out = "\"";
  for (const char c : text) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') out += '\\';
    if (byte < 0x20 || byte == 0x7f)
      out += fmt::format("\\u{:04x}", byte);
    else
      out += c;
  }
  return out + "\"";
}

}  // namespace m2::text
