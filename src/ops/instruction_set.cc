#include "ops/instruction_set.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <atomic>

#include "ops/cpu/targets.h"
#include "ops/cpu/tiles.h"
// After targets.h, which says what is compiled for.
#include "hwy/highway.h"
#include "hwy/targets.h"

namespace m2::ops {
namespace {

struct Choice {
  std::string_view name;
  int64_t target;  // Highway's bit
  bool tiles;
};

constexpr std::string_view kStaticName = HWY_STATIC_TARGET == HWY_NEON ? "neon" : "baseline";

// Those compiled in, best first.
constexpr Choice kChoices[] = {
    {"amx", HWY_AVX3, true},
    {"avx512", HWY_AVX3, false},
    {"avx2", HWY_AVX2, false},
    {kStaticName, HWY_STATIC_TARGET, false},
};

bool available(const Choice& choice) {
  if (choice.target == HWY_STATIC_TARGET && choice.name != kStaticName) return false;
  if (!(HWY_TARGETS & choice.target) || !(hwy::SupportedTargets() & choice.target)) return false;
  return !choice.tiles || cpu::tiles_supported();
}

const Choice& best() {
  return *std::find_if(std::begin(kChoices), std::end(kChoices), available);
}

// Null: the best, which Highway chooses by itself.
std::atomic<const Choice*> chosen{nullptr};

const Choice& current() {
  const Choice* choice = chosen.load(std::memory_order_relaxed);
  if (choice) return *choice;
  chosen.store(&best(), std::memory_order_relaxed);
  return *chosen.load(std::memory_order_relaxed);
}

}  // namespace

std::vector<std::string_view> instruction_sets() {
  std::vector<std::string_view> names;
  for (const Choice& choice : kChoices)
    if (available(choice)) names.push_back(choice.name);
  return names;
}

std::string_view instruction_set() {
  return current().name;
}

Result<void> choose_instruction_set(std::string_view name) {
  const Choice* choice = name == "auto" ? &best() : nullptr;
  for (const Choice& candidate : kChoices)
    if (candidate.name == name && available(candidate)) choice = &candidate;
  if (!choice)
    return fail(Code::unsupported, "instruction set {} is not to be had here: auto, {}", name,
                fmt::join(instruction_sets(), ", "));
  hwy::GetChosenTarget().Update(choice->target);
  chosen.store(choice, std::memory_order_relaxed);
  return {};
}

bool cpu::use_tiles() {
  return current().tiles;
}

}  // namespace m2::ops
