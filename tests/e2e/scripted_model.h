#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "base/json.h"
#include "model/step_model.h"
#include "text/tokenizer.h"

namespace m2::e2e {

// One scripted answer.
struct Script {
  std::vector<int32_t> tokens;  // ends with eos unless it repeats
  bool repeats = false;         // starts over at its end, for ever
  int64_t delay_ms = 0;         // each step that has a sequence of this script takes so long
  int64_t nan_at = -1;          // this token's logits are NaN
};

// A model that answers by script. A prompt names its script as "script:NAME;" in its last text; the
// answer begins after the chat template's generation prompt, or in a text completion after the
// token <fim_middle>. Anything else is answered with the ids 1000, 1001, ... . What was read is
// kept by slot, so wrong paging changes answers.
class ScriptedModel : public model::StepModel {
 public:
  // `scripts`: {"name": {"text": ..., "repeat": bool, "delay_ms": n, "nan_at": n}}. A name is looked
  // for in the last `window` tokens before the answer.
  ScriptedModel(Limits limits, std::shared_ptr<const text::Tokenizer> tokenizer,
                const Json& scripts, size_t window);

  Limits limits() const override { return limits_; }
  Result<void> step(const model::StepInput& input, model::LogitsSink& sink) override;

 private:
  std::vector<int32_t> history(const model::StepInput& input, size_t sequence) const;
  const Script* script_of(const std::vector<int32_t>& history, size_t answer) const;
  size_t answer_begin(const std::vector<int32_t>& history) const;
  // The token after this history; -1: NaN.
  int32_t next_token(const std::vector<int32_t>& history);

  const Limits limits_;
  const size_t window_;
  const std::shared_ptr<const text::Tokenizer> tokenizer_;
  std::map<std::string, Script> scripts_;
  std::vector<int32_t> cells_;  // token in each slot
  std::vector<float> logits_;   // of one slice
  int64_t step_delay_ms_ = 0;   // of the step at hand
};

}  // namespace m2::e2e
