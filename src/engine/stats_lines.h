#pragma once

#include <cstdint>
#include <string>

#include "engine/engine.h"

// What an engine did between two snapshots, `elapsed` seconds apart, as lines of the log: in vLLM's
// words, which scripts read.

namespace m2::engine {

// Nothing came, ran or was waiting.
bool is_idle(const EngineStats& now, const EngineStats& before);

// Of the engine `index`. Cache usage and hit rate are those of `now`.
std::string throughput_line(int64_t index, const EngineStats& now, const EngineStats& before,
                            double elapsed);

// What became of the drafts; some were made.
std::string drafts_line(const EngineStats& now, const EngineStats& before, double elapsed);

}  // namespace m2::engine
