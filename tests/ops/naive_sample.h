#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <span>
#include <vector>

#include "ops/noise.h"
#include "ops/sample_row.h"

// What ops/sample.h promises, in the plainest loops and in double: everything is sorted.
namespace m2::test {

struct NaiveSample {
  ops::SampledRow row;
  std::vector<int32_t> top_ids;
  std::vector<double> top_logprobs;
  // How close the call was: the winner's score over the best other's, at least 1.
  double margin = std::numeric_limits<double>::infinity();
};

inline NaiveSample naive_sample(std::span<const float> logits, const ops::SampleRow& row,
                                std::span<const ops::LogitEdit> edits,
                                std::span<const uint32_t> mask) {
  constexpr double kNone = -std::numeric_limits<double>::infinity();
  NaiveSample out;
  const int64_t size = static_cast<int64_t>(logits.size());
  double largest = kNone;
  for (const float x : logits) {
    if (std::isnan(x) || x == std::numeric_limits<float>::infinity())
      out.row.status = ops::SampleStatus::not_finite;
    largest = std::max(largest, static_cast<double>(x));
  }
  if (largest == kNone) out.row.status = ops::SampleStatus::not_finite;
  if (out.row.status != ops::SampleStatus::ok) return out;

  std::vector<float> values(logits.begin(), logits.end());
  for (int64_t id = 0; !mask.empty() && id < size; ++id)
    if (!(mask[static_cast<size_t>(id / 32)] >> (id % 32) & 1u))
      values[static_cast<size_t>(id)] = -std::numeric_limits<float>::infinity();
  for (const ops::LogitEdit& edit : edits) {
    float& x = values[static_cast<size_t>(edit.id)];
    if (edit.flags & ops::LogitEdit::kMasked) x = -std::numeric_limits<float>::infinity();
    x += edit.bias;
    if (!(edit.flags & ops::LogitEdit::kPenalised) || std::isinf(x)) continue;
    if (edit.flags & ops::LogitEdit::kRepeated)
      x = x > 0 ? x / row.repetition_penalty : x * row.repetition_penalty;
    x -= edit.penalty;
  }

  std::vector<int32_t> order(static_cast<size_t>(size));
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int32_t>(i);
  const auto sort_by = [&](std::span<const float> x) {
    std::sort(order.begin(), order.end());
    std::stable_sort(order.begin(), order.end(), [&](int32_t a, int32_t b) {
      return x[static_cast<size_t>(a)] > x[static_cast<size_t>(b)];
    });
  };
  const auto value = [&](int32_t id) {
    return static_cast<double>(values[static_cast<size_t>(id)]);
  };

  if (row.given >= 0) {
    out.row.token = row.given;
  } else {
    sort_by(values);
    if (value(order[0]) == kNone) {
      out.row.status = ops::SampleStatus::all_masked;
      return out;
    }
    if (row.temperature < 1e-5f) {
      out.row.token = order[0];
    } else {
      const double scale = 1.0 / std::max(row.temperature, 0.01f);
      const double max = value(order[0]);
      std::vector<int32_t> kept;
      for (const int32_t id : order) {
        if (value(id) == kNone) break;
        if (row.top_k > 0 && static_cast<int64_t>(kept.size()) == row.top_k) break;
        if (row.min_p > 0 && std::exp((value(id) - max) * scale) < static_cast<double>(row.min_p))
          break;
        kept.push_back(id);
      }
      if (row.top_p < 1) {
        double total = 0, sum = 0;
        for (const int32_t id : kept) total += std::exp((value(id) - max) * scale);
        size_t count = 0;
        while (count < kept.size() && sum < static_cast<double>(row.top_p) * total)
          sum += std::exp((value(kept[count++]) - max) * scale);
        kept.resize(std::max<size_t>(count, 1));
      }
      double best = -1, second = -1;
      for (const int32_t id : kept) {
        const double time = -std::log1p(-static_cast<double>(
            ops::noise_uniform({row.noise_first, row.noise_second}, static_cast<uint32_t>(id))));
        const double score = std::exp((value(id) - max) * scale) / time;
        if (score > best) {
          second = best;
          best = score;
          out.row.token = id;
        } else {
          second = std::max(second, score);
        }
      }
      if (second > 0) out.margin = best / second;
    }
  }
  if (row.logprobs < 0) return out;

  double sum = 0;
  for (const float x : logits) sum += std::exp(static_cast<double>(x) - largest);
  const auto logprob = [&](int32_t id) {
    return static_cast<double>(logits[static_cast<size_t>(id)]) - largest - std::log(sum);
  };
  out.row.logprob = static_cast<float>(logprob(out.row.token));
  out.row.rank = 1 + static_cast<int32_t>(std::count_if(logits.begin(), logits.end(), [&](float x) {
                   return x > logits[static_cast<size_t>(out.row.token)];
                 }));
  sort_by(logits);
  for (int32_t i = 0; i < row.logprobs && i < size; ++i) {
    const int32_t id = order[static_cast<size_t>(i)];
    if (logits[static_cast<size_t>(id)] == -std::numeric_limits<float>::infinity()) break;
    out.top_ids.push_back(id);
    out.top_logprobs.push_back(logprob(id));
  }
  return out;
}

}  // namespace m2::test
