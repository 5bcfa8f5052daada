#include "text/output_reader.h"

#include <algorithm>
#include <array>
#include <bit>
#include <initializer_list>
#include <optional>
#include <random>
#include <unordered_set>
#include <utility>

#include "text/tool_arguments.h"

namespace m2::text {
namespace {

constexpr std::string_view kBlank = " \t\n\v\f\r";

enum class Tag : uint8_t {
  think_open,
  think_close,
  block_open,
  block_close,
  invoke_open,
  invoke_close,
  parameter_open,
  parameter_close,
};

// The openings of invoke and parameter end where the name begins.
constexpr std::array<std::string_view, 8> kTagTexts = {
    "<think>",       "</think>",  "<minimax:tool_call>", "</minimax:tool_call>",
    "<invoke name=", "</invoke>", "<parameter name=",    "</parameter>",
};

std::string_view text_of(Tag tag) {
  return kTagTexts[static_cast<size_t>(tag)];
}

class TagSet {
 public:
  constexpr TagSet() = default;
  constexpr TagSet(std::initializer_list<Tag> tags) {
    for (const Tag tag : tags) add(tag);
  }
  constexpr void add(Tag tag) { bits_ |= 1u << static_cast<unsigned>(tag); }
  constexpr void remove(Tag tag) { bits_ &= ~(1u << static_cast<unsigned>(tag)); }
  constexpr void add(TagSet other) { bits_ |= other.bits_; }
  constexpr bool has(Tag tag) const { return (bits_ >> static_cast<unsigned>(tag) & 1u) != 0; }
  constexpr bool empty() const { return bits_ == 0; }
  constexpr Tag first() const { return static_cast<Tag>(std::countr_zero(bits_)); }

 private:
  uint32_t bits_ = 0;
};

// Cuts the text into tags and the runs between them. What may yet become a tag is held back, and
// as all tags begin with '<' and hold no other, that is never more than one beginning.
class TagScanner {
 public:
  struct Piece {
    std::optional<Tag> tag;
    std::string_view text;  // of a run; valid as long as the input
  };

  // Takes the next piece off `input`: a tag of `wanted`, or text free of them. Nothing once the
  // input is used up. `wanted` may change only after a piece.
  std::optional<Piece> next(std::string_view& input, TagSet wanted) {
    if (wanted.empty() && !input.empty()) return take_run(input, input.size());
    if (held_ == 0) {
      if (const size_t run = std::min(input.find('<'), input.size())) return take_run(input, run);
      candidates_ = wanted;
    }
    while (!input.empty()) {
      const Tag likely = candidates_.first();
      keep_candidates_with(input.front());
      if (candidates_.empty()) return Piece{{}, text_of(likely).substr(0, take_held_size())};
      input.remove_prefix(1);
      ++held_;
      const Tag tag = candidates_.first();
      if (held_ == text_of(tag).size()) return held_ = 0, Piece{tag, {}};
    }
    return std::nullopt;
  }

  // What is held back, at the end of the text.
  std::string_view take_held() {
    return held_ == 0 ? "" : text_of(candidates_.first()).substr(0, take_held_size());
  }

 private:
  static Piece take_run(std::string_view& input, size_t size) {
    const Piece piece{{}, input.substr(0, size)};
    input.remove_prefix(size);
    return piece;
  }

  void keep_candidates_with(char next) {
    for (size_t i = 0; i < kTagTexts.size(); ++i)
      if (kTagTexts[i].size() <= held_ || kTagTexts[i][held_] != next)
        candidates_.remove(static_cast<Tag>(i));
  }

  size_t take_held_size() { return std::exchange(held_, 0); }

  TagSet candidates_;  // tags that begin with the bytes held back
  size_t held_ = 0;
};

// Reads NAME and the '>' after it: "…", '…' or bare up to the '>'.
class NameReader {
 public:
  // Takes what belongs to the name off `input`; true once the '>' was taken.
  bool read(std::string_view& input) {
    while (!input.empty()) {
      const char c = input.front();
      input.remove_prefix(1);
      if (c == '>' && part_ != Part::quoted) return true;
      take(c);
    }
    return false;
  }

  // The name; the reader is ready for another.
  std::string finish() {
    if (part_ == Part::bare) name_.erase(name_.find_last_not_of(kBlank) + 1);
    part_ = Part::start;
    return std::exchange(name_, {});
  }

 private:
  enum class Part { start, quoted, bare, after };

