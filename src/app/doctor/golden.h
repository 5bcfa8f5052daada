#pragma once

#include <filesystem>

#include "app/doctor/small_model.h"
#include "base/json.h"
#include "base/result.h"

namespace m2::app::doctor {

// How far the middle row may be off where products take FP8 inputs; golden.cc has the reasons.
constexpr double kAllowedWithFp8Inputs = 0.045;

// How near a checkpoint's logits come to those that transformers computed for it.
struct GoldenResult {
  int runs = 0;
  int tokens = 0, same_tokens = 0;  // of the greedy answers
  Distances off;                    // |here - golden| / |golden| over the rows of all runs
  Distances allowed;
  bool good() const {
    return off.middle <= allowed.middle && off.worst <= allowed.worst && same_tokens == tokens;
  }
};

// The runs of `golden` (the format of tests/golden/model/README.md, in `folder`/golden.json as
// tools/micro/capture_logits.py writes it) with the checkpoint of the folder. Of runs that differ
// in the rounding of inputs those are taken that round as this device does. Errors say what is
// wrong with the file or the checkpoint.
Result<GoldenResult> run_golden(const Machine& machine, const std::filesystem::path& folder,
                                const Json& golden);

// `folder`/golden.json.
Result<Json> read_golden(const std::filesystem::path& folder);

}  // namespace m2::app::doctor
