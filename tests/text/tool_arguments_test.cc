#include "text/tool_arguments.h"

#include <gtest/gtest.h>

#include <ctime>

namespace m2::text {
namespace {

Json tools_with(const Json& parameters) {
  return Json::array(
      {{{"type", "function"}, {"function", {{"name", "f"}, {"parameters", parameters}}}}});
}

std::string typed(const Json& schema, std::string_view text) {
  ToolSchemas schemas(tools_with({{"properties", {{"a", schema}}}}));
  return schemas.argument_json(text, schemas.parameter("f", "a"));
}

JsonTypes types_of(const Json& schema) {
  ToolSchemas schemas(tools_with({{"properties", {{"a", schema}}}}));
  return schemas.types(schemas.parameter("f", "a"));
}

// The tables of contract.md 2.3 are goldens, read by output_reader_test.cc through the whole
// reader; here is what they do not show.

TEST(ToolSchemas, UnknownToolsAndParametersAreText) {
  ToolSchemas schemas(tools_with({{"properties", {{"a", {{"type", "integer"}}}}}}));
  EXPECT_EQ(schemas.argument_json("5", schemas.parameter("f", "a")), "5");
  EXPECT_EQ(schemas.argument_json("5", schemas.parameter("f", "b")), "\"5\"");
  EXPECT_EQ(schemas.argument_json("5", schemas.parameter("g", "a")), "\"5\"");
}

TEST(ToolSchemas, ToolsOfAnotherShapeAreIgnored) {
  for (const Json& tools :
       {Json(nullptr), Json(5), Json::array({5, nullptr, {{"function", 5}}}),
        Json::array({{{"function", {{"name", 5}, {"parameters", 5}}}}}),
        Json::array({{{"function", {{"name", "f"}, {"parameters", 5}}}}}),
        Json::array({{{"function", {{"name", "f"}, {"parameters", {{"properties", 5}}}}}}})}) {
    ToolSchemas schemas(tools);
    EXPECT_EQ(schemas.argument_json("5", schemas.parameter("f", "a")), "\"5\"");
  }
}

TEST(ToolSchemas, ParametersBehindReferencesAndBranchesAreFound) {
  const Json parameters = {
      {"allOf", {{{"$ref", "#/$defs/Base"}}, {{"properties", {{"b", {{"type", "boolean"}}}}}}}},
      {"$defs", {{"Base", {{"properties", {{"a", {{"type", "integer"}}}}}}}}}};
  ToolSchemas schemas(tools_with(parameters));
  EXPECT_EQ(schemas.argument_json("5", schemas.parameter("f", "a")), "5");
  EXPECT_EQ(schemas.argument_json("true", schemas.parameter("f", "b")), "true");
}

TEST(ToolSchemas, TypesOfASchema) {
  EXPECT_EQ(types_of(Json::object()).bits, JsonTypes::string);
  EXPECT_EQ(types_of({{"type", "string"}, {"enum", {"a", "b"}}}).bits, JsonTypes::string);
  EXPECT_EQ(types_of({{"type", {"string", "null"}}}).bits, JsonTypes::string | JsonTypes::null);
  EXPECT_EQ(types_of({{"type", "sometype"}}).bits, JsonTypes::other);
  EXPECT_EQ(types_of({{"enum", {1, 1.5, nullptr, true, "s", Json::array(), Json::object()}}}).bits,
            0x7F);
  EXPECT_EQ(types_of({{"type", 5}}).bits, JsonTypes::string);
}

TEST(ToolSchemas, HostileSchemasCostNoMoreThanTheirSize) {
  // Each level refers twice to the next: 2^4000 paths, 4000 schemas.
  Json definitions = Json::object();
  for (int i = 0; i < 4000; ++i) {
    const Json next = {{"$ref", "#/$defs/d" + std::to_string(i + 1)}};
    definitions["d" + std::to_string(i)] = {{"anyOf", {next, next}}};
  }
  definitions["d4000"] = {{"type", "integer"}};
  ToolSchemas schemas(tools_with(
      {{"properties", {{"a", {{"$ref", "#/$defs/d0"}}}}}, {"$defs", std::move(definitions)}}));
  const std::clock_t begin = std::clock();
  EXPECT_EQ(schemas.argument_json("5", schemas.parameter("f", "a")), "5");
  EXPECT_LT(std::clock() - begin, 2 * CLOCKS_PER_SEC);
}

TEST(ToolSchemas, HostileValuesAreText) {
  const std::string deep(100'000, '[');
  EXPECT_EQ(typed({{"type", "array"}}, deep), "\"" + deep + "\"");
  const std::string long_number(1 << 20, '7');
  EXPECT_EQ(typed({{"type", "integer"}}, long_number), long_number);
  EXPECT_EQ(typed({{"type", "number"}}, std::string(400, '9') + "." + "5"),
            "\"" + std::string(400, '9') + ".5\"");
}

// Strings in strings: each level is coerced by its own schema, down to the limit.
TEST(ToolSchemas, NestedCoercionHasALimit) {
  Json parameters = {{"properties", {{"a", {{"$ref", "#/$defs/L"}}}}},
                     {"$defs", {{"L", {{"type", "array"}, {"items", {{"$ref", "#/$defs/L"}}}}}}}};
  ToolSchemas schemas(tools_with(parameters));
  std::string text = "[\"5\"]";
  for (int i = 0; i < 100; ++i) text = "[" + text + "]";
  EXPECT_EQ(schemas.argument_json(text, schemas.parameter("f", "a")), text);
  EXPECT_EQ(schemas.argument_json(R"(["[\"[]\"]"])", schemas.parameter("f", "a")), "[[[]]]");
}

TEST(JsonString, EscapesAsPythonDoes) {
  EXPECT_EQ(json_string("a\"b\\c\n\r\t\b\f\x01\x1f\x7f/é😀"),
            "\"a\\\"b\\\\c\\n\\r\\t\\b\\f\\u0001\\u001f\x7f/é😀\"");
  const std::string text = "é\n😀\"";
  std::string pieces;
  for (const char c : text) append_json_escaped(pieces, std::string_view(&c, 1));
  EXPECT_EQ("\"" + pieces + "\"", json_string(text));
}

}  // namespace
}  // namespace m2::text
