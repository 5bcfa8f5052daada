#pragma once

#include <string>

#include "base/json.h"
#include "base/result.h"
#include "text/grammar/text_limits.h"

namespace m2::text {

// The grammar of a structural tag, in both forms clients send: {"structures":[{"begin","schema",
// "end"}],"triggers":[...]}, and {"format":{...}} of const_string, json_schema, regex, any_text,
// sequence, or, tag, triggered_tags and tags_with_separator. Errors: invalid_argument (names what
// is malformed or not supported), resource_exhausted.
Result<GrammarText> structural_tag_grammar(const Json& tag);

}  // namespace m2::text
