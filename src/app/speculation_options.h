#pragma once

#include <cstdint>
#include <optional>

#include "app/options.h"
#include "base/result.h"
#include "engine/drafter.h"

namespace m2::app {

// --speculative-config: nothing if it is not given. Errors: unsupported (another method than
// "ngram"), invalid_argument (an unknown key, or a number out of range), each with the key's name.
Result<std::optional<engine::SpeculationConfig>> read_speculation(const Values& values);

// Rows of a step for drafted tokens, beside `max_num_seqs` of its sequences.
int64_t drafted_rows(const std::optional<engine::SpeculationConfig>& speculation,
                     int64_t max_num_seqs, int64_t max_num_batched_tokens);

}  // namespace m2::app
