// bench_numbers: reads a JSON array of {"op": ..., arguments} on standard input, prints the array
// of results. For bench_numbers_test.py, which compares them with numpy and with Python's random.
#include <algorithm>
#include <cstdio>
#include <iostream>
#include <iterator>

#include "app/bench/arrivals.h"
#include "app/bench/numpy_random.h"
#include "app/bench/roofline.h"
#include "app/bench/statistics.h"
#include "base/json.h"

namespace m2::app::bench {
namespace {

Json draws(const std::string& op, const Json& in) {
  const auto seed = in.value("seed", uint64_t{0});
  const auto count = in.value("count", size_t{0});
  Json out = Json::array();
  if (op == "integers") {
    NumpyGenerator generator(seed);
    for (const Json& interval : in["intervals"])
      out.push_back(generator.integers(interval[0], interval[1], count));
  } else if (op == "gamma") {
    NumpyLegacy generator(static_cast<uint32_t>(seed));
    for (size_t i = 0; i < count; ++i) out.push_back(generator.gamma(in["shape"], in["scale"]));
  } else if (op == "randint") {
    NumpyLegacy generator(static_cast<uint32_t>(seed));
    for (const Json& interval : in["intervals"])
      out.push_back(generator.randint(interval[0], interval[1], count));
  } else if (op == "shuffle") {
    std::vector<int64_t> items(count);
    for (size_t i = 0; i < count; ++i) items[i] = static_cast<int64_t>(i);
    PythonRandom generator(seed);
    generator.shuffle(items);
    out.push_back(items);
    out.push_back(generator.choices(count, count));
  }
  return out;
}

Json statistics(const Json& in) {
  auto values = in["values"].get<std::vector<double>>();
  const double average = mean(values), deviation = standard_deviation(values);
  std::ranges::sort(values);
  Json out{average, deviation, median(values)};
  for (const Json& percent : in["percents"]) out.push_back(percentile(values, percent));
  return out;
}

Json roofline(const Json& in) {
  const RooflineCase at{in["gpu"], in["gpus"], *layout_named(in["layout"].get<std::string>()),
                        *weights_named(in["weights"].get<std::string>()),
                        *kv_named(in["kv"].get<std::string>())};
  if (in.contains("prefill")) {
    const PromptPiece piece{in["prefill"], in["past"]};
    const PrefillCost cost = prefill_cost(at, std::span(&piece, 1));
    return Json{cost.matmul_flops, cost.attention_flops, cost.weight_seconds, cost.floor_seconds,
                cost.reachable_seconds};
  }
  const DecodeCost cost = decode_cost(at, in["batch"], in["context"]);
  return Json{cost.experts_hit,       cost.bytes,       cost.flops, cost.floor_seconds,
              cost.reachable_seconds, cost.sync_seconds};
}

Json arrivals(const Json& in) {
  ArrivalPlan plan;
  plan.rate = in["rate"].is_null() ? kInfiniteRate : in["rate"].get<double>();
  plan.burstiness = in["burstiness"].is_null() ? kInfiniteRate : in["burstiness"].get<double>();
  plan.ramp_up = in.value("ramp_up", std::string());
  plan.start_rate = in.value("start", 0.0);
  plan.end_rate = in.value("end", 0.0);
  NumpyLegacy random(in["seed"].get<uint32_t>());
  return arrival_seconds(plan, in["count"], random);
}

Json answer(const Json& in) {
  const std::string op = in["op"];
  if (op == "statistics") return statistics(in);
  if (op == "roofline") return roofline(in);
  if (op == "arrivals") return arrivals(in);
  return draws(op, in);
}

}  // namespace
}  // namespace m2::app::bench

int main() {
  const std::string text(std::istreambuf_iterator<char>(std::cin), {});
  const auto requests = m2::parse_json(text, {.max_bytes = 64u << 20, .max_nodes = 10'000'000});
  if (!requests.ok()) return std::fprintf(stderr, "%s\n", requests.error().text.c_str()), 1;
  m2::Json out = m2::Json::array();
  for (const m2::Json& request : *requests) out.push_back(m2::app::bench::answer(request));
  std::puts(m2::to_text(out).c_str());
}