  void take(char c) {
    const bool is_blank = kBlank.find(c) != std::string_view::npos;
    if (part_ == Part::start && !is_blank) {
      const bool is_quote = c == '"' || c == '\'';
      part_ = is_quote ? Part::quoted : Part::bare;
      quote_ = c;
      if (is_quote) return;
    }
    if (part_ == Part::quoted && c == quote_) {
      part_ = Part::after;
    } else if (part_ == Part::quoted || part_ == Part::bare) {
      name_ += c;
    }
  }

  Part part_ = Part::start;
  char quote_ = 0;
  std::string name_;
};

// The text since the last tag: what of it may go out.
class Segment {
 public:
  Segment() = default;
  // `newlines`: the template's own that may follow the tag, and belong to nobody.
  Segment(int newlines, bool after_block) : newlines_(newlines), after_block_(after_block) {}

  // Adds text. Whitespace is held back as long as there is nothing else.
  std::string admit(std::string_view text) {
    for (; newlines_ > 0 && text.starts_with('\n'); --newlines_) text.remove_prefix(1);
    if (!text.empty()) newlines_ = 0;
    if (!is_blank_) return std::string(text);
    const size_t blank = std::min(text.find_first_not_of(kBlank), text.size());
    leading_ += text.substr(0, blank);
    if (blank == text.size()) return {};
    is_blank_ = false;
    return std::exchange(leading_, {}).append(text.substr(blank));
  }

  bool is_blank() const { return is_blank_; }

  // The whitespace of a segment without text, at the end of the output. It goes out as it is,
  // unless it touches a tool block.
  std::string_view rest() const { return after_block_ ? "" : std::string_view(leading_); }

 private:
  int newlines_ = 0;
  bool after_block_ = false;
  bool is_blank_ = true;
  std::string leading_;
};

// Collects the message, and tells each step of it.
class Answer {
 public:
  AssistantMessage message;

  // The steps of what follows are appended to `out`.
  void tell(std::vector<OutputDelta>& out) {
    out_ = &out;
    told_ = out.size();
  }

  void add_reasoning(std::string_view text) {
    message.reasoning += text;
    add(OutputDelta::Kind::reasoning, text);
  }

  void add_content(std::string_view text) {
    message.content += text;
    add(OutputDelta::Kind::content, text);
  }

  void begin_call(std::string id, std::string name) {
    const int index = static_cast<int>(message.tool_calls.size());
    out_->push_back({OutputDelta::Kind::call_begin, {}, index, id, name});
    message.tool_calls.push_back({std::move(id), std::move(name), {}});
  }

  void add_arguments(std::string_view text) {
    message.tool_calls.back().arguments += text;
    add(OutputDelta::Kind::call_arguments, text);
  }

 private:
  // Joins text to the last step of this feed() if it is of the same kind.
  void add(OutputDelta::Kind kind, std::string_view text) {
    if (text.empty()) return;
    if (out_->size() == told_ || out_->back().kind != kind) {
      const bool in_call = kind == OutputDelta::Kind::call_arguments;
      const int index = in_call ? static_cast<int>(message.tool_calls.size()) - 1 : 0;
      out_->push_back({kind, {}, index, {}, {}});
    }
    out_->back().text += text;
  }

  std::vector<OutputDelta>* out_ = nullptr;
  size_t told_ = 0;
};

// Whether `text` begins as "null" does, in any case.
bool may_become_null(std::string_view text) {
  constexpr std::string_view kNull = "null";
  return text.size() <= kNull.size() && std::equal(text.begin(), text.end(), kNull.begin(),
                                                   [](char a, char b) { return (a | 0x20) == b; });
}

// Writes the calls of an answer, their arguments as JSON text while they come: a value that can
// only be text goes out as it grows, any other once it is closed.
class CallWriter {
 public:
  CallWriter(Answer& answer, ReaderOptions& options, std::string (*make_id)())
      : answer_(answer),
        schemas_(std::move(options.tool_schemas)),
        parallel_(options.parallel_tool_calls),
        make_id_(make_id) {}

  void begin(std::string name) {
    muted_ = !parallel_ && !answer_.message.tool_calls.empty();
    tool_ = std::move(name);
    keys_.clear();
    if (!muted_) answer_.begin_call(make_id_(), tool_);
  }

