#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace m2::text::jinja {

struct Token {
  enum class Kind {
    data,            // text of the template, white space control applied
    variable_begin,  // {{
    variable_end,    // }}
    block_begin,     // {%
    block_end,       // %}
    name,
    text,  // a string literal, escapes resolved
    integer,
    real,
    symbol,  // an operator or a bracket
    end,
  };

  Kind kind = Kind::end;
  int line = 0;
  std::string text;  // of data, name, text and symbol
  int64_t integer = 0;
  double real = 0;

  bool is_symbol(std::string_view wanted) const { return kind == Kind::symbol && text == wanted; }
  bool is_name(std::string_view wanted) const { return kind == Kind::name && text == wanted; }
};

// The tokens of a template, ending with Kind::end. Follows Jinja's lexer with trim_blocks and
// lstrip_blocks: comments are dropped, raw blocks become data, one newline at the very end of the
// template is dropped, CRLF and CR become LF. Throws Failure, naming the line.
std::vector<Token> tokenize(std::string_view source);

}  // namespace m2::text::jinja
