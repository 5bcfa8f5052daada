#pragma once

#include <cstdint>
#include <string>
#include <unordered_set>

#include "base/json.h"
#include "base/result.h"

// The keywords of JSON Schema (draft 2020-12, and what older drafts and OpenAPI call them), and one
// schema's say by them.

namespace m2::text {

// Keywords that say nothing about values, or whose say is heard elsewhere.
const std::unordered_set<std::string>& annotations();
// Those that grammars are made of.
const std::unordered_set<std::string>& assertions();
// Those that have no grammar.
const std::unordered_set<std::string>& refused();

// What the schema says under the keyword; null if nothing, or if it is no object.
const Json* find_keyword(const Json& schema, const char* keyword);

// Whether some value may not fit the schema, as far as its own keywords tell.
bool asserts(const Json& schema);

// invalid_argument: the keyword is not what it `should` be.
Error malformed(const std::string& keyword, const std::string& should);

// A count under the keyword, or `otherwise` where there is none. Fails if it is negative or no
// integer.
Result<int64_t> count_of(const Json& schema, const char* keyword, int64_t otherwise);

// Whether the value is of the type so named; an integer is a number too.
bool is_type(const Json& value, const std::string& type);

}  // namespace m2::text
