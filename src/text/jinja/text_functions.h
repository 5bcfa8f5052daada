#pragma once

#include <vector>

#include "text/jinja/value.h"

// Python's str functions on traced text: every byte of a result keeps the origin it had.

namespace m2::text::jinja {

enum class Side { left, right, both };

// str.strip / lstrip / rstrip: drops white space, or the code points of `chars` if it is not null.
TracedText strip(const TracedText& text, const TracedText* chars, Side side);

// str.replace; a negative count replaces all.
TracedText replace(const TracedText& text, const TracedText& old, const TracedText& fresh,
                   int64_t count, Budget& budget);

// str.split and rsplit: at `separator`, or at white space if it is null; a negative limit is none.
std::vector<Value> split(const TracedText& text, const TracedText* separator, int64_t limit,
                         Budget& budget);
std::vector<Value> split_from_right(const TracedText& text, const TracedText* separator,
                                    int64_t limit, Budget& budget);

// str.splitlines().
std::vector<Value> split_lines(const TracedText& text, bool keep_ends, Budget& budget);

// The text with `change` applied to each stretch of one origin in turn. `state` begins false and
// goes from one stretch to the next, for changes that depend on what came before.
using Change = std::string (*)(std::string_view stretch, bool& state);
TracedText changed(const TracedText& text, Change change, Budget& budget);

// A change that does not depend on what came before.
template <std::string (*Convert)(std::string_view)>
std::string anywhere(std::string_view stretch, bool&) {
  return Convert(stretch);
}

// separator.join(str(item) for each item).
TracedText join_texts(const TracedText& separator, const std::vector<Value>& items, Budget& budget);

// How often `part` occurs without overlap.
int64_t count_of(const TracedText& text, const TracedText& part);

}  // namespace m2::text::jinja
