#pragma once

#include <cstdint>
#include <deque>
#include <string>
#include <string_view>

#include "base/result.h"

namespace m2::text {

// Walks JSON text front to back without building a tree: for a vocabulary of hundreds of thousands
// of members, which base/json.h would take seconds over. The caller says what it expects next;
// anything else is an error that names the byte. Strings are checked in full.
class JsonCursor {
 public:
  // `json` must be valid UTF-8 and outlive this.
  explicit JsonCursor(std::string_view json) : json_(json) {}

  // Calls member(key) for each member, with the cursor at its value, which the call must consume.
  template <class Member>
  Result<void> object(Member member) {
    M2_TRY_VOID(expect('{'));
    if (accept('}')) return {};
    do {
      M2_TRY(const std::string_view key, string());
      M2_TRY_VOID(expect(':'));
      M2_TRY_VOID(Result<void>(member(key)));
    } while (accept(','));
    return expect('}');
  }

  // Calls element() for each element, likewise.
  template <class Element>
  Result<void> array(Element element) {
    M2_TRY_VOID(expect('['));
    if (accept(']')) return {};
    do {
      M2_TRY_VOID(Result<void>(element()));
    } while (accept(','));
    return expect(']');
  }

  // A string. The view lives as long as this cursor and its text.
  Result<std::string_view> string();

  // A whole number from 0 to 2^31 - 1.
  Result<int32_t> whole_number();

  // Steps over a value and returns its text, in which only strings and brackets have been looked
  // at.
  Result<std::string_view> raw();

  // The first character of the next value, or 0 at the end.
  char peek();

  // Nothing but white space is left.
  Result<void> finish();

 private:
  Result<void> expect(char c);
  bool accept(char c);
  Result<std::string_view> unescape(size_t begin);
  Result<void> append_escape(std::string& out);
  Result<uint32_t> hex4();
  Error error(std::string_view what) const;

  std::string_view json_;
  size_t at_ = 0;
  std::deque<std::string> unescaped_;  // strings that had escapes
};

}  // namespace m2::text
