// Covers: app/serve_options, app/environment: every flag and switch of contract.md 5 and every
// launch line of the guide.
#include "app/serve_options.h"

#include <gtest/gtest.h>

#include <set>

#include "app/no_effect.h"
#include "app/serve_settings.h"
#include "app/serving.h"

namespace m2::app::test {
namespace {

const char* no_environment(const char*) {
  return nullptr;
}

Result<Values> parse(const std::string& line) {
  std::vector<std::string> words;
  for (size_t at = 0; at < line.size();) {
    const size_t end = std::min(line.find(' ', at), line.size());
    if (end > at) words.push_back(line.substr(at, end - at));
    at = end + 1;
  }
  return parse_command_line(serve_command(), words, no_environment);
}

// What contract.md 5.1 lists, with a value each.
constexpr const char* kFlags[] = {"--host 127.0.0.1",
                                  "--port 1234",
                                  "--uds /tmp/x",
                                  "--uvicorn-log-level info",
                                  "--disable-uvicorn-access-log",
                                  "--disable-access-log-for-endpoints /metrics,/health",
                                  "--api-key a b c",
                                  "--allow-credentials",
                                  "--allowed-origins [\"*\"]",
                                  "--allowed-methods [\"GET\"]",
                                  "--allowed-headers [\"a\",\"b\"]",
                                  "--ssl-keyfile k",
                                  "--ssl-certfile c",
                                  "--ssl-ca-certs c",
                                  "--enable-ssl-refresh",
                                  "--ssl-cert-reqs 2",
                                  "--ssl-ciphers ALL",
                                  "--root-path /x",
                                  "--middleware a.b",
                                  "--middleware a --middleware b",
                                  "--h11-max-incomplete-event-size 4194304",
                                  "--h11-max-header-count 256",
                                  "--api-server-count 2",
                                  "-asc 2",
                                  "--headless",
                                  "--disable-frontend-multiprocessing",
                                  "--enable-request-id-headers",
                                  "--enable-server-load-tracking",
                                  "--disable-fastapi-docs",
                                  "--log-config-file x.json",
                                  "--max-log-len 10",
                                  "--enable-log-requests",
                                  "--no-enable-log-requests",
                                  "--enable-log-outputs",
                                  "--disable-log-stats",
                                  "--chat-template x",
                                  "--chat-template-content-format auto",
                                  "--trust-request-chat-template",
                                  "--default-chat-template-kwargs {\"a\":1}",
                                  "--response-role assistant",
                                  "--enable-auto-tool-choice",
                                  "--no-constrain-auto-tools",
                                  "--exclude-tools-when-tool-choice-none",
                                  "--tool-call-parser minimax_m2",
                                  "--tool-parser-plugin x",
                                  "--tool-server x",
                                  "--reasoning-parser minimax_m2_append_think",
                                  "--reasoning-parser-plugin x",
                                  "--return-tokens-as-token-ids",
                                  "--enable-prompt-tokens-details",
                                  "--enable-force-include-usage",
                                  "--enable-tokenizer-info-endpoint",
                                  "--served-model-name a b",
                                  "--tokenizer x",
                                  "--tokenizer-mode auto",
                                  "--trust-remote-code",
                                  "--dtype auto",
                                  "--seed 1",
                                  "--max-model-len 25.6k",
                                  "--max-model-len auto",
                                  "--max-model-len -1",
                                  "--quantization fp8",
                                  "-q fp8",
                                  "--enforce-eager",
                                  "--max-logprobs 20",
                                  "--logprobs-mode raw_logprobs",
                                  "--revision x",
                                  "--code-revision x",
                                  "--tokenizer-revision x",
                                  "--hf-token x",
                                  "--hf-overrides {\"a\":1}",
                                  "--hf-config-path x",
                                  "--generation-config auto",
                                  "--override-generation-config {\"a\":1}",
                                  "--override-generation-config.temperature 0.5",
                                  "--enable-sleep-mode",
                                  "--skip-tokenizer-init",
                                  "--load-format dummy",
                                  "--download-dir x",
                                  "--safetensors-load-strategy lazy",
                                  "--use-tqdm-on-load",
                                  "--no-use-tqdm-on-load",
                                  "--ignore-patterns a b",
                                  "--model-loader-extra-config {}",
                                  "--tensor-parallel-size 4",
                                  "-tp 4",
                                  "-tp=4",
                                  "--pipeline-parallel-size 1",
                                  "-pp 1",
                                  "--data-parallel-size 8",
                                  "-dp 8",
                                  "-dpn 0",
                                  "--data-parallel-rank 0",
                                  "-dpr 0",
                                  "--data-parallel-start-rank 0",
                                  "-dpl 1",
                                  "--data-parallel-size-local 1",
                                  "-dpa 127.0.0.1",
                                  "--data-parallel-address 127.0.0.1",
                                  "-dpp 29550",
                                  "--data-parallel-rpc-port 29550",
                                  "-dpb mp",
                                  "--data-parallel-backend mp",
                                  "-dph",
                                  "--data-parallel-hybrid-lb",
                                  "-dpe",
                                  "--data-parallel-external-lb",
                                  "--enable-expert-parallel",
                                  "-ep",
                                  "--all2all-backend allgather_reducescatter",
                                  "--enable-eplb",
                                  "--eplb-config {}",
                                  "--expert-placement-strategy linear",
                                  "--enable-dbo",
                                  "--nnodes 1",
                                  "-n 1",
                                  "--node-rank 0",
                                  "-r 0",
                                  "--master-addr 127.0.0.1",
                                  "--master-port 29501",
                                  "--distributed-executor-backend mp",
                                  "--disable-custom-all-reduce",
                                  "--block-size 16",
                                  "--gpu-memory-utilization 0.9",
                                  "--kv-cache-memory-bytes 1G",
                                  "--swap-space 4",
                                  "--cpu-offload-gb 0",
                                  "--kv-cache-dtype fp8",
                                  "--calculate-kv-scales",
                                  "--num-gpu-blocks-override 100",
                                  "--enable-prefix-caching",
                                  "--no-enable-prefix-caching",
                                  "--prefix-caching-hash-algo sha256",
                                  "--kv-offloading-size 4",
                                  "--kv-offloading-backend native",
                                  "--max-num-seqs 512",
                                  "--max-num-batched-tokens 32768",
                                  "--enable-chunked-prefill",
                                  "--no-enable-chunked-prefill",
                                  "--max-num-partial-prefills 1",
                                  "--max-long-partial-prefills 1",
                                  "--long-prefill-token-threshold 0",
                                  "--scheduling-policy priority",
                                  "--async-scheduling",
                                  "--no-async-scheduling",
                                  "--stream-interval 1",
                                  "--compilation-config {\"mode\":3}",
                                  "--compilation-config.cudagraph_mode PIECEWISE",
                                  "-cc.cudagraph_mode=PIECEWISE",
                                  "-cc {}",
                                  "-cc.pass_config.fuse_minimax_qk_norm true",
                                  "-O 3",
                                  "-O3",
                                  "-O=3",
                                  "--optimization-level 2",
                                  "--attention-backend FLASHINFER",
                                  "--speculative-config {\"method\":\"ngram\"}",
                                  "--structured-outputs-config {}",
                                  "--structured-outputs-config.backend xgrammar",
                                  "--kv-transfer-config {}",
                                  "--enable-flashinfer-autotune",
                                  "--additional-config {}",
                                  "--enable-lora",
                                  "--moe-backend triton",
                                  "--shutdown-timeout 30",
                                  "--enable-offline-docs",
                                  "--reasoning-config {\"reasoning_start_str\":\"<think>\"}",
                                  "-dcp 1",
                                  "--dbo-decode-token-threshold 32",
                                  "--dbo-prefill-token-threshold 512",
                                  "--kv-events-config {\"enable_kv_cache_events\":true}",
                                  "--linear-backend auto",
                                  "--config /nowhere"};

TEST(ServeOptions, EveryFlagOfTheContractIsRead) {
  for (const std::string line : kFlags) {
    const Result<Values> values = parse("MODEL " + line);
    if (line.starts_with("--config ")) {
      EXPECT_NE(values.error().text.find("/nowhere"), std::string::npos);
      continue;
    }
    ASSERT_TRUE(values.ok()) << line << ": " << values.error().text;
    EXPECT_EQ(values->positionals(), std::vector<std::string>{"MODEL"}) << line;
  }
}

// The guide's and the newer recipes' launch lines, without the shell's quotes.
constexpr const char* kLaunches[] = {
    "MiniMaxAI/MiniMax-M2.5 --tensor-parallel-size 4 --tool-call-parser minimax_m2 "
    "--reasoning-parser minimax_m2_append_think --enable-auto-tool-choice --trust-remote-code",
    "MiniMaxAI/MiniMax-M2.5 --tensor-parallel-size 4 --tool-call-parser minimax_m2 "
    "--reasoning-parser minimax_m2_append_think --enable-auto-tool-choice",
    "MiniMaxAI/MiniMax-M2.5 --data-parallel-size 8 --enable-expert-parallel --tool-call-parser "
    "minimax_m2 --reasoning-parser minimax_m2_append_think --enable-auto-tool-choice",
    "MiniMaxAI/MiniMax-M2.5 --tensor-parallel-size 8 --enable-expert-parallel --tool-call-parser "
    "minimax_m2 --reasoning-parser minimax_m2_append_think --enable-auto-tool-choice",
    "MiniMaxAI/MiniMax-M2.5 --tensor-parallel-size 4 --tool-call-parser minimax_m2 "
    "--reasoning-parser minimax_m2_append_think --enable-auto-tool-choice --compilation-config "
    "{\"cudagraph_mode\":\"PIECEWISE\"}",
    "MiniMaxAI/MiniMax-M2.5 --tensor-parallel-size 4 --tool-call-parser minimax_m2 "
    "--reasoning-parser minimax_m2 --enable-auto-tool-choice",
    "MiniMaxAI/MiniMax-M2.7 --tensor-parallel-size 4 --enable-expert-parallel --reasoning-parser "
    "minimax_m2 --tool-call-parser minimax_m2 --enable-auto-tool-choice --compilation-config "
    "{\"mode\":3,\"pass_config\":{\"fuse_minimax_qk_norm\":true}} --max-num-seqs 512 "
    "--max-num-batched-tokens 32768 --kv-cache-dtype fp8 --moe-backend triton "
    "--attention-backend FLASHINFER",
    "MiniMaxAI/MiniMax-M2.5 --tensor-parallel-size 4 --max-num-seqs 512 --max-num-batched-tokens "
    "32768 --kv-cache-dtype fp8 --moe-backend triton --attention-backend FLASHINFER "
    "--enable-flashinfer-autotune --tool-call-parser minimax_m2 --reasoning-parser minimax_m2 "
    "--compilation-config {\"cudagraph_mode\":\"PIECEWISE\"} --enable-auto-tool-choice "
    "--trust-remote-code --load-format fastsafetensors --hf-token"};

TEST(ServeOptions, TheGuidesLaunchLinesAreRead) {
  for (const std::string line : kLaunches) {
    const Result<Values> values = parse(line);
    ASSERT_TRUE(values.ok()) << line << ": " << values.error().text;
    EXPECT_EQ(values->positionals().size(), 1u) << line;
    EXPECT_TRUE(values->flag("enable-auto-tool-choice"));
  }
  EXPECT_EQ(parse(kLaunches[4])->json("compilation-config")["cudagraph_mode"], "PIECEWISE");
}

TEST(ServeOptions, SpellingsOfTheFamily) {
  EXPECT_EQ(parse("M --max_num_seqs 1k")->integer("max-num-seqs"), 1000);
  EXPECT_EQ(parse("M --max-num-s 1K")->integer("max-num-seqs"), 1024);
  EXPECT_EQ(parse("M --max-queue 7")->integer("max-queued-requests"), 7);
  EXPECT_EQ(parse("M --max-model-len auto")->integer("max-model-len"), -1);
  EXPECT_EQ(parse("M -O3")->integer("optimization-level"), 3);
  EXPECT_FALSE(parse("M --no-enable-prefix-caching")->flag("enable-prefix-caching"));
  const std::vector<std::string> origins = {"a", "b", "c"};
  EXPECT_EQ(parse("M --allowed-origins [\"a\",\"b\"] c")->list("allowed-origins"), origins);
  const Result<Values> both = parse("M --enable-l");
  ASSERT_FALSE(both.ok());
  EXPECT_NE(both.error().text.find("--enable-log-requests"), std::string::npos);
}

// vLLM's --hf-token may stand alone: then the token that is logged in is meant.
TEST(ServeOptions, AnOptionWhoseValueMayBeLeftOut) {
  for (const char* line : {"M --hf-token", "M --hf-token --port 1"}) {
    const auto values = parse(line);
    ASSERT_TRUE(values.ok()) << values.error().text;
    EXPECT_TRUE(values->given("hf-token"));
    EXPECT_EQ(values->positionals(), std::vector<std::string>{"M"});
  }
  EXPECT_EQ(parse("M --hf-token abc")->text("hf-token"), "abc");
  EXPECT_EQ(parse("M --hf-token=abc")->text("hf-token"), "abc");
  EXPECT_FALSE(parse("M --download-dir").ok());
  EXPECT_EQ(parse("M --download-dir --port")->text("download-dir"), "--port");
}

TEST(ServeOptions, HowLongADrainTakesHasVllmsNameToo) {
  const auto drain = [](const std::string& line) {
    return server_options(*parse(line), ModelSettings{})->drain_seconds;
  };
  EXPECT_EQ(drain("M"), 60);
  EXPECT_EQ(drain("M --drain-seconds 7"), 7);
  EXPECT_EQ(drain("M --shutdown-timeout 9"), 9);
  EXPECT_FALSE(check_serve_values(*parse("M --shutdown-timeout -1")).ok());
}

TEST(ServeOptions, TheTableIsSound) {
  std::set<std::string> seen;
  std::string_view group;
  std::set<std::string_view> groups;
  for (const Option& option : serve_options()) {
    EXPECT_TRUE(seen.insert("--" + std::string(option.name)).second) << option.name;
    EXPECT_TRUE(option.help.ends_with('.')) << option.name;
    std::string name;
    for (const char c : std::string(option.shorts) + " ") {
      if (c != ' ') {
        name += c;
      } else if (!name.empty()) {
        EXPECT_TRUE(seen.insert(name).second) << name;
        name.clear();
      }
    }
    if (option.group != group) {
      EXPECT_TRUE(groups.insert(option.group).second) << option.name;
    }
    group = option.group;
  }
  const std::string help = help_text(serve_command(), "Cache");
  EXPECT_NE(help.find("--block-size"), std::string::npos);
  EXPECT_EQ(help.find("--host"), std::string::npos);
  EXPECT_NE(help_text(serve_command(), "chunked").find("--enable-chunked-prefill"),
            std::string::npos);
}

// contract.md 5.2.
TEST(Environment, EverySwitchOfTheContractIsKnown) {
  constexpr const char* kNames[] = {"VLLM_API_KEY",
                                    "VLLM_LOGGING_LEVEL",
                                    "VLLM_CONFIGURE_LOGGING",
                                    "VLLM_LOG_STATS_INTERVAL",
                                    "VLLM_ENGINE_READY_TIMEOUT_S",
                                    "VLLM_ALLOW_LONG_MAX_MODEL_LEN",
                                    "VLLM_USE_MODELSCOPE",
                                    "VLLM_CACHE_ROOT",
                                    "VLLM_HTTP_TIMEOUT_KEEP_ALIVE",
                                    "VLLM_SERVER_DEV_MODE",
                                    "VLLM_ENABLE_RESPONSES_API_STORE",
                                    "VLLM_ALLOW_RUNTIME_LORA_UPDATING",
                                    "VLLM_FUSED_MOE_CHUNK_SIZE",
                                    "VLLM_MOE_DP_CHUNK_SIZE",
                                    "VLLM_FLOAT32_MATMUL_PRECISION",
                                    "VLLM_USE_FLASHINFER_SAMPLER",
                                    "VLLM_ENFORCE_STRICT_TOOL_CALLING",
                                    "VLLM_USE_RUST_FRONTEND",
                                    "VLLM_USE_FLASHINFER_MOE_FP8",
                                    "VLLM_USE_DEEP_GEMM",
                                    "VLLM_MOE_USE_DEEP_GEMM",
                                    "VLLM_USE_DEEP_GEMM_E8M0",
                                    "VLLM_DEEP_GEMM_WARMUP",
                                    "VLLM_BLOCKSCALE_FP8_GEMM_FLASHINFER"};
  for (const std::string name : kNames) {
    const std::string entry = name + "=1";
    const char* variables[] = {"PATH=/bin", entry.c_str(), nullptr};
    for (const std::string& note : notes_on_environment(variables, serve_options())) {
      EXPECT_TRUE(note.starts_with(name + " has no effect here: ")) << note;
    }
  }
  const char* others[] = {"VLLM_NONSENSE=1", nullptr};
  const auto notes = notes_on_environment(others, serve_options());
  ASSERT_EQ(notes.size(), 1u);
  EXPECT_EQ(notes[0], "VLLM_NONSENSE is not known here and has no effect");
}

TEST(Environment, OptionsWithoutEffectAreNamed) {
  const auto values = parse("M --trust-remote-code --max-num-seqs 4");
  const auto notes = notes_on_options(*values, serve_options());
  ASSERT_EQ(notes.size(), 1u);
  EXPECT_EQ(notes[0], "--trust-remote-code has no effect here: nothing remote is ever run");
}

}  // namespace
}  // namespace m2::app::test
