#pragma once

#include <cstdint>
#include <string>

#include "tensor/dtype.h"

// How linear() runs on a GPU: a pure function of shapes, printable and tested without one.
namespace m2::ops::cuda {

enum class LinearForm {
  any,        // one warp a row, any dtype and alignment: correct everywhere, fast nowhere
  stream,     // few tokens: weights streamed through mma, 16 rows a block
  ring,       // decode on Hopper: the same sums, weights kept flowing into shared memory
  tiles,      // prefill on Hopper: FP8 wgmma on tiles in shared memory
  flow,       // decode on Hopper: the same bytes as tiles, weights kept flowing into shared memory
  flow_pair,  // the same for few rows of many columns: a tile's K is shared by two blocks
  flow_few,   // the same for still fewer: an instruction has several stretches of a tile's K
  narrow,   // some to some hundred tokens on Hopper: the same bytes, tiles for all multiprocessors
  flow16,   // decode with BF16 weights on Hopper: wgmma, weights and tokens kept flowing
  tiles16,  // prefill with BF16 weights on Hopper: the same bytes as flow16, in tiles
};

struct LinearShape {
  int64_t tokens = 0, rows = 0, columns = 0;  // T, N of all matrices, K
  DType x = DType::bf16, weight = DType::f8_e4m3;
  int parts = 1;             // matrices
  int64_t multiple = 1;      // of which each matrix has rows
  bool aligned = true;       // all rows of x and the weights begin at multiples of 16 bytes
  bool whole_chunks = true;  // every slice begins at a multiple of 64 columns
  bool whole_blocks = true;  // slices begin at multiples of 64 rows and 128 columns
  int64_t workspace_bytes = 0;
  bool quantised = false;   // x comes quantised too
  bool rows_follow = true;  // no gaps between the rows of a weight
  int compute_major = 9;
  int multiprocessors = 132;
};

struct LinearPlan {
  LinearForm form = LinearForm::any;
  int token_tiles = 1;    // stream: tiles of 8 tokens a block takes together
  int64_t scales_at = 0;  // tiles: where in the workspace the scales of the quantised x begin
  int tile_rows =
      16;  // ring, flow, narrow and tiles of both kinds: rows of a tile, as many as spread evenly
  bool shares =
      false;  // tiles, tiles16: blocks of neighbouring token tiles copy weights for each other
};

// Workspace (Exec) with which many tokens are multiplied on the FP8 tensor cores: x quantised, and
// its scales. With less they go through the stream form.
int64_t linear_workspace_bytes(int64_t tokens, int64_t columns);
LinearPlan plan_linear(const LinearShape& shape);
// Tokens of one flow tile: 8, 16, 32 or 64.
int flow_tokens(int64_t tokens);
std::string describe(const LinearPlan& plan);

}  // namespace m2::ops::cuda
