#include "app/serve_options.h"

namespace m2::app {
namespace {

using enum OptionKind;

// clang-format off
constexpr Option kOptions[] = {
  // server
  {"host", "", "server", text, "0.0.0.0", "Address to listen on."},
  {"port", "", "server", integer, "8000", "Port to listen on; 0 takes a free one and prints it."},
  {"uds", "", "server", text, "", "Listen on this unix socket instead."},
  {"api-key", "", "server", list, "", "Keys that /v1 routes ask for as Authorization: Bearer KEY.", "VLLM_API_KEY"},
  {"isolate-api-keys", "", "server", flag, "true", "With several keys: what one key's requests leave behind (cached prompts, remembered turns, stored responses), no other key's find."},
  {"ssl-certfile", "", "server", text, "", "Serve HTTPS with this certificate and its chain (PEM)."},
  {"ssl-keyfile", "", "server", text, "", "Its key, if not in the same file."},
  {"ssl-ca-certs", "", "server", text, "", "Who signs the certificates of clients (PEM)."},
  {"ssl-cert-reqs", "", "server", integer, "0", "Certificates of clients: 0 not asked for, 1 checked if sent, 2 required."},
  {"ssl-ciphers", "", "server", text, "", "Ciphers of TLS 1.2, in OpenSSL's notation."},
  {"enable-ssl-refresh", "", "server", flag, "false", "Read the certificate's files again when they change."},
  {"allow-credentials", "", "server", flag, "false", "CORS: browsers may send credentials."},
  {"allowed-origins", "", "server", list, "*", "CORS: origins whose pages may read replies, as words or a JSON list."},
  {"allowed-methods", "", "server", list, "*", "CORS: methods."},
  {"allowed-headers", "", "server", list, "*", "CORS: request headers."},
  {"root-path", "", "server", text, "", "A proxy's prefix: paths are served with it and without."},
  {"uvicorn-log-level", "", "server", text, "info", "Log level, where VLLM_LOGGING_LEVEL does not set one."},
  {"disable-uvicorn-access-log", "", "server", flag, "false", "No line per request in the log."},
  {"disable-access-log-for-endpoints", "", "server", text, "", "Paths left out of the access log, separated by commas."},
  {"log-config-file", "", "server", text, "", "Accepted; there is one log, on standard error.", "VLLM_LOGGING_CONFIG_PATH"},
  {"middleware", "", "server", list, "", "Accepted; no Python runs here."},
  {"headless", "", "server", flag, "false", "Serve no HTTP: the engines of this process are served by the process that holds engine 0."},
  {"keep-alive-seconds", "", "server", integer, "60", "How long a connection may wait for its next request.", "VLLM_HTTP_TIMEOUT_KEEP_ALIVE"},
  {"enable-request-id-headers", "", "server", flag, "false", "Echo X-Request-Id in replies."},
  {"enable-server-load-tracking", "", "server", flag, "false", "Accepted; /load is always answered."},
  {"disable-fastapi-docs", "", "server", flag, "false", "Do not serve /openapi.json."},
  {"disable-frontend-multiprocessing", "", "server", flag, "false", "Accepted; the server is one process."},
  {"api-server-count", "-asc", "server", integer, "1", "Accepted; threads serve all connections."},
  {"h11-max-incomplete-event-size", "", "server", integer, "32K", "Most bytes of a request's header, one line or all."},
  {"h11-max-header-count", "", "server", integer, "100", "Most header lines of a request."},
  {"max-log-len", "", "server", integer, "", "Accepted; prompts are not logged."},
  {"enable-log-requests", "", "server", flag, "false", "Log each request's parameters (never its text)."},
  {"enable-log-outputs", "", "server", flag, "false", "Accepted with --enable-log-requests; outputs are not logged."},
  {"disable-log-stats", "", "server", flag, "false", "No statistics line every 10 seconds."},
  {"io-threads", "", "server", integer, "2", "Threads that read requests and write streams; a second one works from 129 connections on."},
  {"drain-seconds", "", "server", integer, "60", "How long SIGTERM waits for requests in flight."},
  {"engine-deadline-seconds", "", "server", integer, "10", "A step that takes longer makes /health and /readyz answer 503; raise it for very slow machines."},
  {"live-deadline-seconds", "", "server", integer, "120", "A step that takes longer makes /livez answer 503."},
  {"max-queued-requests", "", "server", integer, "1024", "Waiting requests; more are answered 429."},

  // chat and tools
  {"chat-template", "", "chat, tools", text, "", "Chat template: a file, or the template itself."},
  {"chat-template-content-format", "", "chat, tools", text, "auto", "How contents reach the template: auto (as sent), string (parts joined by newlines), openai (a list of parts)."},
  {"trust-request-chat-template", "", "chat, tools", flag, "false", "Accept chat_template in requests."},
  {"default-chat-template-kwargs", "", "chat, tools", json, "", "chat_template_kwargs for requests that send none."},
  {"response-role", "", "chat, tools", text, "assistant", "Role of answers."},
  {"enable-auto-tool-choice", "", "chat, tools", flag, "true", "Let the model decide to call tools."},
  {"constrain-auto-tools", "", "chat, tools", flag, "true", "Hold calls under tool_choice auto to the declared tools and their schemas; without, they come as the model writes them.", "VLLM_ENFORCE_STRICT_TOOL_CALLING"},
  {"exclude-tools-when-tool-choice-none", "", "chat, tools", flag, "false", "Leave tools out of the prompt when tool_choice is none."},
  {"tool-call-parser", "", "chat, tools", text, "minimax_m2", "minimax_m2 or none."},
  {"tool-parser-plugin", "", "chat, tools", text, "", "Accepted; no Python runs here."},
  {"tool-server", "", "chat, tools", text, "", "Accepted; tools run at the client."},
  {"reasoning-parser", "", "chat, tools", text, "minimax_m2", "minimax_m2, minimax_m2_append_think or none."},
  {"reasoning-parser-plugin", "", "chat, tools", text, "", "Accepted; no Python runs here."},
  {"late-system", "", "chat, tools", text, "fold", "System messages in mid-conversation: fold (into the message before) or drop."},
  {"keep-turns", "", "chat, tools", flag, "true", "Remember turns that ended in tool calls (bounded): thinking that a client dropped comes back, and the next prompt extends the cache."},
  {"enable-responses-store", "", "chat, tools", flag, "false", "Keep /v1/responses (bounded) for retrieval, previous_response_id and background.", "VLLM_ENABLE_RESPONSES_API_STORE"},
  {"return-tokens-as-token-ids", "", "chat, tools", flag, "false", "Logprobs name tokens token_id:N."},
  {"enable-prompt-tokens-details", "", "chat, tools", flag, "false", "usage.prompt_tokens_details with cached_tokens."},
  {"enable-force-include-usage", "", "chat, tools", flag, "false", "Streams always end with usage."},
  {"enable-tokenizer-info-endpoint", "", "chat, tools", flag, "false", "Serve /tokenizer_info."},

  // model
  {"model", "", "model", text, "", "The model, for scripts that do not name it as an argument."},
  {"served-model-name", "", "model", list, "", "Names clients may use; the first stands in replies and metrics."},
  {"tokenizer", "", "model", text, "", "Folder with tokenizer.json, if not the model's."},
  {"tokenizer-mode", "", "model", text, "auto", "Accepted; there is one tokenizer."},
  {"trust-remote-code", "", "model", flag, "false", "Accepted; nothing remote is ever run."},
  {"dtype", "", "model", text, "auto", "auto or bfloat16; weights stay in the checkpoint's dtypes."},
  {"seed", "", "model", integer, "0", "Seed for requests without one."},
  {"max-model-len", "", "model", integer, "", "Longest sequence, prompt and output; -1 for the model's own."},
  {"quantization", "-q", "model", text, "", "fp8 or nothing; read from config.json."},
  {"e8m0-scales", "", "model", flag, "false", "Powers of two scale FP8, as DeepGEMM wants it: weights are requantised at start, and activations on GPUs scaled so. Off: the checkpoint's own scales, which are more exact.", "VLLM_USE_DEEP_GEMM_E8M0"},
  {"enforce-eager", "", "model", flag, "false", "No CUDA graphs; on the CPU nothing changes."},
  {"max-logprobs", "", "model", integer, "20", "Most logprobs a request may ask for."},
  {"logprobs-mode", "", "model", text, "raw_logprobs", "raw_logprobs, the only one so far."},
  {"revision", "", "model", text, "main", "Branch, tag or commit of a hub name."},
  {"code-revision", "", "model", text, "", "Accepted; no code is read from the model."},
  {"tokenizer-revision", "", "model", text, "", "Accepted; the tokenizer is read beside the weights."},
  {"hf-token", "", "model", text, "", "Accepted; nothing is downloaded while serving."},
  {"hf-overrides", "", "model", json, "", "Fields of config.json to replace."},
  {"hf-config-path", "", "model", text, "", "Accepted; config.json is read beside the weights."},
  {"config-format", "", "model", text, "auto", "Accepted; config.json has one form."},
  {"enable-sleep-mode", "", "model", flag, "false", "Accepted; there is no sleep mode."},
  {"skip-tokenizer-init", "", "model", flag, "false", "Accepted; the tokenizer is always read."},
  {"generation-config", "", "model", text, "auto", "auto (the model's own), vllm (none), or a folder."},
  {"override-generation-config", "", "model", json, "", "Fields of generation_config.json to replace."},
  {"disable-log-requests", "", "model", flag, "true", "Accepted; requests are not logged unless asked for."},

  // load
  {"load-format", "", "load", text, "auto", "auto, safetensors, or dummy (random weights of the config's shapes)."},
  {"download-dir", "", "load", text, "", "Hub cache to look in, instead of HF_HUB_CACHE or HF_HOME."},
  {"safetensors-load-strategy", "", "load", text, "lazy", "Accepted; weights are read in parallel, straight into place."},
  {"use-tqdm-on-load", "", "load", flag, "true", "Show a progress bar while loading."},
  {"ignore-patterns", "", "load", list, "", "Accepted; only the index's files are read."},
  {"model-loader-extra-config", "", "load", json, "", "Accepted; there is one loader."},

  // parallel
  {"tensor-parallel-size", "-tp", "parallel", integer, "1", "Ranks that split every layer."},
  {"pipeline-parallel-size", "-pp", "parallel", integer, "1", "1, the only one modelled."},
  {"data-parallel-size", "-dp", "parallel", integer, "1", "Engines, each with its own KV, in one process or several; they share the experts."},
  {"enable-expert-parallel", "-ep", "parallel", flag, "false", "Hold experts whole, shared out over all ranks, instead of a part of each."},
  {"all2all-backend", "", "parallel", text, "allgather_reducescatter", "How tokens of several engines reach their experts: allgather_reducescatter (or naive: all tokens to all ranks), or all_to_all (or pplx, deepep_*, mori, nixl_ep, flashinfer_*: tokens to the ranks of their experts)."},
  {"distributed-executor-backend", "", "parallel", text, "", "How ranks of several processes talk: mp (TCP, with --nnodes) or mpi (under mpirun, where it is the default)."},
  {"disable-custom-all-reduce", "", "parallel", flag, "false", "GPUs of one process: leave sums over ranks to NCCL, whose order of adding differs with the size of a step."},
  {"data-parallel-rank", "-dpn", "parallel", integer, "", "One process per engine, each with its own port: which engine this one holds."},
  {"data-parallel-start-rank", "-dpr", "parallel", integer, "", "The first engine of this process, of --data-parallel-size-local."},
  {"data-parallel-size-local", "-dpl", "parallel", integer, "", "How many of the engines this process holds; all by default. 0: it serves those that headless ones hold."},
  {"data-parallel-address", "-dpa", "parallel", text, "127.0.0.1", "Address on which the process that serves all, or engine 0, waits for the others."},
  {"data-parallel-rpc-port", "-dpp", "parallel", integer, "29550", "Port on which it waits until all have come."},
  {"data-parallel-backend", "-dpb", "parallel", text, "mp", "Accepted; processes are started by you, and meet over TCP."},
  {"data-parallel-hybrid-lb", "-dph", "parallel", flag, "false", "Every process serves its own --data-parallel-size-local engines on its own port."},
  {"data-parallel-external-lb", "-dpe", "parallel", flag, "false", "As --data-parallel-rank, which it needs, says alone."},
  {"enable-eplb", "", "parallel", flag, "false", "Accepted; experts stay where they are."},
  {"eplb-config", "", "parallel", json, "", "Accepted; experts stay where they are."},
  {"expert-placement-strategy", "", "parallel", text, "linear", "Which whole experts a rank holds: linear (a run of them) or round_robin."},
  {"enable-dbo", "", "parallel", flag, "false", "Accepted; batches are not split in two."},
  {"nnodes", "-n", "parallel", integer, "1", "Processes, on this or other machines, that share all ranks evenly."},
  {"node-rank", "-r", "parallel", integer, "0", "Which of them this is; 0 serves HTTP and waits for the others."},
  {"master-addr", "", "parallel", text, "127.0.0.1", "Address on which node rank 0 waits, and to which the others come."},
  {"master-port", "", "parallel", integer, "29501", "Port on which node rank 0 waits until all have come."},
  {"rank-deadline-seconds", "", "parallel", integer, "30", "How long a rank waits for one of another process in a step before it gives up."},
  {"rank-start-seconds", "", "parallel", integer, "600", "How long processes wait at start for each other: to come, and to have loaded their weights. GPUs then have this long for their first steps, two minutes at most."},

  // device
  {"device", "", "device", text, "auto", "auto (a GPU if one can be used), cpu, cuda or cuda:N; the ranks of a process take one GPU each (or --ranks-per-gpu share one), from N on."},
  {"cpu-isa", "", "device", text, "auto", "Instructions of operations on the CPU: amx (rounds the inputs of products to BF16), avx512, avx2, neon or baseline; auto takes the first there is."},
  {"threads", "", "device", integer, "0", "Threads of a step; 0: one per CPU this process may use."},

  {"ranks-per-gpu", "", "device", integer, "1", "How many ranks share a GPU, to try an arrangement on fewer GPUs than it is for: their collectives go through host memory, and nothing is captured in CUDA graphs."},

  // cache
  {"block-size", "", "cache", integer, "16", "Tokens of a KV block: 16, the only one."},
  {"gpu-memory-utilization", "", "cache", number, "0.9", "Share of the GPU's memory, or of the host's free memory, that may be used."},
  {"kv-cache-memory-bytes", "", "cache", integer, "", "Bytes of KV cache, instead of choosing."},
  {"kv-offloading-size", "", "cache", number, "", "Accepted; KV stays on its device."},
  {"kv-offloading-backend", "", "cache", text, "", "Accepted; KV stays on its device."},
  {"kv-cache-metrics", "", "cache", flag, "false", "Accepted; blocks are not timed."},
  {"swap-space", "", "cache", number, "4", "Accepted; preempted requests are computed anew."},
  {"cpu-offload-gb", "", "cache", number, "0", "Accepted; on the CPU nothing is offloaded."},
  {"kv-cache-dtype", "", "cache", text, "auto", "auto or bfloat16; fp8 or fp8_e4m3: half the bytes, scales from the checkpoint or 1."},
  {"calculate-kv-scales", "", "cache", flag, "false", "Accepted; scales of FP8 KV are the checkpoint's, or 1."},
  {"num-gpu-blocks-override", "", "cache", integer, "", "KV blocks, instead of choosing."},
  {"enable-prefix-caching", "", "cache", flag, "true", "Reuse the KV of equal prompt beginnings."},
  {"prefix-caching-hash-algo", "", "cache", text, "sha256", "Accepted; blocks are found by a 128-bit hash and compared token by token."},

  // scheduler
  {"max-num-seqs", "", "scheduler", integer, "", "Sequences running at once: 256; 1024 on GPUs of 70 GiB and more."},
  {"max-num-batched-tokens", "", "scheduler", integer, "", "Tokens of one step: 512 on the CPU, 2048 on GPUs, 8192 from 70 GiB on."},
  {"enable-chunked-prefill", "", "scheduler", flag, "true", "Split long prompts over steps."},
  {"max-num-partial-prefills", "", "scheduler", integer, "1", "Accepted; prompts share a step's tokens in order."},
  {"max-long-partial-prefills", "", "scheduler", integer, "1", "Accepted, as above."},
  {"long-prefill-token-threshold", "", "scheduler", integer, "0", "Most tokens of one prompt in a step; 0: the step's."},
  {"scheduling-policy", "", "scheduler", text, "fcfs", "fcfs or priority."},
  {"async-scheduling", "", "scheduler", flag, "true", "Accepted; on GPUs the next step is always planned while one runs."},
  {"stream-interval", "", "scheduler", integer, "1", "Tokens that a stream gathers before it sends them, after the first."},

  // execution
  {"compilation-config", "-cc", "execution", json, "", "cudagraph_mode (FULL, FULL_DECODE_ONLY, FULL_AND_PIECEWISE: decoding steps are graphs; NONE, PIECEWISE: none are), cudagraph_capture_sizes and max_cudagraph_capture_size count; the rest is accepted."},
  {"optimization-level", "-O", "execution", integer, "2", "0 and 1: no CUDA graphs, 2 and 3: whole decoding steps; nothing is compiled."},
  {"attention-backend", "", "execution", text, "", "Accepted; there is one attention per device."},
  {"moe-backend", "", "execution", text, "auto", "Accepted; there is one body of the experts per device."},
  {"structured-outputs-config", "", "execution", json, "", "Accepted; constrained output has one backend, xgrammar."},
  {"speculative-config", "", "execution", json, "", "{\"method\": \"ngram\"}: tokens that stood behind the last ones before, in the request's own text, are tried several a step, where that is worth it; outputs stay what they are. num_speculative_tokens (15, which is also the most a step takes), prompt_lookup_min (3) and prompt_lookup_max (32) count; no other method."},
  {"additional-config", "", "execution", json, "", "Accepted; nothing reads it."},
  {"kv-transfer-config", "", "execution", json, "", "Accepted; prefill and decode share one engine."},
  {"enable-flashinfer-autotune", "", "execution", flag, "false", "Accepted; nothing is tuned at start."},
  {"enable-lora", "", "execution", flag, "false", "Accepted; there is no LoRA."},
  {"lora-modules", "", "execution", list, "", "Accepted; there is no LoRA."},
  {"max-loras", "", "execution", integer, "", "Accepted; there is no LoRA."},
  {"max-lora-rank", "", "execution", integer, "", "Accepted; there is no LoRA."},
  {"profiler-config", "", "execution", json, "", "Accepted; there is no profiler to start."},

  {"config", "", "other", text, "", "YAML file of option: value lines; the command line wins."},
};
// clang-format on

}  // namespace

std::span<const Option> serve_options() {
  return kOptions;
}

}  // namespace m2::app
