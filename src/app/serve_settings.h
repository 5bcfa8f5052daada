#pragma once

#include <cstdint>
#include <string>

#include "app/device_options.h"
#include "app/model_files.h"
#include "app/options.h"
#include "engine/engine.h"
#include "server/options.h"

// What the values of `m2 serve` mean to the server and to its engines.

namespace m2::app {

// Refuses, by the flag's name, values that this version does not model, sizes out of bounds, and
// flags that mean nothing without another.
Result<void> check_serve_values(const Values& values);

// --max-model-len, else the model's own context; in tokens. Fails beyond that context.
Result<int64_t> choose_max_model_len(const Values& values, const model::ModelConfig& config);

// Precondition: check_serve_values() has passed. Fails on names of parsers that are not known.
Result<server::ServerOptions> server_options(const Values& values, const ModelSettings& settings);

// The configuration of engine `index` (its data rank) of the model called `name`. Ids from
// `id_limit` on are never sampled. Precondition: as above.
engine::EngineConfig engine_config(const Values& values, const model::ModelConfig& config,
                                   const StepDefaults& defaults, engine::TokenId id_limit,
                                   const std::string& name, int64_t index);

}  // namespace m2::app
