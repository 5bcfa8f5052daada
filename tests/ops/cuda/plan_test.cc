#include "ops/cuda/attention/plan.h"

#include <gtest/gtest.h>

#include <chrono>
#include <future>
#include <thread>
#include <vector>

#include "ops/cuda/experts/plan.h"
#include "ops/cuda/launch_states.h"
#include "ops/cuda/linear/plan.h"

namespace m2::ops::cuda {
namespace {

LinearShape with_workspace(LinearShape shape) {
  shape.workspace_bytes = linear_workspace_bytes(shape.tokens, shape.columns);
  return shape;
}

TEST(LinearPlan, HopperQuantisesWhateverTheStep) {
  const LinearShape qkv{.tokens = 1, .rows = 8192, .columns = 3072};
  EXPECT_EQ(describe(plan_linear(with_workspace(qkv))), "flow, tiles of 64 rows");
  for (const int64_t tokens : {1, 8, 9, 64, 65, 8192}) {
    LinearShape shape = qkv;
    shape.tokens = tokens;
    const LinearForm form = tokens <= 16    ? LinearForm::flow
                            : tokens <= 500 ? LinearForm::narrow
                                            : LinearForm::tiles;
    EXPECT_EQ(plan_linear(with_workspace(shape)).form, form) << tokens;
    shape.quantised = true;
    EXPECT_EQ(plan_linear(shape).form, form) << tokens;
    shape.quantised = false;
    EXPECT_NE(plan_linear(shape).form, form) << "without a workspace";
    for (const auto change : {+[](LinearShape& s) { s.whole_blocks = false; },
                              +[](LinearShape& s) { s.compute_major = 10; },
                              +[](LinearShape& s) { s.rows_follow = false; },
                              +[](LinearShape& s) { s.weight = DType::bf16; }}) {
      LinearShape other = with_workspace(shape);
      change(other);
      const LinearForm instead = plan_linear(other).form;
      EXPECT_TRUE(instead == LinearForm::ring || instead == LinearForm::stream ||
                  instead == LinearForm::flow16 || instead == LinearForm::tiles16)
          << tokens;
    }
  }
  LinearShape many = with_workspace({.tokens = 2048, .rows = 8192, .columns = 3072});
  EXPECT_EQ(plan_linear(many).scales_at, 2048 * 3072);
}

TEST(LinearPlan, FlowTilesSpreadEvenly) {
  const auto rows_of = [](int64_t tokens, int64_t rows, int64_t columns) {
    return plan_linear(with_workspace({.tokens = tokens, .rows = rows, .columns = columns}))
        .tile_rows;
  };
  EXPECT_EQ(rows_of(1, 8192, 3072), 64);   // 128 tiles on 132 multiprocessors
  EXPECT_EQ(rows_of(16, 3072, 6144), 24);  // 128 as well; of 64 rows only 48
  EXPECT_EQ(rows_of(16, 2048, 2048), 16);
  for (const int64_t rows : {1, 8, 100, 5000, 200064})
    for (const int64_t tokens : {1, 64}) {
      const int tile =
          plan_linear(with_workspace({.tokens = tokens, .rows = rows, .columns = 128})).tile_rows;
      EXPECT_TRUE(tile % 8 == 0 && tile >= 16 && tile <= 64) << tile;
    }
}

TEST(LinearPlan, FewRowsOfManyColumnsTakeTwoBlocksATile) {
  const auto form_of = [](LinearShape shape) { return plan_linear(with_workspace(shape)).form; };
  const LinearShape o{.tokens = 1, .rows = 3072, .columns = 6144};
  EXPECT_EQ(describe(plan_linear(with_workspace(o))), "flow, half of K a block, tiles of 48 rows");
  EXPECT_LE(2 * (3072 / 48), o.multiprocessors);
  EXPECT_EQ(form_of({.tokens = 8, .rows = 3072, .columns = 3072}), LinearForm::flow_pair);
  EXPECT_EQ(form_of({.tokens = 9, .rows = 3072, .columns = 6144}), LinearForm::flow);
  EXPECT_EQ(form_of({.tokens = 16, .rows = 3072, .columns = 3072}), LinearForm::flow_pair);
  EXPECT_EQ(form_of({.tokens = 17, .rows = 3072, .columns = 3072}), LinearForm::narrow);
  EXPECT_EQ(form_of({.tokens = 17, .rows = 3072, .columns = 3200}), LinearForm::flow);
  EXPECT_EQ(form_of({.tokens = 1, .rows = 8192, .columns = 3072}), LinearForm::flow);
  EXPECT_EQ(form_of({.tokens = 17, .rows = 3072, .columns = 1536}), LinearForm::narrow);
}

TEST(LinearPlan, QkvAndOOfRanksTakeABlockATile) {
  // No tile of q, k and v has rows of two of them.
  for (const int64_t ranks : {2, 4, 8})
    for (const int64_t tokens : {1, 10, 16}) {
      const LinearShape qkv{.tokens = tokens, .rows = 8192 / ranks, .columns = 3072, .parts = 3};
      const LinearPlan plan = plan_linear(with_workspace(qkv));
      EXPECT_EQ(plan.form, ranks == 2 ? LinearForm::flow_pair : LinearForm::flow_few) << ranks;
      int64_t tiles = 0;
      for (const int64_t rows : {6144 / ranks, 1024 / ranks, 1024 / ranks})
        tiles += (rows + plan.tile_rows - 1) / plan.tile_rows;
      EXPECT_LE((ranks == 2 ? 2 : 1) * tiles, qkv.multiprocessors) << ranks;

      const LinearShape o{.tokens = tokens, .rows = 3072, .columns = 6144 / ranks};
      EXPECT_EQ(describe(plan_linear(with_workspace(o))),
                ranks < 8 ? "flow, half of K a block, tiles of 48 rows"
                          : "flow, all of K at once, tiles of 24 rows");
    }
}

TEST(LinearPlan, Bf16FlowsOnHopperInTilesThatSpreadEvenly) {
  const auto plan_of = [](int64_t tokens, int64_t rows, int major = 9) {
    return describe(plan_linear({.tokens = tokens,
                                 .rows = rows,
                                 .columns = 3072,
                                 .weight = DType::bf16,
                                 .compute_major = major}));
  };
  for (const int64_t tokens : {1, 64})
    EXPECT_EQ(plan_of(tokens, 200064), "flow16, tiles of 192 rows") << tokens;
  EXPECT_EQ(plan_of(65, 200064), "tiles16 of 128 rows");  // no second token tile to share with
  for (const int64_t tokens : {256, 8192})
    EXPECT_EQ(plan_of(tokens, 200064), "tiles16 of 256 rows, weights shared") << tokens;
  EXPECT_EQ(plan_of(64, 16000), "flow16, tiles of 128 rows");  // 125 on 132 multiprocessors
  EXPECT_EQ(plan_of(1, 8192), "flow16, tiles of 64 rows");     // 128
  EXPECT_EQ(plan_of(1, 3072), "flow16, tiles of 24 rows");     // 128 as well
  EXPECT_EQ(plan_of(64, 3072), "flow16, tiles of 24 rows");
  EXPECT_EQ(plan_of(8192, 3072), "tiles16 of 256 rows, weights shared");
  EXPECT_EQ(plan_of(1, 200064, 8), "stream, 8 tokens");
  EXPECT_EQ(plan_of(64, 200064, 10), "stream, 32 tokens");
}

TEST(LinearPlan, TilesOfManyTokensAreWideWhereTheySpreadEvenly) {
  const auto described = [](int64_t tokens, int64_t rows) {
    return describe(plan_linear(with_workspace({.tokens = tokens, .rows = rows, .columns = 128})));
  };
  EXPECT_EQ(described(8192, 8192), "tiles of 256 rows, weights shared");
  EXPECT_EQ(described(8192, 3072), "tiles of 256 rows, weights shared");
  EXPECT_EQ(described(512, 8192), "tiles of 256 rows, weights shared");  // 128 on 132 in one round
  EXPECT_EQ(described(128, 8192), "tiles of 128 rows, weights shared");  // 32 of 256 rows idle 100
  EXPECT_EQ(described(2048, 3072), "tiles of 128 rows, weights shared");
  EXPECT_EQ(described(600, 3200), "tiles of 128 rows");  // 125 in one round; 150 with a sixth
}

TEST(LinearPlan, SomeTokensTakeTilesThatAllMultiprocessorsHave) {
  const auto described = [](LinearShape shape) {
    return describe(plan_linear(with_workspace(shape)));
  };
  LinearShape qkv{.tokens = 64, .rows = 2048, .columns = 3072, .parts = 3, .multiple = 256};
  EXPECT_EQ(described(qkv), "64 tokens and 16 rows a tile");
  qkv.tokens = 65;
  EXPECT_EQ(described(qkv), "64 tokens and 32 rows a tile");
  qkv.tokens = 512;
  EXPECT_EQ(described(qkv), "64 tokens and 128 rows a tile");
  qkv.tokens = 513;
  EXPECT_EQ(described(qkv), "tiles of 128 rows, weights shared");
  qkv.tokens = 64;
  qkv.multiple = 1;  // 130 tiles, one or two of which have few rows
  EXPECT_EQ(described(qkv), "64 tokens and 16 rows a tile");
  qkv.tokens = 512;
  EXPECT_EQ(described(qkv), "tiles of 128 rows, weights shared");
  EXPECT_EQ(described({.tokens = 64, .rows = 3072, .columns = 6144}),
            "64 tokens and 32 rows a tile");
  EXPECT_EQ(described({.tokens = 64, .rows = 3072, .columns = 1152}),
            "64 tokens and 32 rows a tile");
  EXPECT_EQ(described({.tokens = 64, .rows = 3072, .columns = 1280}), "flow, tiles of 24 rows");
  EXPECT_EQ(described({.tokens = 16, .rows = 3072, .columns = 1152}), "flow, tiles of 24 rows");
}

TEST(LinearPlan, OtherChipsStreamAndTakeMoreTokensTogetherAsTheyCome) {
  LinearShape shape{.tokens = 1, .rows = 8192, .columns = 3072, .compute_major = 10};
  EXPECT_EQ(describe(plan_linear(shape)), "ring, tiles of 16 rows");
  // 192 tiles of 16 rows would leave 72 of 132 multiprocessors with half the work.
  EXPECT_EQ(
      describe(plan_linear({.tokens = 1, .rows = 3072, .columns = 6144, .compute_major = 10})),
      "ring, tiles of 8 rows");
  shape.compute_major = 8;
  EXPECT_EQ(describe(plan_linear(shape)), "stream, 8 tokens");
  shape.compute_major = 10;
  shape.tokens = 9;
  EXPECT_EQ(describe(plan_linear(shape)), "stream, 16 tokens");
  shape.tokens = 17;
  EXPECT_EQ(describe(plan_linear(shape)), "stream, 32 tokens");
}

TEST(LinearPlan, WhatTheMatrixUnitsCannotTakeRunsAnyway) {
  const LinearShape good{.tokens = 1, .rows = 16, .columns = 192};
  const auto form_with = [&](auto change) {
    LinearShape shape = good;
    change(shape);
    return plan_linear(shape).form;
  };
  EXPECT_EQ(plan_linear(good).form, LinearForm::ring);
  EXPECT_EQ(form_with([](LinearShape& s) { s.rows_follow = false; }), LinearForm::stream);
  EXPECT_EQ(form_with([](LinearShape& s) { s.columns = 96; }), LinearForm::any);
  EXPECT_EQ(form_with([](LinearShape& s) { s.x = DType::f32; }), LinearForm::any);
  EXPECT_EQ(form_with([](LinearShape& s) { s.weight = DType::f16; }), LinearForm::any);
  EXPECT_EQ(form_with([](LinearShape& s) { s.aligned = false; }), LinearForm::any);
  EXPECT_EQ(form_with([](LinearShape& s) { s.whole_chunks = false; }), LinearForm::any);
  EXPECT_EQ(form_with([](LinearShape& s) { s.compute_major = 7; }), LinearForm::any);
  EXPECT_EQ(form_with([](LinearShape& s) {
              s.weight = DType::bf16;
              s.whole_chunks = false;
            }),
            LinearForm::flow16);
}

TEST(ExpertsPlan, FormsByTokens) {
  ExpertsShape shape{.tokens = 1, .top = 8, .experts = 256, .inner = 1536, .hidden = 3072};
  EXPECT_EQ(describe(plan_experts(shape)), "flow without lists, 8 columns, batch 1");
  shape.tokens = 8;
  EXPECT_EQ(describe(plan_experts(shape)), "flow without lists, 8 columns, batch 8");
  shape.experts = 8;
  EXPECT_EQ(describe(plan_experts(shape)), "flow without lists, 8 columns, batch 8");
  shape.experts = 256;
  shape.top = 9;
  EXPECT_EQ(describe(plan_experts(shape)), "flow, groups of 8, batch 8");
  shape.top = 33;  // more than a warp chooses
  shape.tokens = 1;
  EXPECT_EQ(describe(plan_experts(shape)), "flow, groups of 8, batch 1");
  shape.top = 8;
  shape.tokens = 9;
  EXPECT_EQ(describe(plan_experts(shape)), "flow without lists, 16 columns, batch 9");
  shape.tokens = 16;
  EXPECT_EQ(describe(plan_experts(shape)), "flow without lists, 16 columns, batch 16");
  shape.tokens = 17;
  EXPECT_EQ(describe(plan_experts(shape)), "flow, groups of 8, batch 17");
  shape.tokens = 63;
  EXPECT_EQ(describe(plan_experts(shape)), "flow, groups of 8, batch 63");
  shape.tokens = 64;
  EXPECT_EQ(describe(plan_experts(shape)), "flow, groups of 16, batch 64");
  shape.tokens = 257;
  EXPECT_EQ(describe(plan_experts(shape)), "tiles, batch 257");
  shape.inner = 384;  // one of four tensor ranks
  EXPECT_EQ(describe(plan_experts(shape)), "flow, groups of 16, batch 257");
  shape.tokens = 127;
  EXPECT_EQ(describe(plan_experts(shape)), "flow, groups of 8, batch 127");
  shape.inner = 1536;
  shape.tokens = 200;
  EXPECT_EQ(describe(plan_experts(shape)), "flow, groups of 16, batch 200");
  shape.inner = 192;  // one of eight tensor ranks, whose slices begin and end within blocks
  shape.whole_blocks = false;
  EXPECT_EQ(describe(plan_experts(shape)), "flow, groups of 16, batch 200");
  EXPECT_EQ(plan_experts(shape).inner_stretch, 64);
  shape.inner = 1536;
  shape.whole_blocks = true;
  shape.tokens = 20000;
  EXPECT_EQ(describe(plan_experts(shape)), "tiles, batch 8192");
  EXPECT_EQ(plan_experts(shape).inner_stretch, 128);
  shape.compute_major = 10;
  EXPECT_EQ(describe(plan_experts(shape)), "stream, 16 tokens, batch 256");
  shape.tokens = 64;
  EXPECT_EQ(describe(plan_experts(shape)), "ring, batch 64");
  shape.compute_major = 9;
  shape.weight = DType::bf16;
  EXPECT_EQ(describe(plan_experts(shape)), "stream, 8 tokens, batch 64");
  shape.weight = DType::f16;
  EXPECT_EQ(describe(plan_experts(shape)), "any, batch 64");
}

// Two teams of consumers tell a stage's rounds apart while a row is shorter than two of them.
TEST(ExpertsPlan, RowsWiderThanTheRingAllowsTakeLists) {
  for (const int64_t tokens : {1, 8, 9, 16}) {
    ExpertsShape shape{.tokens = tokens, .top = 8, .experts = 256, .inner = 3072, .hidden = 3072};
    EXPECT_TRUE(plan_experts(shape).few) << tokens;
    shape.hidden = 3200;
    EXPECT_FALSE(plan_experts(shape).few) << tokens;
    shape.hidden = 3072;
    shape.inner = 3200;
    EXPECT_FALSE(plan_experts(shape).few) << tokens;
    EXPECT_EQ(plan_experts(shape).form, ExpertsForm::flow) << tokens;
  }
}

TEST(ExpertsPlan, ScratchRegionsFollowOneAnother) {
  for (const int64_t tokens : {1, 10, 16, 64, 300, 8192})
    for (const bool aligned : {true, false}) {
      const ExpertsShape shape{.tokens = tokens,
                               .top = 8,
                               .experts = 256,
                               .inner = 1536,
                               .hidden = 3072,
                               .aligned = aligned};
      const ExpertsPlan plan = plan_experts(shape);
      const int64_t pairs = plan.batch * 8;
      const bool tiles = plan.form == ExpertsForm::tiles, flow = plan.form == ExpertsForm::flow;
      EXPECT_EQ(plan.next_tile, 0);
      EXPECT_GE(plan.done, 4);
      if (flow) {
        EXPECT_GE(plan.posted, plan.done + 4 * (256 + pairs / plan.group_pairs + 1));
      }
      const ExpertsPlan one =
          plan_experts({.tokens = 1, .top = 8, .experts = 256, .inner = 1536, .hidden = 3072});
      EXPECT_EQ(plan.posted, one.posted);
      EXPECT_GE(plan.offsets, plan.posted + 4 * (4 + kFewPairs * 1536));
      EXPECT_GE(plan.active, plan.offsets + 4 * 257) << describe(plan);
      EXPECT_GE(plan.order, plan.active + 4 * 257);
      EXPECT_GE(plan.position, plan.order + 4 * pairs);
      EXPECT_GE(plan.inner, plan.position + (tiles ? 4 : 0) * pairs);
      EXPECT_GE(plan.results, plan.inner + (tiles ? 0 : 2) * pairs * 1536);
      EXPECT_GE(plan.scratch_bytes, plan.results + (tiles || flow ? 2 : 4) * pairs * 3072);
      if (tiles || flow) {
        EXPECT_GE(plan.x_f8, plan.results + 2 * pairs * 3072);
        EXPECT_GE(plan.x_scales, plan.x_f8 + pairs * 3072);
        EXPECT_GE(plan.scratch_bytes, plan.x_scales + 4 * pairs * 24);
      }
      if (tiles) {
        EXPECT_GE(plan.inner_f8, plan.x_scales + 4 * pairs * 24);
        EXPECT_GE(plan.inner_scales, plan.inner_f8 + pairs * 1536);
        EXPECT_GE(plan.scratch_bytes, plan.inner_scales + 4 * pairs * (1536 / plan.inner_stretch));
      }
      EXPECT_LE(plan.batch, tokens);
    }
}

TEST(ExpertsPlan, RanksReadTokensWhereTheyAre) {
  ExpertsShape shape{.tokens = 8192, .top = 8, .experts = 256, .inner = 1536, .hidden = 3072};
  EXPECT_FALSE(plan_experts(shape).gathers);
  for (const int64_t inner : {768, 384, 192}) {
    shape.inner = inner;
    const ExpertsPlan plan = plan_experts(shape);
    EXPECT_TRUE(plan.gathers) << inner;
    EXPECT_GE(plan.x_scales, plan.x_f8 + 8192 * 3072);
    EXPECT_GE(plan.inner_f8, plan.x_scales + 4 * 8192 * 24);
    EXPECT_LT(plan.inner_f8 - plan.x_f8, 8 * 8192 * 3072);  // no place for every pair
  }
  shape.tokens = 64;
  EXPECT_FALSE(plan_experts(shape).gathers);
}

TEST(ExpertsPlan, ScratchOfALargeStepIsEnoughForEverySmallerOne) {
  for (const int64_t experts : {8, 64, 256})
    for (const int64_t most : {1, 100, 257, 300, 2000})
      for (int64_t tokens = 1; tokens <= most; ++tokens) {
        const ExpertsShape shape{
            .tokens = most, .top = 8, .experts = experts, .inner = 1536, .hidden = 3072};
        ExpertsShape smaller = shape;
        smaller.tokens = tokens;
        ASSERT_LE(plan_experts(smaller).scratch_bytes, experts_scratch_bytes(shape))
            << experts << " experts, " << tokens << " of " << most;
      }
}

TEST(AttentionPlan, PartsDependOnTheContextAlone) {
  EXPECT_EQ(pages_per_split(1, 8), 16);
  EXPECT_EQ(pages_per_split(512, 8), 16);
  EXPECT_EQ(pages_per_split(513, 8), 20);
  // A rank with fewer KV heads cuts finer.
  EXPECT_EQ(pages_per_split(513, 2), 8);
  EXPECT_EQ(pages_per_split(12288, 2), 96);
  EXPECT_EQ(pages_per_split(12288, 1), 48);
  for (const int kv_heads : {1, 2, 3, 4, 8, 16})
    for (int pages = 1; pages < 14000; ++pages) {
      const int each = pages_per_split(pages, kv_heads);
      ASSERT_LE((pages + each - 1) / each, most_splits(kv_heads)) << pages;
      ASSERT_EQ(each % 4, 0);
    }
}

TEST(AttentionPlan, ChoosesByTheNumberOfSequences) {
  const auto plan = [](int64_t sequences, DType cache, int major = 9) {
    return plan_attention({.tokens = sequences,
                           .sequences = sequences,
                           .max_context = 2048,
                           .q_heads = 48,
                           .kv_heads = 8,
                           .head_dim = 128,
                           .block_size = 16,
                           .cache = cache,
                           .compute_major = major});
  };
  for (const DType cache : {DType::bf16, DType::f8_e4m3})
    for (int64_t sequences = 1; sequences < 300; ++sequences) {
      EXPECT_EQ(plan(sequences, cache).ring, sequences <= 2);
      EXPECT_EQ(plan(sequences, cache).lasting, sequences > 24 && cache != DType::bf16)
          << sequences;
      EXPECT_EQ(plan(sequences, cache).by_part, sequences > 2 && sequences <= 24) << sequences;
    }
  // Of a rank's few KV heads a grid has more blocks without a part.
  AttentionShape rank{.tokens = 3,
                      .sequences = 3,
                      .max_context = 2048,
                      .q_heads = 12,
                      .kv_heads = 2,
                      .head_dim = 128,
                      .block_size = 16,
                      .workspace_bytes = 1 << 30};
  for (const int kv_heads : {1, 2, 4}) {
    rank.q_heads = 6 * kv_heads;
    rank.kv_heads = kv_heads;
    for (const int64_t sequences : {3, 16, 17, 96, 512})
      for (const DType cache : {DType::bf16, DType::f8_e4m3}) {
        rank.tokens = rank.sequences = sequences;
        rank.cache = cache;
        const AttentionPlan of = plan_attention(rank);
        EXPECT_FALSE(of.lasting);
        EXPECT_FALSE(of.join);
        EXPECT_EQ(of.onward, cache != DType::bf16 || sequences > 16);
        EXPECT_EQ(of.by_part, of.onward || kv_heads == 1);
        EXPECT_EQ(of.joins_at_once, sequences * rank.q_heads <= 1152);
      }
  }
  EXPECT_FALSE(plan(1, DType::bf16, 8).ring);
  EXPECT_FALSE(plan(1, DType::bf16, 8).lasting);
}

TEST(AttentionPlan, LongPromptsOverF8AreWidenedWhereThereIsRoom) {
  AttentionShape shape{.tokens = 2048,
                       .sequences = 1,
                       .max_context = 8192,
                       .q_heads = 48,
                       .kv_heads = 8,
                       .head_dim = 128,
                       .block_size = 16,
                       .cache = DType::f8_e4m3};
  const int64_t parts = attention_workspace_bytes(1, 8192, 48, 8, 128);
  constexpr int64_t kTile = 2 * 128 * 8 * 128 * 2;  // bytes
  shape.workspace_bytes = parts + 2048 + 64 * kTile;
  AttentionPlan plan = plan_attention(shape);
  EXPECT_EQ(plan.widened_tiles, 64);
  EXPECT_TRUE(plan.widens_all);
  EXPECT_GE(plan.places_at, parts);
  EXPECT_GT(plan.widened_at, plan.places_at);
  EXPECT_LE(plan.widened_at + 64 * kTile, shape.workspace_bytes);
  // One context that has no room is left as it is; of several those that have are not.
  shape.workspace_bytes -= kTile;
  EXPECT_EQ(plan_attention(shape).widened_tiles, 0);
  EXPECT_FALSE(plan_attention(shape).widens_all);
  shape.sequences = 3;
  shape.workspace_bytes = 3 * parts + 2048 + 100 * kTile;
  EXPECT_EQ(plan_attention(shape).widened_tiles, 100);
  EXPECT_FALSE(plan_attention(shape).widens_all);
  shape.workspace_bytes = 0;
  EXPECT_EQ(plan_attention(shape).widened_tiles, 0);
  // Few tokens, decoded ones alone, and other caches.
  shape.workspace_bytes = int64_t{1} << 30;
  shape.tokens = shape.sequences + 1;
  EXPECT_EQ(plan_attention(shape).widened_tiles, 3 * 64);
  shape.tokens -= 1;
  EXPECT_EQ(plan_attention(shape).widened_tiles, 0);
  shape.tokens = 2048;
  shape.cache = DType::bf16;
  EXPECT_EQ(plan_attention(shape).widened_tiles, 0);
}

TEST(AttentionPlan, LongPromptsAreInParts) {
  AttentionShape shape{.tokens = 512,
                       .sequences = 1,
                       .max_context = 131072,
                       .q_heads = 12,
                       .kv_heads = 2,
                       .head_dim = 128,
                       .block_size = 16};
  const int64_t parts = attention_workspace_bytes(1, 131072, 12, 2, 128);
  shape.workspace_bytes = parts + prompt_workspace_bytes(131072, 2);
  AttentionPlan plan = plan_attention(shape);
  EXPECT_EQ(plan.part_levels, 5);  // 32 parts
  EXPECT_TRUE(plan.shares_parts);
  EXPECT_GE(plan.parts_at, parts);
  EXPECT_LE(plan.parts_at + int64_t{kSumBytes} * (kPartBlocks * 5 + kMostRuns),
            shape.workspace_bytes);
  EXPECT_EQ(
      describe(plan),
      "decode in up to 128 parts that join themselves, prefill in tiles, keys in up to 32 parts "
      "that blocks may share");
  // Widened contexts are behind them.
  shape.cache = DType::f8_e4m3;
  shape.workspace_bytes += 4096 + 1024 * int64_t{2 * 128 * 2 * 128 * 2};
  plan = plan_attention(shape);
  EXPECT_EQ(plan.widened_tiles, 1024);
  EXPECT_GE(plan.places_at, parts + int64_t{kSumBytes} * (kPartBlocks * 5 + kMostRuns));
  // With less workspace the keys are one part.
  shape.cache = DType::bf16;
  shape.workspace_bytes = parts + prompt_workspace_bytes(131072, 2) - 1024;
  plan = plan_attention(shape);
  EXPECT_EQ(plan.part_levels, -1);
  EXPECT_FALSE(plan.shares_parts);
  // Many tiles of queries are not shared out; short contexts, decoded tokens and other chips have
  // no parts.
  shape.workspace_bytes = int64_t{1} << 30;
  shape.tokens = 8192;
  EXPECT_FALSE(plan_attention(shape).shares_parts);
  EXPECT_EQ(plan_attention(shape).part_levels, 5);
  shape.max_context = part_keys(2);
  EXPECT_EQ(plan_attention(shape).part_levels, 0);
  EXPECT_EQ(prompt_workspace_bytes(part_keys(2), 2), 0);
  shape.max_context = part_keys(2) + 1;
  EXPECT_EQ(plan_attention(shape).part_levels, 1);
  shape.tokens = 1;
  EXPECT_EQ(plan_attention(shape).part_levels, 0);
  shape.tokens = 512;
  shape.compute_major = 8;
  EXPECT_EQ(plan_attention(shape).part_levels, 0);
}

// A grid has no more blocks of a head than contexts of some thousand tokens need.
TEST(AttentionPlan, BlocksGoOn) {
  AttentionShape shape{.tokens = 8,
                       .sequences = 8,
                       .max_context = 196608,
                       .q_heads = 48,
                       .kv_heads = 8,
                       .head_dim = 128,
                       .block_size = 16,
                       .workspace_bytes = int64_t{1} << 40};
  EXPECT_EQ(plan_attention(shape).splits, 32);
  EXPECT_EQ(plan_attention(shape).blocks, 16);
  shape.max_context = 2048;
  EXPECT_EQ(plan_attention(shape).blocks, 8);
  shape.max_context = 196608;
  shape.tokens = shape.sequences = 3;
  EXPECT_EQ(plan_attention(shape).blocks, 22);
  shape.tokens = shape.sequences = 100;
  EXPECT_EQ(plan_attention(shape).blocks, 16);
  shape.tokens = shape.sequences = 8;
  shape.q_heads = 6;
  shape.kv_heads = 1;
  EXPECT_EQ(plan_attention(shape).splits, 256);
  EXPECT_EQ(plan_attention(shape).blocks, 256);
  EXPECT_TRUE(plan_attention(shape).by_part);
  shape.cache = DType::f8_e4m3;
  EXPECT_EQ(plan_attention(shape).blocks, 64);
  shape.cache = DType::bf16;
  // Over bf16 and few KV heads each part has a block where sequences are few.
  shape.q_heads = 12;
  shape.kv_heads = 2;
  EXPECT_FALSE(plan_attention(shape).by_part);
  EXPECT_EQ(plan_attention(shape).blocks, 128);
  shape.cache = DType::f8_e4m3;
  EXPECT_TRUE(plan_attention(shape).by_part);
  EXPECT_EQ(plan_attention(shape).blocks, 32);
}

TEST(AttentionPlan, ChoosesKernelsAndParts) {
  AttentionShape shape{.tokens = 4,
                       .sequences = 4,
                       .max_context = 2048,
                       .q_heads = 48,
                       .kv_heads = 8,
                       .head_dim = 128,
                       .block_size = 16};
  shape.workspace_bytes = 1 << 30;
  EXPECT_EQ(describe(plan_attention(shape)), "decode in up to 8 parts");
  shape.cache = DType::f8_e4m3;
  EXPECT_FALSE(plan_attention(shape).join);
  shape.tokens = shape.sequences = 32;
  EXPECT_TRUE(plan_attention(shape).join);
  EXPECT_EQ(describe(plan_attention(shape)), "decode in up to 8 parts that join themselves");
  shape.cache = DType::bf16;
  EXPECT_FALSE(plan_attention(shape).join);
  shape.tokens = shape.sequences = 4;
  shape.kv_heads = 4;
  shape.q_heads = 24;
  EXPECT_EQ(describe(plan_attention(shape)), "decode in up to 16 parts");
  shape.alone = false;
  EXPECT_EQ(describe(plan_attention(shape)), "decode in up to 16 parts");
  shape.alone = true;
  shape.kv_heads = 8;
  shape.q_heads = 48;
  shape.workspace_bytes = attention_workspace_bytes(4, 2048, 48, 8, 128) - 1;
  EXPECT_EQ(describe(plan_attention(shape)), "decode in up to 1 parts");
  shape.tokens = 100;
  EXPECT_TRUE(plan_attention(shape).prefill);
  EXPECT_TRUE(plan_attention(shape).decode);
  EXPECT_EQ(describe(plan_attention(shape)), "decode in up to 1 parts, prefill in tiles");
  shape.cache = DType::f8_e4m3;
  EXPECT_EQ(describe(plan_attention(shape)),
            "decode in up to 1 parts, prefill in tiles, up to 1 of keys widened before");
  shape.compute_major = 8;
  EXPECT_EQ(describe(plan_attention(shape)), "any");
  shape.cache = DType::bf16;
  EXPECT_EQ(describe(plan_attention(shape)), "decode in up to 1 parts, prefill");
  shape.compute_major = 9;
  shape.head_dim = 64;
  EXPECT_EQ(describe(plan_attention(shape)), "any");
  shape.head_dim = 128;
  shape.max_context = 196608;
  shape.workspace_bytes = int64_t{1} << 40;
  EXPECT_EQ(plan_attention(shape).splits, 32);
}

// ---- what kernels were granted

struct Granted {
  int calls = 0;
  LaunchNeeds last;
  auto operator()() {
    return [this](const LaunchNeeds& all) {
      ++calls;
      last = all;
    };
  }
};

TEST(LaunchStates, AKernelIsGrantedOnceForEachDevice) {
  LaunchStates states;
  Granted granted;
  const char kernels[3] = {};
  for (int round = 0; round < 3; ++round)
    for (const int device : {0, 1, 7})
      for (const char& kernel : kernels) states.require(&kernel, device, {1000}, granted());
  EXPECT_EQ(granted.calls, 9);
  // Nothing is granted where a kernel wants nothing, but for its split of the memory.
  const char another = 0;
  states.require(&another, 0, {}, granted());
  states.require(&another, 0, {}, granted());
  EXPECT_EQ(granted.calls, 10);
}

TEST(LaunchStates, MoreIsGrantedWhenItIsWantedAndNeverLess) {
  LaunchStates states;
  Granted granted;
  const char kernel = 0;
  states.require(&kernel, 0, {100'000}, granted());
  states.require(&kernel, 0, {50'000}, granted());
  EXPECT_EQ(granted.calls, 1);
  states.require(&kernel, 0, {200'000}, granted());
  EXPECT_EQ(granted.calls, 2);
  EXPECT_EQ(granted.last.shared_bytes, 200'000);
  states.require(&kernel, 0, {.wide_cluster = true}, granted());
  EXPECT_EQ(granted.calls, 3);
  EXPECT_EQ(granted.last.shared_bytes, 200'000);
  EXPECT_TRUE(granted.last.wide_cluster);
  // A kernel that goes through L1 for large steps alone, then again not.
  for (const bool through_l1 : {true, true, false, false, true}) {
    states.require(&kernel, 0, {.through_l1 = through_l1}, granted());
    EXPECT_EQ(granted.last.through_l1, through_l1);
    EXPECT_EQ(granted.last.shared_bytes, 200'000);
    EXPECT_TRUE(granted.last.wide_cluster);
  }
  EXPECT_EQ(granted.calls, 6);
}

// A GPU that waits for another's work, as ranks that sum do, must not keep it from launching.
TEST(LaunchStates, DevicesDoNotWaitForOneAnother) {
  LaunchStates states;
  const char kernel = 0;
  std::promise<void> launching;
  std::future<void> launched = launching.get_future();
  std::jthread other;
  states.require(&kernel, 0, {1000}, [&](const LaunchNeeds&) {
    other = std::jthread([&] {
      states.require(&kernel, 1, {1000}, [&](const LaunchNeeds&) { launching.set_value(); });
    });
    EXPECT_EQ(launched.wait_for(std::chrono::seconds(10)), std::future_status::ready);
  });
}

TEST(LaunchStates, ThreadsThatLaunchAlike) {
  LaunchStates states;
  std::atomic<int> calls = 0;
  const std::vector<char> kernels(300);
  std::vector<std::jthread> threads;
  for (int t = 0; t < 4; ++t)
    threads.emplace_back([&] {
      for (int round = 0; round < 50; ++round)
        for (const char& kernel : kernels)
          states.require(&kernel, 0, {1000}, [&](const LaunchNeeds&) { ++calls; });
    });
  threads.clear();
  EXPECT_EQ(calls, 300);
}

}  // namespace
}  // namespace m2::ops::cuda
