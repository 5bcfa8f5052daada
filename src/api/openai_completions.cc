#include "api/openai_completions.h"

#include <algorithm>

#include "api/json_text.h"

namespace m2::api {
namespace {

Result<CompletionPrompt> prompt_from(const Json& value) {
  if (value.is_string()) return CompletionPrompt(value.get<std::string>());
  std::vector<int64_t> ids;
  if (!value.is_array() || !read_value(value, ids).ok())
    return invalid("prompt",
                   "prompt: Input should be a string, a list of strings, a list of token ids or a "
                   "list of lists of token ids");
  return CompletionPrompt(std::move(ids));
}

// A string, strings, ids, or lists of ids.
Result<void> read_prompts(const Json& value, std::vector<CompletionPrompt>& out) {
  const bool is_one = !value.is_array() || (!value.empty() && value.front().is_number());
  if (is_one) {
    M2_TRY(CompletionPrompt prompt, prompt_from(value));
    out.push_back(std::move(prompt));
    return {};
  }
  for (const Json& item : value) {
    M2_TRY(CompletionPrompt prompt, prompt_from(item));
    out.push_back(std::move(prompt));
  }
  return {};
}

const Fields<CompletionRequest>& completion_fields() {
  static const Fields<CompletionRequest> table = [] {
    Fields<CompletionRequest> fields;
    add_generation_fields(fields);
    fields
        .field("prompt", [](const Json& value,
                            CompletionRequest& r) { return read_prompts(value, r.prompts); })
        .field("logprobs", &CompletionRequest::logprobs)
        .field("suffix",
               [](const Json&, CompletionRequest& r) {
                 r.has_suffix = true;
                 return Result<void>();
               })
        .field("prompt_embeds", [](const Json&, CompletionRequest&) -> Result<void> {
          return invalid("prompt_embeds",
                         "You must set `--enable-prompt-embeds` to input `prompt_embeds`.");
        });
    return fields;
  }();
  return table;
}

bool is_empty_text(const CompletionPrompt& prompt) {
  const auto* text = std::get_if<std::string>(&prompt);
  return text && text->empty();
}

}  // namespace

Json completion_request_schema() {
  return completion_fields().schema({"prompt"});
}

Result<CompletionRequest> completion_request_from_json(const Json& body,
                                                       std::vector<std::string>& unknown) {
  CompletionRequest request;
  M2_TRY_VOID(completion_fields().read(body, request, unknown));
  M2_TRY_VOID(check_generation_fields(request));
  if (request.logprobs && *request.logprobs < 0)
    return invalid("logprobs", "`logprobs` must be a positive value.");
  if (request.prompts.empty() || (request.prompts.size() == 1 && is_empty_text(request.prompts[0])))
    return invalid("prompt", "Either prompt or prompt_embeds must be provided and non-empty.");
  return request;
}

std::string to_json(const CompletionReply& reply) {
  std::string choices = "[";
  for (size_t i = 0; i < reply.choices.size(); ++i) {
    const CompletionReplyChoice& choice = reply.choices[i];
    JsonObjectText item;
    item.add("index", i);
    item.add("text", choice.text);
    item.add_text("logprobs", choice.logprobs);
    item.add("finish_reason", choice.finish.reason);
    item.add("stop_reason", choice.finish.stop_reason);
    item.add("token_ids", choice.token_ids);
    item.add_text("prompt_logprobs", choice.prompt_logprobs);
    item.add("prompt_token_ids", choice.prompt_token_ids);
    if (i > 0) choices += ',';
    choices += item.take();
  }
  choices += ']';
  JsonObjectText out;
  out.add("id", reply.head.id);
  out.add("object", "text_completion");
  out.add("created", reply.head.created);
  out.add("model", reply.head.model);
  out.add_text("choices", choices);
  out.add("service_tier", nullptr);
  out.add("system_fingerprint", nullptr);
  out.add("usage", to_json(reply.usage, true));
  out.add("kv_transfer_params", nullptr);
  return out.take();
}

CompletionChunks::CompletionChunks(const ReplyHead& head)
    : prefix_(std::string_view(chunk_prefix(head, "text_completion"))) {}

void CompletionChunks::append(const Chunk& chunk, std::string& out) const {
  const auto append_ids = [&out](const std::vector<int32_t>* ids) {
    if (ids)
      append_json_array(out, *ids);
    else
      out += "null";
  };
  out += std::string_view(prefix_);
  out += "{\"index\":";
  append_json_integer(out, chunk.index);
  out += ",\"text\":";
  append_json_string(out, chunk.text);
  out += ",\"logprobs\":";
  out += chunk.logprobs.empty() ? "null" : chunk.logprobs;
  out += ",\"finish_reason\":";
  if (chunk.finish) {
    append_json_string(out, chunk.finish->reason);
    out += ",\"stop_reason\":" + to_text(chunk.finish->stop_reason);
  } else {
    out += "null,\"stop_reason\":null";
  }
  out += ",\"prompt_token_ids\":";
  append_ids(chunk.prompt_token_ids);
  out += ",\"token_ids\":";
  append_ids(chunk.token_ids);
  out += "}],\"usage\":";
  out += chunk.usage ? to_text(to_json(*chunk.usage, false)) : "null";
  out += "}\n\n";
}

void CompletionChunks::usage(const Usage& usage, std::string& out) const {
  out += std::string_view(prefix_);
  out += "],\"usage\":" + to_text(to_json(usage, false)) + "}\n\n";
}

}  // namespace m2::api
