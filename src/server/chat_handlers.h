#pragma once

#include "server/small_handlers.h"

// The routes beside /v1/responses and /v1/messages that need no engine.

namespace m2::server {

void handle_response(const HandlerCall& call);         // GET, DELETE /v1/responses/{id}
void handle_cancel_response(const HandlerCall& call);  // POST /v1/responses/{id}/cancel
void handle_count_tokens(const HandlerCall& call);     // POST /v1/messages/count_tokens

}  // namespace m2::server
