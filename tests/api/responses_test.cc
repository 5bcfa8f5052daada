// Covers: api/openai_responses, api/tool_choice, api/opaque
#include <gtest/gtest.h>

#include <fstream>
#include <iterator>

#include "api/opaque.h"
#include "api/openai_responses.h"

namespace m2::api {
namespace {

std::string golden(const std::string& name) {
  std::ifstream file(M2_SOURCE_DIR "/tests/golden/api/" + name, std::ios::binary);
  EXPECT_TRUE(file) << name;
  return std::string(std::istreambuf_iterator<char>(file), {});
}

Result<ResponsesRequest> request(const std::string& json) {
  std::vector<std::string> unknown;
  const auto body = parse_json(json);
  EXPECT_TRUE(body.ok()) << json;
  return responses_request_from_json(*body, unknown);
}

int next_id = 0;
std::string counted_id() {
  return std::to_string(next_id++);
}

ResponseWriter writer(bool encrypted = false) {
  next_id = 0;
  ResponseHead head;
  head.id = "resp_1";
  head.created_at = 7;
  head.model = "m";
  head.encrypted = encrypted;
  head.namespaced["space__f"] = {"space", "f"};
  return ResponseWriter(head, counted_id);
}

void write_all(ResponseWriter& w, std::string* out) {
  w.begin(out);
  w.reasoning("a", out);
  w.reasoning("\n\"b\"", out);
  w.content("Hé", R"({"token":"x"})", out);
  w.content("llo", "", out);
  w.begin_call("call_1", "f", out);
  w.arguments("{\"k\": ", out);
  w.arguments("1}", out);
  w.begin_call("call_2", "space__f", out);
  w.arguments("{}", out);
  w.content("tail", "", out);
}

ResponseState completed() {
  ResponseState state;
  state.status = "completed";
  state.usage = ResponseUsage{10, 5, 3, 2};
  return state;
}

TEST(ResponseWriter, StreamIsTheGolden) {
  ResponseWriter w = writer();
  std::string out;
  write_all(w, &out);
  w.finish(completed(), false, &out);
  EXPECT_EQ(out, golden("response_stream.txt"));
}

TEST(ResponseWriter, WholeIsTheGoldenAndTheLastEvent) {
  ResponseWriter w = writer(true);
  write_all(w, nullptr);
  w.finish(completed(), false, nullptr);
  EXPECT_EQ(w.to_json(completed()), golden("response.json"));
}

TEST(ResponseWriter, ACallThatWasCutOffIsLeftUnclosed) {
  ResponseWriter w = writer();
  std::string out;
  w.content("a", "", &out);
  w.begin_call("call_1", "f", &out);
  w.arguments("{\"k\": \"half", &out);
  ResponseState state;
  state.status = "incomplete";
  state.incomplete_reason = "max_output_tokens";
  w.finish(state, true, &out);
  EXPECT_EQ(out.find("function_call_arguments.done"), std::string::npos);
  EXPECT_NE(out.find("event: response.incomplete\n"), std::string::npos);
  const auto response = parse_json(w.to_json(state));
  EXPECT_EQ((*response)["output"].size(), 1u);
  EXPECT_EQ((*response)["output"][0]["status"], "completed") << "what stood before the call";
  EXPECT_EQ((*response)["incomplete_details"]["reason"], "max_output_tokens");
}

TEST(ResponseWriter, AnItemThatWasCutOffIsIncomplete) {
  for (const auto& [status, item] :
       {std::pair("completed", "completed"), std::pair("incomplete", "incomplete"),
        std::pair("failed", "incomplete"), std::pair("cancelled", "incomplete")}) {
    ResponseWriter w = writer();
    std::string out;
    w.reasoning("r", &out);
    w.content("half of a sent", "", &out);
    ResponseState state;
    state.status = status;
    w.finish(state, false, &out);
    const auto response = parse_json(w.to_json(state));
    EXPECT_EQ((*response)["output"][0]["status"], "completed") << status;
    EXPECT_EQ((*response)["output"][1]["status"], item) << status;
  }
}

TEST(ResponseWriter, FailureNamesTheError) {
  ResponseWriter w = writer();
  std::string out;
  ResponseState state;
  state.status = "failed";
  state.error_code = "server_error";
  state.error_message = "no";
  w.finish(state, true, &out);
  EXPECT_TRUE(out.starts_with("event: response.failed\n")) << out;
  EXPECT_NE(out.find(R"("error":{"code":"server_error","message":"no"})"), std::string::npos);
}

TEST(ResponsesRequest, ItemsOfOneTurnBecomeOneMessage) {
  const auto read = request(R"({"input":[
    {"role":"developer","content":"d"},
    {"type":"message","role":"user","content":[{"type":"input_text","text":"u"}]},
    {"type":"reasoning","id":"rs_1","summary":[],"content":[{"type":"reasoning_text","text":"r"}]},
    {"type":"message","role":"assistant","content":[{"type":"output_text","text":"a"}]},
    {"type":"function_call","call_id":"c1","name":"f","arguments":"{\"x\":1}"},
    {"type":"function_call","call_id":"c2","namespace":"n","name":"g","arguments":"{}"},
    {"type":"function_call_output","call_id":"c1","output":"o1"},
    {"type":"function_call_output","call_id":"c2",
     "output":[{"type":"input_text","text":"p"},{"type":"input_image","image_url":"x"}]},
    {"type":"web_search_call","id":"w"},
    {"type":"reasoning","summary":[],"encrypted_content":"m2r1.c2VhbGVk"},
    {"type":"message","role":"assistant","content":"b"},
    {"type":"message","role":"assistant","content":"c"}]})");
  ASSERT_TRUE(read.ok()) << read.error().text;
  const auto& messages = read->messages;
  ASSERT_EQ(messages.size(), 7u);
  EXPECT_EQ(messages[2].reasoning, "r");
  EXPECT_EQ(messages[2].content[0]["text"], "a");
  ASSERT_EQ(messages[2].tool_calls.size(), 2u);
  EXPECT_EQ(messages[2].tool_calls[1].name, "n__g");
  EXPECT_EQ(messages[3].content, "o1");
  EXPECT_EQ(messages[4].tool_call_id, "c2");
  EXPECT_EQ(messages[4].content, "p\n[input_image: this model reads text only]");
  EXPECT_EQ(messages[5].reasoning, "sealed");
  EXPECT_EQ(messages[5].content, "b");
  EXPECT_EQ(messages[6].content, "c");
}

