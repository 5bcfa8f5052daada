#include "text/jinja/text_functions.h"

#include <algorithm>

#include "text/jinja/unicode.h"

namespace m2::text::jinja {
namespace {

constexpr auto npos = std::string_view::npos;

bool has_point(std::string_view set, std::string_view point) {
  for (size_t at = 0; at < set.size();) {
    const size_t begin = at;
    next_point(set, at);
    if (set.substr(begin, at - begin) == point) return true;
  }
  return false;
}

size_t leading_of(std::string_view text, std::string_view set) {
  size_t end = 0;
  while (end < text.size()) {
    size_t next = end;
    next_point(text, next);
    if (!has_point(set, text.substr(end, next - end))) break;
    end = next;
  }
  return end;
}

size_t trailing_of(std::string_view text, std::string_view set) {
  size_t end = text.size();
  while (end > 0) {
    size_t begin = end - 1;
    while (begin > 0 && (static_cast<unsigned char>(text[begin]) & 0xC0) == 0x80) --begin;
    if (!has_point(set, text.substr(begin, end - begin))) break;
    end = begin;
  }
  return text.size() - end;
}

void require_separator(const TracedText& separator) {
  if (separator.empty()) raise("empty separator");
}

// Collects parts of one text.
class Parts {
 public:
  Parts(const TracedText& text, Budget& budget) : text_(text), budget_(budget) {}

  void add(size_t begin, size_t end) {
    budget_.step(2 + (end - begin) / 64);
    parts_.emplace_back(text_.part(begin, end));
  }
  std::vector<Value> take() { return std::move(parts_); }
  std::vector<Value> take_reversed() {
    std::reverse(parts_.begin(), parts_.end());
    return take();
  }
  bool full(int64_t limit) const {
    return limit >= 0 && parts_.size() >= static_cast<size_t>(limit);
  }

