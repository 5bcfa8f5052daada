#pragma once

#include <cstddef>
#include <string>
#include <string_view>

// Unicode text as Python's str sees it: a row of code points, stored as UTF-8.

namespace m2::text::jinja {

// The code point at byte `at` of `text`, and `at` moved behind it. A byte that is not UTF-8 reads
// as U+FFFD. Precondition: at < text.size().
char32_t next_point(std::string_view text, size_t& at);

void append_point(std::string& out, char32_t point);

// len(str).
size_t count_points(std::string_view text);

// The byte where code point number `index` begins; text.size() if there are fewer.
size_t byte_of_point(std::string_view text, size_t index);

// str.isspace, isalpha, ... of one code point.
bool is_space(char32_t point);
bool is_letter(char32_t point);
bool is_decimal(char32_t point);
bool is_digit(char32_t point);
bool is_numeric(char32_t point);
bool is_upper(char32_t point);
bool is_lower(char32_t point);
bool is_cased(char32_t point);
bool is_printable(char32_t point);
bool is_identifier(char32_t point);

std::string to_upper(std::string_view text);
std::string to_lower(std::string_view text);
// First code point of the text in title case, the others in lower case (str.capitalize). `begun` is
// false at the text's beginning and carries over from one stretch of it to the next.
std::string to_capitalized(std::string_view text, bool& begun);
// Every run of cased characters capitalised (str.title). `inside` of such a run carries over.
std::string to_title(std::string_view text, bool& inside);

// The bytes of `text` without leading / trailing white space: how many to drop.
size_t leading_space(std::string_view text);
size_t trailing_space(std::string_view text);

}  // namespace m2::text::jinja
