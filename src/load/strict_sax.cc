#include "load/strict_sax.h"

#include <cstring>

namespace m2::load {

Result<void> StrictSax::parse(std::string_view text) {
  if (text.empty() || text.front() != '{')
    return fail(Code::corrupt, "the JSON text does not begin with '{{'");
  // The library takes a zero byte for the end of the text and would not look at what follows.
  if (std::memchr(text.data(), 0, text.size()))
    return fail(Code::corrupt, "the JSON text has a zero byte");
  if (!Json::sax_parse(text.begin(), text.end(), this)) return Error{Code::corrupt, problem_, {}};
  return {};
}

bool StrictSax::parse_error(std::size_t, const std::string&,
                            const nlohmann::detail::exception& error) {
  // The library's text starts with an id in brackets, which says nothing to a person.
  std::string_view what = error.what();
  const size_t end_of_id = what.find("] ");
  if (end_of_id != std::string_view::npos) what.remove_prefix(end_of_id + 2);
  return refuse(std::string(what.substr(0, 300)));
}

bool StrictSax::refuse(std::string why) {
  if (problem_.empty()) problem_ = std::move(why);
  return false;
}

}  // namespace m2::load
