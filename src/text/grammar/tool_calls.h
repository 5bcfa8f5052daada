#pragma once

#include <optional>
#include <set>
#include <string>

#include "base/json.h"
#include "base/result.h"
#include "text/grammar/text_limits.h"

namespace m2::text {

struct ToolCallGrammar {
  GrammarText text;
  std::set<std::string> ignored;  // schema keywords that have no grammar: nothing holds them
};

// What follows "<minimax:tool_call>" (contract.md 2.5): calls of the tools, each with its required
// parameters and values that ToolSchemas reads as the tool's schema wants them, up to
// "</minimax:tool_call>". `tools` as in a request; `only`: calls of that tool; `one`: a single
// call. Up to six parameters come in any order, more in the order declared. Text values hold none
// of the tags that could end them early. Errors: invalid_argument (a name that cannot be written,
// '$ref's in a circle), resource_exhausted.
Result<ToolCallGrammar> tool_call_grammar(const Json& tools, const std::optional<std::string>& only,
                                          bool one);

}  // namespace m2::text
