#include "server/turn_replay.h"

#include <algorithm>
#include <charconv>
#include <random>

namespace m2::server {
namespace {

using text::AddedTokens;
using text::TextPiece;

// Long enough to tell a turn that thinks from one whose reasoning was closed at once.
constexpr size_t kOpeningSize = 24;
// How the template closes reasoning, and where a turn without thinking goes on.
constexpr std::string_view kReasoningEnd = "\n</think>\n\n";

std::string_view trimmed(std::string_view text) {
  constexpr std::string_view kBlank = " \t\r\n";
  const size_t first = text.find_first_not_of(kBlank);
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(kBlank) - first + 1);
}

std::string text_of(const std::optional<Json>& content) {
  if (!content || content->is_null()) return {};
  if (content->is_string()) return content->get<std::string>();
  std::string text;
  for (const Json& part : *content)
    if (part.is_object() && part.contains("text") && part["text"].is_string())
      text += part["text"].get_ref<const std::string&>();
  return text;
}

bool same_calls(const std::vector<text::ToolCall>& sent,
                const std::vector<text::AssistantMessage::Call>& sampled) {
  return std::equal(sent.begin(), sent.end(), sampled.begin(), sampled.end(),
                    [](const text::ToolCall& a, const text::AssistantMessage::Call& b) {
                      if (a.id != b.id || a.name != b.name) return false;
                      const auto arguments = parse_json(b.arguments);
                      return arguments && *arguments == a.arguments;
                    });
}

bool says_the_same(const text::Message& message, const Turn& turn) {
  return !turn.tokens.empty() && message.reasoning.value_or("") == turn.message.reasoning &&
         trimmed(text_of(message.content)) == trimmed(turn.message.content) &&
         same_calls(message.tool_calls, turn.message.tool_calls);
}

std::shared_ptr<const Turn> find_turn(const text::Message& message, TurnStore& store,
                                      std::string_view tenant) {
  for (const text::ToolCall& call : message.tool_calls)
    if (auto turn = store.find(call.id, tenant)) return turn;
  return nullptr;
}

std::string random_mark() {
  static thread_local std::mt19937_64 random{std::random_device{}()};
  return fmt::format("m2-turn-{:016x}{:016x}-", random(), random());
}

// The template's own text, as opposed to what came from messages.
bool is_literal(const TextPiece& piece) {
  return piece.added == AddedTokens::all;
}

// Where the literal `end` stands in pieces[first..]; the piece's index is past the last if nowhere.
struct Position {
  size_t piece, offset;
};
Position find_literal(const std::vector<TextPiece>& pieces, size_t first, std::string_view end) {
  for (size_t i = first; i < pieces.size(); ++i) {
    if (!is_literal(pieces[i])) continue;
    const size_t at = pieces[i].text.find(end);
    if (at != std::string::npos) return {i, at};
  }
  return {pieces.size(), 0};
}

}  // namespace

std::string opening_of(std::span<const TextPiece> pieces) {
  std::string out;
  for (size_t i = pieces.size(); i-- > 0 && out.size() < kOpeningSize;) out = pieces[i].text + out;
  if (out.size() > kOpeningSize) out.erase(0, out.size() - kOpeningSize);
  return out;
}

TurnReplay::TurnReplay(std::vector<text::Message>& messages, TurnStore& store,
                       std::string_view tenant)
    : mark_(random_mark()) {
  const auto last_user = std::find_if(messages.rbegin(), messages.rend(),
                                      [](const text::Message& m) { return m.role == "user"; });
  for (auto message = last_user.base(); message != messages.end(); ++message) {
    if (message->role != "assistant" || message->tool_calls.empty()) continue;
    auto turn = find_turn(*message, store, tenant);
    if (!turn) continue;
    const bool has_reasoning = message->reasoning && !message->reasoning->empty();
    if (!has_reasoning && turn->message.has_reasoning &&
        text_of(message->content).find("</think>") == std::string::npos) {
      message->reasoning = turn->message.reasoning;
      ++restored_;
    }
    if (!says_the_same(*message, *turn)) continue;
    message->reasoning = fmt::format("{}{};", mark_, turns_.size());
    turns_.push_back(std::move(turn));
  }
}

const Turn* TurnReplay::turn_at(std::string_view text, size_t number, size_t& index) const {
  const size_t end = text.find(';', number);
  if (end == std::string_view::npos) return nullptr;
  const auto read = std::from_chars(text.data() + number, text.data() + end, index);
  if (read.ec != std::errc() || read.ptr != text.data() + end || index >= turns_.size())
    return nullptr;
  return turns_[index].get();
}

std::optional<std::vector<KnownTurn>> TurnReplay::place(std::vector<TextPiece>& pieces) const {
  std::vector<KnownTurn> known;
  if (turns_.empty()) return known;
  size_t found = 0;
  std::vector<TextPiece> out;
  const auto add = [&out](std::string text, AddedTokens added) {
    if (!text.empty()) out.push_back({std::move(text), added});
  };
  for (size_t i = 0; i < pieces.size(); ++i) {
    TextPiece& piece = pieces[i];
    const size_t mark = is_literal(piece) ? std::string::npos : piece.text.find(mark_);
    if (mark == std::string::npos) {
      add(std::move(piece.text), piece.added);
      continue;
    }
    size_t index = 0;
    const Turn* turn = turn_at(piece.text, mark + mark_.size(), index);
    if (!turn) return std::nullopt;
    ++found;
    add(piece.text.substr(0, mark), piece.added);

    const std::string before = opening_of(out);
    const Position close = find_literal(pieces, i + 1, turn->end_text);
    const bool thought = before == turn->opening;
    // A turn without thinking went on behind the empty reasoning.
    const bool skipped = !thought && turn->message.reasoning.empty() && i + 1 < pieces.size() &&
                         pieces[i + 1].text.starts_with(kReasoningEnd) &&
                         (before + std::string(kReasoningEnd)).ends_with(turn->opening);
    if (close.piece == pieces.size() || (!thought && !skipped)) {
      add(turn->message.reasoning + piece.text.substr(piece.text.find(';', mark) + 1), piece.added);
      continue;
    }
    if (skipped) add(std::string(kReasoningEnd), AddedTokens::all);
    known.push_back({out.size(), turns_[index]});
    i = close.piece;
    add(pieces[i].text.substr(close.offset + turn->end_text.size()), pieces[i].added);
  }
  if (found != turns_.size()) return std::nullopt;
  pieces = std::move(out);
  return known;
}

}  // namespace m2::server
