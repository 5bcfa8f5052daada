#include "ops/cuda/tiles.cuh"

namespace m2::ops::cuda {
namespace {

// The driver's function, found at run time so that nothing links with libcuda.
auto encode_function() {
  static const auto function = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result;
    M2_CUDA(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found, 12000,
                                             cudaEnableDefault, &result));
    if (result != cudaDriverEntryPointSuccess) cuda_failed("cuTensorMapEncodeTiled", "not found");
    return reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(found);
  }();
  return function;
}

cuuint64_t size(int64_t value) {
  return static_cast<cuuint64_t>(value);
}

CUtensorMap encode(const void* data, cuuint32_t rank, const cuuint64_t* sizes,
                   const cuuint64_t* strides, const cuuint32_t* box) {
  CUtensorMap map;
  const cuuint32_t steps[5] = {1, 1, 1, 1, 1};
  const CUresult status = encode_function()(
      &map, CU_TENSOR_MAP_DATA_TYPE_UINT8, rank, const_cast<void*>(data), sizes, strides, box,
      steps, CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
      CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (status != CUDA_SUCCESS) cuda_failed("cuTensorMapEncodeTiled", "refused the matrix");
  return map;
}

}  // namespace

CUtensorMap tensor_map(const void* data, int64_t rows, int64_t columns, int64_t stride,
                       int box_rows) {
  const cuuint64_t sizes[2] = {size(columns), size(rows)};
  const cuuint64_t strides[1] = {size(stride)};
  const cuuint32_t box[2] = {kTileStep, static_cast<cuuint32_t>(box_rows)};
  return encode(data, 2, sizes, strides, box);
}

CUtensorMap double_map(const void* data, int64_t rows, int64_t columns, int64_t stride,
                       int box_rows, int boxes) {
  const cuuint64_t sizes[3] = {kTileStep, size(rows), size(columns / kTileStep)};
  const cuuint64_t strides[2] = {size(stride), kTileStep};
  const cuuint32_t box[3] = {kTileStep, static_cast<cuuint32_t>(box_rows),
                             static_cast<cuuint32_t>(boxes)};
  return encode(data, 3, sizes, strides, box);
}

CUtensorMap halves_map(const void* data, int64_t experts, int64_t rows, int64_t columns) {
  const cuuint64_t sizes[3] = {size(columns), size(rows), size(experts * 2)};
  const cuuint64_t strides[2] = {size(columns), size(rows * columns)};
  const cuuint32_t box[3] = {kTileStep, kTileHalf / 2, 2};
  return encode(data, 3, sizes, strides, box);
}

CUtensorMap paired_rows_map(const void* data, int64_t experts, int64_t rows, int64_t columns,
                            int box_rows, int boxes) {
  const cuuint64_t sizes[5] = {kTileStep, 8, 2, size(experts * 2 * rows / 8),
                               size(columns / kTileStep)};
  const cuuint64_t strides[4] = {size(columns), size(rows * columns), size(8 * columns), kTileStep};
  const cuuint32_t box[5] = {kTileStep, 8, 2, static_cast<cuuint32_t>(box_rows / 8),
                             static_cast<cuuint32_t>(boxes)};
  return encode(data, 5, sizes, strides, box);
}

}  // namespace m2::ops::cuda
