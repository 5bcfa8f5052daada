#include "app/bench/chunk.h"

#include "text/json_cursor.h"

namespace m2::app::bench {
namespace {

using text::JsonCursor;
using Key = std::string_view;

Result<void> skip(JsonCursor& cursor) {
  M2_TRY_VOID(cursor.raw());
  return {};
}

Result<void> append_string(JsonCursor& cursor, std::string& out) {
  if (cursor.peek() != '"') return skip(cursor);
  M2_TRY(const std::string_view value, cursor.string());
  out += value;
  return {};
}

// Reasoning goes by two names; a delta may have it under both.
Result<void> read_delta(JsonCursor& cursor, Chunk& out) {
  bool reasoned = false;
  return cursor.object([&](Key key) {
    if (key == "content") return append_string(cursor, out.text);
    const bool reasoning = key == "reasoning_content" || key == "reasoning";
    return reasoning && !std::exchange(reasoned, true) ? append_string(cursor, out.text)
                                                       : skip(cursor);
  });
}

Result<void> read_choice(JsonCursor& cursor, Chunk& out) {
  return cursor.object([&](Key key) {
    if (key == "text") return append_string(cursor, out.text);
    return key == "delta" && cursor.peek() == '{' ? read_delta(cursor, out) : skip(cursor);
  });
}

Result<void> read_choices(JsonCursor& cursor, Chunk& out) {
  return cursor.array([&]() -> Result<void> {
    if (std::exchange(out.has_choices, true)) return skip(cursor);
    return read_choice(cursor, out);
  });
}

Result<void> read_usage(JsonCursor& cursor, Chunk& out) {
  return cursor.object([&](Key key) -> Result<void> {
    if (key != "completion_tokens") return skip(cursor);
    M2_TRY(out.completion_tokens, cursor.whole_number());
    return {};
  });
}

Result<void> read_error(JsonCursor& cursor, Chunk& out) {
  if (cursor.peek() != '{') return append_string(cursor, out.error);
  return cursor.object(
      [&](Key key) { return key == "message" ? append_string(cursor, out.error) : skip(cursor); });
}

}  // namespace

Result<void> read_chunk(std::string_view json, Chunk& out) {
  out.has_choices = false;
  out.text.clear();
  out.completion_tokens = -1;
  out.error.clear();
  JsonCursor cursor(json);
  M2_TRY_VOID(cursor.object([&](Key key) {
    if (key == "choices" && cursor.peek() == '[') return read_choices(cursor, out);
    if (key == "usage" && cursor.peek() == '{') return read_usage(cursor, out);
    return key == "error" ? read_error(cursor, out) : skip(cursor);
  }));
  return cursor.finish();
}

}  // namespace m2::app::bench
