#include "parallel/world.h"

#include "parallel/shared_comm.h"

namespace m2::parallel {
namespace {

// The communicators of this process's ranks in the group of ranks [first, first + size).
std::vector<std::unique_ptr<Comm>> join(Range group, int64_t channel, int64_t per_process,
                                        int64_t process, Links* links) {
  const int64_t first_process = group.begin / per_process;
  const int64_t last_process = (group.begin + group.count - 1) / per_process;
  std::vector<std::unique_ptr<Comm>> out;
  if (group.count == 1) {
    out.push_back(make_single_comm());
    return out;
  }
  if (first_process == last_process) return make_thread_comms(group.count);
  Placement placement;
  std::vector<int64_t> processes;
  for (int64_t p = first_process; p <= last_process; ++p) {
    const int64_t begin = std::max(group.begin, p * per_process);
    const int64_t end = std::min(group.begin + group.count, (p + 1) * per_process);
    if (p == process) placement.process = static_cast<int64_t>(placement.ranks.size());
    placement.ranks.push_back({begin - group.begin, end - begin});
    processes.push_back(p);
  }
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

std::vector<LocalRank> make_local_ranks(const Topology& shape, int64_t processes, int64_t process,
                                        Links* links, bool seats) {
  const int64_t size = shape.expert_size();
  M2_CHECK(size % processes == 0 && (processes == 1 || links));
  const int64_t per_process = size / processes;
  const int64_t first = process * per_process;
  std::vector<LocalRank> out(static_cast<size_t>(per_process));
  for (int64_t i = 0; i < per_process; ++i)
    out[static_cast<size_t>(i)].topology = with_rank(shape, first + i);
  if (shape.data_size > 1) {
    auto comms = join({0, size}, 0, per_process, process, links);
    for (size_t i = 0; i < out.size(); ++i) out[i].engines = std::move(comms[i]);
  }
  for (size_t i = 0; i < out.size();) {
    const int64_t engine = out[i].topology.data_rank;
    auto comms = join({engine * shape.tensor_size, shape.tensor_size}, 1 + engine, per_process,
                      process, links);
    if (seats && process > 0 && out[i].topology.tensor_rank == 0)
      out[i].seat = join_seat(shape, engine, process, false, links);
    for (auto& comm : comms) out[i++].tensor = std::move(comm);
  }
  return out;
}

std::vector<RemoteEngine> make_remote_engines(const Topology& shape, int64_t processes,
                                              Links* links) {
  std::vector<RemoteEngine> out;
  const int64_t per_process = shape.expert_size() / processes;
  for (int64_t engine = 0; engine < shape.data_size; ++engine) {
    const int64_t process = engine * shape.tensor_size / per_process;
    if (process > 0) out.push_back({engine, join_seat(shape, engine, process, true, links)});
  }
  return out;
}

int64_t channels_of(const Topology& shape) {
  return 1 + 2 * shape.data_size + 1;  // all ranks, each engine's, each engine's seat, a bell
}

}  // namespace m2::parallel
