// Covers: server/chat_answers, server/chat_answer, server/response_answer, server/message_answer,
// server/turn_reader
#include "server/chat_answers.h"

#include <gtest/gtest.h>

#include <fstream>
#include <iterator>

#include "tests/text/toy_tokenizer.h"

namespace m2::server {
namespace {

Json golden(const std::string& name) {
  std::ifstream file(M2_SOURCE_DIR "/tests/golden/parsers/" + name);
  return *parse_json(std::string(std::istreambuf_iterator<char>(file), {}));
}

// What a model wrote, and how it is to be read.
struct Written {
  std::string name, text;
  text::ReaderOptions reader;
  bool cut = false;
  bool logprobs = false;
};

// The goldens of the output reader that both parsers read by default.
std::vector<Written> all_written() {
  std::vector<Written> out;
  for (const char* file : {"answers.json", "malformed.json"})
    for (const Json& row : golden(file)) {
      if (row.contains("reasoning_parser") || row.contains("tool_parser")) continue;
      Written written;
      written.name = row["name"];
      written.text = row["input"];
      written.reader.tool_schemas = row.value("tools", Json::array());
      written.reader.starts_in_reasoning = row.value("starts_in_reasoning", true);
      written.reader.parallel_tool_calls = row.value("parallel_tool_calls", true);
      written.cut = row.value("cut_by_length", false);
      out.push_back(std::move(written));
    }
  return out;
}

std::string fixed_call_id() {
  return "call";
}

enum class Surface { chat, responses, messages };

std::unique_ptr<Answer> answer_for(Surface surface, const Written& written, bool stream,
                                   TurnStore* store = nullptr) {
  static const auto tokenizer = *text::load_text(to_text(text::toy_tokenizer_json()));
  AnswerSetup setup;
  setup.head = {"id", 7, "m"};
  setup.tokenizer = tokenizer;
  setup.prompts = {std::make_shared<const std::vector<engine::TokenId>>(3, 1)};
  setup.stream = stream;
  ChatAnswerSetup chat;
  chat.turn.reader = written.reader;
  chat.turn.make_call_id = fixed_call_id;
  chat.turn.store = store;
  chat.turn.opening = "opening";
  chat.logprobs = written.logprobs;
  if (surface == Surface::chat) return make_chat_answer(std::move(setup), std::move(chat));
  if (surface == Surface::messages) return make_message_answer(std::move(setup), std::move(chat));
  ResponseAnswerSetup response;
  response.head.id = "resp";
  response.logprobs = written.logprobs;
  return make_response_answer(std::move(setup), std::move(chat), std::move(response));
}

// Runs an answer over the text cut at `cuts`. A stream's frames, or the whole reply.
std::string run(Surface surface, const Written& written, bool stream,
                const std::vector<size_t>& cuts) {
  const auto answer = answer_for(surface, written, stream);
  std::string out;
  answer->begin(out);
  size_t from = 0;
  for (const size_t cut : cuts) {
    Step step;
    step.text = std::string_view(written.text).substr(from, cut - from);
    answer->step(0, step, out);
    from = cut;
  }
  const api::Finish finish{written.cut ? "length" : "stop", {}};
  Step last;
  last.text = std::string_view(written.text).substr(from);
  last.finish = &finish;
  answer->step(0, last, out);
  return out + answer->end();
}

// What a client has put together at the end of a stream: the kind and text of each item, and how it
// ended. Ids are random.
std::string assembled(Surface surface, const std::string& frames) {
  std::vector<std::pair<std::string, std::string>> items;
  std::string end;
  size_t at = 0;
  while ((at = frames.find("data: ", at)) != std::string::npos) {
    at += 6;
    const Json event = *parse_json(frames.substr(at, frames.find("\n\n", at) - at));
    const std::string type = event["type"];
    if (type == "response.output_item.added") items.emplace_back(event["item"]["type"], "");
    if (type == "content_block_start") items.emplace_back(event["content_block"]["type"], "");
    if (surface == Surface::responses && type.ends_with(".delta"))
      items.back().second += event["delta"].get<std::string>();
    if (type == "content_block_delta")
      for (const char* name : {"thinking", "text", "partial_json"})
        if (event["delta"].contains(name))
          items.back().second += event["delta"][name].get<std::string>();
    if (event.contains("response")) end = event["response"]["status"];
    if (type == "message_delta") end = event["delta"]["stop_reason"];
  }
  Json out = Json::array();
  for (const auto& [kind, text] : items) out.push_back({kind, text});
  out.push_back(end);
  return to_text(out);
}

// A whole reply without what differs from run to run.
std::string whole(const std::string& reply) {
  Json json = *parse_json(reply);
  if (json.contains("output"))
    for (Json& item : json["output"]) item.erase("id");
  return to_text(json);
}

void check_splits(Surface surface) {
  for (const Written& written : all_written()) {
    SCOPED_TRACE(written.name);
    const std::string message = whole(run(surface, written, false, {}));
    const std::string stream = assembled(surface, run(surface, written, true, {}));
    std::vector<size_t> every;
    for (size_t cut = 1; cut < written.text.size(); ++cut) {
      // Text never ends inside a character.
      if ((static_cast<unsigned char>(written.text[cut]) & 0xC0) == 0x80) continue;
      every.push_back(cut);
      // The same code reads both; the stream is the harder one.
      if (cut % 8 == 1) {
        ASSERT_EQ(whole(run(surface, written, false, {cut})), message) << "cut at " << cut;
      }
      ASSERT_EQ(assembled(surface, run(surface, written, true, {cut})), stream) << "cut at " << cut;
    }
    EXPECT_EQ(whole(run(surface, written, false, every)), message);
    EXPECT_EQ(assembled(surface, run(surface, written, true, every)), stream);
  }
}

TEST(ResponseAnswer, EverySplitGivesTheSame) {
  check_splits(Surface::responses);
}
TEST(MessageAnswer, EverySplitGivesTheSame) {
  check_splits(Surface::messages);
}

// The stream's last event holds the response, and the items streamed are its items.
TEST(ResponseAnswer, TheStreamIsTheResponse) {
  for (const Written& written : all_written()) {
    SCOPED_TRACE(written.name);
    const std::string frames = run(Surface::responses, written, true, {});
    const size_t last = frames.rfind("data: ") + 6;
    const Json end = *parse_json(frames.substr(last, frames.size() - last - 2));
    const Json reply = *parse_json(run(Surface::responses, written, false, {}));
    EXPECT_EQ(whole(to_text(end["response"])), whole(to_text(reply)));
    const Json streamed = *parse_json(assembled(Surface::responses, frames));
    for (size_t i = 0; i < reply["output"].size(); ++i) {
      const Json& item = reply["output"][i];
      EXPECT_EQ(streamed[i][0], item["type"]);
      const Json& text =
          item.contains("arguments") ? item["arguments"] : item["content"][0]["text"];
      EXPECT_EQ(streamed[i][1], text);
    }
  }
}

// The logprobs of a long answer are more JSON than a client may send: they are all there.
TEST(ChatAnswers, LogprobsOfLongAnswersAreWhole) {
  constexpr size_t kTokens = 10'000;
  engine::Logprobs logprobs{{65, -1, 1}, {}};
  for (int32_t i = 0; i < 20; ++i) logprobs.top.push_back({65 + i, -1.0f - float(i), i + 1});
  Written written;
  written.reader.starts_in_reasoning = false;
  written.logprobs = true;
  const api::Finish finish{"length", {}};
  for (const Surface surface : {Surface::chat, Surface::responses}) {
    const auto answer = answer_for(surface, written, false);
    std::string out;
    answer->begin(out);
    for (size_t i = 0; i < kTokens; ++i) {
      Step step;
      step.text = "A";
      step.token = 65;
      step.logprobs = &logprobs;
      if (i + 1 == kTokens) step.finish = &finish;
      answer->step(0, step, out);
    }
    const Json reply = Json::parse(answer->end());
    const Json& items = surface == Surface::chat ? reply["choices"][0]["logprobs"]["content"]
                                                 : reply["output"][0]["content"][0]["logprobs"];
    ASSERT_EQ(items.size(), kTokens);
    EXPECT_EQ(items.back()["top_logprobs"].size(), 20u);
    EXPECT_EQ(items.back()["token"], "A");
  }
}

TEST(TurnReader, RemembersTurnsThatEndedInCallsAsSampled) {
  TurnStore store(8, 1 << 20);
  Written written;
  written.text =
      "R\n</think>\n\n<minimax:tool_call>\n<invoke name=\"f\">\n</invoke>\n</minimax:tool_call>";
  const api::Finish eos{"stop", {}}, stopped{"stop", "STOP"};
  for (const api::Finish* finish : {&eos, &stopped}) {
    const auto answer = answer_for(Surface::messages, written, false, &store);
    std::string out;
    Step step;
    step.text = written.text;
    step.token = 65;
    answer->step(0, step, out);
    Step last;
    last.token = 66;
    last.finish = finish;
    answer->step(0, last, out);
    const auto turn = store.find("call");
    ASSERT_TRUE(turn);
    EXPECT_EQ(turn->message.reasoning, "R");
    // A turn that a stop string cut is known by its reasoning alone.
    const bool whole_turn = finish == &eos;
    EXPECT_EQ(turn->tokens,
              whole_turn ? std::vector<text::TokenId>({65, 66}) : std::vector<text::TokenId>());
    EXPECT_EQ(turn->end_text, whole_turn ? "B" : "");
  }
}

}  // namespace
}  // namespace m2::server
