#include "tests/e2e/scripted_model.h"

#include <algorithm>
#include <chrono>
#include <limits>
#include <thread>

namespace m2::e2e {
namespace {

constexpr int32_t kEos = 200020, kAnswerMark = 200002;  // [e~[ and <fim_middle>
const std::vector<int32_t> kGenerationPrompt = {200019, 1361, 10, 200050, 10};
// The same with the reasoning it opens closed again, empty.
const std::vector<int32_t> kNoThinkingPrompt = {200019, 1361, 10, 200050, 367, 200051, 367};
constexpr int64_t kSliceRows = 8;

}  // namespace

ScriptedModel::ScriptedModel(Limits limits, std::shared_ptr<const text::Tokenizer> tokenizer,
                             const Json& scripts, size_t window)
    : limits_(limits),
      window_(window),
      tokenizer_(std::move(tokenizer)),
      cells_(static_cast<size_t>(limits.num_blocks * limits.block_size), -1),
      logits_(static_cast<size_t>(kSliceRows * limits.vocab_size)) {
  for (const auto& [name, value] : scripts.items()) {
    Script script;
    script.tokens =
        tokenizer_->encode(value.value("text", std::string()), text::AddedTokens::nonspecial);
    script.repeats = value.value("repeat", false);
    script.delay_ms = value.value("delay_ms", 0);
    script.nan_at = value.value("nan_at", -1);
    if (!script.repeats) script.tokens.push_back(kEos);
    scripts_.emplace(name, std::move(script));
  }
}

std::vector<int32_t> ScriptedModel::history(const model::StepInput& input, size_t sequence) const {
  std::vector<int32_t> out(static_cast<size_t>(input.context_lens[sequence]));
  for (size_t position = 0; position < out.size(); ++position) {
    const size_t block_size = static_cast<size_t>(limits_.block_size);
    const size_t entry =
        sequence * static_cast<size_t>(input.max_blocks_per_sequence) + position / block_size;
    const auto block = static_cast<size_t>(input.block_tables[entry]);
    out[position] = cells_[block * block_size + position % block_size];
  }
  return out;
}

size_t ScriptedModel::answer_begin(const std::vector<int32_t>& history) const {
  for (const std::vector<int32_t>& prompt : {kNoThinkingPrompt, kGenerationPrompt}) {
    const auto chat = std::find_end(history.begin(), history.end(), prompt.begin(), prompt.end());
    if (chat != history.end()) return static_cast<size_t>(chat - history.begin()) + prompt.size();
  }
  const auto mark = std::find(history.rbegin(), history.rend(), kAnswerMark);
  return mark == history.rend() ? 0 : static_cast<size_t>(history.rend() - mark);
}

const Script* ScriptedModel::script_of(const std::vector<int32_t>& history, size_t answer) const {
  const size_t begin = answer - std::min(answer, window_);
  const std::string text = tokenizer_->decode({history.data() + begin, answer - begin}, false);
  const size_t name = text.rfind("script:");
  const size_t end = text.find(';', name);
  if (name == std::string::npos || end == std::string::npos) return nullptr;
  const auto script = scripts_.find(text.substr(name + 7, end - name - 7));
  return script == scripts_.end() ? nullptr : &script->second;
}

int32_t ScriptedModel::next_token(const std::vector<int32_t>& history) {
  const size_t begin = answer_begin(history);
  const Script* script = begin == 0 ? nullptr : script_of(history, begin);
  const size_t count = history.size() - begin;
  if (!script) return static_cast<int32_t>(1000 + count % 50000);
  step_delay_ms_ = std::max(step_delay_ms_, script->delay_ms);
  if (static_cast<int64_t>(count) == script->nan_at) return -1;
  if (script->repeats) return script->tokens[count % script->tokens.size()];
  return script->tokens[std::min(count, script->tokens.size() - 1)];
}

Result<void> ScriptedModel::step(const model::StepInput& input, model::LogitsSink& sink) {
  for (size_t t = 0; t < input.token_ids.size(); ++t)
    cells_[static_cast<size_t>(input.slots[t])] = input.token_ids[t];
  step_delay_ms_ = 0;

  const auto rows = static_cast<int64_t>(input.logit_rows.size());
  size_t sequence = 0;
  for (int64_t first = 0; first < rows; first += kSliceRows) {
    const int64_t count = std::min(kSliceRows, rows - first);
    std::fill(logits_.begin(), logits_.end(), -30.f);
    for (int64_t i = 0; i < count; ++i) {
      const int32_t row = input.logit_rows[static_cast<size_t>(first + i)];
      while (input.query_starts[sequence + 1] <= row) ++sequence;
      std::vector<int32_t> tokens = history(input, sequence);
      // A row inside a prompt (prompt_logprobs) sees what comes before it only.
      tokens.resize(tokens.size() -
                    static_cast<size_t>(input.query_starts[sequence + 1] - 1 - row));
      const int32_t next = next_token(tokens);
      float* logits = logits_.data() + i * limits_.vocab_size;
      if (next < 0)
        logits[0] = std::numeric_limits<float>::quiet_NaN();
      else
        logits[next] = 30;
    }
    sink.on_logits(first, Tensor(logits_.data(), DType::f32, {count, limits_.vocab_size}));
  }
  std::this_thread::sleep_for(std::chrono::milliseconds(step_delay_ms_));
  return {};
}

}  // namespace m2::e2e
