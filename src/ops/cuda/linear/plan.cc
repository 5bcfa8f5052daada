#include "ops/cuda/linear/plan.h"

namespace m2::ops::cuda {
namespace {

// What the busiest of `workers` does, over the mean.
double imbalance(int64_t tiles, int64_t workers) {
  const int64_t most = (tiles + workers - 1) / workers;
  return static_cast<double>(most * workers) / static_cast<double>(tiles);
}

constexpr int64_t kFlowTokens = 64;     // more are prefill
constexpr int64_t kFlowColumns = 8192;  // of which the scales fit into shared memory

// Rows of a flow tile, at most 64, or of a flow16 tile, which has one to three times 64 too: a
// block's time goes with its tiles, and a tile's with its rows and, since every tile reads the
// tokens again, with these.
int flow_rows(const LinearShape& shape, bool wide) {
  int best = 64;
  int64_t least = 0;
  for (int rows = wide ? 192 : 64; rows >= 16; rows -= rows > 64 ? 64 : 8) {
    const int64_t tiles = (shape.rows + rows - 1) / rows;
    const int64_t each = (tiles + shape.multiprocessors - 1) / shape.multiprocessors;
    const int64_t time = each * (rows + flow_tokens(shape.tokens));
    if (least == 0 || time < least) {
      least = time;
      best = rows;
    }
  }
  return best;
}

// A prefill tile has 128 tokens and 256 rows or 128. With 256, and where two blocks share weights,
// L2 gives less for the same products, which is worth a tenth at least; but few tiles must spread
// evenly, and of an odd number of token tiles the last one's partner idles.
void choose_tiles(const LinearShape& shape, LinearPlan& plan) {
  const int64_t token_tiles = (shape.tokens + 127) / 128;
  const auto rounds = [&](int rows, bool shares) {
    const int64_t tiles =
        (shares ? (token_tiles + 1) / 2 * 2 : token_tiles) * ((shape.rows + rows - 1) / rows);
    return (tiles + shape.multiprocessors - 1) / shape.multiprocessors * rows;
  };
  plan.tile_rows = 10 * rounds(256, true) <= 11 * rounds(128, false) ? 256 : 128;
  plan.shares = plan.tile_rows == 256 || rounds(128, true) <= rounds(128, false);
}

// Where tiles of 64 tokens and few rows come out as no more than multiprocessors: of how many rows.
int narrow_rows(const LinearShape& shape) {
  constexpr int64_t kPairRows = 16;  // up to which other forms take the tokens
  constexpr int64_t kStageColumns = 384;
  if (shape.tokens <= kPairRows || shape.columns % kStageColumns != 0) return 0;
  const int64_t groups = (shape.tokens + 63) / 64;
  for (const int rows : {16, 32, 64, 128}) {
    const int64_t broken = shape.multiple % rows == 0 ? 0 : shape.parts - 1;
    if (groups * ((shape.rows + rows - 1) / rows + broken) <= shape.multiprocessors) return rows;
  }
  return 0;
}

int64_t scales_offset(int64_t tokens, int64_t columns) {
  return (tokens * columns + 255) / 256 * 256;
}

// Where tiles that spread evenly would fill less than half of an instruction's 64 rows, two blocks
// share a tile of twice the rows.
void share_columns(const LinearShape& shape, LinearPlan& plan) {
  const int64_t rows = (2 * shape.rows + shape.multiprocessors - 1) / shape.multiprocessors;
  // Or, where even those would be narrow, a block has all of K.
  const int64_t eights = (shape.rows + 8 * shape.multiprocessors - 1) / (8 * shape.multiprocessors);
  const int64_t columns = eights <= 2 ? 3072 : eights == 3 ? 768 : 0;
  if (shape.tokens <= 16 && shape.columns == columns) {
    plan.form = LinearForm::flow_few;
    plan.tile_rows = static_cast<int>(8 * eights);
    return;
  }
  const bool compiled = (shape.columns == 24 * 256 && shape.tokens <= 8) ||
                        shape.columns == 12 * 256 || shape.columns == 6 * 256;
  if (shape.tokens > 16 || rows > 64 || plan.tile_rows > 32 || !compiled) return;
  plan.form = LinearForm::flow_pair;
  plan.tile_rows = static_cast<int>((rows + 7) / 8 * 8);
}

}  // namespace

int64_t linear_workspace_bytes(int64_t tokens, int64_t columns) {
  return scales_offset(tokens, columns) + tokens * ((columns + 127) / 128) * 4;
}

int flow_tokens(int64_t tokens) {
  return tokens <= 8 ? 8 : tokens <= 16 ? 16 : tokens <= 32 ? 32 : 64;
}

LinearPlan plan_linear(const LinearShape& shape) {
  LinearPlan plan;
  const bool f8 = shape.weight == DType::f8_e4m3;
  const bool streams = shape.compute_major >= 8 && shape.x == DType::bf16 &&
                       (f8 || shape.weight == DType::bf16) && shape.columns % 64 == 0 &&
                       shape.aligned && (!f8 || shape.whole_chunks);
  if (!streams) return plan;
  // Whether activations are quantised is a matter of the weights alone, never of how many tokens a
  // step has: so a token's result is the same bytes in any step.
  const bool quantises =
      f8 && shape.compute_major == 9 && shape.whole_blocks && shape.rows_follow && shape.rows > 0 &&
      shape.columns <= kFlowColumns &&
      (shape.quantised ||
       shape.workspace_bytes >= linear_workspace_bytes(shape.tokens, shape.columns));
  if (quantises) {
    plan.form = shape.tokens <= kFlowTokens ? LinearForm::flow : LinearForm::tiles;
    plan.scales_at = scales_offset(shape.tokens, shape.columns);
    plan.tile_rows = flow_rows(shape, false);
    if (plan.form == LinearForm::tiles) choose_tiles(shape, plan);
    if (plan.form == LinearForm::flow) share_columns(shape, plan);
    if (const int rows = narrow_rows(shape); rows > 0) {
      plan.form = LinearForm::narrow;
      plan.tile_rows = rows;
    }
    return plan;
  }
  if (!f8 && shape.compute_major == 9 && shape.rows > 0) {
    const bool flow = shape.tokens <= kFlowTokens;
    plan.form = flow ? LinearForm::flow16 : LinearForm::tiles16;
    if (flow)
      plan.tile_rows = flow_rows(shape, true);
    else
      choose_tiles(shape, plan);
    return plan;
  }
  plan.form = LinearForm::stream;
  if (f8 && shape.compute_major >= 9 && shape.tokens <= 8 && shape.rows_follow &&
      shape.columns <= 6144 && shape.rows > 0) {
    plan.form = LinearForm::ring;
    const int64_t tiles = (shape.rows + 15) / 16;
    const bool halves = imbalance(2 * tiles, shape.multiprocessors) + 0.05 <
                        imbalance(tiles, shape.multiprocessors);
    // Two tiles of the widest rows have to fit, one read while the other comes.
    plan.tile_rows = halves || shape.columns > 4096 ? 8 : 16;
  }
  plan.token_tiles = shape.tokens <= 8 ? 1 : shape.tokens <= 16 ? 2 : 4;
  return plan;
}

std::string describe(const LinearPlan& plan) {
  switch (plan.form) {
    case LinearForm::any:
      return "any";
    case LinearForm::stream:
      return "stream, " + std::to_string(8 * plan.token_tiles) + " tokens";
    case LinearForm::ring:
      return "ring, tiles of " + std::to_string(plan.tile_rows) + " rows";
    case LinearForm::tiles:
    case LinearForm::tiles16:
      return (plan.form == LinearForm::tiles ? "tiles of " : "tiles16 of ") +
             std::to_string(plan.tile_rows) + " rows" + (plan.shares ? ", weights shared" : "");
    case LinearForm::flow:
      return "flow, tiles of " + std::to_string(plan.tile_rows) + " rows";
    case LinearForm::narrow:
      return "64 tokens and " + std::to_string(plan.tile_rows) + " rows a tile";
    case LinearForm::flow_pair:
      return "flow, half of K a block, tiles of " + std::to_string(plan.tile_rows) + " rows";
    case LinearForm::flow_few:
      return "flow, all of K at once, tiles of " + std::to_string(plan.tile_rows) + " rows";
    case LinearForm::flow16:
      return "flow16, tiles of " + std::to_string(plan.tile_rows) + " rows";
  }
  return "?";
}

}  // namespace m2::ops::cuda
