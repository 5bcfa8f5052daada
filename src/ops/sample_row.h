#pragma once

#include <cstdint>

// What ops::sample() reads and writes of each row, as it lies in device memory. Read by nvcc too,
// so it includes nothing of ours. Every member has four bytes: the structs travel as i32 tensors.
namespace m2::ops {

// How a row's token is chosen.
struct SampleRow {
  float temperature = 0;  // below 1e-5: the largest logit
  float top_p = 1;        // (0, 1]
  float min_p = 0;        // [0, 1]
  int32_t top_k = 0;      // 0: off
  float repetition_penalty = 1;
  uint32_t noise_first = 0, noise_second = 0;  // NoiseKey
  int32_t logprobs = -1;                       // how many top logprobs; -1: none at all
  int32_t given = -1;      // >= 0: nothing is chosen, the logprobs are of this id
  int32_t first_edit = 0;  // its edits, ascending in id, no id twice
  int32_t edits = 0;
  int32_t mask = -1;  // its row of the masks; -1: every id is allowed
  // Address in host memory where the SampledRow is written once more; 0: nowhere.
  uint32_t also_low = 0, also_high = 0;
};
constexpr int64_t kSampleRowWords = sizeof(SampleRow) / 4;

// What becomes of one logit before the choice, in this order: masked or not, plus bias, the row's
// repetition penalty if `repeated`, minus `penalty`; clamped to finite numbers.
struct LogitEdit {
  int32_t id = 0;
  float bias = 0;
  float penalty = 0;
  uint32_t flags = 0;
  static constexpr uint32_t kMasked = 1, kRepeated = 2, kPenalised = 4;
};
constexpr int64_t kLogitEditWords = sizeof(LogitEdit) / 4;

enum class SampleStatus : int32_t {
  ok = 0,
  not_finite = 1,  // NaN, +infinity or nothing above -infinity in the model's logits
  all_masked = 2,  // the row's own masks leave no token
};

struct SampledRow {
  SampleStatus status = SampleStatus::ok;
  int32_t token = -1;
  float logprob = 0;  // of `token`, from the raw logits, if asked for
  int32_t rank = 0;   // 1 = most likely, if asked for
};
constexpr int64_t kSampledRowWords = sizeof(SampledRow) / 4;

}  // namespace m2::ops
