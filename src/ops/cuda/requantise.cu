#include "ops/cuda/device.cuh"

namespace m2::ops::cuda {
namespace {

constexpr int kBlock = 128, kThreads = 256;
constexpr int kNaN = 0x7f;

// One thread block a scale block: its largest code, then a table of what becomes of each code, as
// on the CPU. Bytes: N K read (the second time from L1 or L2) and written. Bound: bandwidth.
__global__ void __launch_bounds__(kThreads) requantise_kernel(Requantise args) {
  __shared__ int largest;
  __shared__ uint8_t code_of[256];
  const int block_row = args.first_row / kBlock + static_cast<int>(blockIdx.y);
  const int block_column = args.first_column / kBlock + static_cast<int>(blockIdx.x);
  const int top = max(block_row * kBlock - args.first_row, 0);
  const int begin = max(block_column * kBlock - args.first_column, 0);
  const int bottom = min((block_row + 1) * kBlock - args.first_row, args.rows);
  const int end = min((block_column + 1) * kBlock - args.first_column, args.columns);
  float* scale = args.scale + block_row * args.scale_stride + block_column;
  const float before = *scale;
  if (threadIdx.x == 0) largest = 0;
  __syncthreads();

  const int column = begin + static_cast<int>(threadIdx.x) % kBlock;
  const int first = top + static_cast<int>(threadIdx.x) / kBlock;
  uint8_t* codes = args.weight + column;
  int mine = 0;
  for (int row = first; row < bottom && column < end; row += kThreads / kBlock) {
    const int magnitude = codes[row * args.stride] & kNaN;
    if (magnitude != kNaN) mine = max(mine, magnitude);
  }
  atomicMax(&largest, mine);
  __syncthreads();

  const float most = fmaxf(fabsf(f8_to_float(static_cast<uint8_t>(largest)) * before), 1e-4f);
  const float after = up_to_power_of_two(most / kF8Most);
  const auto code = static_cast<uint8_t>(threadIdx.x);
  code_of[code] = (code & kNaN) == kNaN
                      ? code
                      : __nv_cvt_float_to_fp8(__fmul_rn(f8_to_float(code) * before, 1.0f / after),
                                              __NV_SATFINITE, __NV_E4M3);
  __syncthreads();
  for (int row = first; row < bottom && column < end; row += kThreads / kBlock)
    codes[row * args.stride] = code_of[codes[row * args.stride]];
  if (threadIdx.x == 0) *scale = after;
}

}  // namespace

void launch_requantise(void* stream, const Requantise& args) {
  const auto blocks = [](int first, int count) {
    return static_cast<unsigned>((first + count + kBlock - 1) / kBlock - first / kBlock);
  };
  LaunchShape shape{
      dim3(blocks(args.first_column, args.columns), blocks(args.first_row, args.rows)),
      dim3(kThreads)};
  shape.overlap = false;  // it writes weights, which kernels behind it read ahead
  launch(stream, requantise_kernel, shape, args);
}

}  // namespace m2::ops::cuda
