#pragma once

#include <optional>
#include <set>
#include <string>

#include "base/json.h"
#include "base/result.h"

namespace m2::api {

// Which tools an answer is to call, as every API says it one way or another.
struct ToolChoice {
  enum class Kind { none, automatic, required, named };
  Kind kind = Kind::none;
  std::string name = {};                              // of Kind::named
  std::optional<std::set<std::string>> allowed = {};  // the only ones to call; nothing: any
};

// `tools` in the chat form: {type: function, function: {name, ...}}.
bool has_tool(const Json& tools, const std::string& name);
// Those that may be called.
Json callable_tools(const Json& tools, const ToolChoice& choice);

// {mode, tools} of an allowed_tools choice. `name_of` gives the name that a tool of its list has in
// `tools`; empty: a kind that is not called here. Errors: invalid_argument.
Result<ToolChoice> allowed_tools_choice(const Json& allowed, const Json& tools,
                                        std::string (*name_of)(const Json& tool));

}  // namespace m2::api