  // Of a parameter that comes twice the first value is kept.
  void begin_value(std::string name) {
    key_ = std::move(name);
    value_.clear();
    schema_ = schemas_.parameter(tool_, key_);
    const bool is_first = keys_.insert(key_).second;
    const JsonTypes types = schemas_.types(schema_);
    mode_ = muted_ || !is_first ? Mode::dropped : Mode::collected;
    is_text_or_null_ = types.bits == (JsonTypes::string | JsonTypes::null);
    if (mode_ == Mode::collected && types.bits == JsonTypes::string) begin_streaming();
  }

  void add_value(std::string_view text) {
    if (mode_ == Mode::streamed) return add_streamed(text);
    if (mode_ == Mode::dropped) return;
    value_ += text;
    if (is_text_or_null_ && !may_become_null(value_)) begin_streaming();
  }

  void end_value() {
    if (mode_ == Mode::streamed) answer_.add_arguments("\"");
    if (mode_ == Mode::collected)
      answer_.add_arguments(key_text() + schemas_.argument_json(value_, schema_));
  }

  void end() {
    if (!muted_) answer_.add_arguments(keys_.empty() ? "{}" : "}");
  }

  // The call was cut off: the message goes without it.
  void abandon() {
    if (!muted_) answer_.message.tool_calls.pop_back();
  }

 private:
  enum class Mode { streamed, collected, dropped };

  void begin_streaming() {
    mode_ = Mode::streamed;
    answer_.add_arguments(key_text() + '"');
    add_streamed(value_);
  }

  void add_streamed(std::string_view text) {
    std::string escaped;
    append_json_escaped(escaped, text);
    answer_.add_arguments(escaped);
  }

  std::string key_text() const {
    return (keys_.size() == 1 ? "{" : ", ") + json_string(key_) + ": ";
  }

  Answer& answer_;
  ToolSchemas schemas_;
  const bool parallel_;
  std::string (*const make_id_)();

  bool muted_ = false;
  std::string tool_;
  std::unordered_set<std::string> keys_;  // of the open call

  Mode mode_ = Mode::dropped;
  bool is_text_or_null_ = false;
  std::string key_;
  SchemaView schema_;
  std::string value_;  // collected
};

// The tags that make a closing tag inside a value a true one: a `</parameter>` or, where that is
// missing, a `</invoke>` or `</minimax:tool_call>` ends the value only before one of them, or at
// the end of the text. Anything else there means that the tag was part of the value.
TagSet continuations(Tag closing) {
  switch (closing) {
    case Tag::parameter_close:
      return {Tag::parameter_open, Tag::invoke_close, Tag::invoke_open, Tag::block_close};
    case Tag::invoke_close:
      return {Tag::invoke_open, Tag::block_close};
    case Tag::block_close:
      return {Tag::block_open};
    default:
      return {};
  }
}

}  // namespace

struct OutputReader::State {
  // Where in the grammar the text so far ends.
  enum class Place { reasoning, content, block, invoke_name, invoke, parameter_name, value };

  State(ReaderOptions options, std::string (*make_id)())
      : reasoning(options.reasoning),
        tools(options.tools),
        calls(answer, options, make_id == nullptr ? random_call_id : make_id) {
    if (reasoning == ReasoningParser::none || !options.starts_in_reasoning) return;
    place = Place::reasoning;
    opening_is_due = reasoning == ReasoningParser::minimax_m2_append_think;
  }

  void feed(std::string_view text);
  void finish(bool cut_by_length);

  void begin();
  TagSet wanted() const;
  TagSet wanted_in_content() const;
  void read_name(std::string_view& text);
  void read_text(std::string_view text);
  void read_tag(Tag tag);

  void read_reasoning(std::string_view text);
  void read_reasoning_tag(Tag tag);
  void read_content(std::string_view text);
  void read_content_tag(Tag tag);
  void read_block_tag(Tag tag);
  void read_invoke_tag(Tag tag);
  void read_value(std::string_view text);
  void read_value_tag(Tag tag);

  void finish_call(bool cut_by_length);

  bool appends_think() const { return reasoning == ReasoningParser::minimax_m2_append_think; }
  bool raw() const { return reasoning == ReasoningParser::none && tools == ToolCallParser::none; }

  const ReasoningParser reasoning;
  const ToolCallParser tools;
  Answer answer;
  CallWriter calls;
  TagScanner scanner;
  NameReader name;
  Place place = Place::content;

