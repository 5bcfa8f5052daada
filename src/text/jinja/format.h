#pragma once

#include "text/jinja/value.h"

namespace m2::text::jinja {

// "..." % arguments: a tuple's items in order, a dict's by name, any other value alone.
Value format_percent(const TracedText& format, const Value& arguments, Budget& budget);

// "...".format(*positional, **named).
Value format_braces(const TracedText& format, const Arguments& arguments, Budget& budget);

}  // namespace m2::text::jinja
