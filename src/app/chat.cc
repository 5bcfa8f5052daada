#include "app/chat.h"

#include <atomic>
#include <csignal>
#include <istream>
#include <ostream>

namespace m2::app {
namespace {

constexpr std::string_view kDim = "\x1b[2m";
constexpr std::string_view kPlain = "\x1b[0m";

// Prints one streamed answer as it comes and puts together the message for the history.
class AnswerPrinter {
 public:
  AnswerPrinter(const ChatStyle& style, std::ostream& out) : style_(style), out_(out) {}

  // One event's data; false at the end of the stream.
  bool event(std::string_view data) {
    if (data == "[DONE]") return false;
    const Result<Json> chunk = parse_json(data);
    if (!chunk.ok() || !chunk->is_object()) return true;
    try {
      return take(*chunk);
    } catch (const Json::exception& fault) {  // a field of another type than the protocol's
      error_ = fault.what();
      return false;
    }
  }

  void finish() {
    set_dim(false);
    out_ << '\n' << std::flush;
  }

  const std::string& error() const { return error_; }

  Json message() const {
    Json out{{"role", "assistant"}, {"content", content_}};
    if (!reasoning_.empty()) out["reasoning_content"] = reasoning_;
    return out;
  }

 private:
  // One chunk; false if it is an error. Throws Json::exception on fields of unexpected types.
  bool take(const Json& chunk) {
    if (chunk.contains("error")) {
      error_ = to_text(chunk["error"]);
      return false;
    }
    const Json choices = chunk.value("choices", Json::array());
    if (choices.empty()) return true;
    const Json delta = choices.at(0).value("delta", Json::object());
    text_of(delta, "reasoning", reasoning_, true);
    text_of(delta, "content", content_, false);
    for (const Json& call : delta.value("tool_calls", Json::array())) tool_call(call);
    return true;
  }

  void text_of(const Json& delta, const char* field, std::string& whole, bool thinking) {
    const auto found = delta.find(field);
    if (found == delta.end() || !found->is_string()) return;
    const std::string text = found->get<std::string>();
    if (text.empty()) return;
    whole += text;
    if (thinking && !style_.show_thinking) return;
    set_dim(thinking);
    out_ << text << std::flush;
  }

  void tool_call(const Json& call) {
    const Json function = call.value("function", Json::object());
    if (function.contains("name")) {
      set_dim(false);
      out_ << "\n[tool call] " << function["name"].get<std::string>() << ' ';
    }
    out_ << function.value("arguments", "") << std::flush;
  }

  void set_dim(bool dim) {
    if (dim == dim_) return;
    dim_ = dim;
    if (!dim) out_ << '\n';
    if (style_.color) out_ << (dim ? kDim : kPlain);
  }

  const ChatStyle& style_;
  std::ostream& out_;
  std::string reasoning_, content_, error_;
  bool dim_ = false;
};

std::atomic<bool> interrupt_came;

void note_interrupt(int) {
  interrupt_came = true;
}

// While it lives Ctrl-C is noted and ends nothing. One at a time.
class InterruptsNoted {
 public:
  InterruptsNoted() {
    interrupt_came = false;
    struct sigaction noted {};
    noted.sa_handler = note_interrupt;
    ::sigaction(SIGINT, &noted, &before_);
  }
  ~InterruptsNoted() { ::sigaction(SIGINT, &before_, nullptr); }
  InterruptsNoted(const InterruptsNoted&) = delete;
  InterruptsNoted& operator=(const InterruptsNoted&) = delete;

  bool any() const { return interrupt_came; }

 private:
  struct sigaction before_ {};
};

}  // namespace

Result<void> chat_loop(const HttpClient& client, const std::string& model,
                       const ChatRequestFields& fields, const ChatStyle& style, std::istream& in,
                       std::ostream& out) {
  const Json first = fields.system_prompt.empty()
                         ? Json::array()
                         : Json{{{"role", "system"}, {"content", fields.system_prompt}}};
  Json messages = first;
  std::string line;
  while (true) {
    if (style.prompt) out << "> " << std::flush;
    if (!std::getline(in, line) || line == "/quit" || line == "/exit") return {};
    if (line.empty()) continue;
    if (line == "/clear") {
      messages = first;
      continue;
    }
    messages.push_back({{"role", "user"}, {"content", line}});
    Json body = fields.parameters;
    body["model"] = model;
    body["messages"] = messages;
    body["stream"] = true;

    AnswerPrinter printer(style, out);
    const InterruptsNoted interrupts;
    const Result<void> answered = client.stream(
        "/v1/chat/completions", body,
        [&](std::string_view data) { return !interrupts.any() && printer.event(data); },
        [&] { return !interrupts.any(); });
    printer.finish();
    M2_TRY_VOID(answered);
    if (interrupts.any() && !style.prompt) return fail(Code::unavailable, "interrupted");
    if (!printer.error().empty())
      return fail(Code::unavailable, "the server ended the answer: {}", printer.error());
    messages.push_back(printer.message());
  }
}

}  // namespace m2::app
