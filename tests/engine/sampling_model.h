#pragma once

#include <algorithm>
#include <deque>
#include <string>
#include <vector>

#include "tests/engine/history_model.h"
#include "tests/ops/naive_sample.h"

namespace m2::engine::test {

// A HistoryModel that samples what it computes. Results are held back until they are collected.
class SamplingModel : public HistoryModel, model::LogitsSink {
 public:
  SamplingModel(const Limits& limits, int64_t id_limit, int64_t most_edits)
      : HistoryModel(limits, id_limit), id_limit_(id_limit), most_edits_(most_edits) {}

  Limits limits() const override {
    Limits out = HistoryModel::limits();
    out.most_edits = most_edits_;
    out.mask_words = (id_limit_ + 31) / 32;
    out.most_logprobs = kMost;
    return out;
  }
  bool samples() const override { return true; }

  void enqueue(const model::StepInput& input, const model::StepSampling& sampling) override {
    std::vector<int32_t> ids(input.token_ids.begin(), input.token_ids.end());
    for (int32_t& id : ids) {
      if (id < 0 && !last_.empty()) id = last_.at(static_cast<size_t>(-1 - id)).token;
    }
    model::StepInput resolved = input;
    resolved.token_ids = ids;
    sampling_ = &sampling;
    made_ = {};
    const Result<void> ran = step(resolved, *this);
    made_.error = ran.ok() ? "" : ran.error().text;
    last_ = made_.rows;
    under_way_.push_back(std::move(made_));
    most_under_way_ = std::max(most_under_way_, under_way_.size());
  }

  Result<model::StepResult> collect() override {
    collected_ = std::move(under_way_.front());
    under_way_.pop_front();
    if (!collected_.error.empty()) return fail(Code::internal, "{}", collected_.error);
    return model::StepResult{collected_.rows, collected_.ids, collected_.logprobs, kMost};
  }

  size_t under_way() const { return under_way_.size(); }
  size_t most_under_way() const { return most_under_way_; }

 private:
  static constexpr int64_t kMost = 5;
  struct Made {
    std::vector<ops::SampledRow> rows;
    std::vector<int32_t> ids;
    std::vector<float> logprobs;
    std::string error;
  };

  void on_logits(int64_t first, Tensor logits) override {
    for (int64_t i = 0; i < logits.size(0); ++i) {
      const ops::SampleRow& row = sampling_->rows[static_cast<size_t>(first + i)];
      const auto words = static_cast<size_t>((id_limit_ + 31) / 32);
      const m2::test::NaiveSample made = m2::test::naive_sample(
          {logits.at(i).as<float>(), static_cast<size_t>(id_limit_)}, row,
          sampling_->edits.subspan(static_cast<size_t>(row.first_edit),
                                   static_cast<size_t>(row.edits)),
          row.mask < 0 ? std::span<const uint32_t>()
                       : sampling_->masks.subspan(static_cast<size_t>(row.mask) * words, words));
      made_.rows.push_back(made.row);
      for (size_t k = 0; k < kMost; ++k) {
        made_.ids.push_back(k < made.top_ids.size() ? made.top_ids[k] : -1);
        made_.logprobs.push_back(k < made.top_ids.size() ? static_cast<float>(made.top_logprobs[k])
                                                         : 0);
      }
    }
  }

  const int64_t id_limit_;
  const int64_t most_edits_;
  const model::StepSampling* sampling_ = nullptr;
  Made made_, collected_;
  std::vector<ops::SampledRow> last_;
  std::deque<Made> under_way_;
  size_t most_under_way_ = 0;
};

}  // namespace m2::engine::test
