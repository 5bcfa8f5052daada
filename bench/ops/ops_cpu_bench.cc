// Measures the CPU operations at MiniMax-M2's shapes against bounds measured in the same run: the
// read bandwidth and the FP32 multiply-add rate of all threads. Prints a Markdown table.
//   ops_cpu_bench [COMMIT [PART [INSTRUCTION_SET [THREADS]]]]
// PART: linear, experts, attention, small; "" for all.
#include <fmt/format.h>

#include <algorithm>
#include <chrono>
#include <ctime>
#include <functional>
#include <string>
#include <vector>

#include "bench/ops/bounds.h"
#include "ops/attention.h"
#include "ops/experts.h"
#include "ops/instruction_set.h"
#include "ops/linear.h"
#include "ops/norm.h"
#include "ops/qk_norm_rope.h"
#include "ops/route.h"
#include "tensor/buffer.h"

namespace {

using namespace m2;

constexpr int64_t kHidden = 3072;
constexpr int64_t kInner = 1536;

double seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Smallest time of one call over at least `least` calls and a second.
double best_time(const std::function<void(int)>& call, int least = 5) {
  double best = 1e9;
  const double begin = seconds();
  for (int i = 0; i < least || seconds() - begin < 1.0; ++i) {
    const double start = seconds();
    call(i);
    best = std::min(best, seconds() - start);
  }
  return best;
}

// Random bits that are finite numbers of the dtype, in memory of this run.
Tensor random_tensor(Arena& arena, DType dtype, std::initializer_list<int64_t> shape) {
  const Tensor tensor = arena.place(dtype, shape);
  uint64_t state = 0x2545f4914f6cdd1d;
  const auto next = [&state] {
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return state;
  };
  const int64_t words = tensor.elements() * size_of(dtype) / 8;
  auto* to = static_cast<uint64_t*>(tensor.data());
  for (int64_t i = 0; i < words; ++i) {
    switch (dtype) {
      case DType::f8_e4m3:
        // Normal codes below 2: a quantised block has a subnormal one in thousands.
        to[i] = (next() & 0x9797979797979797u) | 0x2020202020202020u;
        break;
      case DType::bf16:
        to[i] = (next() & 0x807f807f807f807fu) | 0x3f003f003f003f00u;
        break;
      default:
        to[i] = (next() & 0x807fffff807fffffu) | 0x3e0000003e000000u;
        break;
    }
  }
  return tensor;
}

struct Row {
  std::string name;
  double time;
  double bytes;
  double flops;
};

class Bench {
 public:
  Bench(int64_t bytes, int threads)
      : buffer_(Device{}, bytes),
        workspace_(Device{}, ops::linear_workspace_bytes(Device{}, 512, 2 * kHidden) + 1),
        pool_(threads),
        exec_{Device{}, &pool_, nullptr, workspace_.data(), workspace_.bytes()} {
    Arena arena(buffer_);
    const Tensor all = random_tensor(arena, DType::f32, {bytes / 4});
    read_bandwidth_ = bench::read_bandwidth(pool_, all.data(), bytes);
    flops_ = bench::multiply_add_rate(pool_);
  }

  void linear(const char* name, DType dtype, int64_t rows, int64_t columns, int64_t tokens,
              DType activation = DType::f32) {
    Arena arena(buffer_);
    const Tensor x = random_tensor(arena, activation, {tokens, columns});
    const Tensor out = arena.place(activation, {tokens, rows});
    const Tensor scale = random_tensor(arena, DType::f32, {(rows + 127) / 128, columns / 128});
    const int64_t bytes = rows * columns * size_of(dtype);
    // Several matrices in turn, more than any cache holds.
    const int64_t count = std::clamp<int64_t>((buffer_.bytes() - arena.bytes()) / bytes - 1, 1, 40);
    std::vector<ops::Linear> weights;
    for (int64_t i = 0; i < count; ++i)
      weights.push_back({random_tensor(arena, dtype, {rows, columns}),
                         dtype == DType::f8_e4m3 ? scale : Tensor(), 0, 0});
    const double time = best_time([&](int i) {
      ops::linear(exec_, x, weights[static_cast<size_t>(i) % weights.size()], out);
    });
    add({fmt::format("linear {} {}x{}, {} tokens", name, rows, columns, tokens), time,
         static_cast<double>(bytes), 2.0 * static_cast<double>(rows * columns * tokens)});
  }

