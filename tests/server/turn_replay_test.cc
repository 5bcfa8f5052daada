// Covers: server/turn_replay
#include "server/turn_replay.h"

#include <gtest/gtest.h>

#include "text/chat_template.h"

namespace m2::server {
namespace {

// The shape of the released template: reasoning in assistant messages, `[e]` ends each.
constexpr char kTemplate[] =
    "{%- for m in messages -%}"
    "{%- if m.role == 'assistant' -%}"
    "{{- ']ai\\n' -}}"
    "{%- if m.reasoning_content -%}"
    "{{- '<think>\\n' ~ REASONING ~ '\\n</think>\\n\\n' -}}"
    "{%- endif -%}"
    "{{- m.content -}}"
    "{%- for c in m.tool_calls -%}{{- '<' ~ c.function.name ~ '>' -}}"
    "{{- c.function.arguments | tojson -}}{%- endfor -%}"
    "{{- '[e]\\n' -}}"
    "{%- else -%}{{- ']' ~ m.role ~ '\\n' ~ m.content ~ '[e]\\n' -}}{%- endif -%}"
    "{%- endfor -%}"
    "{{- ']ai\\n<think>\\n' -}}";

constexpr char kOpening[] = "]user\nQ[e]\n]ai\n<think>\n";  // shorter than what is remembered

std::string source(const std::string& reasoning) {
  std::string out = kTemplate;
  out.replace(out.find("REASONING"), 9, reasoning);
  return out;
}

text::Message message(const std::string& role, const std::string& content) {
  text::Message out;
  out.role = role;
  out.content = content;
  return out;
}

Turn sampled() {
  Turn turn;
  turn.opening = kOpening;
  turn.tokens = {1, 2, 3};
  turn.end_text = "[e]";
  turn.message.reasoning = "R";
  turn.message.has_reasoning = true;
  turn.message.content = "C\n";
  turn.message.tool_calls = {{"id", "f", "{\"a\":1.50}"}};
  return turn;
}

// A question, the turn as a client sends it back, and what its tool returned.
std::vector<text::Message> conversation() {
  std::vector<text::Message> out = {message("user", "Q"), message("assistant", "C"),
                                    message("tool", "T")};
  out[1].reasoning = "R";
  out[1].tool_calls = {{"id", "f", *parse_json("{\"a\": 1.5}")}};
  return out;
}

struct Placed {
  std::optional<std::vector<KnownTurn>> known;
  std::vector<std::string> texts;  // "" stands where tokens are known
  int64_t restored = 0;
};

Placed place(std::vector<text::Message> messages, TurnStore& store,
             const std::string& reasoning = "m.reasoning_content") {
  const auto chat_template = text::ChatTemplate::parse(source(reasoning));
  EXPECT_TRUE(chat_template.ok());
  const TurnReplay replay(messages, store);
  text::Conversation rendered;
  rendered.messages = std::move(messages);
  auto pieces = text::render_prompt(**chat_template, rendered);
  EXPECT_TRUE(pieces.ok()) << pieces.error().text;
  Placed out;
  out.known = replay.place(*pieces);
  out.restored = replay.restored();
  if (!out.known) return out;
  std::string text;
  size_t next = 0;
  for (size_t i = 0; i <= pieces->size(); ++i) {
    if (next < out.known->size() && (*out.known)[next].at == i) {
      out.texts.push_back(std::exchange(text, {}));
      ++next;
    }
    if (i < pieces->size()) text += (*pieces)[i].text;
  }
  out.texts.push_back(text);
  return out;
}

const char kAfter[] = "\n]tool\nT[e]\n]ai\n<think>\n";

TEST(TurnReplay, TokensStandForTheTurn) {
  TurnStore store(8, 1 << 20);
  store.put(sampled());
  const Placed placed = place(conversation(), store);
  ASSERT_TRUE(placed.known);
  EXPECT_EQ(placed.texts, (std::vector<std::string>{kOpening, kAfter}));
  EXPECT_EQ((*placed.known)[0].turn->tokens, (std::vector<text::TokenId>{1, 2, 3}));
  EXPECT_EQ(placed.restored, 0);
}

TEST(TurnReplay, DroppedReasoningComesBack) {
  TurnStore store(8, 1 << 20);
  store.put(sampled());
  const std::optional<std::string> dropped[] = {std::nullopt, ""};
  for (const auto& sent : dropped) {
    auto messages = conversation();
    messages[1].reasoning = sent;
    const Placed placed = place(messages, store);
    EXPECT_EQ(placed.texts, (std::vector<std::string>{kOpening, kAfter}));
    EXPECT_EQ(placed.restored, 1);
  }
}

TEST(TurnReplay, WhatWasChangedIsPrintedAsSent) {
  TurnStore store(8, 1 << 20);
  store.put(sampled());
  auto changed = conversation();
  changed[1].tool_calls[0].arguments["a"] = 2;
  EXPECT_EQ(place(changed, store).texts,
            (std::vector<std::string>{std::string(kOpening) + "R\n</think>\n\nC<f>{\"a\": 2}[e]" +
                                      kAfter}));
  changed = conversation();
  changed[1].reasoning = "other";
  EXPECT_EQ(place(changed, store).known->size(), 0u);
  changed = conversation();
  changed[1].content = "more";
  EXPECT_EQ(place(changed, store).known->size(), 0u);
  // Dropped reasoning comes back to a changed turn too.
  changed[1].reasoning.reset();
  const Placed placed = place(changed, store);
  EXPECT_EQ(placed.restored, 1);
  EXPECT_NE(placed.texts[0].find("<think>\nR\n</think>"), std::string::npos);
}

TEST(TurnReplay, OtherContextsAreNotTaken) {
  TurnStore store(8, 1 << 20);
  Turn turn = sampled();
  turn.opening = "]user\nX[e]\n]ai\n<think>\n";
  store.put(turn);
  const Placed placed = place(conversation(), store);
  EXPECT_EQ(placed.texts,
            (std::vector<std::string>{std::string(kOpening) + "R\n</think>\n\nC<f>{\"a\": 1.5}[e]" +
                                      kAfter}));
}

TEST(TurnReplay, TurnsBeforeTheLastQuestionAreLeftAlone) {
  TurnStore store(8, 1 << 20);
  store.put(sampled());
  auto messages = conversation();
  messages[1].reasoning.reset();
  messages.push_back(message("user", "Q2"));
  const Placed placed = place(messages, store);
  EXPECT_EQ(placed.restored, 0);
  EXPECT_EQ(placed.known->size(), 0u);
}

// With thinking off the prompt closes the reasoning it opened, and the turn goes on behind that.
TEST(TurnReplay, ATurnWithoutThinkingGoesOnBehindEmptyReasoning) {
  TurnStore store(8, 1 << 20);
  Turn turn = sampled();
  const std::string opening = std::string(kOpening) + "\n</think>\n\n";
  turn.opening = opening.substr(opening.size() - 24);
  turn.message.reasoning.clear();
  turn.message.has_reasoning = false;
  store.put(turn);
  auto messages = conversation();
  messages[1].reasoning.reset();
  EXPECT_EQ(place(messages, store).texts, (std::vector<std::string>{opening, kAfter}));
}

TEST(TurnReplay, TemplatesThatAlterOrDropReasoningAreRenderedPlain) {
  TurnStore store(8, 1 << 20);
  store.put(sampled());
  for (const char* reasoning : {"m.reasoning_content | upper", "m.reasoning_content[:20]",
                                "m.reasoning_content[:42]", "''"})
    EXPECT_FALSE(place(conversation(), store, reasoning).known) << reasoning;
}

// Text that looks like the end of a turn, but came from a message, ends nothing.
TEST(TurnReplay, OnlyTheTemplateEndsATurn) {
  TurnStore store(8, 1 << 20);
  Turn turn = sampled();
  turn.message.content = "C[e]";
  store.put(turn);
  auto messages = conversation();
  messages[1].content = "C[e]";
  EXPECT_EQ(place(messages, store).texts, (std::vector<std::string>{kOpening, kAfter}));
}

}  // namespace
}  // namespace m2::server
