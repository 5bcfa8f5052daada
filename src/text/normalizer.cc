#include "text/normalizer.h"

#include <utf8proc.h>

#include <algorithm>
#include <iterator>
#include <vector>

#include "text/unicode.h"

namespace m2::text {
namespace {

struct Scan {
  bool valid = true;  // UTF-8
  bool inert = true;  // NFC already, as far as a look at single characters can tell
};

Scan scan(std::string_view text, const CharTable& table) {
  Scan result;
  const char* p = text.data();
  const char* const end = p + text.size();
  while (p < end) {
    p += ascii_prefix({p, end});
    for (; p < end && static_cast<unsigned char>(*p) >= 0x80;) {
      const Utf8Step step = read_utf8(p, end);
      if (!step.valid) return {false, false};
      result.inert = result.inert && table.nfc_inert(step.code_point);
      p += step.size;
    }
  }
  return result;
}

// Composes one stretch of text at a time: an inert character and what follows it up to the next.
class Composer {
 public:
  explicit Composer(const CharTable& table) : table_(table) {}

  void add(char32_t c) {
    utf8proc_int32_t parts[32];
    int boundary = 0;
    const auto count = utf8proc_decompose_char(static_cast<utf8proc_int32_t>(c), parts,
                                               static_cast<utf8proc_ssize_t>(std::size(parts)),
                                               UTF8PROC_DECOMPOSE, &boundary);
    stretch_.insert(stretch_.end(), parts, parts + count);
  }

  void finish(std::string& out) {
    sort_marks();
    const auto count = utf8proc_normalize_utf32(
        stretch_.data(), static_cast<utf8proc_ssize_t>(stretch_.size()),
        static_cast<utf8proc_option_t>(UTF8PROC_COMPOSE | UTF8PROC_STABLE));
    for (utf8proc_ssize_t i = 0; i < count; ++i)
      append_utf8(static_cast<char32_t>(stretch_[static_cast<size_t>(i)]), out);
    stretch_.clear();
  }

 private:
  int combining_class(utf8proc_int32_t c) const {
    return table_.nfc_inert(static_cast<char32_t>(c)) ? 0
                                                      : utf8proc_get_property(c)->combining_class;
  }

  // Canonical order. utf8proc's own takes quadratic time on long runs of marks.
  void sort_marks() {
    const auto by_class = [this](utf8proc_int32_t a, utf8proc_int32_t b) {
      return combining_class(a) < combining_class(b);
    };
    const auto is_mark = [this](utf8proc_int32_t c) { return combining_class(c) != 0; };
    for (auto begin = stretch_.begin(); begin != stretch_.end();) {
      begin = std::find_if(begin, stretch_.end(), is_mark);
      const auto end = std::find_if_not(begin, stretch_.end(), is_mark);
      if (!std::is_sorted(begin, end, by_class)) std::stable_sort(begin, end, by_class);
      begin = end;
    }
  }

  const CharTable& table_;
  std::vector<utf8proc_int32_t> stretch_;
};

// Precondition: `text` is valid UTF-8.
void append_nfc(std::string_view text, const CharTable& table, std::string& out) {
  Composer composer(table);
  const char* const end = text.data() + text.size();
  const char* copied = text.data();  // everything before is in `out`
  const char* inert = copied;        // the last inert character, or `copied`
  for (const char* p = copied; p < end;) {
    int size = 0;
    char32_t c = decode_valid(p, size);
    if (table.nfc_inert(c)) {
      inert = p;
      p += size;
      continue;
    }
    out.append(copied, inert);
    for (p = inert; p < end; p += size) {
      c = decode_valid(p, size);
      if (p != inert && table.nfc_inert(c)) break;
      composer.add(c);
    }
    composer.finish(out);
    copied = inert = p;
  }
  out.append(copied, end);
}

}  // namespace

std::string_view normalize(std::string_view text, bool nfc, std::string& storage) {
  const CharTable& table = CharTable::get();
  const Scan found = scan(text, table);
  if (found.valid && (found.inert || !nfc)) return text;
  storage.clear();
  std::string repaired;
  if (!found.valid) {
    append_replacing_invalid(text, nfc ? repaired : storage);
    if (!nfc) return storage;
    text = repaired;
  }
  append_nfc(text, table, storage);
  return storage;
}

}  // namespace m2::text
