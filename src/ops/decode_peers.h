#pragma once

#include <cstdint>

namespace m2::ops {

// Where tensor ranks that reach each other's memory exchange what decode_layer() sums over them.
// What stands there is the operation's own business.
struct DecodePeers {
  static constexpr int kMost = 8;
  static constexpr int64_t kBytes = 448 << 10;
  int ranks = 0;  // 0: there is no such place
  int rank = 0;   // this one
  // Of each rank, kBytes from a multiple of 16 on, zeros at first. All ranks reach all of them.
  void* memory[kMost] = {};
  // A word of host memory: not 0 ends the wait for peers. What is then written has no meaning.
  const uint32_t* given_up = nullptr;
};

}  // namespace m2::ops
