#pragma once

#include <cstddef>
#include <cstdint>

#include "base/clock.h"

namespace m2::server {

// Every bound on what a client may ask or hold (reliability.md 6.6), in one place. Each has a
// meaning of its own in the error it causes.
struct Limits {
  // Transport.
  size_t max_header_line = 8 << 10;    // name, value and their separators
  size_t max_header_bytes = 32 << 10;  // start line and all header lines
  size_t max_header_lines = 100;
  size_t max_target = 8 << 10;
  size_t max_body = 16 << 20;
  // Of all bodies that are being read or wait for their plans, what each has beyond small_body.
  size_t max_all_bodies = size_t{1} << 30;
  size_t small_body = 64 << 10;
  size_t max_pipelined = 64 << 10;     // bytes read ahead while a request is answered
  size_t max_send_buffer = 256 << 10;  // a stream's bytes its client has not taken
  size_t max_connections = 16384;
  // From a request's first byte to its header's end, and longer by a second for each min_body_rate
  // of the body's bytes that have come.
  Nanos header_deadline = 10 * kSecond;
  size_t min_body_rate = 1 << 10;        // bytes a second
  Nanos write_stall = 30 * kSecond;      // a client that takes nothing for so long is dropped
  Nanos keep_alive_idle = 60 * kSecond;  // between two requests of a connection
  Nanos ping_interval = 10 * kSecond;    // SSE comments while a stream says nothing
  Nanos linger = 2 * kSecond;            // for the client to read an error before the close

  // JSON.
  int max_json_depth = 128;
  size_t max_json_nodes = 1'000'000;

  // Requests.
  int64_t max_messages = 4096;
  int64_t max_tools = 512;
  size_t max_tool_bytes = 1 << 20;
  int64_t max_n = 16;
  int64_t max_sequences = 128;  // prompts x n
  size_t max_stop_strings = 16;
  size_t max_stop_bytes = 256;
  int64_t max_token_ids = 1024;  // each of logit_bias, stop_token_ids, allowed_token_ids
  int64_t max_bad_words = 1024;
  size_t max_bad_word_bytes = 256;
  size_t max_cache_salt = 128;
  size_t max_request_id = 128;
  size_t max_template_kwargs = 16 << 10;

  // Kept between requests; the longest unused go first.
  size_t max_turns = 16384;  // turns that ended in tool calls
  size_t max_turn_bytes = 256 << 20;
  size_t max_responses = 4096;
  size_t max_response_bytes = 256 << 20;
  // Events of responses in the background, those that still run among them.
  size_t max_event_bytes = 512 << 20;

  // Work in progress.
  int64_t max_requests = 2048;  // being prepared, queued or answered
};

}  // namespace m2::server
