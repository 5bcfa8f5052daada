#include "text/output_reader.h"

#include <gtest/gtest.h>

#include <ctime>
#include <fstream>
#include <random>
#include <set>
#include <sstream>

#include "base/json.h"
#include "text/tool_arguments.h"

namespace m2::text {
namespace {

using Deltas = std::vector<OutputDelta>;

std::string fixed_id() {
  return "id";
}

Json golden(const std::string& name) {
  std::ifstream file(M2_SOURCE_DIR "/tests/golden/parsers/" + name);
  std::stringstream text;
  text << file.rdbuf();
  Result<Json> parsed = parse_json(text.str());
  EXPECT_TRUE(parsed.ok()) << name;
  return parsed.ok() ? std::move(parsed).value() : Json::array();
}

std::string tagged_block(std::string_view value) {
  return "</think>\n\n<minimax:tool_call>\n<invoke name=\"f\">\n<parameter name=\"a\">" +
         std::string(value) + "</parameter>\n</invoke>\n</minimax:tool_call>";
}

// One text to read, how to read it, and what must come out.
struct Case {
  std::string name;
  std::string input;
  ReaderOptions options;
  bool cut_by_length = false;
  AssistantMessage expected;
};

Json request_tools(const Json& functions) {
  Json tools = Json::array();
  for (const Json& function : functions)
    tools.push_back({{"type", "function"}, {"function", function}});
  return tools;
}

Case case_from(const Json& row) {
  Case made;
  made.name = row["name"];
  made.input = row["input"];
  ReaderOptions& options = made.options;
  options.reasoning = reasoning_parser_named(row.value("reasoning_parser", "minimax_m2")).value();
  options.tools = tool_call_parser_named(row.value("tool_parser", "minimax_m2")).value();
  options.tool_schemas = request_tools(row.value("tools", Json::array()));
  options.starts_in_reasoning = row.value("starts_in_reasoning", true);
  options.parallel_tool_calls = row.value("parallel_tool_calls", true);
  made.cut_by_length = row.value("cut_by_length", false);
  AssistantMessage& expected = made.expected;
  expected.has_reasoning = !row["reasoning"].is_null();
  if (expected.has_reasoning) expected.reasoning = row["reasoning"];
  expected.has_content = !row["content"].is_null();
  if (expected.has_content) expected.content = row["content"];
  for (const Json& call : row["calls"])
    expected.tool_calls.push_back({"id", call["name"], call["arguments"]});
  return made;
}

// The tables of types, each row as the one argument of a call.
Case case_from_type(const Json& row) {
  Case made;
  made.name = row.dump();
  made.input = tagged_block(row["text"].get<std::string>());
  Json parameters = {
      {"type", "object"},
      {"properties", Json::object()},
      {"$defs",
       {{"Count", {{"type", "integer"}}},
        {"Loop", {{"$ref", "#/$defs/Loop"}}},
        {"with/slash", {{"type", "integer"}}},
        {"Tree",
         {{"type", "object"},
          {"properties",
           {{"value", {{"$ref", "#/$defs/Count"}}},
            {"children", {{"type", "array"}, {"items", {{"$ref", "#/$defs/Tree"}}}}}}}}}}},
      {"definitions", {{"Flag", {{"type", "boolean"}}}}}};
  if (!row["schema"].is_null()) parameters["properties"]["a"] = row["schema"];
  made.options.tool_schemas = request_tools({{{"name", "f"}, {"parameters", parameters}}});
  made.expected.tool_calls.push_back(
      {"id", "f", R"({"a": )" + row["json"].get<std::string>() + "}"});
  return made;
}

const std::vector<Case>& golden_cases() {
  static const std::vector<Case> cases = [] {
    std::vector<Case> all;
    for (const char* file : {"malformed.json", "answers.json"})
      for (const Json& row : golden(file)) all.push_back(case_from(row));
    for (const char* file : {"types.json", "types_beyond.json"})
      for (const Json& row : golden(file)) all.push_back(case_from_type(row));
    return all;
  }();
  return cases;
}

// Reads pieces, and puts the deltas together again as a client does.
struct Reading {
  AssistantMessage message;
  AssistantMessage streamed;
  Deltas deltas;
  bool in_reasoning = false;
};

std::string put_together(const Deltas& deltas, AssistantMessage& out) {
  for (const OutputDelta& delta : deltas) {
    const bool of_call = delta.kind == OutputDelta::Kind::call_begin ||
                         delta.kind == OutputDelta::Kind::call_arguments;
    if (delta.kind == OutputDelta::Kind::call_begin) {
      if (delta.call_index != static_cast<int>(out.tool_calls.size())) return "call out of order";
      if (!delta.text.empty()) return "call_begin with text";
      out.tool_calls.push_back({delta.id, delta.name, ""});
      continue;
    }
    if (delta.text.empty()) return "empty delta";
    if (!delta.id.empty() || !delta.name.empty()) return "id or name sent again";
    if (of_call && delta.call_index + 1 != static_cast<int>(out.tool_calls.size()))
      return "arguments of a call that is not the last";
    if (of_call) out.tool_calls.back().arguments += delta.text;
    if (delta.kind == OutputDelta::Kind::reasoning) out.reasoning += delta.text;
    if (delta.kind == OutputDelta::Kind::content) out.content += delta.text;
  }
  return "";
}

// `cuts`: ascending positions at which the text is cut into feed() calls.
Reading read(const Case& test, const std::vector<size_t>& cuts) {
  OutputReader reader(test.options, fixed_id);
  Reading reading;
  size_t from = 0;
  for (const size_t cut : cuts) {
    reader.feed(std::string_view(test.input).substr(from, cut - from), reading.deltas);
    from = cut;
  }
  reader.feed(std::string_view(test.input).substr(from), reading.deltas);
  reading.in_reasoning = reader.in_reasoning();
  reader.finish(test.cut_by_length, reading.deltas);
  reading.message = reader.message();
  const std::string problem = put_together(reading.deltas, reading.streamed);
  if (!problem.empty()) ADD_FAILURE() << test.name << ": " << problem;
  return reading;
}

std::vector<size_t> every_byte(size_t size) {
  std::vector<size_t> cuts;
  for (size_t i = 1; i < size; ++i) cuts.push_back(i);
  return cuts;
}

bool same_calls(const AssistantMessage& a, const AssistantMessage& b) {
  return std::equal(a.tool_calls.begin(), a.tool_calls.end(), b.tool_calls.begin(),
                    b.tool_calls.end(), [](const auto& x, const auto& y) {
                      return x.id == y.id && x.name == y.name && x.arguments == y.arguments;
                    });
}

bool same_message(const AssistantMessage& a, const AssistantMessage& b) {
  return a.has_reasoning == b.has_reasoning && a.reasoning == b.reasoning &&
         a.has_content == b.has_content && a.content == b.content && same_calls(a, b);
}

std::string shown(const AssistantMessage& message) {
  std::string out =
      "reasoning " + (message.has_reasoning ? Json(message.reasoning).dump() : "null");
  out += " content " + (message.has_content ? Json(message.content).dump() : "null");
  for (const auto& call : message.tool_calls) out += "\n  " + call.name + " " + call.arguments;
  return out;
}

// Whether the stream says what the message says. A call left out of the message because it was cut
// has been streamed in part.
bool stream_matches(const Reading& reading, bool cut_by_length) {
  AssistantMessage streamed = reading.streamed;
  const size_t calls = reading.message.tool_calls.size();
  if (cut_by_length && streamed.tool_calls.size() == calls + 1) streamed.tool_calls.pop_back();
  return streamed.reasoning == reading.message.reasoning &&
         streamed.content == reading.message.content && same_calls(streamed, reading.message);
}

// Whether this way of cutting the text gives what is expected.
bool check(const Case& test, const std::vector<size_t>& cuts) {
  const Reading reading = read(test, cuts);
  const bool good =
      same_message(reading.message, test.expected) && stream_matches(reading, test.cut_by_length);
  if (!good) {
    ADD_FAILURE() << test.name << "\ninput " << Json(test.input).dump() << "\ncuts "
                  << Json(cuts).dump() << "\nexpected " << shown(test.expected) << "\nmessage "
                  << shown(reading.message) << "\nstreamed " << shown(reading.streamed);
  }
  return good;
}

// `count` ascending positions within a text of `size` bytes.
std::vector<size_t> random_cuts(size_t size, size_t count, std::mt19937& random) {
  std::vector<size_t> cuts;
  for (size_t i = 0; i < count; ++i) cuts.push_back(random() % (size + 1));
  std::sort(cuts.begin(), cuts.end());
  return cuts;
}

TEST(OutputReader, GoldensAreThere) {
  EXPECT_GE(golden_cases().size(), 400u);
}

TEST(OutputReader, GoldensAtOnceAndByteByByte) {
  for (const Case& test : golden_cases()) {
    check(test, {});
    check(test, every_byte(test.input.size()));
  }
}

TEST(OutputReader, GoldensAtEverySplit) {
  for (const Case& test : golden_cases())
    for (size_t cut = 0; cut <= test.input.size(); ++cut)
      if (!check(test, {cut})) break;
}

// Passes over all goldens with random splits; `total` readings in all.
void check_random_splits(size_t total, unsigned seed) {
  std::mt19937 random(seed);
  const std::vector<Case>& cases = golden_cases();
  for (size_t i = 0; i < total; ++i) {
    const Case& test = cases[i % cases.size()];
    if (!check(test, random_cuts(test.input.size(), 2 + random() % 8, random))) return;
  }
}

TEST(OutputReader, GoldensAtAMillionRandomSplits) {
  check_random_splits(1'000'000, 1);
}

TEST(OutputReaderLong, DISABLED_GoldensAtTenMillionRandomSplits) {
  check_random_splits(10'000'000, 2);
}

// Every prefix of every golden, as if the model had been stopped there: no tag of a call leaks, and
// whatever is said to be complete is JSON.
TEST(OutputReader, GoldensCutAtEveryByte) {
  for (const Case& whole : golden_cases()) {
    for (size_t size = 0; size < whole.input.size(); ++size) {
      Case test = whole;
      test.input.resize(size);
      if ((whole.input[size] & 0xC0) == 0x80) continue;  // inside a character
      test.cut_by_length = true;
      const Reading at_once = read(test, {});
      ASSERT_TRUE(stream_matches(at_once, true)) << test.name << " at " << size;
      for (const auto& call : at_once.message.tool_calls)
        ASSERT_TRUE(parse_json(call.arguments).ok()) << call.arguments;
      test.expected = at_once.message;
      ASSERT_TRUE(check(test, every_byte(size)));
      test.cut_by_length = false;
      for (const auto& call : read(test, {}).message.tool_calls)
        ASSERT_TRUE(parse_json(call.arguments).ok()) << call.arguments;
    }
  }
}

TEST(OutputReader, SaysWhetherItIsInReasoning) {
  OutputReader reader({}, fixed_id);
  Deltas out;
  EXPECT_TRUE(reader.in_reasoning());
  reader.feed("<think>\nabc\n</thin", out);
  EXPECT_TRUE(reader.in_reasoning());
  reader.feed("k>", out);
  EXPECT_FALSE(reader.in_reasoning());
  reader.feed("<think>", out);
  EXPECT_FALSE(reader.in_reasoning());

  OutputReader calling({}, fixed_id);
  calling.feed("abc<minimax:tool_call>", out);
  EXPECT_FALSE(calling.in_reasoning());

  ReaderOptions append;
  append.reasoning = ReasoningParser::minimax_m2_append_think;
  OutputReader appending(append, fixed_id);
  appending.feed("abc", out);
  EXPECT_TRUE(appending.in_reasoning());
  appending.feed("</think>", out);
  EXPECT_FALSE(appending.in_reasoning());

  ReaderOptions late;
  late.starts_in_reasoning = false;
  OutputReader not_started(late, fixed_id);
  EXPECT_FALSE(not_started.in_reasoning());
  not_started.feed("<think>", out);
  EXPECT_TRUE(not_started.in_reasoning());

  ReaderOptions raw;
  raw.reasoning = ReasoningParser::none;
  EXPECT_FALSE(OutputReader(raw, fixed_id).in_reasoning());
}

// What one more piece of text lets out.
std::string text_of_next(OutputReader& reader, std::string_view piece) {
  Deltas out;
  reader.feed(piece, out);
  std::string text;
  for (const OutputDelta& delta : out)
    text += delta.kind == OutputDelta::Kind::call_begin ? "[" + delta.name + "]" : delta.text;
  return text;
}

TEST(OutputReader, SendsTextAtOnce) {
  OutputReader reader({}, fixed_id);
  EXPECT_EQ(text_of_next(reader, "abc"), "abc");
  EXPECT_EQ(text_of_next(reader, " \n"), " ");
  EXPECT_EQ(text_of_next(reader, "d\n<"), "\nd");
  EXPECT_EQ(text_of_next(reader, "/think"), "");
  EXPECT_EQ(text_of_next(reader, ">\n\n"), "");
  EXPECT_EQ(text_of_next(reader, "Hello "), "Hello ");
  EXPECT_EQ(text_of_next(reader, "world \n"), "world \n");
}

TEST(OutputReader, SendsArgumentsAsTheyCome) {
  OutputReader reader({}, fixed_id);
  text_of_next(reader, "</think>\n\n<minimax:tool_call>\n<invoke name=\"write");
  EXPECT_EQ(text_of_next(reader, "\">"), "[write]");
  EXPECT_EQ(text_of_next(reader, "\n<parameter name=\"path\">"), "{\"path\": \"");
  EXPECT_EQ(text_of_next(reader, "a.c"), "a.c");
  EXPECT_EQ(text_of_next(reader, "c\n"), "c\\n");
  EXPECT_EQ(text_of_next(reader, "\"é"), "\\\"é");
  EXPECT_EQ(text_of_next(reader, "</parameter>"), "");
  EXPECT_EQ(text_of_next(reader, "\n"), "");
  EXPECT_EQ(text_of_next(reader, "x"), "</parameter>\\nx");
  EXPECT_EQ(text_of_next(reader, "</parameter>\n<parameter name="), "\"");
  EXPECT_EQ(text_of_next(reader, "b>"), ", \"b\": \"");
  EXPECT_EQ(text_of_next(reader, "</parameter>\n</invoke>"), "\"}");
}

// reliability.md 5.2: the first byte of an argument comes at most two tokens after it exists. Every
// byte of a text argument that cannot begin a tag comes with the very piece that holds it.
TEST(OutputReader, ArgumentBytesAreNotHeldBack) {
  OutputReader reader({}, fixed_id);
  text_of_next(reader, "<minimax:tool_call><invoke name=f><parameter name=a>");
  const std::string text = "int main() { return 0; } // 数\n";
  for (const char c : text) EXPECT_FALSE(text_of_next(reader, std::string_view(&c, 1)).empty());
}

TEST(OutputReader, NullableTextIsSentOnceItIsNotNull) {
  ReaderOptions options;
  options.tool_schemas = request_tools(
      {{{"name", "f"}, {"parameters", {{"properties", {{"a", {{"type", {"string", "null"}}}}}}}}}});
  OutputReader reader(options, fixed_id);
  text_of_next(reader, "<minimax:tool_call><invoke name=f><parameter name=a>");
  EXPECT_EQ(text_of_next(reader, "Nu"), "");
  EXPECT_EQ(text_of_next(reader, "LL"), "");
  EXPECT_EQ(text_of_next(reader, " and"), "{\"a\": \"NuLL and");
  EXPECT_EQ(text_of_next(reader, " void"), " void");
}

// Fed whole characters, the reader sends whole characters.
TEST(OutputReader, DeltasAreWholeCharacters) {
  for (const Case& test : golden_cases()) {
    std::vector<size_t> cuts;
    for (size_t i = 1; i < test.input.size(); ++i)
      if ((test.input[i] & 0xC0) != 0x80) cuts.push_back(i);
    for (const OutputDelta& delta : read(test, cuts).deltas)
      EXPECT_TRUE(parse_json(json_string(delta.text)).ok()) << test.name;
  }
}

TEST(OutputReader, CallIdsAreUniqueAndWellFormed) {
  std::set<std::string> ids;
  for (int i = 0; i < 1000; ++i) {
    const std::string id = random_call_id();
    ASSERT_EQ(id.size(), 14u + 32u);
    ASSERT_EQ(id.substr(0, 14), "chatcmpl-tool-");
    ASSERT_EQ(id.find_first_not_of("0123456789abcdef", 14), std::string::npos);
    ids.insert(id);
  }
  EXPECT_EQ(ids.size(), 1000u);
}

TEST(OutputReader, GivesIdsOfItsOwn) {
  OutputReader reader{ReaderOptions{}};
  Deltas out;
  reader.feed("<minimax:tool_call><invoke name=f></invoke><invoke name=f></invoke>", out);
  reader.finish(false, out);
  ASSERT_EQ(reader.message().tool_calls.size(), 2u);
  EXPECT_NE(reader.message().tool_calls[0].id, reader.message().tool_calls[1].id);
  EXPECT_EQ(reader.message().tool_calls[0].id, out[0].id);
}

TEST(OutputReader, NamesOfParsers) {
  EXPECT_EQ(reasoning_parser_named("none").value(), ReasoningParser::none);
  EXPECT_EQ(reasoning_parser_named("minimax_m2_append_think").value(),
            ReasoningParser::minimax_m2_append_think);
  EXPECT_EQ(tool_call_parser_named("minimax_m2").value(), ToolCallParser::minimax_m2);
  EXPECT_EQ(reasoning_parser_named("deepseek_r1").error().text,
            "invalid reasoning parser: deepseek_r1 (chose from "
            "{ minimax_m2,minimax_m2_append_think,none })");
  EXPECT_EQ(tool_call_parser_named("hermes").error().text,
            "invalid tool call parser: hermes (chose from { minimax_m2,none })");
}

// --- hostile text ---

// CPU seconds: other programs on the machine do not count.
double seconds_to_read(const std::string& text, const std::string& start) {
  double best = 1e9;
  for (int i = 0; i < 3; ++i) {
    OutputReader reader({}, fixed_id);
    Deltas out;
    const std::clock_t begin = std::clock();
    reader.feed(start, out);
    for (size_t at = 0; at < text.size(); at += 5) {
      out.clear();
      reader.feed(std::string_view(text).substr(at, 5), out);
    }
    reader.finish(false, out);
    best = std::min(best, static_cast<double>(std::clock() - begin) / CLOCKS_PER_SEC);
  }
  return best;
}

TEST(OutputReader, TimeIsLinearInHostileText) {
  const std::string value = "<minimax:tool_call><invoke name=f><parameter name=a>";
  const std::vector<std::string> starts = {"",
                                           "</think>",
                                           "</think>x",
                                           "<minimax:tool_call>",
                                           "<minimax:tool_call><invoke name=f>",
                                           value,
                                           "<minimax:tool_call><invoke name="};
  const std::vector<std::string> units = {"<",
                                          "</",
                                          "</parameter>",
                                          "</parameter>\n",
                                          "\n",
                                          " ",
                                          "<minimax:tool_call>",
                                          "</invoke>",
                                          "</minimax:tool_call>",
                                          "<think>",
                                          "</think>",
                                          "</parameter></invoke></parameter>",
                                          "<parameter name=",
                                          "<parameter name=a>",
                                          "<invoke name=f>",
                                          "</parameter> <parameter nam"};
  for (const std::string& start : starts) {
    for (const std::string& unit : units) {
      auto text = [&](size_t size) {
        std::string out;
        while (out.size() < size) out += unit;
        return out;
      };
      double before = seconds_to_read(text(256 << 10), start);
      for (const size_t size : {512 << 10, 1 << 20}) {
        const double now = seconds_to_read(text(size), start);
        // The constant: what is shorter than that is mostly noise.
        EXPECT_LE(now, 2.3 * before + 0.03) << size << " bytes: " << start << " " << unit;
        before = now;
      }
      EXPECT_LE(before, 1.0) << start << " " << unit;
    }
  }
}

// --- fuzz ---

std::string tag_soup(std::mt19937& random) {
  static const std::vector<std::string> kPieces = {"<think>",
                                                   "</think>",
                                                   "<minimax:tool_call>",
                                                   "</minimax:tool_call>",
                                                   "<invoke name=\"f\">",
                                                   "<invoke name=",
                                                   "</invoke>",
                                                   "<parameter name=\"a\">",
                                                   "<parameter name=\"b\">",
                                                   "<parameter name='c'>",
                                                   "<parameter name=n>",
                                                   "</parameter>",
                                                   "\n",
                                                   "\n\n",
                                                   " ",
                                                   "x",
                                                   "é",
                                                   "<",
                                                   ">",
                                                   "\"",
                                                   "\\",
                                                   "5",
                                                   "{\"k\":\"1\"}",
                                                   "null",
                                                   "</",
                                                   "text ",
                                                   "</para",
                                                   "😀",
                                                   "<parameter",
                                                   "\t"};
  // Half of the texts begin like a call, else few get that far.
  std::string text =
      random() % 2 ? "" : "x</think><minimax:tool_call><invoke name=\"f\"><parameter name=\"a\">";
  const size_t count = random() % 24;
  for (size_t i = 0; i < count; ++i) text += kPieces[random() % kPieces.size()];
  return text;
}

Case soup_case(std::mt19937& random) {
  static const Json kTools = request_tools({{{"name", "f"},
                                             {"parameters",
                                              {{"type", "object"},
                                               {"properties",
                                                {{"n", {{"type", "integer"}}},
                                                 {"b", {{"type", {"string", "null"}}}},
                                                 {"c", {{"type", "object"}}}}}}}}});
  Case test;
  test.name = "soup";
  test.input = tag_soup(random);
  test.options.tool_schemas = kTools;
  test.options.starts_in_reasoning = random() % 4 != 0;
  test.options.parallel_tool_calls = random() % 8 != 0;
  test.options.reasoning = static_cast<ReasoningParser>(random() % 3);
  test.options.tools = static_cast<ToolCallParser>(random() % 4 != 0);
  test.cut_by_length = random() % 2 != 0;
  return test;
}

void expect_no_tags(const std::string& text, std::initializer_list<const char*> tags) {
  for (const char* tag : tags)
    EXPECT_EQ(text.find(tag), std::string::npos) << tag << " in " << text;
}

void check_soup(Case test, std::mt19937& random) {
  const Reading at_once = read(test, {});
  ASSERT_TRUE(stream_matches(at_once, test.cut_by_length)) << test.input;
  for (const auto& call : at_once.message.tool_calls) {
    const Result<Json> arguments = parse_json(call.arguments);
    ASSERT_TRUE(arguments.ok() && arguments->is_object()) << test.input << "\n" << call.arguments;
  }
  expect_no_tags(at_once.message.reasoning, {"<think>", "</think>", "<minimax:tool_call>"});
  if (test.options.reasoning == ReasoningParser::minimax_m2)
    expect_no_tags(at_once.message.content, {"<think>", "</think>"});
  if (test.options.tools == ToolCallParser::minimax_m2)
    expect_no_tags(at_once.message.content, {"<minimax:tool_call>"});
  test.expected = at_once.message;
  ASSERT_TRUE(check(test, every_byte(test.input.size())));
  for (int i = 0; i < 4; ++i)
    ASSERT_TRUE(check(test, random_cuts(test.input.size(), 1 + random() % 5, random)));
}

TEST(OutputReader, TagSoupReadsAlikeHoweverItIsCut) {
  std::mt19937 random(3);
  for (int i = 0; i < 60'000 && !testing::Test::HasFailure(); ++i)
    check_soup(soup_case(random), random);
}

}  // namespace
}  // namespace m2::text
