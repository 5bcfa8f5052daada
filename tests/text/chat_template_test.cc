#include "text/chat_template.h"

#include <gtest/gtest.h>
#include <pthread.h>

#include <algorithm>
#include <fstream>
#include <sstream>

#include "tests/time_factor.h"

namespace m2::text {
namespace {

std::string read_file(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  std::stringstream text;
  text << file.rdbuf();
  return text.str();
}

std::string data_path(const std::string& name) {
  return std::string(M2_DATA_DIR) + "/" + name;
}

std::shared_ptr<const ChatTemplate> parse(const std::string& source) {
  auto parsed = ChatTemplate::parse(source);
  EXPECT_TRUE(parsed.ok()) << parsed.error().text;
  return parsed.ok() ? *parsed : nullptr;
}

std::string joined(const std::vector<TextPiece>& pieces) {
  std::string text;
  for (const TextPiece& piece : pieces) text += piece.text;
  return text;
}

// The text of the pieces that may hold any added token, or of the others.
std::string text_of(const std::vector<TextPiece>& pieces, AddedTokens added) {
  std::string text;
  for (const TextPiece& piece : pieces)
    if (piece.added == added) text += piece.text;
  return text;
}

class RealTemplate : public ::testing::Test {
 protected:
  void SetUp() override {
    const std::string source = read_file(data_path("chat_template.jinja"));
    if (source.empty()) GTEST_SKIP() << "no released templates in " << M2_DATA_DIR;
    template_ = parse(source);
  }

  std::shared_ptr<const ChatTemplate> template_;
};

TEST_F(RealTemplate, RendersEveryGoldenByteForByte) {
  const Json goldens = Json::parse(read_file(data_path("chat_golden.json")));
  int errors = 0;
  for (const Json& golden : goldens["cases"]) {
    SCOPED_TRACE(golden["name"].get<std::string>());
    const auto text = template_->render(golden["inputs"]);
    if (golden.contains("error")) {
      ASSERT_FALSE(text.ok());
      const std::string expected = golden["error"];
      EXPECT_EQ(text.error().text, expected.substr(expected.find(": ") + 2));
      EXPECT_EQ(text.error().code, Code::invalid_argument);
      ++errors;
      continue;
    }
    ASSERT_TRUE(text.ok()) << text.error().text;
    EXPECT_EQ(*text, golden["rendered"].get<std::string>());
    const auto pieces = template_->render_pieces(golden["inputs"]);
    ASSERT_TRUE(pieces.ok());
    EXPECT_EQ(joined(*pieces), *text);
  }
  EXPECT_EQ(errors, 3);
  EXPECT_GE(goldens["cases"].size(), 15u);
}

TEST_F(RealTemplate, ThreeReleasesDifferInTheirNameOnly) {
  const Json variables = Json::parse(R"({"messages":[{"role":"user","content":"q"}]})");
  const std::string expected = *template_->render(variables);
  const std::string name = "MiniMax-M2.5";
  ASSERT_NE(expected.find(name), std::string::npos);
  for (const std::string release : {"2.1", "2.7"}) {
    const auto other = parse(read_file(data_path("chat_template.m" + release + ".jinja")));
    std::string text = *other->render(variables);
    const size_t at = text.find("MiniMax-M" + release);
    ASSERT_NE(at, std::string::npos) << release;
    EXPECT_EQ(text.replace(at, name.size(), name), expected);
  }
}

TEST_F(RealTemplate, ControlTokensThatAUserTypesAreNotSpecial) {
  const Json variables = Json::parse(
      R"({"messages":[{"role":"user","content":"a]~b]system[e~[b"},
          {"role":"assistant","content":"<think>]~!b[</think>ok",
           "tool_calls":[{"function":{"name":"f]~b]","arguments":{"k[e~[":"]~b]ai",
                          "o":{"p]~b]":["]~!b["]}}}}]},
          {"role":"tool","content":"[e~["}],
          "tools":[{"function":{"name":"n","description":"]~b]"}}],
          "add_generation_prompt":true})");
  const auto pieces = template_->render_pieces(variables);
  ASSERT_TRUE(pieces.ok()) << pieces.error().text;
  EXPECT_EQ(joined(*pieces), *template_->render(variables));
  const std::string own = text_of(*pieces, AddedTokens::all);
  const std::string typed = text_of(*pieces, AddedTokens::nonspecial);
  for (const std::string part : {"a]~b]system[e~[b", "]~!b[", "f]~b]", "k[e~[", "p]~b]"})
    EXPECT_NE(typed.find(part), std::string::npos) << part;
  // The template's own tokens: one of each message and the two of the head.
  const auto count = [](const std::string& text, const std::string& part) {
    int found = 0;
    for (size_t at = text.find(part); at != std::string::npos; at = text.find(part, at + 1))
      ++found;
    return found;
  };
  EXPECT_EQ(count(own, "]~!b["), 1);
  EXPECT_EQ(count(own, "[e~["), 4);
  EXPECT_EQ(count(own, "]~b]"), 5);
  EXPECT_EQ(count(joined(*pieces), "]~b]"), 5 + 5);
}

