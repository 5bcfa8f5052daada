// Sampling and the unpacking of steps on the GPU. Outputs are poisoned before each run. Needs a
// GPU; says so and skips without one.
#include <algorithm>
#include <cmath>

#include "ops/sample.h"
#include "ops/unpack_step.h"
#include "tensor/stream.h"
#include "tests/ops/cuda/gpu_support.h"
#include "tests/ops/naive_sample.h"

namespace m2::gpu_test {
namespace {

using ops::LogitEdit;
using ops::SampledRow;
using ops::SampleRow;
using ops::SampleStatus;

class GpuSample : public testing::Test {
 protected:
  void SetUp() override {
    std::string why;
    if (!gpu_present(why)) GTEST_SKIP() << "needs a GPU: " << why;
  }
  std::mt19937 random_{99};
};

template <class T>
std::vector<int32_t> words_of(const std::vector<T>& values) {
  std::vector<int32_t> out(std::max<size_t>(1, values.size() * sizeof(T) / 4));
  if (!values.empty()) std::memcpy(out.data(), values.data(), values.size() * sizeof(T));
  return out;
}

struct Batch {
  int64_t vocab = 0, id_limit = 0;
  std::vector<float> logits;
  std::vector<SampleRow> rows;
  std::vector<LogitEdit> edits;
  std::vector<uint32_t> masks;
};

constexpr int64_t kMost = 20;

struct Sampled {
  std::vector<SampledRow> rows;
  std::vector<int32_t> top_ids;
  std::vector<double> top_logprobs;
};

// Every second row's result is written to the host, too.
Sampled sample(const Batch& batch) {
  const auto rows = static_cast<int64_t>(batch.rows.size());
  const OnGpu logits(batch.logits, {rows, batch.vocab});
  const HostBuffer also(gpu().device, rows * static_cast<int64_t>(sizeof(SampledRow)));
  std::memset(also.data(), 0x7f, static_cast<size_t>(also.bytes()));
  std::vector<SampleRow> asked = batch.rows;
  for (size_t r = 1; r < asked.size(); r += 2) {
    const auto place = reinterpret_cast<uint64_t>(also.data() + r * sizeof(SampledRow));
    asked[r].also_low = static_cast<uint32_t>(place);
    asked[r].also_high = static_cast<uint32_t>(place >> 32);
  }
  const OnGpu input(words_of(asked), {rows, ops::kSampleRowWords});
  const auto edit_words = words_of(batch.edits), mask_words = words_of(batch.masks);
  const OnGpu edits(edit_words, {static_cast<int64_t>(edit_words.size())});
  const OnGpu masks(mask_words, {static_cast<int64_t>(mask_words.size())});
  const OnGpu out(DType::i32, {rows, ops::kSampledRowWords}), ids(DType::i32, {rows, kMost});
  const OnGpu logprobs(DType::f32, {rows, kMost});
  const OnGpu scratch(DType::u8, {ops::sample_scratch_bytes(gpu().device, rows, batch.vocab)});
  ops::sample(gpu(), logits, batch.id_limit, {input, edits, masks}, scratch, {out, ids, logprobs});
  Sampled result;
  const std::vector<uint8_t> bytes = out.bytes();
  result.rows.resize(batch.rows.size());
  std::memcpy(result.rows.data(), bytes.data(), bytes.size());
  std::vector<uint8_t> expected(bytes.size(), 0x7f), written(bytes.size());
  for (size_t at = sizeof(SampledRow); at < bytes.size(); at += 2 * sizeof(SampledRow))
    std::memcpy(&expected[at], &bytes[at], sizeof(SampledRow));
  std::memcpy(written.data(), also.data(), written.size());
  EXPECT_EQ(written, expected);
  for (const double id : ids.values()) result.top_ids.push_back(static_cast<int32_t>(id));
  result.top_logprobs = logprobs.values();
  return result;
}

// Compares with the naive loops; calls so close that rounding may decide are only counted.
int64_t compare(const Batch& batch, const Sampled& got) {
  int64_t close = 0;
  const auto words = static_cast<size_t>((batch.id_limit + 31) / 32);
  for (size_t r = 0; r < batch.rows.size(); ++r) {
    const SampleRow& row = batch.rows[r];
    const std::span<const float> logits(batch.logits.data() + r * static_cast<size_t>(batch.vocab),
                                        static_cast<size_t>(batch.id_limit));
    const test::NaiveSample expected = test::naive_sample(
        logits, row,
        std::span(batch.edits)
            .subspan(static_cast<size_t>(row.first_edit), static_cast<size_t>(row.edits)),
        row.mask < 0
            ? std::span<const uint32_t>()
            : std::span(batch.masks).subspan(static_cast<size_t>(row.mask) * words, words));
    const SampledRow& out = got.rows[r];
    EXPECT_EQ(static_cast<int>(out.status), static_cast<int>(expected.row.status)) << r;
    if (expected.row.status != SampleStatus::ok) {
      EXPECT_EQ(out.token, -1) << r;
      continue;
    }
    if (out.token != expected.row.token) {
      EXPECT_LT(expected.margin, 1.0001)
          << "row " << r << ": " << out.token << ", not " << expected.row.token << ", top_k "
          << row.top_k << " top_p " << row.top_p << " min_p " << row.min_p << " T "
          << row.temperature;
      ++close;
      continue;
    }
    if (row.logprobs < 0) continue;
    if (std::isinf(expected.row.logprob)) {
      EXPECT_EQ(out.logprob, expected.row.logprob) << r;
    } else {
      EXPECT_NEAR(out.logprob, expected.row.logprob, 2e-5 * (1 + std::abs(out.logprob))) << r;
    }
    EXPECT_EQ(out.rank, expected.row.rank) << r;
    for (int64_t i = 0; i < kMost; ++i) {
      const size_t at = r * kMost + static_cast<size_t>(i);
      if (i >= static_cast<int64_t>(expected.top_ids.size())) {
        EXPECT_EQ(got.top_ids[at], -1) << r;
        continue;
      }
      EXPECT_EQ(got.top_ids[at], expected.top_ids[static_cast<size_t>(i)]) << r << " " << i;
      EXPECT_NEAR(got.top_logprobs[at], expected.top_logprobs[static_cast<size_t>(i)], 1e-3) << r;
    }
  }
  return close;
}

SampleRow random_row(std::mt19937& random, int64_t id_limit) {
  SampleRow row;
  const auto chance = [&](unsigned n) { return random() % n == 0; };
  row.temperature = chance(4)   ? 0.0f
                    : chance(5) ? 0.01f
                                : 0.3f + static_cast<float>(random() % 100) / 60;
  if (chance(3)) row.top_k = 1 + static_cast<int32_t>(random() % 60);
  if (chance(10)) row.top_k = 1 + static_cast<int32_t>(random() % static_cast<unsigned>(id_limit));
  if (chance(3)) row.top_p = 0.05f + static_cast<float>(random() % 95) / 100;
  if (chance(4)) row.min_p = static_cast<float>(random() % 100) / 200;
  row.noise_first = static_cast<uint32_t>(random());
  row.noise_second = static_cast<uint32_t>(random());
  if (chance(3)) row.logprobs = static_cast<int32_t>(random() % (kMost + 1));
  if (chance(12)) row.given = static_cast<int32_t>(random() % static_cast<unsigned>(id_limit));
  return row;
}

// Logits as sharp as a model's, or flat, or with many equal ones, or nearly so.
Batch random_batch(std::mt19937& random, int64_t vocab, int64_t id_limit, int64_t rows) {
  Batch out;
  out.vocab = vocab;
  out.id_limit = id_limit;
  std::normal_distribution<float> normal;
  const int64_t words = (id_limit + 31) / 32;
  for (int64_t r = 0; r < rows; ++r) {
    const auto kind = static_cast<unsigned>(random() % 5);
    for (int64_t id = 0; id < vocab; ++id) {
      float x = normal(random) * (kind == 0 ? 0.1f : 2.5f);
      if (kind == 1) x = std::round(x * 2) / 2;
      if (kind == 2 && random() % 8 == 0) x = -INFINITY;
      if (kind == 3) x = 1 + static_cast<float>(random() % 65536) * 0x1p-23f;
      out.logits.push_back(id < id_limit ? x : 1e30f);
    }
    SampleRow row = random_row(random, id_limit);
    if (random() % 3 == 0) {
      row.repetition_penalty = 1.2f;
      row.first_edit = static_cast<int32_t>(out.edits.size());
      for (int64_t id = 0; id < id_limit; ++id) {
        if (random() % 50 != 0) continue;
        LogitEdit edit;
        edit.id = static_cast<int32_t>(id);
        edit.flags = random() % 8;
        edit.bias = random() % 2 ? normal(random) * 3 : 0;
        edit.penalty = random() % 2 ? normal(random) : 0;
        out.edits.push_back(edit);
      }
      row.edits = static_cast<int32_t>(out.edits.size()) - row.first_edit;
    }
    if (random() % 4 == 0) {
      row.mask = static_cast<int32_t>(static_cast<int64_t>(out.masks.size()) / words);
      const bool sparse = random() % 2;
      for (int64_t w = 0; w < words; ++w)
        out.masks.push_back(sparse && random() % 8 ? 0u : static_cast<uint32_t>(random()));
    }
    out.rows.push_back(row);
  }
  return out;
}

TEST_F(GpuSample, EqualsTheNaiveLoops) {
  int64_t close = 0, rows = 0;
  for (const auto& [vocab, limit] : {std::pair<int64_t, int64_t>{64, 61},
                                     {1000, 1000},
                                     {160, 160},
                                     {4096, 4095},
                                     {4100, 4097},
                                     {20000, 19990}}) {
    for (const int64_t count : {1, 7, 64}) {
      const Batch batch = random_batch(random_, vocab, limit, count);
      close += compare(batch, sample(batch));
      rows += count;
      if (HasFailure()) FAIL() << vocab << " " << limit << " " << count;
    }
  }
  EXPECT_LE(close, rows / 100) << "of " << rows;
}

TEST_F(GpuSample, EqualsTheNaiveLoopsOnTheRealVocabulary) {
  const Batch batch = random_batch(random_, 200064, 200061, 24);
  EXPECT_LE(compare(batch, sample(batch)), 1);
}

TEST_F(GpuSample, BrokenAndMaskedRowsEndAlone) {
  Batch batch = random_batch(random_, 5000, 4990, 6);
  for (SampleRow& row : batch.rows) row = {};
  batch.edits.clear();
  batch.masks.assign((4990 + 31) / 32, 0u);
  batch.logits[4000] = NAN;
  batch.logits[5000 + 17] = INFINITY;
  std::fill_n(batch.logits.begin() + 2 * 5000, 4990, -INFINITY);
  batch.rows[3].mask = 0;
  batch.logits[4 * 5000 + 4995] = NAN;  // past id_limit: nobody's business
  const Sampled got = sample(batch);
  compare(batch, got);
  EXPECT_EQ(got.rows[0].status, SampleStatus::not_finite);
  EXPECT_EQ(got.rows[1].status, SampleStatus::not_finite);
  EXPECT_EQ(got.rows[2].status, SampleStatus::not_finite);
  EXPECT_EQ(got.rows[3].status, SampleStatus::all_masked);
  EXPECT_EQ(got.rows[4].status, SampleStatus::ok);
  EXPECT_EQ(got.rows[5].status, SampleStatus::ok);
}

// 51,200 draws from 40 of 3000 ids against their probabilities: chi square with 39 degrees of
// freedom is below 90.7 with probability 1 - 5e-6.
TEST_F(GpuSample, DrawsFollowTheDistribution) {
  constexpr int64_t kVocab = 3000, kRows = 256, kRounds = 200;
  std::vector<float> row(kVocab);
  std::normal_distribution<float> normal;
  for (float& x : row) x = normal(random_) * 2;
  std::vector<float> sorted = row;
  std::sort(sorted.begin(), sorted.end(), std::greater<>());
  for (const int32_t top_k : {0, 40}) {
    std::vector<double> probability(kVocab);
    double sum = 0;
    for (int64_t i = 0; i < kVocab; ++i) {
      if (top_k && row[i] < sorted[39]) continue;
      sum += probability[i] = std::exp(static_cast<double>(row[i]) / 0.7);
    }
    Batch batch;
    batch.vocab = batch.id_limit = kVocab;
    for (int64_t r = 0; r < kRows; ++r)
      batch.logits.insert(batch.logits.end(), row.begin(), row.end());
    std::vector<int64_t> counts(kVocab);
    for (int64_t round = 0; round < kRounds; ++round) {
      batch.rows.assign(kRows, {});
      for (SampleRow& one : batch.rows) {
        one.temperature = 0.7f;
        one.top_k = top_k;
        one.noise_first = static_cast<uint32_t>(random_());
        one.noise_second = static_cast<uint32_t>(random_());
      }
      for (const SampledRow& one : sample(batch).rows) ++counts[one.token];
    }
    // Ids of the 39 largest, and the rest in one class.
    double chi = 0, rest_expected = 0, rest_seen = 0;
    for (int64_t i = 0; i < kVocab; ++i) {
      const double expected = probability[i] / sum * kRows * kRounds;
      const auto seen = static_cast<double>(counts[i]);
      if (row[i] > sorted[39]) {
        chi += (seen - expected) * (seen - expected) / expected;
      } else {
        rest_expected += expected;
        rest_seen += seen;
      }
    }
    chi += (rest_seen - rest_expected) * (rest_seen - rest_expected) / rest_expected;
    EXPECT_LT(chi, 90.7) << "top_k " << top_k;
    EXPECT_GT(chi, 10.0) << "top_k " << top_k;
  }
}

TEST_F(GpuSample, StepsAreUnpackedAsOnTheHost) {
  ThreadPool pool(1);
  const Exec host{Device{}, &pool, nullptr};
  for (const auto& [tokens, sequences, width, rows, padded] :
       std::vector<std::array<int64_t, 5>>{{9, 3, 5, 4, 0},
                                           {3, 3, 7, 3, 8},
                                           {1, 1, 1, 1, 1},
                                           {700, 2, 40, 2, 0},
                                           {0, 0, 0, 0, 16},
                                           {64, 64, 33, 64, 64}}) {
    const ops::StepSizes sizes{tokens, sequences, width, rows, true};
    std::vector<int32_t> packed(static_cast<size_t>(ops::packed_step_words(sizes)));
    for (int32_t& word : packed) word = static_cast<int32_t>(random_() % 1000);
    std::vector<int32_t> previous(16 * ops::kSampledRowWords);
    for (int32_t& word : previous) word = static_cast<int32_t>(random_() % 1000);
    for (int64_t t = 0; t < tokens; t += 3)
      packed[static_cast<size_t>(t)] = -1 - static_cast<int32_t>(t % 16);
    const int64_t most = 800, tables = 50;
    std::vector<std::vector<int32_t>> arrays;
    for (const int64_t count :
         {most, most, most, most + 1, most, most * tables, most, most * ops::kSampleRowWords})
      arrays.emplace_back(static_cast<size_t>(count), -1);
    const auto layout = [&](auto&& at) {
      ops::BatchLayout out;
      out.token_ids = at(0, most, 0), out.positions = at(1, most, 0), out.slots = at(2, most, 0);
      out.query_starts = at(3, most + 1, 0), out.context_lens = at(4, most, 0);
      out.block_tables = at(5, most, tables), out.logit_rows = at(6, most, 0);
      return out;
    };
    std::vector<OnGpu> on_gpu;
    for (auto& array : arrays)
      on_gpu.emplace_back(array,
                          std::initializer_list<int64_t>{static_cast<int64_t>(array.size())});
    const auto view = [](void* data, int64_t n, int64_t m) {
      return m ? Tensor(data, DType::i32, {n, m}) : Tensor(data, DType::i32, {n});
    };
    const OnGpu packed_gpu(packed.empty() ? std::vector<int32_t>{0} : packed,
                           {static_cast<int64_t>(packed.size())});
    const OnGpu previous_gpu(previous, {16, ops::kSampledRowWords});
    ops::unpack_step(gpu(), sizes, packed_gpu, previous_gpu, padded,
                     layout([&](size_t i, int64_t n, int64_t m) {
                       return view(on_gpu[i].tensor().data(), n, m);
                     }),
                     view(on_gpu[7].tensor().data(), most, ops::kSampleRowWords));
    ops::unpack_step(
        host, sizes, Tensor(packed.data(), DType::i32, {static_cast<int64_t>(packed.size())}),
        Tensor(previous.data(), DType::i32, {16, ops::kSampledRowWords}), padded,
        layout([&](size_t i, int64_t n, int64_t m) { return view(arrays[i].data(), n, m); }),
        view(arrays[7].data(), most, ops::kSampleRowWords));
    for (size_t i = 0; i < arrays.size(); ++i) {
      const std::vector<uint8_t> bytes = on_gpu[i].bytes();
      EXPECT_EQ(0, std::memcmp(bytes.data(), arrays[i].data(), bytes.size())) << tokens << " " << i;
    }
  }
}

}  // namespace
}  // namespace m2::gpu_test
