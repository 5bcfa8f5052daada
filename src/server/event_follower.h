#pragma once

#include <memory>

#include "server/event_log.h"
#include "server/exchange.h"

namespace m2::server {

// Answers the exchange with the log's events from number `first` on, as fast as the client takes
// them, and with those still to come. On `thread`, which is the exchange's.
void follow_events(std::shared_ptr<Exchange> exchange, IoThread& thread,
                   std::shared_ptr<EventLog> log, size_t first);

}  // namespace m2::server