  bool opening_is_due = false;  // "<think>" goes out before anything else
  bool tag_seen = false;        // any, outside tool blocks
  Segment segment;              // of reasoning or content
  bool newline_held = false;    // the last of the reasoning so far: the template's, if it ends here
  // In a value: a closing tag and the whitespace after it, of which it is not yet known whether
  // they end the value or belong to it.
  std::optional<Tag> closing;
  std::string closing_text;
};

void OutputReader::State::begin() {
  if (std::exchange(opening_is_due, false)) answer.add_content(text_of(Tag::think_open));
}

void OutputReader::State::feed(std::string_view text) {
  begin();
  while (!text.empty()) {
    if (place == Place::invoke_name || place == Place::parameter_name) {
      read_name(text);
    } else if (const auto piece = scanner.next(text, wanted())) {
      piece->tag ? read_tag(*piece->tag) : read_text(piece->text);
    }
  }
}

// The tags that mean something here; all else is text.
TagSet OutputReader::State::wanted() const {
  switch (place) {
    case Place::reasoning:
      if (!appends_think()) return {Tag::think_open, Tag::think_close, Tag::block_open};
      return tools == ToolCallParser::none ? TagSet{Tag::think_close}
                                           : TagSet{Tag::think_close, Tag::block_open};
    case Place::content:
      return wanted_in_content();
    case Place::block:
      return {Tag::invoke_open, Tag::block_close};
    case Place::invoke:
      return {Tag::parameter_open, Tag::invoke_open, Tag::invoke_close, Tag::block_close};
    case Place::value: {
      TagSet tags = {Tag::parameter_open, Tag::parameter_close, Tag::invoke_close,
                     Tag::block_close};
      if (closing) tags.add(continuations(*closing));
      return tags;
    }
    case Place::invoke_name:
    case Place::parameter_name:
      break;  // read_name() reads those
  }
  return {};
}

TagSet OutputReader::State::wanted_in_content() const {
  TagSet tags;
  if (reasoning == ReasoningParser::minimax_m2) tags = {Tag::think_open, Tag::think_close};
  if (tools == ToolCallParser::minimax_m2) tags.add(Tag::block_open);
  return tags;
}

void OutputReader::State::read_name(std::string_view& text) {
  if (!name.read(text)) return;
  if (place == Place::invoke_name) {
    calls.begin(name.finish());
    place = Place::invoke;
  } else {
    calls.begin_value(name.finish());
    place = Place::value;
  }
}

void OutputReader::State::read_text(std::string_view text) {
  if (place == Place::reasoning) return read_reasoning(text);
  if (place == Place::content) return read_content(text);
  if (place == Place::value) return read_value(text);
  // Text between the tags of a tool block means nothing.
}

void OutputReader::State::read_tag(Tag tag) {
  switch (place) {
    case Place::reasoning:
      return read_reasoning_tag(tag);
    case Place::content:
      return read_content_tag(tag);
    case Place::block:
      return read_block_tag(tag);
    case Place::invoke:
      return read_invoke_tag(tag);
    case Place::value:
      return read_value_tag(tag);
    case Place::invoke_name:
    case Place::parameter_name:
      break;  // names hold no tags
  }
}

void OutputReader::State::read_reasoning(std::string_view text) {
  if (appends_think()) return answer.add_content(text);
  std::string admitted = segment.admit(text);
  if (admitted.empty()) return;
  if (newline_held) answer.add_reasoning("\n");
  newline_held = admitted.ends_with('\n');
  if (newline_held) admitted.pop_back();
  answer.add_reasoning(admitted);
}

// `</think>` ends reasoning, and so does a tool block. An opening `<think>`, which the template has
// written already, and any other are dropped.
void OutputReader::State::read_reasoning_tag(Tag tag) {
  tag_seen = true;
  if (tag == Tag::think_open) {
    if (segment.is_blank()) segment = Segment(1, false);
    return;
  }
  newline_held = false;
  place = Place::content;
  segment = Segment();
  if (tag == Tag::block_open) {
    // Without a tool parser the tag is the first text of the content.
    return tools == ToolCallParser::none ? read_content(text_of(tag)) : read_content_tag(tag);
  }
  if (appends_think()) return answer.add_content(text_of(tag));
  segment = Segment(2, false);
}

void OutputReader::State::read_content(std::string_view text) {
  if (raw()) return answer.add_content(text);
  answer.add_content(segment.admit(text));
}

// Think tags are strays here, but for a `<think>` that the whole text begins with.
void OutputReader::State::read_content_tag(Tag tag) {
  const bool at_start = !std::exchange(tag_seen, true) && segment.is_blank();
  if (tag == Tag::block_open) {
    place = Place::block;
  } else if (tag == Tag::think_open && at_start) {
    place = Place::reasoning;
    segment = Segment(1, false);
  }
}

void OutputReader::State::read_block_tag(Tag tag) {
  if (tag == Tag::invoke_open) {
    place = Place::invoke_name;
  } else {
    place = Place::content;
    segment = Segment(0, true);
  }
}

void OutputReader::State::read_invoke_tag(Tag tag) {
  if (tag == Tag::parameter_close) return;  // that of the value just ended
  if (tag == Tag::parameter_open) {
    place = Place::parameter_name;
    return;
  }
  calls.end();
  place = Place::block;
  if (tag != Tag::invoke_close) read_block_tag(tag);
}

void OutputReader::State::read_value(std::string_view text) {
  if (closing) {
    const size_t blank = std::min(text.find_first_not_of(kBlank), text.size());
    closing_text += text.substr(0, blank);
    text.remove_prefix(blank);
    if (text.empty()) return;
    closing.reset();
    calls.add_value(std::exchange(closing_text, {}));
  }
  calls.add_value(text);
}

void OutputReader::State::read_value_tag(Tag tag) {
  const std::optional<Tag> before = std::exchange(closing, {});
  const std::string pending = std::exchange(closing_text, {});
  const bool is_true_close = before && continuations(*before).has(tag);
  if (!is_true_close) calls.add_value(pending);
  if (is_true_close || tag == Tag::parameter_open) {
    calls.end_value();
    place = Place::invoke;
    if (is_true_close) read_tag(*before);
    return read_tag(tag);
  }
  closing = tag;
  closing_text = text_of(tag);
}

void OutputReader::State::finish(bool cut_by_length) {
  begin();
  // A true closing tag may be followed by the beginning of the next tag.
  if (const std::string_view held = scanner.take_held(); !held.empty() && !closing) read_text(held);
  if (place == Place::reasoning && newline_held) answer.add_reasoning("\n");
  if (place == Place::content) answer.add_content(segment.rest());
  finish_call(cut_by_length);
  AssistantMessage& message = answer.message;
  message.has_reasoning = !message.reasoning.empty();
  message.has_content = raw() || !message.content.empty();
}

// A call that is still open is closed, unless the model was stopped in the middle of it.
void OutputReader::State::finish_call(bool cut_by_length) {
  const bool in_value = place == Place::value;
  if (!in_value && place != Place::invoke && place != Place::parameter_name) return;
  if (cut_by_length) return calls.abandon();
  if (in_value) calls.end_value();
  calls.end();
}

OutputReader::OutputReader(ReaderOptions options, std::string (*make_id)())
    : state_(std::make_unique<State>(std::move(options), make_id)) {}
OutputReader::~OutputReader() = default;
OutputReader::OutputReader(OutputReader&&) noexcept = default;

void OutputReader::feed(std::string_view text, std::vector<OutputDelta>& out) {
  state_->answer.tell(out);
  state_->feed(text);
}

void OutputReader::finish(bool cut_by_length, std::vector<OutputDelta>& out) {
  state_->answer.tell(out);
  state_->finish(cut_by_length);
}

const AssistantMessage& OutputReader::message() const {
  return state_->answer.message;
}

bool OutputReader::in_reasoning() const {
  return state_->place == State::Place::reasoning;
}

std::string random_call_id() {
  std::random_device random;
  std::string id = "chatcmpl-tool-";
  for (int i = 0; i < 4; ++i) id += fmt::format("{:08x}", random());
  return id;
}

Result<ReasoningParser> reasoning_parser_named(std::string_view name) {
  if (name == "none") return ReasoningParser::none;
  if (name == "minimax_m2") return ReasoningParser::minimax_m2;
  if (name == "minimax_m2_append_think") return ReasoningParser::minimax_m2_append_think;
  return fail(
      Code::invalid_argument,
      "invalid reasoning parser: {} (chose from {{ minimax_m2,minimax_m2_append_think,none }})",
      name);
}

Result<ToolCallParser> tool_call_parser_named(std::string_view name) {
  if (name == "none") return ToolCallParser::none;
  if (name == "minimax_m2") return ToolCallParser::minimax_m2;
  return fail(Code::invalid_argument,
              "invalid tool call parser: {} (chose from {{ minimax_m2,none }})", name);
}

}  // namespace m2::text
