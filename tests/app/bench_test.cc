// Covers: app/bench/report, app/bench/metrics, app/bench/serve, app/bench/chunk, app/bench/plot,
// app/bench/child, app/bench/roofline
#include <gtest/gtest.h>
#include <unistd.h>

#include <fstream>
#include <iterator>

#include "app/bench/child.h"
#include "app/bench/chunk.h"
#include "app/bench/plot.h"
#include "app/bench/report.h"
#include "app/bench/roofline.h"
#include "app/bench/serve.h"

namespace m2::app::bench {
namespace {

Result<ServeBench> read(std::vector<std::string> words, const std::string& key = {}) {
  const auto no_environment = [](const char*) -> const char* { return nullptr; };
  M2_TRY(const Values values, parse_command_line(serve_bench_command(), words, no_environment));
  return read_serve_bench(values, key);
}

std::string refusal(std::vector<std::string> words) {
  const Result<ServeBench> bench = read(std::move(words));
  return bench.ok() ? "accepted" : bench.error().text;
}

// The guide's run.
std::string guide_table() {
  Summary summary;
  summary.completed = 100;
  summary.duration = 851.51;
  summary.input_tokens = 204800;
  summary.output_tokens = 98734;
  summary.request_throughput = 0.12;
  summary.output_throughput = 115.95;
  summary.peak_output = 130;
  summary.peak_concurrent = 20;
  summary.total_throughput = 356.46;
  summary.ttft = {520.98, 523.86, 0, {1086.48}};
  summary.tpot = {82.82, 82.90, 0, {84.28}};
  summary.itl = {82.78, 82.18, 0, {83.48}};
  const ReportOptions options{10, kInfiniteRate, {Metric::ttft, Metric::tpot, Metric::itl}, {99}};
  return result_table(summary, options, std::nullopt);
}

// The table the guide shows for it, with the blanks and the last line that its page has lost.
TEST(BenchTable, IsTheGuidesByteForByte) {
  EXPECT_EQ(guide_table(),
            "============ Serving Benchmark Result ============\n"
            "Successful requests:                     100       \n"
            "Failed requests:                         0         \n"
            "Maximum request concurrency:             10        \n"
            "Benchmark duration (s):                  851.51    \n"
            "Total input tokens:                      204800    \n"
            "Total generated tokens:                  98734     \n"
            "Request throughput (req/s):              0.12      \n"
            "Output token throughput (tok/s):         115.95    \n"
            "Peak output token throughput (tok/s):    130.00    \n"
            "Peak concurrent requests:                20.00     \n"
            "Total Token throughput (tok/s):          356.46    \n"
            "---------------Time to First Token----------------\n"
            "Mean TTFT (ms):                          520.98    \n"
            "Median TTFT (ms):                        523.86    \n"
            "P99 TTFT (ms):                           1086.48   \n"
            "-----Time per Output Token (excl. 1st token)------\n"
            "Mean TPOT (ms):                          82.82     \n"
            "Median TPOT (ms):                        82.90     \n"
            "P99 TPOT (ms):                           84.28     \n"
            "---------------Inter-token Latency----------------\n"
            "Mean ITL (ms):                           82.78     \n"
            "Median ITL (ms):                         82.18     \n"
            "P99 ITL (ms):                            83.48     \n"
            "==================================================\n");
}

std::string without_blanks_at_ends(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '\n') out.erase(out.find_last_not_of(' ') + 1);
    out += c;
  }
  return out;
}

// The page itself, as vLLM's authors wrote it: all but blanks at the ends of lines.
TEST(BenchTable, IsTheGuidesPage) {
  std::ifstream page(M2_DATA_DIR "/../docs/guide.md");
  if (!page) GTEST_SKIP() << "no guide.md beside " M2_DATA_DIR;
  const std::string all((std::istreambuf_iterator<char>(page)), std::istreambuf_iterator<char>());
  const size_t begin = all.find("============ Serving Benchmark Result");
  ASSERT_NE(begin, std::string::npos);
  const std::string shown = all.substr(begin, all.find("```", begin) - begin);
  EXPECT_EQ(without_blanks_at_ends(guide_table()),
            without_blanks_at_ends(shown) + std::string(50, '=') + "\n");
}

