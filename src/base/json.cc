#include "base/json.h"

#include <unordered_set>
#include <vector>

#include "base/json_members.h"

namespace m2 {
namespace {

// Builds the value like the library's own parser, and stops at the first limit exceeded.
class LimitedBuilder : public nlohmann::json_sax<Json> {
 public:
  explicit LimitedBuilder(const JsonLimits& limits) : limits_(limits) {}

  Json root;
  std::string problem;

  bool null() override { return leaf(nullptr); }
  bool boolean(bool value) override { return leaf(value); }
  bool number_integer(number_integer_t value) override { return leaf(value); }
  bool number_unsigned(number_unsigned_t value) override { return leaf(value); }
  // The library itself refuses a number that overflows a double.
  bool number_float(number_float_t value, const string_t&) override { return leaf(value); }
  bool string(string_t& value) override { return leaf(std::move(value)); }
  bool binary(binary_t&) override { return stop("binary value"); }

  bool start_object(std::size_t) override { return open(Json::object()); }
  bool start_array(std::size_t) override { return open(Json::array()); }
  bool end_object() override { return close(); }
  bool end_array() override { return close(); }

  bool key(string_t& name) override {
    Level& level = levels_.back();
    level.key_is_new = level.keys.insert(name).second;
    if (!level.key_is_new && !limits_.allow_duplicate_keys)
      return stop("duplicate key \"" + name.substr(0, 80) + "\"");
    level.key = std::move(name);
    return true;
  }

  bool parse_error(std::size_t, const std::string&,
                   const nlohmann::detail::exception& error) override {
    if (problem.empty()) {
      // The library's text starts with an id in brackets, which says nothing to a person.
      std::string_view what = error.what();
      const size_t end_of_id = what.find("] ");
      if (end_of_id != std::string_view::npos) what.remove_prefix(end_of_id + 2);
      problem = std::string(what.substr(0, 300));
    }
    return false;
  }

 private:
  struct Level {
    Json* value;
    std::unordered_set<std::string> keys;
    std::string key;  // of the value that comes next
    bool key_is_new = true;
  };

  bool stop(std::string why) {
    problem = std::move(why);
    return false;
  }

  // Puts a value where the open array or object expects it, and says where it now lives.
  Json* place(Json&& value) {
    if (levels_.empty()) return &(root = std::move(value));
    Level& level = levels_.back();
    if (level.value->is_array()) return &level.value->emplace_back(std::move(value));
    if (!level.key_is_new) return &((*level.value)[level.key] = std::move(value));
    return &append_member(*level.value, std::move(level.key), std::move(value));
  }

  bool leaf(Json&& value) {
    if (++nodes_ > limits_.max_nodes)
      return stop(fmt::format("more than {} values", limits_.max_nodes));
    place(std::move(value));
    return true;
  }

  bool open(Json&& value) {
    if (++nodes_ > limits_.max_nodes)
      return stop(fmt::format("more than {} values", limits_.max_nodes));
    if (static_cast<int>(levels_.size()) >= limits_.max_depth)
      return stop(fmt::format("nested deeper than {} levels", limits_.max_depth));
    Json* where = place(std::move(value));
    levels_.push_back(Level{where, {}, {}, true});
    return true;
  }

  bool close() {
    levels_.pop_back();
    return true;
  }

  const JsonLimits& limits_;
  std::vector<Level> levels_;
  size_t nodes_ = 0;
};

}  // namespace

Result<Json> parse_json(std::string_view text, const JsonLimits& limits) {
  if (text.size() > limits.max_bytes)
    return fail(Code::resource_exhausted, "JSON text of {} bytes exceeds the limit of {} bytes",
                text.size(), limits.max_bytes);
  // The library takes a NUL for the end of the text; what stands behind it would go unread.
  if (const size_t nul = text.find('\0'); nul != std::string_view::npos)
    return fail(Code::invalid_argument, "invalid JSON: NUL byte at {}", nul);
  LimitedBuilder builder(limits);
  if (!Json::sax_parse(text.begin(), text.end(), &builder))
    return fail(Code::invalid_argument, "invalid JSON: {}", builder.problem);
  return std::move(builder.root);
}

std::string to_text(const Json& value) {
  return value.dump(-1, ' ', false, Json::error_handler_t::replace);
}

}  // namespace m2
