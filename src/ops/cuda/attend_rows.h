#pragma once

#include "ops/cuda/attend_and_route.h"

namespace m2::ops::cuda {

constexpr int kAttendRows = 2;

// What stands in DecodePeers::memory behind RankWords, for launches of two rows: these and those of
// one take turns as they like, each kind by its own count.
struct RankRowsWords {
  static constexpr int64_t kAt = (sizeof(RankWords) + 15) / 16 * 16;
  alignas(16) uint32_t launches;  // of the rank itself that have ended
  // [rows][ranks, eights of q, then of k]
  alignas(16) RankSquares squares[kAttendRows][RankWords::kSquares];
  // As those of RankWords, [every other launch, ranks, rows].
  alignas(16) uint32_t sums[2][DecodePeers::kMost][kAttendRows][AttendShape::kHidden / 8][4];
};
static_assert(RankRowsWords::kAt + sizeof(RankRowsWords) <= DecodePeers::kBytes);

// The attention half of a layer for two decoded tokens, a sequence each, of one of 2, 4 or 8 tensor
// ranks, and the choice of their experts: what AttendAndRoute does for one, to the bytes of the
// same operations. Rows of one draft share the block that their own positions lie in. Arrays have a
// row for each token; `before` and `scores` are not looked at.
struct AttendRows : AttendAndRoute {
  int64_t table_stride;  // of block_tables' rows
  int top;
  int32_t* ids;    // [rows, top], ascending; of rows that pad the step -1
  float* weights;  // [rows, top]
};
constexpr bool attends_rows(int64_t rows, int64_t kv_heads) {
  return rows == kAttendRows && (kv_heads == 4 || kv_heads == 2 || kv_heads == 1);
}
// kAttendBlocks blocks that wait for one another, as launch_attend_and_route() has them.
void launch_attend_rows(void* stream, int kv_heads, const AttendRows& args);

}  // namespace m2::ops::cuda