TEST(BenchTable, EveryOptionalRow) {
  Summary summary;
  summary.completed = 3;
  summary.failed = 1;
  summary.goodput = 0.5;
  summary.e2el = {1, 2, 0, {3, 4}};
  const ReportOptions options{std::nullopt, 7.5, {Metric::e2el}, {50, 99.9}};
  const Speculation speculation{200, 600, 300, {150, 100, 50}};
  EXPECT_EQ(result_table(summary, options, speculation),
            "============ Serving Benchmark Result ============\n"
            "Successful requests:                     3         \n"
            "Failed requests:                         1         \n"
            "Request rate configured (RPS):           7.50      \n"
            "Benchmark duration (s):                  0.00      \n"
            "Total input tokens:                      0         \n"
            "Total generated tokens:                  0         \n"
            "Request throughput (req/s):              0.00      \n"
            "Request goodput (req/s):                 0.50      \n"
            "Output token throughput (tok/s):         0.00      \n"
            "Peak output token throughput (tok/s):    0.00      \n"
            "Peak concurrent requests:                0.00      \n"
            "Total Token throughput (tok/s):          0.00      \n"
            "----------------End-to-end Latency----------------\n"
            "Mean E2EL (ms):                          1.00      \n"
            "Median E2EL (ms):                        2.00      \n"
            "P50 E2EL (ms):                           3.00      \n"
            "P99.9 E2EL (ms):                         4.00      \n"
            "---------------Speculative Decoding---------------\n"
            "Acceptance rate (%):                     50.00     \n"
            "Acceptance length:                       2.50      \n"
            "Drafts:                                  200       \n"
            "Draft tokens:                            600       \n"
            "Accepted tokens:                         300       \n"
            "Per-position acceptance (%):\n"
            "  Position 0:                            75.00     \n"
            "  Position 1:                            50.00     \n"
            "  Position 2:                            25.00     \n"
            "==================================================\n");
}

TEST(BenchSpeculation, IsReadFromPrometheusText) {
  const auto found = read_speculation(
      "# HELP vllm:spec_decode_num_drafts_total Drafts.\n"
      "vllm:spec_decode_num_drafts_total{engine=\"0\"} 12.0\n"
      "vllm:spec_decode_num_draft_tokens_total{engine=\"0\"} 36.0\n"
      "vllm:spec_decode_num_accepted_tokens_total{engine=\"0\"} 20.0\n"
      "vllm:spec_decode_num_accepted_tokens_created{engine=\"0\"} 1.7e9\n"
      "vllm:spec_decode_num_accepted_tokens_per_pos_total{engine=\"0\",position=\"1\"} 8.0\n"
      "vllm:spec_decode_num_accepted_tokens_per_pos_total{engine=\"0\",position=\"0\"} 12.0\n");
  ASSERT_TRUE(found);
  EXPECT_EQ(found->drafts, 12);
  EXPECT_EQ(found->draft_tokens, 36);
  EXPECT_EQ(found->accepted_tokens, 20);
  EXPECT_EQ(found->accepted_at, (std::vector<int64_t>{12, 8}));
  EXPECT_FALSE(read_speculation("vllm:num_requests_running 1\n"));
}

// Two requests on a scripted clock: A runs 0.5 s to 2.75 s, B 1.25 s to 1.75 s.
TEST(BenchMetrics, ByHand) {
  std::vector<RequestResult> results(3);
  results[0] = {true, 10, 4, 100.5, 0.25, 2.25, {0.5, 1.0, 0.5}, "a", ""};
  results[1] = {true, 20, 1, 101.25, 0.5, 0.5, {}, "b", ""};
  results[2].error = "refused";
  const double percents[] = {50, 99};
  const ServiceLevel levels[] = {{Metric::ttft, 300}, {Metric::tpot, 700}};
  const Summary summary = summarise(results, 4, percents, levels);
  EXPECT_EQ(summary.completed, 2);
  EXPECT_EQ(summary.failed, 1);
  EXPECT_EQ(summary.input_tokens, 30);
  EXPECT_EQ(summary.output_tokens, 5);
  EXPECT_EQ(summary.output_lens, (std::vector<int64_t>{4, 1, 0}));
  EXPECT_DOUBLE_EQ(summary.request_throughput, 0.5);
  EXPECT_DOUBLE_EQ(summary.output_throughput, 1.25);
  EXPECT_DOUBLE_EQ(summary.total_throughput, 8.75);
  // B's first token took too long; its one token has no time per token.
  EXPECT_DOUBLE_EQ(*summary.goodput, 0.25);
  // Events after A's start: A at 0.25, 0.75, 1.75, 2.25, B at 1.25.
  EXPECT_EQ(summary.peak_output, 2);
  EXPECT_EQ(summary.peak_concurrent, 2);  // both have second 1, though B begins in second 0
  EXPECT_DOUBLE_EQ(summary.tpot.mean, 2000.0 / 3);
  EXPECT_DOUBLE_EQ(summary.ttft.mean, 375);
  EXPECT_DOUBLE_EQ(summary.itl.median, 500);
  EXPECT_DOUBLE_EQ(summary.ttft.percentiles[1], 250 + 250 * 0.99);
}