TEST(ResponsesRequest, UnknownToolsAndItemsAreAcceptedAndNamed) {
  std::vector<std::string> unknown;
  const auto body = parse_json(R"({"input":[{"type":"nothing_known"},{"role":"user","content":"u"}],
    "tools":[{"type":"web_search"},{"type":"function","name":"f","strict":true,"parameters":{}},
             {"type":"namespace","name":"n","tools":[{"type":"function","name":"g"}]}],
    "made_up":1})");
  const auto read = responses_request_from_json(*body, unknown);
  ASSERT_TRUE(read.ok()) << read.error().text;
  EXPECT_EQ(unknown,
            (std::vector<std::string>{"made_up", "item:nothing_known", "tool:web_search"}));
  EXPECT_EQ(to_text(read->tools), R"([{"type":"function","function":{"name":"f","parameters":{}}},)"
                                  R"({"type":"function","function":{"name":"n__g"}}])");
  EXPECT_EQ(read->namespaced.at("n__g").name, "g");
  EXPECT_EQ(read->tool_choice.kind, ToolChoice::Kind::automatic);
}

TEST(ResponsesRequest, FieldsReachTheirPlaces) {
  const auto read = request(R"({"input":"hi","instructions":"be","max_output_tokens":9,
    "include":["message.output_text.logprobs","reasoning.encrypted_content"],"top_logprobs":2,
    "text":{"format":{"type":"json_schema","name":"n","schema":{"type":"object"}}},
    "reasoning":{"effort":"none"},"store":false,"metadata":{"a":"b"}})");
  ASSERT_TRUE(read.ok()) << read.error().text;
  EXPECT_EQ(read->instructions, "be");
  EXPECT_EQ(read->max_tokens, 9);
  EXPECT_TRUE(read->include_logprobs && read->include_encrypted && read->logprobs);
  EXPECT_EQ(read->thinking, false);
  EXPECT_FALSE(read->store);
  EXPECT_EQ(to_text(read->response_format),
            R"({"type":"json_schema","json_schema":{"name":"n","schema":{"type":"object"}}})");
  EXPECT_EQ(to_text(read->echoed["metadata"]), R"({"a":"b"})");
}

