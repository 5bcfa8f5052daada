#pragma once

#include <cstdint>

#include "base/json.h"
#include "base/result.h"

namespace m2::text {

// The schema that the "$ref" of `schema` names, within `root`. `looked_through` grows by the
// members it had to be looked for among. Errors: invalid_argument.
Result<const Json*> referred_schema(const Json& root, const Json& schema,
                                    uint64_t* looked_through = nullptr);

// That nothing that `schema`, within `root`, leads to comes back to itself by "$ref", allOf, anyOf
// and oneOf alone: that would say nothing of any value. References that lead nowhere are let pass.
// Errors: invalid_argument (names the '$ref' of the circle), resource_exhausted (too many
// references into objects too large).
Result<void> check_references(const Json& root, const Json& schema);

}  // namespace m2::text