TEST(BenchCommand, TheGuidesLineIsRead) {
  const auto bench =
      read({"--backend", "vllm", "--model", "MiniMaxAI/MiniMax-M2", "--endpoint", "/v1/completions",
            "--dataset-name", "random", "--random-input", "2048", "--random-output", "1024",
            "--max-concurrency", "10", "--num-prompt", "100"});
  ASSERT_TRUE(bench.ok()) << bench.error().text;
  EXPECT_EQ(bench->num_prompts, 100u);
  EXPECT_EQ(bench->max_concurrency, 10);
  EXPECT_EQ(bench->target.host, "127.0.0.1");
  EXPECT_EQ(bench->target.port, 8000);
  EXPECT_EQ(bench->target.path, "/v1/completions");
  EXPECT_TRUE(bench->ignore_eos);  // random prompts
  EXPECT_EQ(bench->metrics, (std::vector<Metric>{Metric::ttft, Metric::tpot, Metric::itl}));
  EXPECT_EQ(bench->percents, std::vector<double>{99});
  EXPECT_TRUE(bench->request_id_prefix.starts_with("bench-"));
  EXPECT_EQ(bench->request_id_prefix.size(), 15u);
}

TEST(BenchCommand, RefusedCombinations) {
  using Words = std::vector<std::string>;
  const std::pair<Words, const char*> cases[] = {
      {{"--dataset-path", "x"}, "Cannot use 'random' dataset with --dataset-path"},
      {{"--dataset-name", "sharegpt"}, "needs --dataset-path"},
      {{"--request-rate", "0"}, "--request-rate"},
      {{"--request-rate", "x"}, "--request-rate"},
      {{"--burstiness", "-1"}, "--burstiness"},
      {{"--ramp-up-strategy", "linear", "--request-rate", "3", "--ramp-up-start-rps", "1",
        "--ramp-up-end-rps", "2"},
       "do not specify --request-rate"},
      {{"--ramp-up-strategy", "linear", "--ramp-up-start-rps", "1"}, "must be specified"},
      {{"--ramp-up-strategy", "linear", "--ramp-up-start-rps=-1", "--ramp-up-end-rps", "2"},
       "non-negative"},
      {{"--ramp-up-strategy", "linear", "--ramp-up-start-rps", "3", "--ramp-up-end-rps", "2"},
       "less than end"},
      {{"--ramp-up-strategy", "exponential", "--ramp-up-start-rps", "0", "--ramp-up-end-rps", "2"},
       "cannot be 0"},
      {{"--ramp-up-strategy", "sudden"}, "linear or exponential"},
      {{"--ramp-up-start-rps", "1"}, "need --ramp-up-strategy"},
      {{"--backend", "tgi"}, "openai-chat"},
      {{"--endpoint", "/v1/embeddings"}, "must end with"},
      {{"--backend", "openai-chat", "--endpoint", "/v1/completions"}, "chat/completions"},
      {{"--base-url", "ftp://a"}, "no http"},
      {{"--percentile-metrics", "ttft,x"}, "e2el"},
      {{"--metric-percentiles", "101"}, "from 0 to 100"},
      {{"--goodput", "itl:5"}, "of ttft, tpot, e2el"},
      {{"--goodput", "ttft"}, "KEY:VALUE"},
      {{"--header", "nothing"}, "KEY=VALUE"},
      {{"--header", "a=b\r\nc: d"}, "line break"},
      {{"--metadata", "=x"}, "KEY=VALUE"},
      {{"--num-prompts", "0"}, "--num-prompts"},
      {{"--max-concurrency", "0"}, "--max-concurrency"},
      {{"--seed=-1"}, "--seed"},
      {{"--save-detailed"}, "--save-result"},
      {{"--profile"}, "not supported"},
      {{"--lora-modules", "a"}, "not supported"},
      {{"stray"}, "no option"},
      {{"--random", "1"}, "ambiguous"},
  };
  for (const auto& [words, text] : cases)
    EXPECT_NE(refusal(words).find(text), std::string::npos) << words[0] << ": " << refusal(words);
}

