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
  if (!tokens_.empty())
    for (std::string* list : {&text_offset_, &token_logprobs_, &tokens_, &top_logprobs_})
      *list += ',';
  const std::string text = token_text(token, style);
  api::append_json_string(tokens_, text);
  api::append_json_integer(text_offset_, offset_);
  offset_ += characters(text);
  if (!logprobs) {
    token_logprobs_ += "null";
    top_logprobs_ += "null";
    return;
  }
  api::append_json_number(token_logprobs_, floored(logprobs->chosen.logprob));
  add_top(text, *logprobs, style);
}

// {"token": logprob, ...}, the chosen one first. Of tokens with the same text the first counts.
void CompletionLogprobs::add_top(const std::string& chosen, const engine::Logprobs& logprobs,
                                 const LogprobStyle& style) {
  std::vector<std::string> texts;
  const auto append = [&](std::string text, float logprob) {
    if (std::ranges::count(texts, text) > 0) return;
    top_logprobs_ += texts.empty() ? '{' : ',';
    api::append_json_string(top_logprobs_, text);
    top_logprobs_ += ':';
    api::append_json_number(top_logprobs_, floored(logprob));
    texts.push_back(std::move(text));
  };
  append(chosen, logprobs.chosen.logprob);
  for (size_t i = 0; i < logprobs.top.size() && static_cast<int64_t>(i) < top_; ++i)
    append(token_text(logprobs.top[i].id, style), logprobs.top[i].logprob);
  top_logprobs_ += '}';
}

std::string CompletionLogprobs::take() {
  const auto list = [](std::string& items) { return "[" + std::exchange(items, {}) + "]"; };
  api::JsonObjectText out;
  out.add_text("text_offset", list(text_offset_));
  out.add_text("token_logprobs", list(token_logprobs_));
  out.add_text("tokens", list(tokens_));
  out.add_text("top_logprobs", list(top_logprobs_));
  return out.take();
}

std::string prompt_logprobs_json(std::span<const engine::Logprobs> positions,
                                 const LogprobStyle& style) {
  std::string out = "[null";
  const auto append = [&](const engine::TokenLogprob& entry) {
    out += '"';
    api::append_json_integer(out, entry.id);
    out += "\":{\"logprob\":";
    api::append_json_number(out, floored(entry.logprob));
    out += ",\"rank\":";
    api::append_json_integer(out, entry.rank);
    out += ",\"decoded_token\":";
    api::append_json_string(out, style.tokenizer.decode({&entry.id, 1}, false));
    out += '}';
  };
  for (const engine::Logprobs& position : positions) {
    out += ",{";
    append(position.chosen);
    for (const engine::TokenLogprob& entry : position.top) {
      if (entry.id == position.chosen.id) continue;
      out += ',';
      append(entry);
    }
    out += '}';
  }
  return out + "]";
}

}  // namespace m2::server
