// Every CUDA kernel of the operations, as a share of what the machine reads and multiplies in the
// same run. Runs inside graphs, over random data; weights rotate over more memory than L2 holds and
// every repetition chooses other experts. Prints one Markdown table.
//   bench_ops_cuda [part of a name]...     only matching rows
#include <cuda_runtime_api.h>

#include <algorithm>
#include <cstdio>
#include <cstring>
#include <functional>
#include <numeric>
#include <random>
#include <set>
#include <string>
#include <vector>

#include "base/check.h"
#include "bench/ops/cuda/ceilings.h"
#include "ops/cuda/attention/plan.h"
#include "ops/cuda/ops_cuda.h"
#include "tensor/buffer.h"

namespace m2::bench {
namespace {

namespace cuda = ops::cuda;

void require(cudaError_t status) {
  M2_CHECK(status == cudaSuccess, "{}", cudaGetErrorString(status));
}

struct Timing {
  double median, least;  // microseconds of one repetition
};

class Machine {
 public:
  Machine() {
    exec_.device = {DeviceKind::cuda, 0};
    cudaStream_t stream;
    require(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
    exec_.stream = stream;
    workspace_ = Buffer(exec_.device, 256 << 20);
    exec_.workspace = workspace_.data();
    exec_.workspace_bytes = workspace_.bytes();
  }
  const Exec& exec() const { return exec_; }

  // Captures `count` calls of once(i) in a graph and times its launches.
  Timing time(int count, const std::function<void(int)>& once) const {
    auto stream = static_cast<cudaStream_t>(exec_.stream);
    require(cudaDeviceSynchronize());
    cudaGraph_t graph;
    require(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
    for (int i = 0; i < count; ++i) once(i);
    require(cudaStreamEndCapture(stream, &graph));
    cudaGraphExec_t runnable;
    require(cudaGraphInstantiate(&runnable, graph, 0));
    cudaEvent_t begin, end;
    require(cudaEventCreate(&begin));
    require(cudaEventCreate(&end));
    std::vector<double> times;
    for (int i = 0; i < 13; ++i) {
      require(cudaEventRecord(begin, stream));
      require(cudaGraphLaunch(runnable, stream));
      require(cudaEventRecord(end, stream));
      require(cudaEventSynchronize(end));
      float milliseconds = 0.0f;
      require(cudaEventElapsedTime(&milliseconds, begin, end));
      if (i >= 3) times.push_back(milliseconds * 1000.0 / count);
    }
    require(cudaGraphExecDestroy(runnable));
    require(cudaGraphDestroy(graph));
    std::sort(times.begin(), times.end());
    return {times[times.size() / 2], times.front()};
  }

 private:
  Exec exec_;
  Buffer workspace_;
};

// A tensor with memory of its own.
struct Owned {
  Buffer buffer;
  Tensor tensor;
  Owned(DType dtype, std::initializer_list<int64_t> shape) {
    int64_t bytes = size_of(dtype);
    for (const int64_t size : shape) bytes *= size;
    buffer = Buffer({DeviceKind::cuda, 0}, std::max<int64_t>(bytes, 256));
    tensor = Tensor(buffer.data(), dtype, shape);
  }
};

Owned random_tensor(DType dtype, std::initializer_list<int64_t> shape, uint32_t seed,
                    float low = -1.0f, float high = 1.0f) {
  Owned made(dtype, shape);
  const int64_t count = made.tensor.elements();
  if (dtype == DType::f8_e4m3)
    fill_f8(made.buffer.data(), count, seed);
  else if (dtype == DType::bf16)
    fill_bf16(made.buffer.data(), count, seed);
  else
    fill_f32(made.buffer.data(), count, low, high, seed);
  return made;
}

Owned integers(const std::vector<int32_t>& values, std::initializer_list<int64_t> shape) {
  Owned made(DType::i32, shape);
  require(cudaMemcpy(made.buffer.data(), values.data(), values.size() * 4, cudaMemcpyHostToDevice));
  return made;
}

class Bench {
 public:
  Bench(int argc, char** argv) {
    for (int i = 1; i < argc; ++i) wanted_.emplace_back(argv[i]);
  }
  void run() {
    std::printf("%s\n\n", describe_device(exec().device).c_str());
    ceilings();
    std::printf(
        "\n| operation | us (median) | us (least) | MB | GB/s | share of read | TFLOP/s |\n"
        "|---|--:|--:|--:|--:|--:|--:|\n");
    linear("linear qkv f8", DType::f8_e4m3, 8192, 3072, {1, 8, 64, 512, 2048, 8192});
    linear("linear o f8", DType::f8_e4m3, 3072, 6144, {1, 8, 64, 2048, 8192});
    linear("linear head bf16", DType::bf16, 200064, 3072, {1, 8});
    attention_decode(1, 2048);
    attention_decode(1, 8192);
    attention_decode(1, 131072);
    attention_decode(8, 4096);
    attention_decode(64, 2048);
    attention_decode(64, 4096);
    attention_prefill(2048, 2048);
    attention_prefill(8192, 8192);
    attention_prefill(8192, 32768);
    small_ops();
    experts("experts f8", 3072, 1536, 256, {1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 2048, 8192});
    experts("experts f8 TP4", 3072, 384, 256, {1, 8, 64});
    experts("experts f8 TP8", 3072, 192, 256, {1, 8, 64});
  }

 private:
  const Exec& exec() const { return machine_.exec(); }

  bool wanted(const std::string& name) const {
    if (wanted_.empty()) return true;
    return std::any_of(wanted_.begin(), wanted_.end(), [&](const std::string& part) {
      return name.find(part) != std::string::npos || part.find(name) == 0;
    });
  }
  // Whether the very row is wanted: a name may stand for a whole family or, longer, for one row.
  bool wanted_row(const std::string& name) const {
    return wanted_.empty() || std::any_of(wanted_.begin(), wanted_.end(), [&](const auto& part) {
             return name.find(part) != std::string::npos;
           });
  }

  void row(const std::string& name, Timing timing, double bytes, double flops) const {
    const double rate = bytes / timing.median * 1e-3;
    std::printf("| %s | %.1f | %.1f | %.1f | %.0f | %.1f %% | %.1f |\n", name.c_str(),
                timing.median, timing.least, bytes * 1e-6, rate, 100.0 * rate / read_rate_,
                flops / timing.median * 1e-6);
    std::fflush(stdout);
  }

  void ceilings() {
    const int64_t bytes = int64_t{8} << 30;
    const Owned memory = random_tensor(DType::f8_e4m3, {bytes}, 1);
    const Owned sink(DType::f32, {1});
    for (const int per_multiprocessor : {1, 2, 4}) {
      const Timing read = machine_.time(1, [&](int) {
        read_all(exec().stream, memory.buffer.data(), bytes, 132 * per_multiprocessor,
                 sink.tensor.as<float>());
      });
      const double rate = static_cast<double>(bytes) / read.median * 1e-3;
      read_rate_ = std::max(read_rate_, rate);
      std::printf("read 8 GiB, %d blocks of 512 threads a multiprocessor: %.0f GB/s\n",
                  per_multiprocessor, rate);
    }
    for (const bool overlap : {false, true}) {
      const Timing chain = machine_.time(500, [&](int) { empty_kernel(exec().stream, overlap); });
      std::printf("empty kernel in a graph, overlap %s: %.2f us\n", overlap ? "on" : "off",
                  chain.median);
    }
  }

  void linear(const std::string& name, DType dtype, int64_t rows, int64_t columns,
              const std::vector<int64_t>& batches) {
    if (!wanted(name)) return;
    const int64_t bytes = rows * columns * size_of(dtype);
    const int copies = static_cast<int>(std::max<int64_t>(1, (int64_t{400} << 20) / bytes));
    std::vector<Owned> weights, scales;
    for (int i = 0; i < copies; ++i) {
      weights.push_back(random_tensor(dtype, {rows, columns}, static_cast<uint32_t>(i)));
      scales.push_back(
          random_tensor(DType::f32, {(rows + 127) / 128, (columns + 127) / 128}, 7, 1e-4f, 2e-4f));
    }
    for (const int64_t tokens : batches) {
      const Owned x = random_tensor(DType::bf16, {tokens, columns}, 3);
      const Owned out(DType::bf16, {tokens, rows});
      const bool f8 = dtype == DType::f8_e4m3;
      const Timing timing = machine_.time(tokens > 1000 ? 2 : copies * 2, [&](int i) {
        const auto at = static_cast<size_t>(i % copies);
        const ops::Linear weight{weights[at].tensor, f8 ? scales[at].tensor : Tensor(), 0, 0};
        cuda::linear(exec(), x.tensor, {&weight, 1}, out.tensor);
      });
      row(name + " T=" + std::to_string(tokens), timing, static_cast<double>(bytes),
          2.0 * static_cast<double>(tokens * rows * columns));
    }
  }

  void attention_decode(int64_t sequences, int64_t context) {
    const std::string name =
        "attention decode B=" + std::to_string(sequences) + " ctx=" + std::to_string(context);
    if (!wanted(name)) return;
    attention(name, sequences, 1, context);
  }

  void attention_prefill(int64_t tokens, int64_t context) {
    const std::string name =
        "attention prefill T=" + std::to_string(tokens) + " ctx=" + std::to_string(context);
    if (!wanted(name)) return;
    attention(name, 1, tokens, context);
  }

  void attention(const std::string& name, int64_t sequences, int64_t length, int64_t context) {
    constexpr int64_t kQ = 48, kKv = 8, kDim = 128, kBlock = 16;
    const int64_t blocks_each = (context + kBlock - 1) / kBlock;
    const int64_t live = sequences * context * kKv * kDim * 4;
    const int copies = static_cast<int>(std::clamp<int64_t>((int64_t{300} << 20) / live, 1, 16));
    const int64_t blocks = blocks_each * sequences * copies;
    const Owned k = random_tensor(DType::bf16, {blocks, kKv, kBlock, kDim}, 1);
    const Owned v = random_tensor(DType::bf16, {blocks, kKv, kBlock, kDim}, 2);
    std::vector<int32_t> order(static_cast<size_t>(blocks));
    std::iota(order.begin(), order.end(), 0);
    std::shuffle(order.begin(), order.end(), std::mt19937(5));
    std::vector<Owned> tables;
    for (int c = 0; c < copies; ++c) {
      const auto begin = order.begin() + c * blocks_each * sequences;
      tables.push_back(
          integers({begin, begin + blocks_each * sequences}, {sequences, blocks_each}));
    }
    std::vector<int32_t> starts;
    for (int64_t s = 0; s <= sequences; ++s) starts.push_back(static_cast<int32_t>(s * length));
    const Owned starts_gpu = integers(starts, {sequences + 1});
    const Owned contexts = integers(
        std::vector<int32_t>(static_cast<size_t>(sequences), static_cast<int32_t>(context)),
        {sequences});
    const Owned q = random_tensor(DType::bf16, {sequences * length, kQ * kDim}, 9);
    const Owned out(DType::bf16, {sequences * length, kQ * kDim});
    const Timing timing = machine_.time(length > 1 ? 2 : std::max(copies, 4), [&](int i) {
      ops::BatchLayout layout;
      layout.query_starts = starts_gpu.tensor;
      layout.context_lens = contexts.tensor;
      layout.block_tables = tables[static_cast<size_t>(i % copies)].tensor;
      cuda::paged_attention(exec(), q.tensor, {k.tensor, v.tensor}, layout, {kQ, kKv, kDim, 64},
                            out.tensor);
    });
    const double mean = static_cast<double>(context) - static_cast<double>(length - 1) / 2.0;
    row(name, timing, static_cast<double>(live),
        4.0 * static_cast<double>(kQ * kDim * sequences * length) * mean);
  }

  void small_ops() {
    if (!wanted("small")) return;
    constexpr int64_t kHidden = 3072, kWidth = 8192;
    const ops::HeadShape heads{48, 8, 128, 64};
    for (const int64_t tokens : {1, 8, 64, 8192}) {
      const std::string suffix = " T=" + std::to_string(tokens);
      const int count = tokens > 1000 ? 4 : 40;
      const auto in_bytes = static_cast<double>(tokens * kHidden * 2);
      const Owned residual = random_tensor(DType::bf16, {tokens, kHidden}, 1);
      const Owned delta = random_tensor(DType::bf16, {tokens, kHidden}, 2);
      const Owned hidden(DType::bf16, {tokens, kHidden});
      const Owned weight = random_tensor(DType::bf16, {kHidden}, 3);
      row("small add_rms_norm" + suffix,
          machine_.time(count,
                        [&](int) {
                          cuda::add_rms_norm(exec(), residual.tensor, delta.tensor, weight.tensor,
                                             1e-6f, hidden.tensor);
                        }),
          4 * in_bytes, 0);
      const Owned gate = random_tensor(DType::f32, {256, kHidden}, 4, -0.05f, 0.05f);
      const Owned bias = random_tensor(DType::f32, {256}, 5, 0.0f, 0.1f);
      const Owned ids(DType::i32, {tokens, 8}), weights(DType::f32, {tokens, 8});
      row("small route" + suffix,
          machine_.time(count,
                        [&](int) {
                          cuda::route(exec(), delta.tensor, gate.tensor, bias.tensor, {},
                                      ids.tensor, weights.tensor);
                        }),
          in_bytes + 256 * kHidden * 4, 2.0 * 256 * static_cast<double>(kHidden * tokens));
      const Owned qkv = random_tensor(DType::bf16, {tokens, kWidth}, 6);
      const Owned sums(DType::f32, {tokens, 2}), angles(DType::f32, {tokens, 64});
      std::vector<int32_t> positions(static_cast<size_t>(tokens));
      std::iota(positions.begin(), positions.end(), 0);
      const Owned where = integers(positions, {tokens});
      const int64_t blocks = (tokens + 15) / 16;
      const Owned k(DType::bf16, {blocks, 8, 16, 128}), v(DType::bf16, {blocks, 8, 16, 128});
      const Owned q_norm = random_tensor(DType::bf16, {6144}, 8);
      row("small rope_angles" + suffix,
          machine_.time(count,
                        [&](int) { cuda::rope_angles(exec(), where.tensor, 5e6f, angles.tensor); }),
          static_cast<double>(tokens * 256), 0);
      row("small qk_sum_squares" + suffix,
          machine_.time(count,
                        [&](int) { cuda::qk_sum_squares(exec(), qkv.tensor, heads, sums.tensor); }),
          static_cast<double>(tokens * 7168 * 2), 0);
      row("small qk_norm_rope_store" + suffix,
          machine_.time(count,
                        [&](int) {
                          cuda::qk_norm_rope_store(exec(), qkv.tensor, sums.tensor, q_norm.tensor,
                                                   q_norm.tensor, 6144, 1024, 1e-6f, angles.tensor,
                                                   where.tensor, heads, {k.tensor, v.tensor});
                        }),
          static_cast<double>(tokens * 16384 * 2), 0);
      const Owned table = random_tensor(DType::bf16, {20000, kHidden}, 11);
      row("small embed" + suffix,
          machine_.time(
              count,
              [&](int) { cuda::embed(exec(), where.tensor, table.tensor, 0, hidden.tensor); }),
          2 * in_bytes, 0);
    }
  }

  void experts(const std::string& name, int64_t hidden, int64_t inner, int64_t count,
               const std::vector<int64_t>& batches) {
    if (!wanted(name)) return;
    constexpr int64_t kTop = 8;
    const int64_t blocks = (inner + 127) / 128;
    const Owned w13 = random_tensor(DType::f8_e4m3, {count, 2 * inner, hidden}, 1);
    const Owned w2 = random_tensor(DType::f8_e4m3, {count, hidden, inner}, 2);
    const Owned s1 = random_tensor(DType::f32, {count, blocks, hidden / 128}, 3, 1e-4f, 2e-4f);
    const Owned s2 = random_tensor(DType::f32, {count, hidden / 128, blocks}, 4, 1e-4f, 2e-4f);
    const ops::Experts weights{w13.tensor, s1.tensor, s1.tensor, w2.tensor, s2.tensor, 0, 0, 0};
    std::mt19937 random(17);
    for (const int64_t tokens : batches) {
      if (!wanted_row(name + " B=" + std::to_string(tokens))) continue;
      const int sets = tokens > 1000 ? 2 : tokens >= 64 ? 4 : 24;
      std::vector<Owned> ids;
      double distinct = 0.0;
      for (int s = 0; s < sets; ++s) {
        std::vector<int32_t> chosen;
        std::vector<int32_t> all(static_cast<size_t>(count));
        std::iota(all.begin(), all.end(), 0);
        for (int64_t t = 0; t < tokens; ++t) {
          std::shuffle(all.begin(), all.end(), random);
          std::vector<int32_t> mine(all.begin(), all.begin() + kTop);
          std::sort(mine.begin(), mine.end());
          chosen.insert(chosen.end(), mine.begin(), mine.end());
        }
        distinct += static_cast<double>(std::set<int32_t>(chosen.begin(), chosen.end()).size());
        ids.push_back(integers(chosen, {tokens, kTop}));
      }
      const Owned x = random_tensor(DType::bf16, {tokens, hidden}, 5);
      const Owned shares = random_tensor(DType::f32, {tokens, kTop}, 6, 0.05f, 0.2f);
      const Owned scratch(DType::u8, {cuda::experts_scratch_bytes(weights, tokens, kTop)});
      const Owned out(DType::bf16, {tokens, hidden});
      const Timing timing = machine_.time(sets, [&](int i) {
        cuda::experts(exec(), x.tensor, weights, ids[static_cast<size_t>(i)].tensor, shares.tensor,
                      scratch.tensor, out.tensor);
      });
      row(name + " B=" + std::to_string(tokens), timing,
          distinct / sets * 3.0 * static_cast<double>(hidden * inner),
          6.0 * static_cast<double>(tokens * kTop * hidden * inner));
    }
  }

  std::vector<std::string> wanted_;
  Machine machine_;
  double read_rate_ = 0.0;
};

}  // namespace
}  // namespace m2::bench

int main(int argc, char** argv) {
  m2::bench::Bench(argc, argv).run();
  return 0;
}