TEST(BenchCommand, Addresses) {
  const auto target = [](const char* url) { return *parse_url(url); };
  EXPECT_EQ(target("https://a.b/v1/completions").port, 443);
  EXPECT_TRUE(target("https://a.b/v1/completions").tls);
  EXPECT_EQ(target("http://[::1]:81/x").host, "::1");
  EXPECT_EQ(target("http://[::1]:81/x").port, 81);
  for (const char* url : {"", "a:1", "http://", "http://a:0/", "http://a:65536/", "http://a:b/"})
    EXPECT_FALSE(parse_url(url).ok()) << url;
}

TEST(BenchRequests, Bodies) {
  auto bench = *read({"--model", "m", "--seed", "1"});
  const BenchRequest request{"one \"two\"", 3, 16};
  EXPECT_EQ(request_body(bench, request),
            R"({"model":"m","prompt":"one \"two\"","repetition_penalty":1.0,"max_tokens":16,)"
            R"("logprobs":null,"stream":true,"stream_options":{"include_usage":true},)"
            R"("ignore_eos":true})");
  bench = *read({"--backend", "openai-chat", "--model", "m", "--served-model-name", "n",
                 "--dataset-name", "custom", "--dataset-path", "p", "--temperature", "0.5",
                 "--top-k", "7", "--extra-body", R"({"top_k": 9, "stream": false})"});
  EXPECT_EQ(request_body(bench, request),
            R"({"model":"n","messages":[{"role":"user","content":[{"type":"text",)"
            R"("text":"one \"two\""}]}],"max_completion_tokens":16,"stream":false,)"
            R"("stream_options":{"include_usage":true},"temperature":0.5,"top_k":9})");
}

TEST(BenchRequests, KeyAndHeaders) {
  const auto bench = *read({"--header", "a=b", "c=d=e"}, "secret");
  using Headers = std::vector<std::pair<std::string, std::string>>;
  EXPECT_EQ(bench.target.headers,
            (Headers{{"Authorization", "Bearer secret"}, {"a", "b"}, {"c", "d=e"}}));
}

TEST(BenchResult, FileNames) {
  EXPECT_EQ(result_file_name(*read({"--backend", "vllm", "--model", "a/b", "--max-conc", "10"}), "",
                             "20260102-030405"),
            "vllm-infqps-concurrency10-b-20260102-030405.json");
  EXPECT_EQ(result_file_name(*read({"--model", "b", "--request-rate", "2"}), "run", "D"),
            "run-2.0qps-b-D.json");
}

TEST(BenchResult, JsonFieldsInOrder) {
  std::vector<RequestResult> results(1);
  results[0] = {true, 10, 2, 1, 0.25, 0.75, {0.5}, "ab", ""};
  const ReportOptions options{std::nullopt, kInfiniteRate, {Metric::ttft}, {99, 99.9}};
  const Summary summary = summarise(results, 2, options.percents, {});
  const Json plain = result_json(summary, options, {results, false, {}}, std::nullopt);
  std::string keys;
  for (const auto& [key, value] : plain.items()) keys += key + " ";
  EXPECT_EQ(keys,
            "duration completed failed total_input_tokens total_output_tokens request_throughput "
            "request_goodput output_throughput total_token_throughput max_output_tokens_per_s "
            "max_concurrent_requests rtfx mean_ttft_ms median_ttft_ms std_ttft_ms p99_ttft_ms "
            "p99.9_ttft_ms ");
  EXPECT_TRUE(plain["request_goodput"].is_null());
  const Json full = result_json(summary, options, {results, true, Json::array()}, std::nullopt);
  EXPECT_EQ(full["itls"], Json::parse("[[0.5]]"));
  EXPECT_EQ(full["generated_texts"], Json::parse(R"(["ab"])"));
  EXPECT_EQ(full["start_times"], Json::parse("[1.0]"));
  EXPECT_TRUE(full.contains("rps_change_events"));
}

