#include "parallel/world.h"

#include <algorithm>

#include "parallel/shared_comm.h"

namespace m2::parallel {
namespace {

// The communicators of this process's ranks in the group of ranks [first, first + size).
std::vector<std::unique_ptr<Comm>> join(Range group, int64_t channel, const Placement& where,
                                        Links* links) {
  std::vector<std::unique_ptr<Comm>> out;
  if (group.count == 1) {
    out.push_back(make_single_comm());
    return out;
  }
  Placement placement;
  std::vector<int64_t> processes;
  for (size_t p = 0; p < where.ranks.size(); ++p) {
    const Range& held = where.ranks[p];
    const int64_t begin = std::max(group.begin, held.begin);
    const int64_t end = std::min(group.begin + group.count, held.begin + held.count);
    if (begin >= end) continue;
    if (static_cast<int64_t>(p) == where.process)
      placement.process = static_cast<int64_t>(placement.ranks.size());
    placement.ranks.push_back({begin - group.begin, end - begin});
    processes.push_back(static_cast<int64_t>(p));
  }
  if (processes.size() == 1) return make_thread_comms(group.count);
  return make_process_comms(placement, links->wire(channel, std::move(processes)));
}

// The group of an engine's seat in process 0 and its first rank in process `process`.
std::unique_ptr<Comm> join_seat(const Topology& shape, int64_t engine, int64_t process, bool seat,
                                Links* links) {
  const Placement placement{{{0, 1}, {1, 1}}, seat ? 0 : 1};
  auto comms =
      make_process_comms(placement, links->wire(1 + shape.data_size + engine, {0, process}));
  return std::move(comms.front());
}

}  // namespace

Placement place_evenly(int64_t ranks, int64_t processes, int64_t process) {
  M2_CHECK(ranks % processes == 0);
  const int64_t each = ranks / processes;
  Placement out;
  for (int64_t p = 0; p < processes; ++p) out.ranks.push_back({p * each, each});
  out.process = process;
  return out;
}

std::vector<LocalRank> make_local_ranks(const Topology& shape, const Placement& where, Links* links,
                                        bool seats) {
  const int64_t size = shape.expert_size();
  M2_CHECK(where.size() == size && (where.ranks.size() == 1 || links));
  const Range own = where.local();
  std::vector<LocalRank> out(static_cast<size_t>(own.count));
  for (int64_t i = 0; i < own.count; ++i)
    out[static_cast<size_t>(i)].topology = with_rank(shape, own.begin + i);
  if (out.empty()) return out;
  if (shape.data_size > 1) {
    auto comms = join({0, size}, 0, where, links);
    for (size_t i = 0; i < out.size(); ++i) out[i].engines = std::move(comms[i]);
  }
  for (size_t i = 0; i < out.size();) {
    const int64_t engine = out[i].topology.data_rank;
    auto comms = join({engine * shape.tensor_size, shape.tensor_size}, 1 + engine, where, links);
    if (seats && where.process > 0 && out[i].topology.tensor_rank == 0)
      out[i].seat = join_seat(shape, engine, where.process, false, links);
    for (auto& comm : comms) out[i++].tensor = std::move(comm);
  }
  return out;
}

std::vector<LocalRank> make_local_ranks(const Topology& shape) {
  return make_local_ranks(shape, place_evenly(shape.expert_size(), 1, 0), nullptr);
}

std::vector<RemoteEngine> make_remote_engines(const Topology& shape, const Placement& where,
                                              Links* links) {
  std::vector<RemoteEngine> out;
  for (int64_t engine = 0; engine < shape.data_size; ++engine) {
    const int64_t first = engine * shape.tensor_size;
    const auto holder = std::ranges::find_if(where.ranks, [first](const Range& held) {
      return first >= held.begin && first < held.begin + held.count;
    });
    const int64_t process = holder - where.ranks.begin();
    if (process > 0) out.push_back({engine, join_seat(shape, engine, process, true, links)});
  }
  return out;
}

int64_t channels_of(const Topology& shape) {
  return 1 + 2 * shape.data_size + 1;  // all ranks, each engine's, each engine's seat, a bell
}

}  // namespace m2::parallel
