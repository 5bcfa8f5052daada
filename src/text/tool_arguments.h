#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>

#include "base/json.h"

// The model writes every argument of a tool call as raw text; the tool's JSON schema says what it
// means. The conversions, their order and their aliases are those of contract.md 2.3.

namespace m2::text {

// The types a schema admits. `other` stands for type names that are not JSON Schema's.
struct JsonTypes {
  enum Bit : uint8_t {
    null = 1,
    integer = 2,
    number = 4,
    boolean = 8,
    object = 16,
    array = 32,
    string = 64,
    other = 128,
  };
  uint8_t bits = 0;

  bool has(int mask) const { return (bits & mask) != 0; }
  bool empty() const { return bits == 0; }
  void add(int mask) { bits = static_cast<uint8_t>(bits | mask); }
};

// One schema, and the tool's `parameters` that its "$ref"s point into. A null schema is an unknown
// one: everything is a string.
struct SchemaView {
  const Json* schema = nullptr;
  const Json* root = nullptr;
};

// The schemas of a request's tools, and the conversion of argument texts by them. Not thread-safe
// (types are remembered once found). Hostile schemas (cycles of "$ref", deep nesting) cost no more
// than their size.
class ToolSchemas {
 public:
  // `tools` as in a request: [{"type":"function","function":{"name":...,"parameters":{...}}}].
  // Entries of another shape are ignored.
  explicit ToolSchemas(Json tools);
  ToolSchemas(const ToolSchemas&) = delete;
  ToolSchemas& operator=(const ToolSchemas&) = delete;

  // The schema of one parameter of one tool; unknown if either is not declared.
  SchemaView parameter(std::string_view tool, const std::string& name) const;

  // What the schema admits; {string} if it says nothing. Never empty.
  JsonTypes types(SchemaView view);

  // The argument as JSON text, printed as Python's json.dumps(ensure_ascii=False) does. Never
  // fails: a text that fits no admitted type becomes a string. `text` must be UTF-8.
  std::string argument_json(std::string_view text, SchemaView view);

 private:
  std::string argument_json(std::string_view text, SchemaView view, int depth);
  void coerce_children(Json& value, SchemaView view, int depth);
  void coerce(Json& value, SchemaView view, int depth);

  Json tools_;
  std::unordered_map<std::string, const Json*> parameters_;  // by tool name, into tools_
  std::unordered_map<const Json*, JsonTypes> types_;         // by schema, into tools_
};

// Appends `text` as the inside of a JSON string: quotes, backslashes and control characters
// escaped as json.dumps does, everything else kept. The text may come in pieces, cut anywhere.
void append_json_escaped(std::string& out, std::string_view text);

// `text` as a JSON string, quotes included.
std::string json_string(std::string_view text);

}  // namespace m2::text
