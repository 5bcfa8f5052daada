#include "ops/cuda/device.cuh"

namespace m2::ops::cuda {
namespace {

constexpr int kThreads = 256;

// One list of integers to their places, every thread a stride of it. Bytes: twice the list, some
// tens of KiB. Bound by latency.
__global__ void __launch_bounds__(kThreads) unpack_step_kernel(UnpackStep args) {
  wait_for_previous();
  let_next_start();
  const int first = blockIdx.x * kThreads + threadIdx.x;
  const int stride = gridDim.x * kThreads;
  const int32_t* from = args.packed;
  const auto copy = [&](int32_t* to, int count) {
    for (int i = first; i < count; i += stride) to[i] = from[i];
    from += count;
  };
  for (int t = first; t < args.tokens; t += stride) {
    const int id = from[t];
    args.token_ids[t] = id >= 0 ? id : args.previous[(-1 - id) * kSampledRowWords + 1];
  }
  from += args.tokens;
  copy(args.positions, args.tokens);
  copy(args.slots, args.tokens);
  copy(args.query_starts, args.sequences + 1);
  copy(args.context_lens, args.sequences);
  for (int64_t i = first; i < static_cast<int64_t>(args.sequences) * args.width; i += stride)
    args.block_tables[i / args.width * args.table_stride + i % args.width] = from[i];
  from += static_cast<int64_t>(args.sequences) * args.width;
  copy(args.logit_rows, args.rows);
  if (args.sample_rows) copy(args.sample_rows, args.rows * static_cast<int>(kSampleRowWords));

  for (int t = args.tokens + first; t < args.padded; t += stride) {
    args.token_ids[t] = 0;
    args.positions[t] = 0;
    args.slots[t] = -1;
    args.query_starts[t + 1] = t + 1;
    args.context_lens[t] = 0;
    args.logit_rows[t] = t;
    if (args.sample_rows) reinterpret_cast<SampleRow*>(args.sample_rows)[t] = SampleRow{};
  }
}

}  // namespace

void launch_unpack_step(void* stream, const UnpackStep& args) {
  const int64_t words = 3 * int64_t{args.tokens} + int64_t{args.sequences} * args.width;
  const unsigned blocks = blocks_for(words, 4 * kThreads);
  LaunchShape shape{dim3(blocks < 1 ? 1 : blocks > 256 ? 256 : blocks), dim3(kThreads)};
  launch(stream, unpack_step_kernel, shape, args);
}

}  // namespace m2::ops::cuda
