#include "ops/unpack_step.h"

#include <gtest/gtest.h>

#include <vector>

#include "ops/route.h"
#include "ops/sample_row.h"

namespace m2::ops {
namespace {

using Ints = std::vector<int32_t>;

Tensor view(Ints& values) {
  return Tensor(values.data(), DType::i32, {static_cast<int64_t>(values.size())});
}

struct Arrays {
  Ints ids = Ints(8, 99), positions = ids, slots = ids, starts = Ints(9, 99), lens = ids;
  Ints tables = Ints(8 * 4, 99), rows = ids, samples = Ints(8 * kSampleRowWords, 99);
  BatchLayout layout() {
    BatchLayout out;
    out.token_ids = view(ids), out.positions = view(positions), out.slots = view(slots);
    out.query_starts = view(starts), out.context_lens = view(lens), out.logit_rows = view(rows);
    out.block_tables = Tensor(tables.data(), DType::i32, {8, 4});
    return out;
  }
};

// Two decoding sequences, padded to four, the second token chosen by row 1 of the step before.
TEST(UnpackStep, PutsAStepInItsPlacesAndPadsIt) {
  Ints packed{5,  -2,        // token ids
              17, 33,        // positions
              97, 49,        // slots
              0,  1,  2,     // query starts
              18, 34,        // context lengths
              6,  -1, 0, 3,  // two blocks of each table
              0,  1};        // logit rows
  for (int32_t word = 0; word < 2 * kSampleRowWords; ++word) packed.push_back(1000 + word);
  Ints previous{0, 70, 0, 0, 0, 71, 0, 0};
  Arrays to;
  const StepSizes sizes{2, 2, 2, 2, true};
  ASSERT_EQ(packed_step_words(sizes), static_cast<int64_t>(packed.size()));
  ThreadPool pool(1);
  unpack_step({Device{}, &pool, nullptr}, sizes, view(packed),
              Tensor(previous.data(), DType::i32, {2, kSampledRowWords}), 4, to.layout(),
              Tensor(to.samples.data(), DType::i32, {8, kSampleRowWords}));
  EXPECT_EQ(to.ids, (Ints{5, 71, 0, 0, 99, 99, 99, 99}));
  EXPECT_EQ(to.positions, (Ints{17, 33, 0, 0, 99, 99, 99, 99}));
  EXPECT_EQ(to.slots, (Ints{97, 49, -1, -1, 99, 99, 99, 99}));
  EXPECT_EQ(to.starts, (Ints{0, 1, 2, 3, 4, 99, 99, 99, 99}));
  EXPECT_EQ(to.lens, (Ints{18, 34, 0, 0, 99, 99, 99, 99}));
  EXPECT_EQ(to.rows, (Ints{0, 1, 2, 3, 99, 99, 99, 99}));
  EXPECT_EQ(Ints(to.tables.begin(), to.tables.begin() + 8), (Ints{6, -1, 99, 99, 0, 3, 99, 99}));
  EXPECT_EQ(to.samples[2 * kSampleRowWords - 1], 1000 + 2 * kSampleRowWords - 1);
  const auto* inert = reinterpret_cast<const SampleRow*>(to.samples.data()) + 3;
  EXPECT_EQ(inert->temperature, 0);
  EXPECT_EQ(inert->mask, -1);
  EXPECT_EQ(to.samples[4 * kSampleRowWords], 99);
}

// A token without a slot pads the batch: it has no expert.
TEST(UnpackStep, InertTokensAreRoutedNowhere) {
  std::vector<float> x(3 * 8, 1.0f), gate(4 * 8), bias(4), weights(3 * 2, 9.0f);
  for (size_t i = 0; i < gate.size(); ++i) gate[i] = static_cast<float>(i % 5) - 2;
  Ints ids(3 * 2, 9), slots{4, -1, 0};
  ThreadPool pool(1);
  route({Device{}, &pool, nullptr}, Tensor(x.data(), DType::f32, {3, 8}),
        Tensor(gate.data(), DType::f32, {4, 8}), Tensor(bias.data(), DType::f32, {4}),
        Tensor(ids.data(), DType::i32, {3, 2}), Tensor(weights.data(), DType::f32, {3, 2}),
        view(slots));
  EXPECT_EQ(ids[2], -1);
  EXPECT_EQ(ids[3], -1);
  EXPECT_EQ(weights[2], 0.0f);
  EXPECT_EQ(weights[3], 0.0f);
  for (const size_t at : {0u, 1u, 4u, 5u}) {
    EXPECT_GE(ids[at], 0);
    EXPECT_GT(weights[at], 0.0f);
  }
}

}  // namespace
}  // namespace m2::ops
