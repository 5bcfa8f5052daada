#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/clock.h"
#include "base/json.h"
#include "engine/engines.h"
#include "model/config.h"
#include "server/limits.h"
#include "server/tls.h"
#include "text/chat_template.h"
#include "text/output_reader.h"
#include "text/tokenizer.h"

namespace m2::server {

using model::GenerationDefaults;

enum class LateSystem { fold, drop };
// How contents reach the template: as sent; as one string; as a list of parts.
enum class ContentFormat { as_sent, string, parts };

// Who may read replies from another origin's page; "*" stands for all.
struct Cors {
  std::vector<std::string> origins = {"*"}, methods = {"*"}, headers = {"*"};
  bool credentials = false;
};

// How the server is reached and how it speaks (contract.md 5.1, groups server and chat).
struct ServerOptions {
  std::string host = "0.0.0.0";
  int port = 8000;  // 0: any free one
  std::string uds;  // a Unix socket's path instead of host and port
  TlsOptions tls;
  std::string root_path;  // a proxy's prefix, taken off paths that begin with it
  Cors cors;
  std::vector<std::string> api_keys;
  bool isolate_api_keys = true;  // what one key's requests leave behind, no other key's find
  std::vector<std::string> served_model_names;  // at least one; the first is used in replies
  int64_t first_engine = 0;                     // data rank of the first engine behind this port
  std::string version = "0";
  int io_threads = 2;
  size_t few_connections = 128;  // an io thread gets so many before another gets any
  int worker_threads = 2;        // for templates, tokens and JSON of requests
  bool handle_signals = true;    // SIGINT, SIGTERM: drain; a second: wait no longer; a third: stop
  double drain_seconds = 60;
  double engine_deadline_seconds = 10;  // a longer silence of the engine is unreadiness
  double live_deadline_seconds = 120;   // a longer one still: the process is better restarted
  bool access_log = true;
  std::vector<std::string> unlogged_paths;  // left out of the access log
  bool openapi = true;                      // serve /openapi.json
  bool log_requests = false;
  bool priority_scheduling = false;  // else `priority` has no effect, which is said once
  bool enable_request_id_headers = false;
  // For measurements: told, on the io threads, of the bytes that the kernel has just taken for a
  // client, and when.
  std::function<void(std::string_view bytes, Nanos now)> on_sent;

  text::ReasoningParser reasoning_parser = text::ReasoningParser::minimax_m2;
  text::ToolCallParser tool_call_parser = text::ToolCallParser::minimax_m2;
  bool enable_auto_tool_choice = true;
  bool constrain_auto_tools = true;  // else tool_choice auto leaves calls as the model writes them
  bool exclude_tools_when_tool_choice_none = false;
  std::string response_role = "assistant";
  bool trust_request_chat_template = false;
  Json default_chat_template_kwargs = Json::object();
  LateSystem late_system = LateSystem::fold;
  ContentFormat content_format = ContentFormat::as_sent;
  bool return_tokens_as_token_ids = false;
  bool enable_prompt_tokens_details = false;
  bool enable_force_include_usage = false;
  bool enable_tokenizer_info_endpoint = false;
  bool keep_turns = true;        // for reasoning that clients drop and tokens they do not know
  bool store_responses = false;  // /v1/responses keeps what `store` asks to

  int64_t max_logprobs = 20;
  int64_t stream_interval = 1;  // tokens a chunk, after the first
  model::GenerationDefaults
      generation_defaults;  // contract.md 4.5; eos_token_ids are not read here
  Limits limits;
};

class Grammars;  // server/constraint.h

// What answers need once the model is there.
struct ModelServices {
  std::shared_ptr<const text::Tokenizer> tokenizer;
  std::shared_ptr<const text::ChatTemplate> chat_template;  // null: no chat
  std::string chat_template_source;                         // for /tokenizer_info
  engine::Engines* engine = nullptr;                        // outlives the server's threads
  int64_t max_model_len = 0;
  int64_t vocab_size = 0;               // columns of the logits
  int64_t max_token_bytes = INT32_MAX;  // of one token: a longer prompt cannot be that few tokens
  std::string eos_token;                // for /tokenizer_info
  std::vector<text::TokenId> eos_token_ids;
  std::shared_ptr<Grammars> grammars;  // made by Context; null: the vocabulary has none
};

}  // namespace m2::server
