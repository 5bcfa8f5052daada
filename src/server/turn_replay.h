#pragma once

#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "server/turn_store.h"
#include "text/message.h"
#include "text/tokenizer.h"

// Interleaved thinking kept right: in a tool loop, reasoning that a client dropped is put back, and
// turns that this server's model wrote stand in the prompt as the very tokens it sampled, so that
// the prompt extends what the prefix cache holds.

namespace m2::server {

// A turn whose tokens stand in the prompt before pieces[at].
struct KnownTurn {
  size_t at = 0;
  std::shared_ptr<const Turn> turn;
};

class TurnReplay {
 public:
  // Looks up the assistant messages after the last user message, the only ones whose reasoning the
  // template prints. Those without reasoning get it back. Those that say what a turn said (same
  // calls, same reasoning, the same content but for whitespace around it) are marked: in place of
  // their reasoning stands a text that place() finds again. Only the tenant's turns are found.
  TurnReplay(std::vector<text::Message>& messages, TurnStore& store, std::string_view tenant = {});

  // Cuts the marked turns out of a rendered prompt. Where one did not come out as it was sampled
  // (another template, say), its reasoning stands again. Nothing, with `pieces` spoilt, if the
  // template altered a mark or left one out: then the unmarked messages must be rendered.
  std::optional<std::vector<KnownTurn>> place(std::vector<text::TextPiece>& pieces) const;

  // Messages whose reasoning was put back.
  int64_t restored() const { return restored_; }

 private:
  // The turn whose number stands at text[number..] before a ';'; null if none does.
  const Turn* turn_at(std::string_view text, size_t number, size_t& index) const;

  std::string mark_;  // and a turn's index and ";" after it
  std::vector<std::shared_ptr<const Turn>> turns_;
  int64_t restored_ = 0;
};

// The end of a prompt's text, by which a turn knows where it went on.
std::string opening_of(std::span<const text::TextPiece> pieces);

}  // namespace m2::server
