#pragma once

#include "server/http_message.h"
#include "server/options.h"

// Cross-origin requests as browsers make them (the Fetch standard, CORS protocol).

namespace m2::server {

// The header lines of a reply to a request from `request.origin`; none if it may not read it.
HeaderList cors_headers(const Cors& cors, const HttpRequest& request);

// The answer to OPTIONS: 200, or 400 naming what is not allowed.
HttpReply cors_preflight(const Cors& cors, const HttpRequest& request);

}  // namespace m2::server