  void experts(const char* name, DType dtype, int64_t tokens, int64_t held) {
    constexpr int64_t kTop = 8;
    Arena arena(buffer_);
    ops::Experts experts;
    experts.w13 = random_tensor(arena, dtype, {held, 2 * kInner, kHidden});
    experts.w2 = random_tensor(arena, dtype, {held, kHidden, kInner});
    if (dtype == DType::f8_e4m3) {
      experts.w1_scale = random_tensor(arena, DType::f32, {held, kInner / 128, kHidden / 128});
      experts.w3_scale = random_tensor(arena, DType::f32, {held, kInner / 128, kHidden / 128});
      experts.w2_scale = random_tensor(arena, DType::f32, {held, kHidden / 128, kInner / 128});
    }
    const Tensor x = random_tensor(arena, DType::f32, {tokens, kHidden});
    const Tensor out = arena.place(DType::f32, {tokens, kHidden});
    const Tensor weights = random_tensor(arena, DType::f32, {tokens, kTop});
    const Tensor ids = arena.place(DType::i32, {tokens, kTop});
    const Tensor scratch =
        arena.place(DType::u8, {ops::experts_scratch_bytes(Device{}, experts, tokens, kTop)});
    std::vector<bool> used(static_cast<size_t>(held));
    int64_t active = 0;
    // Eight experts of each token: a stride that is odd spreads them over all held.
    const auto route = [&](int step) {
      std::fill(used.begin(), used.end(), false);
      for (int64_t t = 0; t < tokens; ++t) {
        int32_t* row = ids.as<int32_t>() + t * kTop;
        for (int64_t j = 0; j < kTop; ++j)
          row[j] = static_cast<int32_t>(((step * 8 + t * 37) * 29 + j * (held / kTop)) % held);
        std::sort(row, row + kTop);
        for (int64_t j = 0; j < kTop; ++j) used[static_cast<size_t>(row[j])] = true;
      }
      active = std::count(used.begin(), used.end(), true);
    };
    route(0);
    const double time = best_time([&](int i) {
      if (tokens == 1) route(i);
      ops::experts(exec_, x, experts, ids, weights, scratch, out);
    });
    const double parameters = static_cast<double>(3 * kInner * kHidden);
    add({fmt::format("experts {}, {} tokens, {} of {} experts", name, tokens, active, held), time,
         parameters * static_cast<double>(active * size_of(dtype)),
         2 * parameters * static_cast<double>(tokens * kTop)});
  }