TEST(ResponsesRequest, WhatIsWrongIsNamed) {
  const std::pair<const char*, const char*> cases[] = {
      {R"({})", "input: Field required"},
      {R"({"input":[]})", "input: List should have at least 1 item after validation"},
      {R"({"input":7})", "input: Input should be a valid string or list"},
      {R"({"input":[7]})", "each item of input should be an object"},
      {R"({"input":"a","text":{"format":{"type":"json_object"}}})", "json_object is not supported"},
      {R"({"input":"a","background":true,"store":false})",
       "background can only be used when `store` is true"},
      {R"({"input":"a","previous_response_id":"x","previous_input_messages":[]})",
       "Only one of `previous_input_messages` and `previous_response_id` can be set."},
      {R"({"input":"a","prompt":{"id":"p"}})", "prompt template is not supported"},
      {R"({"input":"a","conversation":"conv_1"})",
       "`conversation` is not supported: send its items as `input`, or use "
       "`previous_response_id`."},
      {R"({"input":"a","previous_input_messages":[{"role":"user","content":"b"}]})",
       "`previous_input_messages` is not supported: send the conversation as `input`."},
      {R"({"input":"a","tool_choice":"required"})",
       "When using `tool_choice`, `tools` must be set."},
      {R"({"input":"a","tools":[],"tool_choice":"required"})",
       "When using `tool_choice`, `tools` must be set."},
      {R"({"input":"a","tools":[{"type":"function"}]})",
       "each function tool should have a string `name`"},
      {R"({"input":"a","tool_choice":{"type":"function","name":"f"}})",
       "The tool specified in `tool_choice` does not match any of the specified `tools`"},
  };
  for (const auto& [body, text] : cases) {
    const auto read = request(body);
    ASSERT_FALSE(read.ok()) << body;
    EXPECT_EQ(read.error().text, text);
  }
}

TEST(Opaque, WhatWasSealedOpensAndNothingElse) {
  for (const std::string text : {"", "a", "ab", "abc", "d\xC3\xA9"})
    EXPECT_EQ(opened_text(sealed_text(text)), text);
  for (const char* foreign : {"", "gAAAA", "m2r1.a", "m2r1.****"})
    EXPECT_EQ(opened_text(foreign), std::nullopt) << foreign;
  EXPECT_EQ(opened_text("m2r1./w=="), "\xEF\xBF\xBD");  // never invalid UTF-8
  // sha256("abc"), as FIPS 180-4 gives it.
  EXPECT_EQ(thinking_signature("abc"), "m2s1.ungWv48Bz+pBQUDeXa4iI7ADYaOWF3qctBD/YfIAFa0=");
}

TEST(ResponsesRequest, AReferenceToAnItemIsRefusedByItsId) {
  const auto r = request(R"({"input": [{"type": "item_reference", "id": "rs_1"}]})");
  ASSERT_FALSE(r.ok());
  EXPECT_NE(r.error().text.find("Item with id 'rs_1' not found"), std::string::npos);
}

// ---- custom tools

constexpr char kCustom[] = R"({"input": "a", "tools": [
    {"type": "custom", "name": "apply_patch", "description": "Edits.",
     "format": {"type": "grammar", "syntax": "lark", "definition": "start: \"x\""}},
    {"type": "namespace", "name": "space", "tools": [{"type": "custom", "name": "sql"}]}],
  "tool_choice": {"type": "custom", "name": "apply_patch"}})";

TEST(CustomTools, AreFunctionsOfOneText) {
  const auto r = request(kCustom);
  ASSERT_TRUE(r.ok()) << r.error().text;
  EXPECT_EQ(r->custom, (CustomTools{"apply_patch", "space__sql"}));
  ASSERT_EQ(r->tools.size(), 2u);
  const Json& function = r->tools[0]["function"];
  EXPECT_EQ(function["description"],
            "Edits.\n\nThe input must match this lark grammar:\nstart: \"x\"");
  EXPECT_EQ(function["parameters"]["required"], Json::array({"input"}));
  EXPECT_EQ(r->tool_choice.name, "apply_patch");
  EXPECT_FALSE(request(R"({"input": "a", "tools": [{"type": "custom"}]})").ok());
}

TEST(CustomTools, FormatsAreEnforcedWhereTheyAreRegularExpressionsElseTold) {
  const auto lark = request(kCustom);
  ASSERT_TRUE(lark.ok());
  EXPECT_EQ(lark->told_only, std::set<std::string>{"lark"});
  EXPECT_FALSE(lark->tools[0]["function"]["parameters"]["properties"]["input"].contains("pattern"));
  for (const auto& [definition, pattern] :
       {std::pair("a+", "^(?:a+)$"), std::pair("^a+$", "^(?:a+)$"),
        std::pair("a\\\\$", "^(?:a\\$)$"), std::pair("a|b", "^(?:a|b)$")}) {
    const auto r = request(
        fmt::format(R"({{"input": "a", "tools": [{{"type": "custom", "name": "f", "format": {{
            "type": "grammar", "syntax": "regex", "definition": "{}"}}}}]}})",
                    definition));
    ASSERT_TRUE(r.ok()) << r.error().text;
    EXPECT_TRUE(r->told_only.empty());
    EXPECT_EQ(r->tools[0]["function"]["parameters"]["properties"]["input"]["pattern"], pattern);
  }
}

