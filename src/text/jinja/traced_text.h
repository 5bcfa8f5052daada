#pragma once

#include <algorithm>
#include <string>
#include <string_view>
#include <vector>

#include "text/jinja/budget.h"

namespace m2::text::jinja {

// Where a stretch of text was written: in the template, or by somebody who is not the template's
// author (a message, a tool, an argument).
enum class Origin : bool { literal, variable };

// UTF-8 text that knows the origin of each of its bytes. Origins alternate at `borders_`, so a text
// of one origin, the common case, carries no list.
class TracedText {
 public:
  TracedText() = default;
  TracedText(std::string bytes, Origin origin) : bytes_(std::move(bytes)), first_(origin) {}

  const std::string& bytes() const { return bytes_; }
  std::string_view view() const { return bytes_; }
  size_t size() const { return bytes_.size(); }
  bool empty() const { return bytes_.empty(); }
  Origin last_origin() const { return flipped(first_, borders_.size()); }

  void append(std::string_view bytes, Origin origin);
  void append(const TracedText& other) { append_part(other, 0, other.size()); }
  // Bytes [begin, end) of `other`. Precondition: begin <= end <= other.size().
  void append_part(const TracedText& other, size_t begin, size_t end);
  TracedText part(size_t begin, size_t end) const;

  // Calls visit(bytes, origin) for each stretch of bytes [begin, end) that has one origin.
  template <class Visit>
  void for_each_run(size_t begin, size_t end, Visit&& visit) const;
  template <class Visit>
  void for_each_run(Visit&& visit) const {
    for_each_run(0, size(), visit);
  }

 private:
  static Origin flipped(Origin origin, size_t times) {
    return times % 2 == 0 ? origin : Origin(!static_cast<bool>(origin));
  }

  std::string bytes_;
  Origin first_ = Origin::literal;
  std::vector<size_t> borders_;  // ascending, inside (0, size)
};

// Builds a text under a budget.
class TextWriter {
 public:
  explicit TextWriter(Budget& budget) : budget_(budget) {}

  void write(std::string_view bytes, Origin origin = Origin::literal) {
    charge(bytes.size());
    text_.append(bytes, origin);
  }
  void write(const TracedText& text) { write_part(text, 0, text.size()); }
  void write_part(const TracedText& text, size_t begin, size_t end) {
    charge(end - begin);
    text_.append_part(text, begin, end);
  }
  void fill(size_t count, char c) {
    charge(count);
    text_.append(std::string(count, c), Origin::literal);
  }

  Budget& budget() { return budget_; }
  size_t size() const { return text_.size(); }
  TracedText take() { return std::exchange(text_, {}); }

 private:
  void charge(size_t added) { budget_.text(added, text_.size() + added); }

  Budget& budget_;
  TracedText text_;
};

template <class Visit>
void TracedText::for_each_run(size_t begin, size_t end, Visit&& visit) const {
  if (begin == end) return;
  auto border = std::upper_bound(borders_.begin(), borders_.end(), begin);
  Origin origin = flipped(first_, static_cast<size_t>(border - borders_.begin()));
  while (begin < end) {
    const size_t stop = border == borders_.end() ? end : std::min(end, *border++);
    visit(std::string_view(bytes_).substr(begin, stop - begin), origin);
    begin = stop;
    origin = flipped(origin, 1);
  }
}

}  // namespace m2::text::jinja