  void attention(int64_t sequences, int64_t queries, int64_t context) {
    const ops::HeadShape heads{48, 8, 128, 64};
    constexpr int64_t kBlock = 16;
    Arena arena(buffer_);
    const int64_t blocks = (context + kBlock - 1) / kBlock;
    const int64_t copies = sequences == 1 && queries == 1 ? 16 : 1;  // more than a cache holds
    const ops::KvCache cache{
        random_tensor(arena, DType::bf16, {copies * sequences * blocks, 8, kBlock, 128}),
        random_tensor(arena, DType::bf16, {copies * sequences * blocks, 8, kBlock, 128})};
    const int64_t tokens = sequences * queries;
    const Tensor q = random_tensor(arena, DType::f32, {tokens, 48 * 128});
    const Tensor out = arena.place(DType::f32, {tokens, 48 * 128});
    ops::BatchLayout layout;
    layout.token_ids = layout.positions = arena.place(DType::i32, {tokens});
    layout.query_starts = arena.place(DType::i32, {sequences + 1});
    layout.context_lens = arena.place(DType::i32, {sequences});
    layout.block_tables = arena.place(DType::i32, {sequences, blocks});
    for (int64_t s = 0; s <= sequences; ++s)
      layout.query_starts.as<int32_t>()[s] = static_cast<int32_t>(s * queries);
    double pairs = 0;
    for (int64_t t = 0; t < tokens; ++t) {
      const int64_t position = context - queries + t % queries;
      layout.positions.as<int32_t>()[t] = static_cast<int32_t>(position);
      pairs += static_cast<double>(position + 1);
    }
    std::fill_n(layout.context_lens.as<int32_t>(), sequences, static_cast<int32_t>(context));
    const double time = best_time([&](int i) {
      const int64_t first = i % copies * sequences * blocks;
      for (int64_t b = 0; b < sequences * blocks; ++b)
        layout.block_tables.as<int32_t>()[b] =
            static_cast<int32_t>(first + b / blocks * blocks + (b % blocks * 37) % blocks);
      ops::paged_attention(exec_, q, cache, layout, heads, out);
    });
    add({fmt::format("attention {} x {} queries, context {}", sequences, queries, context), time,
         static_cast<double>(sequences * context * 8 * 128 * 2 * 2), pairs * 48 * 128 * 4});
  }

  void small(int64_t tokens) {
    Arena arena(buffer_);
    const Tensor x = random_tensor(arena, DType::f32, {tokens, kHidden});
    const Tensor delta = random_tensor(arena, DType::f32, {tokens, kHidden});
    const Tensor weight = random_tensor(arena, DType::bf16, {kHidden});
    const Tensor gate = random_tensor(arena, DType::f32, {256, kHidden});
    const Tensor bias = random_tensor(arena, DType::f32, {256});
    const Tensor ids = arena.place(DType::i32, {tokens, 8});
    const Tensor weights = arena.place(DType::f32, {tokens, 8});
    const double rows = static_cast<double>(tokens);
    double time = best_time([&](int) { ops::add_rms_norm(exec_, x, delta, weight, 1e-6f, delta); });
    add({fmt::format("add_rms_norm, {} tokens", tokens), time, rows * kHidden * 16,
         rows * kHidden * 5});
    time = best_time([&](int) { ops::route(exec_, delta, gate, bias, ids, weights); });
    add({fmt::format("route, {} tokens", tokens), time, 256.0 * kHidden * 4,
         rows * 256 * kHidden * 2});
    qk(tokens);
  }

  void print(const std::string& commit) {
    const std::time_t now = std::time(nullptr);
    char date[32];
    std::strftime(date, sizeof(date), "%Y-%m-%d", std::gmtime(&now));
    fmt::print("# CPU operations at MiniMax-M2's shapes\n\n{}, {}, commit {}, instructions {}.\n\n",
               describe_device(Device{}), date, commit, ops::instruction_set());
    fmt::print(
        "Bounds measured in the same run with all threads: reads {:.1f} GB/s, FP32 "
        "multiply-adds {:.0f} GFLOP/s. Best of several calls.\n\n",
        read_bandwidth_ / 1e9, flops_ / 1e9);
    fmt::print("| operation | ms | GB/s | of reads | GFLOP/s | of multiply-adds |\n");
    fmt::print("| --- | ---: | ---: | ---: | ---: | ---: |\n");
    for (const Row& row : rows_)
      fmt::print("| {} | {:.3f} | {:.1f} | {:.0f} % | {:.0f} | {:.0f} % |\n", row.name,
                 row.time * 1e3, row.bytes / row.time / 1e9,
                 100 * row.bytes / row.time / read_bandwidth_, row.flops / row.time / 1e9,
                 100 * row.flops / row.time / flops_);
  }