 private:
  const TracedText& text_;
  Budget& budget_;
  std::vector<Value> parts_;
};

size_t end_of_word(std::string_view text, size_t at) {
  while (at < text.size()) {
    size_t next = at;
    if (is_space(next_point(text, next))) break;
    at = next;
  }
  return at;
}

size_t begin_of_word(std::string_view text, size_t end) {
  while (end > 0) {
    if (trailing_space(text.substr(0, end)) > 0) break;
    --end;
    while (end > 0 && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) --end;
  }
  return end;
}

std::vector<Value> split_words(const TracedText& text, int64_t limit, Budget& budget) {
  const std::string_view view = text.view();
  Parts parts(text, budget);
  size_t at = leading_space(view);
  while (at < view.size()) {
    if (parts.full(limit)) {
      parts.add(at, view.size());
      break;
    }
    const size_t end = end_of_word(view, at);
    parts.add(at, end);
    at = end + leading_space(view.substr(end));
  }
  return parts.take();
}

std::vector<Value> split_words_from_right(const TracedText& text, int64_t limit, Budget& budget) {
  const std::string_view view = text.view();
  Parts parts(text, budget);
  size_t end = view.size() - trailing_space(view);
  while (end > 0) {
    if (parts.full(limit)) {
      parts.add(0, end);
      break;
    }
    const size_t begin = begin_of_word(view, end);
    parts.add(begin, end);
    end = begin - trailing_space(view.substr(0, begin));
  }
  return parts.take_reversed();
}

// The line break at `at` of the kinds that str.splitlines knows: its length in bytes, or 0.
size_t line_break(std::string_view text, size_t at) {
  if (text.substr(at, 2) == "\r\n") return 2;
  size_t next = at;
  const char32_t point = next_point(text, next);
  const bool breaks = (point >= 0x0A && point <= 0x0D) || (point >= 0x1C && point <= 0x1E) ||
                      point == 0x85 || point == 0x2028 || point == 0x2029;
  return breaks ? next - at : 0;
}

// str.replace("", fresh): before every code point and at the end.
TracedText spread(const TracedText& text, const TracedText& fresh, int64_t count, Budget& budget) {
  TextWriter out(budget);
  size_t at = 0;
  for (; count != 0; --count) {
    out.write(fresh);
    budget.step();
    if (at == text.size()) break;
    const size_t begin = at;
    next_point(text.view(), at);
    out.write_part(text, begin, at);
  }
  out.write_part(text, at, text.size());
  return out.take();
}

}  // namespace

TracedText strip(const TracedText& text, const TracedText* chars, Side side) {
  size_t begin = 0, end = text.size();
  const auto leading = [&](std::string_view view) {
    return chars ? leading_of(view, chars->view()) : leading_space(view);
  };
  const auto trailing = [&](std::string_view view) {
    return chars ? trailing_of(view, chars->view()) : trailing_space(view);
  };
  if (side != Side::right) begin = leading(text.view());
  if (side != Side::left) end -= trailing(text.view().substr(begin));
  return text.part(begin, end);
}

TracedText replace(const TracedText& text, const TracedText& old, const TracedText& fresh,
                   int64_t count, Budget& budget) {
  if (old.empty()) return spread(text, fresh, count, budget);
  TextWriter out(budget);
  size_t at = 0;
  for (; count != 0; --count) {
    const size_t found = text.view().find(old.view(), at);
    if (found == npos) break;
    budget.step();
    out.write_part(text, at, found);
    out.write(fresh);
    at = found + old.size();
  }
  out.write_part(text, at, text.size());
  return out.take();
}

std::vector<Value> split(const TracedText& text, const TracedText* separator, int64_t limit,
                         Budget& budget) {
  if (!separator) return split_words(text, limit, budget);
  require_separator(*separator);
  Parts parts(text, budget);
  size_t at = 0;
  while (!parts.full(limit)) {
    const size_t found = text.view().find(separator->view(), at);
    if (found == npos) break;
    parts.add(at, found);
    at = found + separator->size();
  }
  parts.add(at, text.size());
  return parts.take();
}

std::vector<Value> split_from_right(const TracedText& text, const TracedText* separator,
                                    int64_t limit, Budget& budget) {
  if (!separator) return split_words_from_right(text, limit, budget);
  require_separator(*separator);
  Parts parts(text, budget);
  size_t end = text.size();
  while (!parts.full(limit)) {
    const size_t found = text.view().substr(0, end).rfind(separator->view());
    if (found == npos) break;
    parts.add(found + separator->size(), end);
    end = found;
  }
  parts.add(0, end);
  return parts.take_reversed();
}

std::vector<Value> split_lines(const TracedText& text, bool keep_ends, Budget& budget) {
  Parts parts(text, budget);
  size_t begin = 0;
  for (size_t at = 0; at < text.size();) {
    const size_t length = line_break(text.view(), at);
    if (length == 0) {
      next_point(text.view(), at);
      continue;
    }
    parts.add(begin, keep_ends ? at + length : at);
    begin = at += length;
  }
  if (begin < text.size()) parts.add(begin, text.size());
  return parts.take();
}

TracedText changed(const TracedText& text, Change change, Budget& budget) {
  bool state = false;
  TextWriter out(budget);
  text.for_each_run([&](std::string_view run, Origin origin) {
    budget.text(run.size(), out.size() + run.size());
    out.write(change(run, state), origin);
  });
  return out.take();
}

TracedText join_texts(const TracedText& separator, const std::vector<Value>& items,
                      Budget& budget) {
  TextWriter out(budget);
  for (size_t i = 0; i < items.size(); ++i) {
    budget.step();
    if (i > 0) out.write(separator);
    write_text(out, items[i]);
  }
  return out.take();
}

int64_t count_of(const TracedText& text, const TracedText& part) {
  if (part.empty()) return static_cast<int64_t>(count_points(text.view())) + 1;
  int64_t count = 0;
  for (size_t at = text.view().find(part.view()); at != npos;
       at = text.view().find(part.view(), at + part.size()))
    ++count;
  return count;
}

}  // namespace m2::text::jinja
