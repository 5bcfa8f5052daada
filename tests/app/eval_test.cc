#include <gtest/gtest.h>

#include "app/eval/item.h"
#include "app/eval/judge.h"
#include "app/eval/report.h"
#include "app/micro_model.h"

// Covers: src/app/eval/item.cc src/app/eval/judge.cc src/app/eval/report.cc src/app/micro_model.cc

namespace m2::app::eval {
namespace {

Json parsed(std::string_view text) {
  Result<Json> json = parse_json(text);
  EXPECT_TRUE(json.ok()) << text;
  return json.ok() ? *std::move(json) : Json();
}

Item item_of(std::string_view line) {
  Result<Item> item = read_item(parsed(line), 7);
  EXPECT_TRUE(item.ok()) << line;
  return item.ok() ? *std::move(item) : Item();
}

std::string refusal_of(std::string_view line) {
  const Result<Item> item = read_item(parsed(line), 7);
  return item.ok() ? "" : item.error().text;
}

TEST(EvalItem, QuestionsOfEachForm) {
  const Json question = parsed(R"([{"role": "user", "content": "2 + 2?"}])");
  for (const char* line :
       {R"({"question": "2 + 2?", "answer": 4})", R"({"problem": "2 + 2?", "answer": "4"})",
        R"({"prompt": "2 + 2?", "expected": "4"})",
        R"({"input": [{"role": "user", "content": "2 + 2?"}], "ideal": ["4"]})",
        R"({"messages": [{"role": "user", "content": "2 + 2?"}], "target": 4})"}) {
    const Item item = item_of(line);
    EXPECT_EQ(item.messages, question) << line;
    EXPECT_EQ(item.answers, std::vector<std::string>{"4"}) << line;
    EXPECT_EQ(item.match, Match::number) << line;
    EXPECT_EQ(item.id, "7");
  }
}

TEST(EvalItem, MatchFollowsTheAnswerOrIsNamed) {
  EXPECT_EQ(item_of(R"({"question": "?", "answer": "B"})").match, Match::choice);
  EXPECT_EQ(item_of(R"({"question": "?", "answer": "Oslo"})").match, Match::contains);
  EXPECT_EQ(item_of(R"({"question": "?", "answer": "B", "match": "exact"})").match, Match::exact);
  EXPECT_EQ(item_of(R"({"question": "?", "answer": "{}", "match": "json"})").match, Match::json);
}

TEST(EvalItem, FaultsAreNamed) {
  EXPECT_NE(refusal_of(R"({"answer": "4"})").find("`messages` or `input`"), std::string::npos);
  EXPECT_NE(refusal_of(R"({"question": "?"})").find("`answer`"), std::string::npos);
  EXPECT_NE(refusal_of(R"({"question": "?", "answer": []})").find("empty"), std::string::npos);
  EXPECT_NE(refusal_of(R"({"question": "?", "answer": "4", "match": "close"})").find("\"close\""),
            std::string::npos);
  EXPECT_NE(refusal_of(R"({"question": 5, "answer": "4"})").find("list of messages"),
            std::string::npos);
  EXPECT_NE(
      refusal_of(R"({"question": "?", "answer": "4", "steps": [{"calls": 3}]})").find("steps"),
      std::string::npos);
  EXPECT_NE(refusal_of(R"({"question": "?", "answer": "4",
                           "steps": [{"calls": [], "results": ["x"]}]})")
                .find("one of `results` for each of `calls`"),
            std::string::npos);
  EXPECT_NE(refusal_of("[1]").find("JSON object"), std::string::npos);
}

TEST(EvalJudge, NumbersInTexts) {
  EXPECT_EQ(number_in("so it is 1,234."), 1234);
  EXPECT_EQ(number_in("5 - 12 = -7."), -7);
  EXPECT_EQ(number_in("the difference 12-7"), 7);
  EXPECT_EQ(number_in("from 3 to 2.50 euros"), 2.5);
  EXPECT_EQ(number_in("\\boxed{72} and not 13"), 72);
  EXPECT_EQ(number_in("thus $\\boxed{\\frac{1}{2}}$ = 0.5"), 2);
  EXPECT_EQ(number_in("\\boxed{72"), 72);
  EXPECT_EQ(number_in("none"), std::nullopt);
  EXPECT_EQ(number_in(""), std::nullopt);
}

TEST(EvalJudge, RightAnswers) {
  const Item number = item_of(R"({"question": "?", "answer": "072"})");
  EXPECT_TRUE(is_right_answer(number, "The answer is **72**."));
  EXPECT_TRUE(is_right_answer(number, "72.0"));
  EXPECT_FALSE(is_right_answer(number, "720"));
  EXPECT_FALSE(is_right_answer(number, ""));
  const Item choice = item_of(R"({"question": "?", "answer": "B"})");
  EXPECT_TRUE(is_right_answer(choice, "A is wrong. The correct answer is (B), not C."));
  EXPECT_TRUE(is_right_answer(choice, "Answer: B"));
  EXPECT_TRUE(is_right_answer(choice, "I choose $\\boxed{B}$ over A."));
  EXPECT_TRUE(is_right_answer(choice, "B"));
  EXPECT_FALSE(is_right_answer(choice, "Answer: A"));
  EXPECT_FALSE(is_right_answer(choice, "BASIC"));
  const Item exact = item_of(R"({"question": "?", "answer": ["yes", "Yes."], "match": "exact"})");
  EXPECT_TRUE(is_right_answer(exact, "\nYes. "));
  EXPECT_FALSE(is_right_answer(exact, "Yes"));
  const Item json =
      item_of(R"({"question": "?", "answer": "{\"a\": 1, \"b\": [2]}", "match": "json"})");
  EXPECT_TRUE(is_right_answer(json, "{\"b\":[2.0],\"a\":1}\n"));
  EXPECT_FALSE(is_right_answer(json, "{\"a\":1}"));
  EXPECT_FALSE(is_right_answer(json, "Here: {\"a\": 1, \"b\": [2]}"));
  const Item contains = item_of(R"({"question": "?", "answer": "Oslo"})");
  EXPECT_TRUE(is_right_answer(contains, "It is OSLO."));
}

Json calls_of(const char* name, const char* arguments) {
  return Json::array({{{"id", "x"}, {"function", {{"name", name}, {"arguments", arguments}}}}});
}

TEST(EvalJudge, RightCalls) {
  const Step step{{{"f", parsed(R"({"a": 1, "b": "x"})")}}, {"done"}};
  EXPECT_TRUE(are_right_calls(step, calls_of("f", R"({"b":"x","a":1})")));
  EXPECT_FALSE(are_right_calls(step, calls_of("g", R"({"b":"x","a":1})")));
  EXPECT_FALSE(are_right_calls(step, calls_of("f", R"({"a":1})")));
  EXPECT_FALSE(are_right_calls(step, calls_of("f", "{")));
  EXPECT_FALSE(are_right_calls(step, Json()));
  EXPECT_FALSE(are_right_calls(step, parsed(R"([{"function": 5}])")));
  Json two = calls_of("f", R"({"b":"x","a":1})");
  two.push_back(two[0]);
  EXPECT_FALSE(are_right_calls(step, two));
}

TEST(EvalJudge, MisfitsOfCalls) {
  const Json tools = parsed(R"([{"type": "function", "function": {"name": "f", "parameters": {
      "type": "object", "required": ["n"], "additionalProperties": false, "properties": {
        "n": {"type": "integer"}, "s": {"enum": ["x", "y"]}, "l": {"type": "array", "items": {"type": "string"}},
        "o": {"anyOf": [{"type": "string"}, {"type": "null"}]}, "t": {"type": ["number", "null"]}}}}}])");
  const auto misfit = [&](const char* arguments) {
    return misfit_of_call(calls_of("f", arguments)[0], tools);
  };
  EXPECT_EQ(misfit(R"({"n": 1, "s": "x", "l": ["a"], "o": null, "t": 1.5})"), "");
  EXPECT_EQ(misfit(R"({"n": 2.0})"), "");
  EXPECT_EQ(misfit(R"({"n": 2.5})"), "n is no integer");
  EXPECT_EQ(misfit(R"({})"), "f lacks \"n\"");
  EXPECT_EQ(misfit(R"({"n": 1, "z": 1})"), "f may not hold z");
  EXPECT_EQ(misfit(R"({"n": 1, "s": "q"})"), "s is none of [\"x\",\"y\"]");
  EXPECT_EQ(misfit(R"({"n": 1, "l": [1]})"), "l is no string");
  EXPECT_EQ(misfit(R"({"n": 1, "o": 1})"), "o fits no branch of anyOf");
  EXPECT_EQ(misfit(R"({"n": 1, "t": "1"})"), "t has none of the types [\"number\",\"null\"]");
  EXPECT_EQ(misfit("[]"), "the arguments are no object");
  EXPECT_EQ(misfit_of_call(calls_of("g", "{}")[0], tools), "there is no tool g");
  EXPECT_EQ(misfit_of_call(calls_of("g", "{}")[0], Json()), "there is no tool g");
}

