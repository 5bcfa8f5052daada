#pragma once

#include <iosfwd>
#include <string>

#include "app/http_client.h"

namespace m2::app {

// How a chat shows itself.
struct ChatStyle {
  bool color = false;  // ANSI codes: thinking dimmed
  bool show_thinking = true;
  bool prompt = false;  // print "> " before reading
};

// What every request of a chat carries beside its messages.
struct ChatRequestFields {
  Json parameters = Json::object();  // max_tokens, temperature, ...
  std::string system_prompt;         // empty: none
};

// A terminal chat with a server: reads lines from `in`, streams answers to `out`, keeps the
// history. Lines: /clear forgets the history, /quit (or the end of input) ends. Ctrl-C ends an
// answer that comes; at the prompt, the program. Returns when it ends; an error is one that makes
// going on pointless (the server is gone).
Result<void> chat_loop(const HttpClient& client, const std::string& model,
                       const ChatRequestFields& fields, const ChatStyle& style, std::istream& in,
                       std::ostream& out);

}  // namespace m2::app