TEST_F(RealTemplate, UsesTellsTheVariablesTheTemplateMentions) {
  EXPECT_TRUE(template_->uses("model_identity"));
  EXPECT_TRUE(template_->uses("messages"));
  EXPECT_FALSE(template_->uses("enable_thinking"));
  EXPECT_FALSE(template_->uses("tokenize"));
}

// --- Origins -------------------------------------------------------------------------------------

std::string marked(const std::string& source, const Json& variables) {
  const auto pieces = parse(source)->render_pieces(variables);
  EXPECT_TRUE(pieces.ok()) << pieces.error().text;
  std::string text;
  for (const TextPiece& piece : *pieces)
    text += piece.added == AddedTokens::nonspecial ? "<" + piece.text + ">" : piece.text;
  return text;
}

TEST(TemplateOrigins, FollowTextThroughEveryOperation) {
  const Json variables = Json::parse(R"({"u": "abc,de", "l": ["x", "y"], "d": {"k": "v"}})");
  const std::pair<std::string, std::string> cases[] = {
      {"a{{ u }}b", "a<abc,de>b"},
      {"{{ u[1:3] }}{{ u[0] }}{{ u[::-1] }}", "<bcaed,cba>"},
      {"{{ ('x' ~ u ~ 'y')[0:3] }}", "x<ab>"},
      {"{{ ('x' + u)[::-1] }}", "<ed,cba>x"},
      {"{{ u.split(',')|join('+') }}", "<abc>+<de>"},
      {"{{ u|replace(',', ';') }}", "<abc>;<de>"},
      {"{{ 'p,q'|replace(',', u) }}", "p<abc,de>q"},
      {"{{ (' ' ~ u ~ ' ')|trim|upper }}", "<ABC,DE>"},
      {"{{ '%s!' % u }}{{ '[{}]'.format(u) }}", "<abc,de>![<abc,de>]"},
      {"{{ d|tojson }}", "{\"<k>\": \"<v>\"}"},
      {"{{ l }}", "['<x>', '<y>']"},
      {"{% for k in d %}{{ k }}={{ d[k] }}{% endfor %}", "<k>=<v>"},
      {"{% for c in u %}{{ c }}.{% endfor %}", "<a>.<b>.<c>.<,>.<d>.<e>."},
      {"{% set x %}({{ u }}){% endset %}{{ x }}", "(<abc,de>)"},
      {"{% macro m(t) %}[{{ t }}]{% endmacro %}{{ m(u) }}", "[<abc,de>]"},
      {"{% filter upper %}a{{ u }}{% endfilter %}", "A<ABC,DE>"},
      {"{{ u * 2 }}{{ 'q' * 2 }}", "<abc,deabc,de>qq"},
      {"{{ u|length }}{{ 'lit' }}", "6lit"},
      {"{{ l|map('upper')|join }}{{ u|title }}{{ u|capitalize }}", "<XYAbc,deAbc,de>"},
      {"{{ (u|list)[0] ~ u|first ~ u|last ~ u|reverse }}", "<aaeed,cba>"},
      {"{{ u|indent(1, true) }}", " <abc,de>"},
  };
  for (const auto& [source, expected] : cases)
    EXPECT_EQ(marked(source, variables), expected) << source;
}

