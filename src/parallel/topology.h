#pragma once

#include <cstdint>

namespace m2::parallel {

// Who this rank is. Plain data; the one rank of a single process by default. Ranks are numbered
// engine after engine: data_rank * tensor_size + tensor_rank.
struct Topology {
  int64_t tensor_size = 1;  // ranks of one engine: they split heads and vocabulary
  int64_t tensor_rank = 0;
  int64_t data_size = 1;  // engines, each with its own requests and KV, that share the experts
  int64_t data_rank = 0;
  bool expert_parallel = false;  // experts are held whole; else every rank has a part of each
  bool round_robin = false;      // whole experts: rank, rank + size, ...; else a run of them

  // All ranks share the experts.
  int64_t expert_size() const { return tensor_size * data_size; }
  int64_t expert_rank() const { return data_rank * tensor_size + tensor_rank; }
};

// Rank `rank` of all.
inline Topology with_rank(Topology topology, int64_t rank) {
  topology.data_rank = rank / topology.tensor_size;
  topology.tensor_rank = rank % topology.tensor_size;
  return topology;
}

// Indices [begin, begin + count) of an axis.
struct Range {
  int64_t begin;
  int64_t count;
};

// Part `rank` of `size` as even as can be: the first (total % size) parts are one longer.
inline Range split_evenly(int64_t total, int64_t size, int64_t rank) {
  const int64_t base = total / size;
  const int64_t extra = total % size;
  return {rank * base + (rank < extra ? rank : extra), base + (rank < extra ? 1 : 0)};
}

}  // namespace m2::parallel
