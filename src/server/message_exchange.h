#pragma once

#include <memory>
#include <string_view>

#include "server/exchange.h"

namespace m2::server {

// Whether clients of this path expect errors in Anthropic's form.
bool speaks_anthropic(std::string_view path);

// What a stream of this path says while it has nothing to say: an event where the protocol has one,
// since a client may count events only.
std::string_view ping_frame(std::string_view path);

// The exchange, with errors printed in Anthropic's form and a request-id on every reply.
std::shared_ptr<Exchange> message_exchange(std::shared_ptr<Exchange> exchange);

}  // namespace m2::server
