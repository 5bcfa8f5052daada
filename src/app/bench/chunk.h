#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "base/result.h"

namespace m2::app::bench {

// What a client measures of one chunk of a completion's stream, of either protocol.
struct Chunk {
  bool has_choices = false;        // non-empty: the chunk is an event
  std::string text;                // choices[0]'s text, or its delta's reasoning and content
  int64_t completion_tokens = -1;  // of `usage`; -1: none
  std::string error;               // the server's message, if the chunk is an error
};

// Reads `json` into `out`, whose strings keep their memory from chunk to chunk. No tree is built.
// An error if `json` is not an object of that form.
Result<void> read_chunk(std::string_view json, Chunk& out);

}  // namespace m2::app::bench
