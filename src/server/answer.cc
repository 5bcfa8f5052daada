#include "server/answer.h"

#include <numeric>

namespace m2::server {

std::string Answer::fail(const api::ApiError& error) {
  return api::error_frame(api::to_json(error)) + api::kDoneFrame;
}

std::string Answer::detach(std::function<void()>) {
  return {};
}

std::string Answer::cancelled() {
  return {};
}

TokenCounts::TokenCounts(const AnswerSetup& setup)
    : completion_(setup.prompts.size() * static_cast<size_t>(setup.n)),
      n_(setup.n),
      details_(setup.prompt_tokens_details) {
  for (const auto& prompt : setup.prompts) prompt_.push_back(static_cast<int64_t>(prompt->size()));
}

api::Usage TokenCounts::total(bool with_reasoning) const {
  api::Usage usage;
  usage.prompt_tokens = std::accumulate(prompt_.begin(), prompt_.end(), int64_t{0});
  usage.completion_tokens = std::accumulate(completion_.begin(), completion_.end(), int64_t{0});
  if (with_reasoning) usage.reasoning_tokens = reasoning_;
  if (details_) usage.cached_tokens = cached_;
  return usage;
}

api::Usage TokenCounts::of_choice(size_t choice) const {
  api::Usage usage;
  usage.prompt_tokens = prompt_[choice / static_cast<size_t>(n_)];
  usage.completion_tokens = completion_[choice];
  return usage;
}

}  // namespace m2::server
