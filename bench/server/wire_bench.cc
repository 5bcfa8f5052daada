// What stands between a token and its bytes on the wire, piece by piece: stop strings, the reader
// of the model's output, the frames of a stream; and the JSON of a request's body. One thread.
#include <benchmark/benchmark.h>

#include <string>
#include <string_view>
#include <vector>

#include "api/openai_chat.h"
#include "api/openai_completions.h"
#include "base/json.h"
#include "text/output_reader.h"
#include "text/stop_strings.h"

namespace m2 {
namespace {

const api::ReplyHead kHead{"chatcmpl-0123456789abcdef0123456789abcdef", 1'790'000'000,
                           "MiniMaxAI/MiniMax-M2"};

// Text cut as tokens cut it: a word, or a few letters.
std::vector<std::string_view> pieces_of(std::string_view text) {
  std::vector<std::string_view> out;
  for (size_t begin = 0, i = 0; begin < text.size(); ++i) {
    const size_t length = std::min(text.size() - begin, size_t{2} + i * 7 % 5);
    out.push_back(text.substr(begin, length));
    begin += length;
  }
  return out;
}

std::string prose(size_t bytes) {
  constexpr std::string_view kLine =
      "The file is read once; what it says is \"kept\" until the next commit, as before.\n";
  std::string out;
  while (out.size() < bytes) out += kLine;
  return out;
}

// An answer that thinks, speaks and calls a tool with a long argument.
std::string agent_answer() {
  return prose(8'000) + "</think>\n\n" + prose(2'000) +
         "\n<minimax:tool_call>\n<invoke name=\"write_file\">\n<parameter name=\"path\">src/a.cc"
         "</parameter>\n<parameter name=\"content\">" +
         prose(20'000) + "</parameter>\n</invoke>\n</minimax:tool_call>";
}

void BM_CompletionFrame(benchmark::State& state) {
  const api::CompletionChunks chunks(kHead);
  std::string out;
  for (auto _ : state) {
    out.clear();
    chunks.append({.text = " token"}, out);
    benchmark::DoNotOptimize(out.data());
  }
}
BENCHMARK(BM_CompletionFrame);

void BM_ChatFrame(benchmark::State& state) {
  const api::ChatChunks chunks(kHead);
  std::string delta, out;
  for (auto _ : state) {
    delta.clear();
    out.clear();
    api::append_content_delta(delta, " token");
    chunks.append({.delta = delta}, out);
    benchmark::DoNotOptimize(out.data());
  }
}
BENCHMARK(BM_ChatFrame);

// The same bytes copied: what a frame cannot cost less than.
void BM_CopyFrame(benchmark::State& state) {
  std::string frame, out;
  api::CompletionChunks(kHead).append({.text = " token"}, frame);
  for (auto _ : state) {
    out.clear();
    out += frame;
    benchmark::DoNotOptimize(out.data());
  }
}
BENCHMARK(BM_CopyFrame);

// Items are pieces, as many as tokens.
void BM_ReadAnswer(benchmark::State& state) {
  const std::string answer = agent_answer();
  const std::vector<std::string_view> pieces = pieces_of(answer);
  text::ReaderOptions options;
  options.tool_schemas = Json::parse(
      R"([{"type":"function","function":{"name":"write_file","parameters":{"type":"object",)"
      R"("properties":{"path":{"type":"string"},"content":{"type":"string"}}}}}])");
  std::vector<text::OutputDelta> deltas;
  for (auto _ : state) {
    text::OutputReader reader(options);
    for (const std::string_view piece : pieces) {
      deltas.clear();
      reader.feed(piece, deltas);
    }
    deltas.clear();
    reader.finish(false, deltas);
    if (reader.message().tool_calls.size() != 1) state.SkipWithError("the call was not read");
  }
  state.SetItemsProcessed(state.iterations() * std::ssize(pieces));
  state.SetBytesProcessed(state.iterations() * std::ssize(answer));
}
BENCHMARK(BM_ReadAnswer)->Unit(benchmark::kMicrosecond);

void BM_StopStrings(benchmark::State& state) {
  const std::string text = prose(30'000);
  const std::vector<std::string_view> pieces = pieces_of(text);
  for (auto _ : state) {
    auto stop = text::StopStrings::make({"</answer>", "\n\nUser:", "The filing"});
    for (const std::string_view piece : pieces) benchmark::DoNotOptimize(stop->feed(piece));
  }
  state.SetItemsProcessed(state.iterations() * std::ssize(pieces));
  state.SetBytesProcessed(state.iterations() * std::ssize(text));
}
BENCHMARK(BM_StopStrings)->Unit(benchmark::kMicrosecond);

// A megabyte of an agent's conversation: messages, tool calls with their arguments as strings.
std::string long_body() {
  Json messages = Json::array();
  size_t bytes = 0;
  for (int i = 0; bytes < 1'000'000; ++i) {
    const std::string text = prose(4'000);
    messages.push_back(
        {{"role", "assistant"},
         {"content", text.substr(0, 300)},
         {"tool_calls",
          {{{"id", "call_" + std::to_string(i)},
            {"type", "function"},
            {"function", {{"name", "edit"}, {"arguments", Json{{"text", text}}.dump()}}}}}}});
    messages.push_back(
        {{"role", "tool"}, {"tool_call_id", "call_" + std::to_string(i)}, {"content", text}});
    bytes += 2 * text.size();
  }
  return Json{{"model", "m"}, {"messages", messages}, {"stream", true}}.dump();
}

void BM_ParseBody(benchmark::State& state) {
  const std::string body = long_body();
  for (auto _ : state) {
    const Result<Json> json = parse_json(body);
    if (!json.ok()) state.SkipWithError("not read");
    benchmark::DoNotOptimize(json);
  }
  state.SetBytesProcessed(state.iterations() * std::ssize(body));
}
BENCHMARK(BM_ParseBody)->Unit(benchmark::kMicrosecond);

void BM_PrintJson(benchmark::State& state) {
  const Json json = Json::parse(long_body());
  size_t bytes = 0;
  for (auto _ : state) {
    const std::string text = to_text(json);
    benchmark::DoNotOptimize(text.data());
    bytes += text.size();
  }
  state.SetBytesProcessed(static_cast<int64_t>(bytes));
}
BENCHMARK(BM_PrintJson)->Unit(benchmark::kMicrosecond);

}  // namespace
}  // namespace m2

BENCHMARK_MAIN();
