#pragma once

#include <string>
#include <string_view>

#include "base/json.h"
#include "base/result.h"

namespace m2::load {

// Reads a large JSON text of a fixed form as it streams by, with no tree in between: a header may
// have 100,000 entries, and an object that keeps its keys' order finds a key in linear time.
// A subclass accepts what the form allows; everything else is refused here. Never recurses.
class StrictSax : public nlohmann::json_sax<Json> {
 public:
  // Parses `text`, which must be one JSON object and nothing after it but white space.
  Result<void> parse(std::string_view text);

  bool null() override { return refuse("null is not expected here"); }
  bool boolean(bool) override { return refuse("a boolean is not expected here"); }
  bool number_integer(number_integer_t) override {
    return refuse("a negative number is not expected here");
  }
  bool number_unsigned(number_unsigned_t) override {
    return refuse("a number is not expected here");
  }
  bool number_float(number_float_t, const string_t&) override {
    return refuse("only integers from 0 to 2^64-1 are expected here");
  }
  bool string(string_t&) override { return refuse("a string is not expected here"); }
  bool binary(binary_t&) override { return refuse("binary data is not expected here"); }
  bool start_object(std::size_t) override { return refuse("an object is not expected here"); }
  bool start_array(std::size_t) override { return refuse("an array is not expected here"); }
  bool parse_error(std::size_t position, const std::string& last_token,
                   const nlohmann::detail::exception& error) override;

 protected:
  // Stops the parse; the first reason given is the one reported.
  bool refuse(std::string why);

 private:
  std::string problem_;
};

}  // namespace m2::load
