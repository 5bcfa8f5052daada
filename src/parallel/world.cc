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

}  // namespace

std::vector<LocalRank> make_local_ranks(const Topology& shape, int64_t processes, int64_t process,
                                        Links* links) {
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
    for (auto& comm : comms) out[i++].tensor = std::move(comm);
  }
  return out;
}

int64_t channels_of(const Topology& shape) {
  return 1 + shape.data_size;
}

}  // namespace m2::parallel