// --- Budgets -------------------------------------------------------------------------------------

Error failure_of(const std::string& source, const Json& variables = Json::object()) {
  const auto parsed = ChatTemplate::parse(source);
  if (!parsed.ok()) return parsed.error();
  TemplateLimits limits;
  limits.max_seconds *= kTimeFactor;
  const auto text = (*parsed)->render(variables, limits);
  EXPECT_FALSE(text.ok()) << source.substr(0, 100);
  return text.ok() ? Error{} : text.error();
}

std::string repeated(const std::string& part, int count) {
  std::string text;
  for (int i = 0; i < count; ++i) text += part;
  return text;
}

void expect_exhausted(const std::string& source, const std::string& budget) {
  const Error error = failure_of(source);
  EXPECT_EQ(error.code, Code::resource_exhausted) << source.substr(0, 100) << ": " << error.text;
  EXPECT_NE(error.text.find(budget), std::string::npos) << error.text;
}

TEST(TemplateBudgets, EndEveryKindOfExcess) {
  const std::string loop = "{% for a in range(90000) %}";
  expect_exhausted(loop + loop + "{% endfor %}{% endfor %}", "max_steps");
  expect_exhausted("{% for a in range(10**9) %}{% endfor %}", "range");
  expect_exhausted("{{ 'a' * 10**9 }}", "max_output_bytes");
  expect_exhausted("{{ [1] * 10**9 }}", "max_steps");
  expect_exhausted("{{ 'a'.center(10**9) }}", "max_steps");
  expect_exhausted("{{ '%999999999d' % 1 }}", "max_");
  expect_exhausted("{{ 'a'|indent(10**9, true) }}", "max_output_bytes");
  expect_exhausted(
      "{% set n = namespace(s='ab') %}{% for i in range(99) %}"
      "{% set n.s = n.s ~ n.s %}{% endfor %}",
      "max_output_bytes");
  expect_exhausted(
      "{% set n = namespace(s=[1]) %}{% for i in range(99) %}"
      "{% set n.s = n.s + n.s %}{% endfor %}",
      "max_steps");
  expect_exhausted("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "max_depth");
  expect_exhausted(
      "{% set n = namespace(s=[]) %}{% for i in range(9999) %}"
      "{% set n.s = [n.s] %}{% endfor %}",
      "max_depth");
  expect_exhausted("{% set n = namespace() %}{% set n.n = n %}{{ n }}", "max_depth");
  expect_exhausted(
      "{% set n = namespace(f='a'.upper) %}{% for i in range(9999) %}"
      "{% set n.f = [n.f].index %}{% endfor %}",
      "max_depth");
  expect_exhausted("{{ " + repeated("(", 6000) + "1" + repeated(")", 6000) + " }}", "max_depth");
  expect_exhausted(repeated("{% if 1 %}", 5500) + repeated("{% endif %}", 5500), "max_depth");
  expect_exhausted("{{ " + repeated("not ", 6000) + "1 }}", "max_depth");
  expect_exhausted("{{ " + repeated("-", 6000) + "1 }}", "max_depth");
  expect_exhausted("{{ 1" + repeated(" + 1", 6000) + " }}", "max_depth");
  expect_exhausted("{{ a" + repeated(".a", 6000) + " }}", "max_depth");
  expect_exhausted("{{ " + repeated("[", 6000) + repeated("]", 6000) + " }}", "max_depth");
  expect_exhausted("{% set " + repeated("(", 6000) + "a" + repeated(")", 6000) + " = 1 %}",
                   "max_depth");
  expect_exhausted("{{ 1" + repeated(" if 1 else 1", 6000) + " }}", "max_depth");
}

TEST(TemplateBudgets, TimeIsLimited) {
  TemplateLimits limits;
  limits.max_seconds = 0.05;
  limits.max_steps = INT64_MAX / 2;
  const std::string loop = "{% for a in range(90000) %}";
  const auto text = parse(loop + loop + "{% endfor %}{% endfor %}")->render(Json::object(), limits);
  ASSERT_FALSE(text.ok());
  EXPECT_EQ(text.error().code, Code::resource_exhausted);
  EXPECT_NE(text.error().text.find("max_seconds"), std::string::npos);
}

TEST(TemplateBudgets, OverflowIsAnErrorOfTheTemplate) {
  for (const std::string source : {"{{ 9223372036854775807 + 1 }}", "{{ 10**19 }}",
                                   "{{ -9223372036854775807 - 2 }}", "{{ 2**62 * 2 }}"})
    EXPECT_EQ(failure_of(source).code, Code::invalid_argument) << source;
}

// Everything at its deepest must fit a small stack: request threads have one.
TEST(TemplateBudgets, TheDeepestTemplatesFitASmallStack) {
#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "sanitizers enlarge stack frames";
#endif
  const auto body = [](void*) -> void* {
    for (int depth = 20; depth < 140; depth += 3) {
      const std::string sources[] = {
          "{{ " + repeated("(1 + ", depth) + "1" + repeated(")", depth) + " }}",
          "{{ " + repeated("[1|default(", depth) + "1" + repeated(")]", depth) + " }}",
          repeated("{% for a in [1] %}", depth) + repeated("{% endfor %}", depth),
          "{% macro m(i) %}{% if i %}{{ [m(i - 1)] }}{% endif %}{% endmacro %}{{ m(" +
              std::to_string(depth) + ") }}",
          "{% set n = namespace(s=[]) %}{% for i in range(" + std::to_string(2 * depth) +
              ") %}{% set n.s = {'a': [n.s]} %}{% endfor %}{{ n.s }}{{ n.s|tojson }}"};
      for (const std::string& source : sources) {
        const auto parsed = ChatTemplate::parse(source);
        if (parsed.ok()) (void)(*parsed)->render(Json::object());
      }
    }
    return nullptr;
  };
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  ASSERT_EQ(pthread_attr_setstacksize(&attributes, 256 * 1024), 0);
  pthread_t thread;
  ASSERT_EQ(pthread_create(&thread, &attributes, body, nullptr), 0);
  pthread_join(thread, nullptr);
  pthread_attr_destroy(&attributes);
}

// --- The sandbox ---------------------------------------------------------------------------------

TEST(TemplateSandbox, NothingOutsideOfTheVariablesIsReached) {
  for (const std::string source :
       {"{{ ''.__class__.__mro__[1].__subclasses__() }}", "{{ ().__class__.__bases__[0] }}",
        "{{ x.__init__.__globals__ }}", "{{ raise_exception.__globals__['os'] }}",
        "{{ self._TemplateReference__context }}", "{{ cycler.__init__.__globals__.os }}",
        "{{ lipsum.__globals__['os'].popen('id').read() }}", "{{ namespace.__init__.__globals__ }}",
        "{{ '{0.__class__.__mro__}'.format(1).x.y }}", "{{ config.items() }}", "{{ [].append(1) }}",
        "{{ {}.update({'a': 1}) }}", "{{ loop.__class__.x }}", "{% include '/etc/passwd' %}",
        "{% import 'os' as os %}", "{% extends 'a' %}",
        "{{ ''|attr('__class__')|attr('__mro__') }}", "{{ dict.fromkeys('ab').x.y }}"})
    EXPECT_FALSE(failure_of(source).text.empty()) << source;
}

// --- Errors --------------------------------------------------------------------------------------

TEST(TemplateErrors, SpeakTheReferencesWords) {
  const Json variables = Json::parse(R"({"d": {}, "n": null, "l": [1]})");
  EXPECT_EQ(failure_of("{{ x.y }}", variables).text, "'x' is undefined");
  EXPECT_EQ(failure_of("{{ d.y.z }}", variables).text, "'dict object' has no attribute 'y'");
  EXPECT_EQ(failure_of("{{ n.y.z }}", variables).text, "'None' has no attribute 'y'");
  EXPECT_EQ(failure_of("{{ l[5].z }}", variables).text, "list object has no element 5");
  EXPECT_EQ(failure_of("{{ raise_exception('no ' ~ l) }}", variables).text, "no [1]");
}

TEST(TemplateErrors, OfParsingNameTheLine) {
  EXPECT_EQ(failure_of("a\nb\n{{ 1 + }}").text, "chat template: line 3: unexpected '}}'");
  EXPECT_NE(failure_of("a\n{% if x %}\n").text.find("line 2"), std::string::npos);
  EXPECT_NE(failure_of("\n{{ x|nosuch }}").text.find("line 2: No filter named 'nosuch'"),
            std::string::npos);
  EXPECT_EQ(failure_of("{% include 'x' %}").code, Code::unsupported);
}

// --- Conversations -------------------------------------------------------------------------------

Message message(const std::string& role, Json content) {
  Message result;
  result.role = role;
  result.content = std::move(content);
  return result;
}

Conversation conversation_with_call() {
  Message user = message("user", "q");
  user.extra = Json{{"name", "Ann"}, {"role", "system"}};
  Message assistant = message("assistant", nullptr);
  assistant.reasoning = "hm";
  assistant.tool_calls.push_back({"call_1", "f", Json{{"b", 1}, {"a", "x"}}});
  assistant.tool_calls.push_back({"", "g", Json(nullptr)});
  Message tool = message("tool", "r");
  tool.tool_call_id = "call_1";
  Conversation conversation;
  conversation.messages = {user, assistant, tool};
  return conversation;
}

TEST(TemplateVariables, HoldWhatTheTemplateReads) {
  Conversation conversation = conversation_with_call();
  conversation.template_kwargs = Json{{"x", 1}, {"messages", "no"}};
  EXPECT_EQ(template_variables(conversation), Json::parse(R"({"messages":[
      {"role":"user","content":"q","name":"Ann"},
      {"role":"assistant","reasoning_content":"hm","tool_calls":[
          {"id":"call_1","type":"function","function":{"name":"f","arguments":{"b":1,"a":"x"}}},
          {"type":"function","function":{"name":"g","arguments":{}}}]},
      {"role":"tool","content":"r","tool_call_id":"call_1"}],
      "add_generation_prompt":true,"x":1})"));
  conversation.tools = Json::parse(R"([{"function":{"name":"f"}}])");
  EXPECT_EQ(template_variables(conversation)["tools"], conversation.tools);
}

