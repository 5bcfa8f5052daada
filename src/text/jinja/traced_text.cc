#include "text/jinja/traced_text.h"

namespace m2::text::jinja {

void TracedText::append(std::string_view bytes, Origin origin) {
  if (bytes.empty()) return;
  if (bytes_.empty()) {
    first_ = origin;
  } else if (last_origin() != origin) {
    borders_.push_back(bytes_.size());
  }
  bytes_ += bytes;
}

void TracedText::append_part(const TracedText& other, size_t begin, size_t end) {
  other.for_each_run(begin, end,
                     [&](std::string_view bytes, Origin origin) { append(bytes, origin); });
}

TracedText TracedText::part(size_t begin, size_t end) const {
  TracedText result;
  result.append_part(*this, begin, end);
  return result;
}

}  // namespace m2::text::jinja