 private:
  void qk(int64_t tokens) {
    const ops::HeadShape heads{48, 8, 128, 64};
    Arena arena(buffer_);
    const Tensor qkv = random_tensor(arena, DType::f32, {tokens, 8192});
    const Tensor norm = random_tensor(arena, DType::bf16, {6144});
    const Tensor angles = random_tensor(arena, DType::f32, {tokens, 64});
    const Tensor sums = arena.place(DType::f32, {tokens, 2});
    const Tensor slots = arena.place(DType::i32, {tokens});
    for (int64_t t = 0; t < tokens; ++t) slots.as<int32_t>()[t] = static_cast<int32_t>(t);
    const ops::KvCache cache{arena.place(DType::bf16, {tokens / 16 + 1, 8, 16, 128}),
                             arena.place(DType::bf16, {tokens / 16 + 1, 8, 16, 128})};
    const double time = best_time([&](int) {
      ops::qk_sum_squares(exec_, qkv, heads, sums);
      ops::qk_norm_rope_store(exec_, qkv, sums, norm, norm.rows(0, 1024), 6144, 1024, 1e-6f, angles,
                              slots, heads, cache);
    });
    const double rows = static_cast<double>(tokens);
    add({fmt::format("qk_sum_squares + qk_norm_rope_store, {} tokens", tokens), time,
         rows * (8192 + 6144) * 4, rows * 7168 * 6});
  }

  void add(const Row& row) {
    rows_.push_back(row);
    fmt::print(stderr, "{}: {:.3f} ms, {:.1f} GB/s ({:.0f} %), {:.0f} GFLOP/s ({:.0f} %)\n",
               row.name, row.time * 1e3, row.bytes / row.time / 1e9,
               100 * row.bytes / row.time / read_bandwidth_, row.flops / row.time / 1e9,
               100 * row.flops / row.time / flops_);
  }

  Buffer buffer_, workspace_;
  ThreadPool pool_;
  Exec exec_;
  double read_bandwidth_ = 0;
  double flops_ = 0;
  std::vector<Row> rows_;
};

}  // namespace

int main(int argc, char** argv) {
  const std::string only = argc > 2 ? argv[2] : "";
  const Result<void> chosen = ops::choose_instruction_set(argc > 3 ? argv[3] : "auto");
  M2_CHECK(chosen.ok(), "{}", chosen.error().text);
  Bench bench(int64_t{3} << 30, argc > 4 ? std::stoi(argv[4]) : 0);
  const auto wanted = [&only](const char* name) { return only.empty() || only == name; };
  if (wanted("linear")) {
    for (const int64_t tokens : {1, 2, 4, 6})
      bench.linear("fp8", DType::f8_e4m3, 8192, kHidden, tokens);
    bench.linear("fp8", DType::f8_e4m3, kHidden, 6144, 1);
    bench.linear("bf16", DType::bf16, 8192, kHidden, 1);
    bench.linear("bf16", DType::bf16, kHidden, 6144, 1);
    bench.linear("bf16", DType::bf16, 200064, kHidden, 1);
    // Many tokens: a quarter of the rows, so that one call finds a quiet moment.
    for (const int64_t tokens : {16, 48, 512})
      bench.linear("fp8", DType::f8_e4m3, 2048, kHidden, tokens);
    bench.linear("bf16", DType::bf16, 2048, kHidden, 512);
  }
  if (wanted("experts")) {
    for (const int64_t tokens : {1, 8, 64, 512}) bench.experts("fp8", DType::f8_e4m3, tokens, 160);
    for (const int64_t tokens : {1, 8}) bench.experts("bf16", DType::bf16, tokens, 80);
  }
  if (wanted("attention")) {
    bench.attention(1, 1, 8192);
    bench.attention(8, 1, 8192);
    bench.attention(1, 512, 512);
    bench.attention(1, 512, 8192);
  }
  if (wanted("small")) {
    bench.small(1);
    bench.small(512);
  }
  bench.print(argc > 1 ? argv[1] : "unknown");
}