TEST(BenchChunk, BothProtocols) {
  Chunk chunk;
  ASSERT_TRUE(read_chunk(R"({"id":"a","choices":[{"index":0,"text":"x\n\u00e9","logprobs":null},)"
                         R"({"text":"second"}],"usage":null})",
                         chunk)
                  .ok());
  EXPECT_TRUE(chunk.has_choices);
  EXPECT_EQ(chunk.text, "x\n\xc3\xa9");
  EXPECT_EQ(chunk.completion_tokens, -1);
  ASSERT_TRUE(
      read_chunk(R"({"choices":[{"delta":{"role":"assistant","content":""}}]})", chunk).ok());
  EXPECT_TRUE(chunk.has_choices);
  EXPECT_EQ(chunk.text, "");
  ASSERT_TRUE(
      read_chunk(R"({"choices":[{"delta":{"reasoning_content":"r","content":null}}]})", chunk)
          .ok());
  EXPECT_EQ(chunk.text, "r");
  ASSERT_TRUE(
      read_chunk(R"({"choices":[{"delta":{"reasoning":"r","reasoning_content":"r"}}]})", chunk)
          .ok());
  EXPECT_EQ(chunk.text, "r");
  ASSERT_TRUE(
      read_chunk(R"({"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":9}})", chunk)
          .ok());
  EXPECT_FALSE(chunk.has_choices);
  EXPECT_EQ(chunk.completion_tokens, 9);
  ASSERT_TRUE(read_chunk(R"({"error":{"message":"no","code":500}})", chunk).ok());
  EXPECT_EQ(chunk.error, "no");
  for (const char* text : {"", "[]", "{", R"({"choices":[{)", R"({"a":1} x)", "null"})
    EXPECT_FALSE(read_chunk(text, chunk).ok()) << text;
}

TEST(BenchPlot, NamesAndPanels) {
  EXPECT_TRUE(check_plot_file("").ok());
  EXPECT_TRUE(check_plot_file("a.svg").ok());
  EXPECT_FALSE(check_plot_file("a.jpg").ok());
  std::vector<RequestResult> results(2);
  results[0] = {true, 1, 3, 0, 0.1, 1.4, {0.5, 0.8}, "", ""};
  results[1] = {true, 1, 3, 0, 0.2, 2.3, {1.0, 1.1}, "", ""};
  const std::string svg = svg_of(results);
  for (const char* text : {"Time to first token", "Time per output token", "Inter-token latency",
                           "Output events per second", "</svg>"})
    EXPECT_NE(svg.find(text), std::string::npos) << text;
  EXPECT_NE(svg_of({}).find("no data"), std::string::npos);
}

TEST(Child, WorksInAProcessOfItsOwn) {
  const pid_t here = getpid();
  Result<Child> child = Child::start([here](int number) {
    return Json{{"number", number}, {"own", getpid() != here}, {"long", std::string(1 << 20, 'x')}};
  });
  ASSERT_TRUE(child.ok());
  const Result<Json> answer = child->run(7);
  ASSERT_TRUE(answer.ok());
  EXPECT_EQ((*answer)["number"], 7);
  EXPECT_EQ((*answer)["own"], true);
  EXPECT_EQ((*answer)["long"].get<std::string>().size(), size_t{1} << 20);
}

TEST(Child, EndsWithoutAnAnswerOrWithoutWork) {
  Result<Child> dies = Child::start([](int) -> Json { _exit(3); });
  ASSERT_TRUE(dies.ok());
  EXPECT_EQ(dies->run(1).error().code, Code::unavailable);
  EXPECT_TRUE(Child::start([](int) { return Json(); }).ok());  // its end does not wait for work
}

TEST(Roofline, PiecesOfPromptsShareTheWeights) {
  const RooflineCase at;
  const std::vector<PromptPiece> one(1, {64, 0}), many(128, {64, 0}), whole(1, {8192, 0});
  const PrefillCost alone = prefill_cost(at, one), together = prefill_cost(at, many);
  EXPECT_DOUBLE_EQ(together.matmul_flops, 128 * alone.matmul_flops);
  EXPECT_DOUBLE_EQ(together.attention_flops, 128 * alone.attention_flops);
  EXPECT_DOUBLE_EQ(together.weight_seconds, prefill_cost(at, whole).weight_seconds);
  EXPECT_LT(together.reachable_seconds, 8 * alone.reachable_seconds);
}

}  // namespace
}  // namespace m2::app::bench