std::string continued(const std::string& source, Json content) {
  Conversation conversation;
  conversation.messages = {message("user", "q"), message("assistant", std::move(content))};
  conversation.add_generation_prompt = false;
  conversation.continue_final_message = true;
  const auto pieces = render_prompt(*parse(source), conversation);
  return pieces.ok() ? joined(*pieces) : "error: " + pieces.error().text;
}

// Expected texts: transformers' apply_chat_template on the same templates.
TEST(ContinueFinalMessage, CutsBehindTheContent) {
  const std::string plain = "{% for m in messages %}[{{ m.role }}]{{ m.content }}</s>{% endfor %}";
  const std::string trims =
      "{% for m in messages %}[{{ m.role }}] {{ m.content|trim }}</s>{% endfor %}";
  const std::string parts =
      "{% for m in messages %}{% for p in m.content %}{{ p.text or p }};{% endfor %}{% endfor %}";
  EXPECT_EQ(continued(plain, "so far "), "[user]q</s>[assistant]so far ");
  EXPECT_EQ(continued(trims, "so far "), "[user] q</s>[assistant] so far");
  EXPECT_EQ(continued(trims, "so far"), "[user] q</s>[assistant] so far");
  EXPECT_EQ(continued(parts, Json::parse(R"([{"text":"a"},{"text":"b"},{"image":1}])")), "q;a;b");
  EXPECT_EQ(continued("{{ messages[0].content }}", "x").substr(0, 6), "error:");
  EXPECT_EQ(continued(plain, nullptr).substr(0, 6), "error:");
}

}  // namespace
}  // namespace m2::text
