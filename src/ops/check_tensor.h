#pragma once

#include <initializer_list>

#include "tensor/tensor.h"

namespace m2::ops {

// Fails unless `tensor` has this shape and one of these dtypes.
inline void check_tensor(const char* name, const Tensor& tensor,
                         std::initializer_list<DType> dtypes,
                         std::initializer_list<int64_t> shape) {
  bool dtype_fits = false;
  for (const DType dtype : dtypes) dtype_fits = dtype_fits || tensor.dtype() == dtype;
  bool shape_fits = tensor.rank() == static_cast<int>(shape.size());
  int axis = 0;
  for (const int64_t size : shape) shape_fits = shape_fits && tensor.size(axis++) == size;
  M2_CHECK(dtype_fits && shape_fits, "{} is {}", name, tensor.describe());
}

inline void check_dense(const char* name, const Tensor& tensor) {
  M2_CHECK(tensor.dense(), "{} has gaps: {}", name, tensor.describe());
}

}  // namespace m2::ops
