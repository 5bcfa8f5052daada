#pragma once

#include <filesystem>

#include "app/doctor/lab.h"
#include "base/json.h"
#include "base/result.h"

namespace m2::app::doctor {

// How near a checkpoint's logits come to those that transformers computed for it.
struct GoldenResult {
  int runs = 0;
  int tokens = 0, same_tokens = 0;  // of the greedy answers
  double off = 0;                   // |here - golden| / |golden| of the row farthest off
  double tolerance = 0;
  bool good() const { return off <= tolerance && same_tokens == tokens; }
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