TEST(AllowedTools, AreThoseOfTheListThatRunHere) {
  const auto choice = [](const std::string& text) {
    return request(R"({"input": "a", "tools": [{"type": "function", "name": "f"},
        {"type": "custom", "name": "g"}], "tool_choice": {"type": "allowed_tools", )" +
                   text + "}}");
  };
  using Kind = ToolChoice::Kind;
  const auto one = choice(R"("mode": "required", "tools": [{"type": "custom", "name": "g"}])");
  ASSERT_TRUE(one.ok()) << one.error().text;
  EXPECT_EQ(one->tool_choice.kind, Kind::required);
  EXPECT_EQ(one->tool_choice.allowed, std::set<std::string>{"g"});
  EXPECT_EQ(callable_tools(one->tools, one->tool_choice), Json::array({one->tools[1]}));
  EXPECT_EQ(one->tools.size(), 2u);
  const auto automatic = choice(R"("tools": [{"type": "function", "name": "f"}])");
  EXPECT_EQ(automatic.value().tool_choice.kind, Kind::automatic);
  EXPECT_EQ(choice(R"("tools": [{"type": "web_search"}])").value().tool_choice.kind, Kind::none);
  for (const char* text : {R"("mode": "some", "tools": [])", R"("tools": {})", R"("tools": ["f"])",
                           R"("tools": [{"type": "function", "name": "h"}])"}) {
    const auto r = choice(text);
    ASSERT_FALSE(r.ok()) << text;
    EXPECT_EQ(r.error().param, "tool_choice");
  }
}

std::string events_of_custom_call(const std::vector<std::string>& arguments, Json* item = nullptr) {
  next_id = 0;
  ResponseHead head;
  head.id = "resp_1";
  head.custom = {"f"};
  ResponseWriter w(head, counted_id);
  std::string out;
  w.begin_call("call_1", "f", &out);
  for (const std::string& piece : arguments) w.arguments(piece, &out);
  w.finish(completed(), false, &out);
  if (item) *item = (*parse_json(w.to_json(completed())))["output"][0];
  return out;
}

TEST(CustomTools, CallsCarryTheTextItself) {
  Json item;
  const std::string out = events_of_custom_call({R"({"input": ")", R"(a\n"b)", R"("})"}, &item);
  EXPECT_EQ(item["input"], "a\n");  // what follows the closing quote is not the text's
  EXPECT_EQ(item["type"], "custom_tool_call");
  EXPECT_EQ(item["id"], "ctc_0");
  EXPECT_EQ(item["call_id"], "call_1");
  EXPECT_FALSE(item.contains("arguments"));
  for (const char* type : {"output_item.added", "custom_tool_call_input.delta",
                           "custom_tool_call_input.done", "output_item.done"})
    EXPECT_NE(out.find(std::string("event: response.") + type + "\n"), std::string::npos) << type;
}

TEST(CustomTools, AnySplitOfTheArgumentsGivesTheSameText) {
  const std::string text = "*** é \"q\" \\ \t\n\x01 数🎉 </x>";
  const std::string arguments = "{\"input\": " + to_text(Json(text)) + "}";
  for (size_t a = 0; a <= arguments.size(); ++a)
    for (size_t b = a; b <= arguments.size(); b += 3) {
      InputText reader;
      std::string read = reader.feed(arguments.substr(0, a));
      read += reader.feed(arguments.substr(a, b - a));
      read += reader.feed(arguments.substr(b));
      EXPECT_EQ(read + reader.finish(), text) << a << " " << b;
    }
}

TEST(CustomTools, ArgumentsOfAnotherFormAreTextToo) {
  const std::pair<const char*, const char*> rows[] = {{"{}", ""},
                                                      {R"({"patch": "p"})", "p"},
                                                      {R"({"n": 1, "input": "i"})", "i"},
                                                      {R"({"input": 3})", R"({"input": 3})"},
                                                      {"[1]", "[1]"},
                                                      {"not json", "not json"},
                                                      {"", ""}};
  for (const auto& [arguments, text] : rows) {
    Json item;
    events_of_custom_call({arguments}, &item);
    EXPECT_EQ(item["input"], text) << arguments;
  }
}

}  // namespace
}  // namespace m2::api
