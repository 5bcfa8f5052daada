#include "server/plan.h"

#include <algorithm>
#include <chrono>

#include "base/log.h"
#include "server/constraint.h"
#include "server/conversation.h"
#include "server/ids.h"
#include "server/sampling.h"

namespace m2::server {
namespace {

using Prompts = std::vector<std::shared_ptr<const std::vector<engine::TokenId>>>;

bool is_plain(const std::string& id) {
  return !id.empty() &&
         std::all_of(id.begin(), id.end(), [](char c) { return c > ' ' && c < 0x7f; });
}

// A client's id becomes part of ours as text; nothing is ever looked up by it.
api::ReplyHead reply_head(const char* prefix, const HttpRequest& request,
                          const api::GenerationFields& fields, const ServerOptions& options) {
  const auto usable = [&](const std::string& id) {
    return is_plain(id) && id.size() <= options.limits.max_request_id;
  };
  std::string id = request.request_id;
  if (!usable(id)) id = fields.request_id.value_or("");
  if (!usable(id)) id = random_hex();
  return {prefix + id, unix_seconds(), options.served_model_names.front()};
}

AnswerSetup answer_setup(api::ReplyHead head, const api::GenerationFields& fields, Prompts prompts,
                         const ServerOptions& options, const ModelServices& model) {
  AnswerSetup setup;
  setup.head = std::move(head);
  setup.tokenizer = model.tokenizer;
  setup.prompts = std::move(prompts);
  setup.n = fields.n;
  setup.stream = fields.stream;
  setup.include_usage = fields.include_usage() || options.enable_force_include_usage;
  setup.continuous_usage = fields.continuous_usage();
  setup.prompt_tokens_details = options.enable_prompt_tokens_details;
  setup.tokens_as_ids =
      fields.return_tokens_as_token_ids.value_or(options.return_tokens_as_token_ids);
  setup.return_token_ids = fields.return_token_ids;
  setup.prompt_logprobs = fields.prompt_logprobs.value_or(-1);
  return setup;
}

// Requests with different salts share no blocks. A client's own salt holds no '/'.
std::string cache_salt(const std::string& tenant, const api::GenerationFields& fields) {
  const std::string salt = fields.cache_salt.value_or("");
  return tenant.empty() ? salt : tenant + "/" + salt;
}

// One engine request per choice, each with its own seed.
Result<std::vector<engine::Request>> engine_requests(
    const std::string& tenant, const api::GenerationFields& fields,
    const engine::SamplingParams& params, const AskedLength& asked, const Prompts& prompts,
    const std::optional<text::OutputShape>& shape, Context& context) {
  const ModelServices& model = *context.services();
  if (fields.priority != 0 && !context.options().priority_scheduling)
    context.say_once("priority is ignored under --scheduling-policy fcfs");
  std::vector<engine::Request> out;
  for (const auto& prompt : prompts) {
    M2_TRY(const int64_t limit,
           output_limit(asked, fields.min_tokens, prompt->size(), context.options(), model));
    for (int64_t i = 0; i < fields.n; ++i) {
      engine::Request request;
      request.prompt = *prompt;
      request.params = params;
      request.params.max_tokens = limit;
      const bool in_reasoning = ends_in_reasoning(*prompt, *model.tokenizer);
      if (in_reasoning) set_thinking_budget(fields, *model.tokenizer, request.params);
      if (shape) request.constraint = make_constraint(*shape, in_reasoning, context);
      if (params.seed) request.params.seed = *params.seed + static_cast<uint64_t>(i);
      request.priority =
          static_cast<int32_t>(std::clamp<int64_t>(fields.priority, INT32_MIN, INT32_MAX));
      request.cache_salt = cache_salt(tenant, fields);
      out.push_back(std::move(request));
    }
  }
  return out;
}

Plan plan_of(const api::GenerationFields& fields, std::vector<engine::Request> requests,
             std::unique_ptr<Answer> answer, const ServerOptions& options) {
  Plan plan;
  plan.requests = std::move(requests);
  plan.answer = std::move(answer);
  plan.n = fields.n;
  plan.stream = fields.stream;
  plan.stream_interval = fields.stream_interval.value_or(options.stream_interval);
  plan.stop = fields.stop;
  plan.include_stop = fields.include_stop_str_in_output;
  plan.min_tokens = fields.min_tokens;
  plan.skip_special_tokens = fields.skip_special_tokens;
  return plan;
}

// ---- chat

Result<void> check_tool_choice(const api::ToolChoice& choice, const ServerOptions& options) {
  using Kind = api::ToolChoice::Kind;
  const bool parses = options.tool_call_parser != text::ToolCallParser::none;
  if (choice.kind == Kind::automatic && !(parses && options.enable_auto_tool_choice))
    return Error{Code::invalid_argument,
                 "\"auto\" tool choice requires --enable-auto-tool-choice and --tool-call-parser "
                 "to be set",
                 "tool_choice"};
  if ((choice.kind == Kind::required || choice.kind == Kind::named) && !parses)
    return Error{Code::invalid_argument,
                 fmt::format("tool_choice=\"{}\" requires --tool-call-parser to be set",
                             choice.kind == Kind::required ? "required" : choice.name),
                 "tool_choice"};
  return {};
}

// Tools stand in the prompt under tool_choice none, too, so that a conversation's beginning stays
// as it is. The model is kept from calling them by what it may write.
Result<void> forbid_calls(const api::ChatRequest& request, const ServerOptions& options,
                          const ModelServices& model, engine::SamplingParams& params) {
  if (request.tools.empty() || request.tool_choice.kind != api::ToolChoice::Kind::none ||
      options.tool_call_parser == text::ToolCallParser::none)
    return {};
  for (const char* tag : {"<minimax:tool_call>", "</minimax:tool_call>"})
    M2_TRY_VOID(forbid_token(model.tokenizer->id_of(tag), model, params));
  return {};
}

ChatAnswerSetup chat_answer_setup(const api::ChatRequest& request, const ChatPrompt& prompt,
                                  Context& context) {
  const ServerOptions& options = context.options();
  ChatAnswerSetup setup;
  const bool opens_turn = request.add_generation_prompt.value_or(!request.continue_final_message);
  setup.role = opens_turn ? options.response_role : request.messages.back().role;
  if (request.echo && request.messages.back().role == setup.role)
    setup.echo = content_text(request.messages.back());
  setup.turn.reader.reasoning = options.reasoning_parser;
  setup.turn.reader.tools = options.tool_call_parser;
  setup.turn.reader.tool_schemas = request.tools;
  setup.turn.reader.starts_in_reasoning = prompt.ends_in_reasoning;
  setup.turn.reader.parallel_tool_calls = request.parallel_tool_calls;
  if (opens_turn) setup.turn.store = context.turns();
  setup.turn.opening = prompt.opening;
  setup.tool_choice = request.tool_choice.kind;
  setup.include_reasoning = request.include_reasoning;
  setup.logprobs = request.logprobs;
  return setup;
}

AskedLength asked_length(const api::ChatRequest& request) {
  if (request.max_completion_tokens)
    return {request.max_completion_tokens, "max_completion_tokens"};
  return {request.max_tokens, request.max_tokens_field, request.max_tokens_at_most};
}

Result<Plan> make_chat_plan(const HttpRequest& http, const api::ChatRequest& request,
                            Context& context) {
  return plan_conversation(
      http, request, reply_head("chatcmpl-", http, request, context.options()), nullptr, context,
      [](AnswerSetup setup, ChatAnswerSetup chat, const engine::SamplingParams&) {
        return make_chat_answer(std::move(setup), std::move(chat));
      });
}

// ---- text completions

constexpr int64_t kDefaultMaxTokens = 16;

Result<std::vector<engine::TokenId>> prompt_ids(const api::CompletionPrompt& prompt,
                                                const api::CompletionRequest& request,
                                                const AskedLength& asked,
                                                const ModelServices& model) {
  if (const auto* ids = std::get_if<std::vector<int64_t>>(&prompt)) return checked_ids(*ids, model);
  const std::string& text = std::get<std::string>(prompt);
  const std::string_view whole = text;
  M2_TRY_VOID(check_text_length({&whole, 1}, request, asked, model));
  // The whole text is the client's own: control tokens in it are meant.
  return model.tokenizer->encode(text, text::AddedTokens::all);
}

// Prompts encoded and cut; with echo also as text.
Result<Prompts> completion_prompts(const api::CompletionRequest& request, const AskedLength& asked,
                                   const ModelServices& model, TextAnswerSetup& setup) {
  Prompts prompts;
  for (const api::CompletionPrompt& sent : request.prompts) {
    M2_TRY(auto ids, prompt_ids(sent, request, asked, model));
    M2_TRY_VOID(truncate_prompt(request, asked, model, ids));
    if (request.echo) {
      const auto* text = std::get_if<std::string>(&sent);
      setup.echo.push_back(text ? *text : model.tokenizer->decode(ids, false));
    }
    prompts.push_back(std::make_shared<const std::vector<engine::TokenId>>(std::move(ids)));
  }
  return prompts;
}

Result<void> check_fan_out(const api::CompletionRequest& request, const Limits& limits) {
  if (request.has_suffix)
    return Error{Code::invalid_argument, "suffix is not currently supported", "suffix"};
  const auto prompts = static_cast<int64_t>(request.prompts.size());
  // Each alone first: their product need not be a number.
  if (prompts > limits.max_sequences || request.n > limits.max_sequences ||
      prompts * std::max<int64_t>(request.n, 1) > limits.max_sequences)
    return Error{
        Code::invalid_argument,
        fmt::format("{} prompts with n={} were sent, at most {} choices in all are allowed",
                    prompts, request.n, limits.max_sequences),
        "prompt"};
  return {};
}

Result<Plan> make_completion_plan(const HttpRequest& http, const api::CompletionRequest& request,
                                  Context& context) {
  const ServerOptions& options = context.options();
  const ModelServices& model = *context.services();
  M2_TRY_VOID(check_model(request.model, options));
  M2_TRY_VOID(check_fan_out(request, options.limits));
  TextAnswerSetup text;
  text.logprobs = request.logprobs;
  text.only_echo = request.echo && request.max_tokens == 0;
  LogprobsWanted logprobs{request.logprobs, request.prompt_logprobs};
  if (request.echo && request.logprobs && !logprobs.prompt) logprobs.prompt = request.logprobs;
  M2_TRY(const engine::SamplingParams params, sampling_params(request, logprobs, options, model));
  // The engine makes at least one token; with max_tokens 0 nobody sees it.
  AskedLength asked{text.only_echo ? 1 : request.max_tokens.value_or(kDefaultMaxTokens)};
  M2_TRY_VOID(check_asked_length(asked, model));

  M2_TRY(const Prompts prompts, completion_prompts(request, asked, model, text));
  ConstraintAsked constraint;
  constraint.response_format = request.response_format;
  constraint.structured_outputs = request.structured_outputs;
  constraint.reads_tags = false;
  M2_TRY(const auto shape, output_shape(constraint, context));
  M2_TRY(auto requests,
         engine_requests(http.tenant, request, params, asked, prompts, shape, context));
  auto answer = make_text_answer(
      answer_setup(reply_head("cmpl-", http, request, options), request, prompts, options, model),
      std::move(text));
  return plan_of(request, std::move(requests), std::move(answer), options);
}

bool is_json(const std::string& content_type) {
  std::string type = content_type.substr(0, content_type.find(';'));
  while (!type.empty() && type.back() == ' ') type.pop_back();
  std::transform(type.begin(), type.end(), type.begin(),
                 [](char c) { return c >= 'A' && c <= 'Z' ? static_cast<char>(c + 32) : c; });
  return type == "application/json";
}

}  // namespace

Result<ChatPrompt> prompt_of(const HttpRequest& http, const api::ChatRequest& request,
                             Context& context) {
  const ServerOptions& options = context.options();
  const ModelServices& model = *context.services();
  const bool no_tools = request.tool_choice.kind == api::ToolChoice::Kind::none &&
                        options.exclude_tools_when_tool_choice_none;
  const Json none = Json::array();
  M2_TRY(
      const ChatText text,
      chat_text({request.messages, no_tools ? none : request.tools, request.add_generation_prompt,
                 request.continue_final_message, request.chat_template,
                 request.chat_template_kwargs, request.documents, request.thinking},
                options, model, {context.turns(), http.tenant}));
  const std::vector<std::string_view> texts = [&] {
    std::vector<std::string_view> out;
    for (const text::TextPiece& piece : text.pieces) out.push_back(piece.text);
    return out;
  }();
  M2_TRY_VOID(check_text_length(texts, request, asked_length(request), model));
  return encode_prompt(text, model);
}

namespace {

// Whether the context ends before as many tokens as were asked for.
bool bound_by_context(const engine::Request& request, const AskedLength& asked,
                      const ModelServices& model) {
  const int64_t limit = request.params.max_tokens;
  return limit < asked.max_tokens.value_or(0) &&
         limit + static_cast<int64_t>(request.prompt.size()) == model.max_model_len;
}

}  // namespace

Result<Plan> plan_conversation(const HttpRequest& http, const api::ChatRequest& request,
                               api::ReplyHead head, std::string (*make_call_id)(), Context& context,
                               const MakeChatAnswer& make_answer) {
  const ServerOptions& options = context.options();
  const ModelServices& model = *context.services();
  M2_TRY_VOID(check_model(request.model, options));
  M2_TRY_VOID(check_tool_choice(request.tool_choice, options));
  LogprobsWanted logprobs;
  if (request.logprobs) logprobs.sample = request.top_logprobs;
  logprobs.prompt = request.prompt_logprobs;
  M2_TRY(engine::SamplingParams params, sampling_params(request, logprobs, options, model));
  M2_TRY_VOID(forbid_calls(request, options, model, params));
  const AskedLength asked = asked_length(request);
  M2_TRY_VOID(check_asked_length(asked, model));

  M2_TRY(ChatPrompt prompt, prompt_of(http, request, context));
  M2_TRY_VOID(truncate_prompt(request, asked, model, prompt.ids));
  const Prompts prompts = {
      std::make_shared<const std::vector<engine::TokenId>>(std::move(prompt.ids))};
  M2_TRY(const auto shape, output_shape({request.response_format, request.structured_outputs,
                                         api::callable_tools(request.tools, request.tool_choice),
                                         request.tool_choice, request.parallel_tool_calls},
                                        context));
  M2_TRY(auto requests,
         engine_requests(http.tenant, request, params, asked, prompts, shape, context));
  ChatAnswerSetup chat = chat_answer_setup(request, prompt, context);
  chat.turn.tenant = http.tenant;
  chat.turn.make_call_id = make_call_id;
  chat.context_bound = bound_by_context(requests.front(), asked, model);
  Plan plan = plan_of(request, std::move(requests),
                      make_answer(answer_setup(std::move(head), request, prompts, options, model),
                                  std::move(chat), params),
                      options);
  if (prompt.restored > 0)
    plan.headers.emplace_back("x-m2-reasoning-restored", std::to_string(prompt.restored));
  return plan;
}

void log_plan(const Plan& plan) {
  const engine::Request& first = plan.requests.front();
  const engine::SamplingParams& params = first.params;
  log_info(
      "request: {} choices, prompt {} tokens, max_tokens {}, temperature {}, top_p {}, top_k "
      "{}, stream {}",
      plan.requests.size(), first.prompt.size(), params.max_tokens, params.temperature,
      params.top_p, params.top_k, plan.stream);
}

int64_t unix_seconds() {
  return std::chrono::duration_cast<std::chrono::seconds>(
             std::chrono::system_clock::now().time_since_epoch())
      .count();
}

api::ApiError request_error(Error error) {
  if (error.code == Code::resource_exhausted) error.code = Code::invalid_argument;
  return api::serving_error(error);
}

Result<Json> json_body(const HttpRequest& request, const Limits& limits) {
  if (!is_json(request.content_type))
    return Error{
        Code::invalid_argument, "Unsupported Media Type: Only 'application/json' is allowed", {}};
  if (!request.content_encoding.empty() && request.content_encoding != "identity")
    return Error{Code::invalid_argument, "Content-Encoding of requests is not supported", {}};
  JsonLimits json;
  json.max_bytes = limits.max_body;
  json.max_depth = limits.max_json_depth;
  json.max_nodes = limits.max_json_nodes;
  return parse_json(request.body, json);
}

Result<void> check_model(const std::optional<std::string>& name, const ServerOptions& options) {
  const auto& served = options.served_model_names;
  if (!name || std::find(served.begin(), served.end(), *name) != served.end()) return {};
  return Error{Code::not_found, fmt::format("The model `{}` does not exist.", printable(*name)),
               "model"};
}

Planned plan_chat(const HttpRequest& request, Context& context) {
  return plan_with(request, context, api::chat_request_from_json, make_chat_plan);
}

Planned plan_completion(const HttpRequest& request, Context& context) {
  return plan_with(request, context, api::completion_request_from_json, make_completion_plan);
}

Planned plan_invocation(const HttpRequest& request, Context& context) {
  const auto body = json_body(request, context.limits());
  const bool chats = body && body->is_object() && body->contains("messages");
  return chats ? plan_chat(request, context) : plan_completion(request, context);
}

}  // namespace m2::server