// The examples of Newcombe, Statistics in Medicine 17 (1998), table I, method 3.
TEST(EvalJudge, WilsonInterval) {
  const struct {
    int64_t right, count;
    double low, high;
  } cases[] = {{81, 263, 0.2553, 0.3662},
               {15, 148, 0.0624, 0.1605},
               {0, 20, 0.0, 0.1611},
               {1, 29, 0.0061, 0.1718}};
  for (const auto& [right, count, low, high] : cases) {
    const Interval interval = wilson_interval(right, count);
    EXPECT_NEAR(interval.low, low, 5e-5) << right << "/" << count;
    EXPECT_NEAR(interval.high, high, 5e-5) << right << "/" << count;
  }
}

TEST(EvalReport, TableAndComparison) {
  Outcome right{true, true, "", "4", Json::array(), 0, 10};
  Outcome wrong{false, true, "", "5", Json::array(), 0, 10};
  Outcome failed;
  failed.error = "gone";
  const std::vector<SetOutcome> a{{"sums", {right, wrong}, 2}, {"words", {failed}, 1}};
  EXPECT_EQ(table(a),
            "set               items  right  accuracy  95 % interval   stopped   calls     valid  "
            "tokens/s  failed\n"
            "sums                  2      1    50.0 %    9.5 -  90.5   100.0 %       0         -   "
            "     10       0\n"
            "words                 1      0     0.0 %    0.0 -  79.3     0.0 %       0         -   "
            "      0       1\n"
            "all                   3      1    33.3 %    6.1 -  79.2    66.7 %       0         -   "
            "      7       1\n");
  const std::vector<SetOutcome> b{{"sums", {right, right}, 2}, {"words", {failed}, 1}};
  const std::vector<ItemSet> items{{"sums",
                                    {item_of(R"({"id": "one", "question": "?", "answer": 4})"),
                                     item_of(R"({"id": "two", "question": "?", "answer": 4})")}},
                                   {"words", {item_of(R"({"question": "?", "answer": 4})")}}};
  const std::string text = comparison(items, "here", a, "there", b);
  EXPECT_NE(text.find("A: here\nB: there\n"), std::string::npos);
  EXPECT_NE(text.find("sums                  2    50.0 %   100.0 %     +50.0         0         1"),
            std::string::npos)
      << text;
  EXPECT_NE(text.find("\nsums: two\n  A wrong  \"5\"\n  B right  \"4\"\n"), std::string::npos)
      << text;
  EXPECT_EQ(text.find("sums: one"), std::string::npos);
}

TEST(MicroModel, IsFoundNearTheProgramOrItsAbsenceIsExplained) {
  const std::filesystem::path source(M2_SOURCE_DIR);
  const Result<std::filesystem::path> found = micro_model_near(source / "build" / "m2");
  ASSERT_TRUE(found.ok());
  EXPECT_EQ(*found, source / "models" / "m2-micro");
  const Result<std::filesystem::path> none = micro_model_near("/nowhere/bin/m2");
  ASSERT_FALSE(none.ok());
  EXPECT_NE(none.error().text.find("/nowhere/share/m2/m2-micro"), std::string::npos);
}

}  // namespace
}  // namespace m2::app::eval
