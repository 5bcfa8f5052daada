#include "api/tool_choice.h"

#include <algorithm>

namespace m2::api {
namespace {

Error invalid(std::string text) {
  return Error{Code::invalid_argument, std::move(text), "tool_choice"};
}

}  // namespace

bool has_tool(const Json& tools, const std::string& name) {
  return std::ranges::any_of(tools,
                             [&](const Json& tool) { return tool["function"]["name"] == name; });
}

Json callable_tools(const Json& tools, const ToolChoice& choice) {
  if (!choice.allowed) return tools;
  Json out = Json::array();
  for (const Json& tool : tools)
    if (choice.allowed->contains(tool["function"]["name"])) out.push_back(tool);
  return out;
}

Result<ToolChoice> allowed_tools_choice(const Json& allowed, const Json& tools,
                                        std::string (*name_of)(const Json& tool)) {
  const Json mode = allowed.is_object() ? allowed.value("mode", Json("auto")) : Json();
  if (mode != "auto" && mode != "required")
    return invalid("tool_choice: mode of allowed_tools should be 'auto' or 'required'");
  const Json list = allowed.value("tools", Json());
  if (!list.is_array())
    return invalid("tool_choice: tools of allowed_tools should be a valid list");
  // Both lists may be as long as a body holds.
  std::set<std::string_view> offered;
  for (const Json& tool : tools)
    offered.insert(tool["function"]["name"].get_ref<const std::string&>());
  std::set<std::string> names;
  for (const Json& tool : list) {
    if (!tool.is_object()) return invalid("tool_choice: each tool allowed should be an object");
    const std::string name = name_of(tool);
    if (name.empty()) continue;
    if (!offered.contains(name))
      return invalid(
          "The tool specified in `tool_choice` does not match any of the specified `tools`");
    names.insert(name);
  }
  if (names.empty()) return ToolChoice{};
  using Kind = ToolChoice::Kind;
  return ToolChoice{mode == "required" ? Kind::required : Kind::automatic, {}, std::move(names)};
}

}  // namespace m2::api
