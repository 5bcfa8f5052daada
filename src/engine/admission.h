#pragma once

#include "base/result.h"
#include "engine/engine.h"
#include "model/step_model.h"

namespace m2::engine {

// Whether the engine can serve the request at all: invalid_argument, naming what is wrong, if its
// ids or parameters are out of range or its prompt can never fit. The server's validator stands
// before this with better words; here it keeps the engine's arrays safe whatever calls submit().
Result<void> check_request(const Request& request, const EngineConfig& config,
                           const model::StepModel::Limits& limits);

// Tokens at which the request ends with `length`: what it asked for, the model's context, or what
// the KV pool holds for one sequence alone, whichever is least. The last token needs no K and V.
int64_t max_size_of(const Request& request, const model::StepModel::Limits& limits);

}  // namespace m2::engine
