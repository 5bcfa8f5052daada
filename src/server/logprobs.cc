#include "server/logprobs.h"

#include <algorithm>

#include "api/json_text.h"

namespace m2::server {
namespace {

double floored(float logprob) {
  return std::max(static_cast<double>(logprob), -9999.0);
}

std::string token_text(text::TokenId id, const LogprobStyle& style) {
  if (style.tokens_as_ids) return fmt::format("token_id:{}", id);
  return style.tokenizer.decode({&id, 1}, false);
}

// {token, logprob, bytes without the closing brace.
void append_entry(std::string& out, const engine::TokenLogprob& entry, const LogprobStyle& style) {
  const std::string token = token_text(entry.id, style);
  out += "{\"token\":";
  api::append_json_string(out, token);
  out += ",\"logprob\":";
  api::append_json_number(out, floored(entry.logprob));
  out += ",\"bytes\":[";
  const std::string_view bytes = style.tokens_as_ids ? token : style.tokenizer.bytes(entry.id);
  for (size_t i = 0; i < bytes.size(); ++i) {
    if (i > 0) out += ',';
    api::append_json_integer(out, static_cast<unsigned char>(bytes[i]));
  }
  out += ']';
}

int64_t characters(std::string_view text) {
  return std::count_if(text.begin(), text.end(), [](char c) { return (c & 0xC0) != 0x80; });
}

}  // namespace

void append_chat_logprob(std::string& out, const engine::Logprobs& logprobs,
                         const LogprobStyle& style) {
  append_entry(out, logprobs.chosen, style);
  out += ",\"top_logprobs\":[";
  for (size_t i = 0; i < logprobs.top.size(); ++i) {
    if (i > 0) out += ',';
    append_entry(out, logprobs.top[i], style);
    out += '}';
  }
  out += "]}";
}

void CompletionLogprobs::add(text::TokenId token, const engine::Logprobs* logprobs,
                             const LogprobStyle& style) {
  const std::string text = token_text(token, style);
  tokens_.push_back(text);
  text_offset_.push_back(offset_);
  offset_ += characters(text);
  if (!logprobs) {
    token_logprobs_.push_back(nullptr);
    top_logprobs_.push_back(nullptr);
    return;
  }
  token_logprobs_.push_back(floored(logprobs->chosen.logprob));
  Json top = Json::object();
  top[text] = floored(logprobs->chosen.logprob);
  for (size_t i = 0; i < logprobs->top.size() && static_cast<int64_t>(i) < top_; ++i)
    top.emplace(token_text(logprobs->top[i].id, style), floored(logprobs->top[i].logprob));
  top_logprobs_.push_back(std::move(top));
}

Json CompletionLogprobs::take() {
  Json out;
  out["text_offset"] = std::exchange(text_offset_, Json::array());
  out["token_logprobs"] = std::exchange(token_logprobs_, Json::array());
  out["tokens"] = std::exchange(tokens_, Json::array());
  out["top_logprobs"] = std::exchange(top_logprobs_, Json::array());
  return out;
}

Json prompt_logprobs_json(std::span<const engine::Logprobs> positions, const LogprobStyle& style) {
  Json out = Json::array({nullptr});
  for (const engine::Logprobs& position : positions) {
    Json entries = Json::object();
    const auto add = [&](const engine::TokenLogprob& entry) {
      entries.emplace(std::to_string(entry.id),
                      Json{{"logprob", floored(entry.logprob)},
                           {"rank", entry.rank},
                           {"decoded_token", style.tokenizer.decode({&entry.id, 1}, false)}});
    };
    add(position.chosen);
    for (const engine::TokenLogprob& entry : position.top) add(entry);
    out.push_back(std::move(entries));
  }
  return out;
}

}  // namespace m2::server
