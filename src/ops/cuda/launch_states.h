#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <mutex>

#include "base/check.h"
#include "ops/cuda/kernels.h"

namespace m2::ops::cuda {

// Which kernel has been granted what on which device: most launches find all of it granted, without
// a lock and without a call of the driver. Threads whose ranks share a GPU launch the same kernels
// at the same time. A grant may last: the driver loads a kernel when it is first spoken of, and may
// wait for all that its GPU is doing, such as a sum that waits for another GPU. So devices do not
// wait for one another here. Knows nothing of CUDA, so that it is tested without a GPU.
class LaunchStates {
 public:
  // Calls grant(needs, all) unless everything was granted: `needs` with the most shared memory ever
  // wanted. A kernel that wants the other split than at its last launch is granted anew.
  template <class Grant>
  void require(const void* kernel, int device, const LaunchNeeds& needs, Grant&& grant) {
    std::atomic<uint64_t>& state = state_of(kernel, device);
    if (covers(state.load(std::memory_order_acquire), needs)) [[likely]]
      return;
    const std::lock_guard lock(granting_[static_cast<size_t>(device) % granting_.size()]);
    const uint64_t before = state.load(std::memory_order_relaxed);
    if (covers(before, needs)) return;
    LaunchNeeds all = needs;
    if (bytes_of(before) > all.shared_bytes) all.shared_bytes = bytes_of(before);
    all.wide_cluster = all.wide_cluster || (before & kWide);
    grant(all);
    state.store(state_from(all), std::memory_order_release);
  }

 private:
  static constexpr size_t kPlaces = 2048;  // several times the kernels of eight GPUs
  static constexpr uint64_t kGranted = 1, kL1 = 2, kWide = 4;

  struct Place {
    std::atomic<uint64_t> key{0}, state{0};
  };

  static int bytes_of(uint64_t state) { return static_cast<int>(state >> 8); }
  static uint64_t state_from(const LaunchNeeds& needs) {
    return kGranted | (needs.through_l1 ? kL1 : 0) | (needs.wide_cluster ? kWide : 0) |
           static_cast<uint64_t>(needs.shared_bytes) << 8;
  }
  static bool covers(uint64_t state, const LaunchNeeds& needs) {
    return (state & kGranted) && bytes_of(state) >= needs.shared_bytes &&
           ((state & kL1) != 0) == needs.through_l1 && (!needs.wide_cluster || (state & kWide));
  }

  // The kernel's place on the device, taken at its first launch.
  std::atomic<uint64_t>& state_of(const void* kernel, int device) {
    const uint64_t key = static_cast<uint64_t>(reinterpret_cast<uintptr_t>(kernel)) << 8 |
                         static_cast<uint64_t>(device + 1);
    uint64_t hash = key * 0x9e3779b97f4a7c15u;
    for (size_t probes = 0; probes < kPlaces; ++probes, hash += uint64_t{1} << 53) {
      Place& place = places_[hash >> 53];
      uint64_t found = place.key.load(std::memory_order_acquire);
      if (found == 0 && place.key.compare_exchange_strong(found, key)) found = key;
      if (found == key) return place.state;
    }
    M2_CHECK(false, "more than {} kernels", kPlaces);
  }

  std::array<Place, kPlaces> places_;
  std::array<std::mutex, 64> granting_;  // of each device
};

}  // namespace m2::ops::cuda
