#include "tensor/tensor.h"

namespace m2 {

Tensor::Tensor(void* data, DType dtype, std::initializer_list<int64_t> shape)
    : data_(data), dtype_(dtype), rank_(static_cast<int>(shape.size())) {
  M2_CHECK(rank_ >= 1 && rank_ <= kMaxRank, "rank {}", rank_);
  size_t axis = 0;
  for (const int64_t size : shape) {
    M2_CHECK(size >= 0, "negative size {}", size);
    shape_[axis++] = size;
  }
  row_stride_ = elements_per_row();
}

int64_t Tensor::elements_per_row() const {
  int64_t product = 1;
  for (int i = 1; i < rank_; ++i) product *= shape_[static_cast<size_t>(i)];
  return product;
}

int64_t Tensor::elements() const { return rank_ == 0 ? 0 : shape_[0] * elements_per_row(); }

Tensor Tensor::rows(int64_t begin, int64_t count) const {
  M2_CHECK(begin >= 0 && count >= 0 && begin + count <= size(0), "rows [{}, +{}) of {}", begin,
           count, describe());
  Tensor out = *this;
  out.data_ = static_cast<char*>(data_) + begin * row_stride_ * size_of(dtype_);
  out.shape_[0] = count;
  return out;
}

Tensor Tensor::columns(int64_t begin, int64_t count) const {
  M2_CHECK(rank_ == 2 && begin >= 0 && count >= 0 && begin + count <= size(1),
           "columns [{}, +{}) of {}", begin, count, describe());
  Tensor out = *this;
  out.data_ = static_cast<char*>(data_) + begin * size_of(dtype_);
  out.shape_[1] = count;
  return out;
}

Tensor Tensor::at(int64_t i) const {
  M2_CHECK(rank_ >= 2 && i >= 0 && i < size(0), "element {} of {}", i, describe());
  Tensor out;
  out.data_ = static_cast<char*>(data_) + i * row_stride_ * size_of(dtype_);
  out.dtype_ = dtype_;
  out.rank_ = rank_ - 1;
  for (int axis = 1; axis < rank_; ++axis)
    out.shape_[static_cast<size_t>(axis - 1)] = shape_[static_cast<size_t>(axis)];
  out.row_stride_ = out.elements_per_row();
  return out;
}

Tensor Tensor::reshaped(std::initializer_list<int64_t> shape) const {
  Tensor out(data_, dtype_, shape);
  M2_CHECK(dense() && out.elements() == elements(), "{} reshaped to {}", describe(),
           out.describe());
  return out;
}

std::string Tensor::describe() const {
  std::string out = fmt::format("{}[", name_of(dtype_));
  for (int i = 0; i < rank_; ++i)
    out += fmt::format("{}{}", i ? ", " : "", shape_[static_cast<size_t>(i)]);
  out += "]";
  if (rank_ > 0 && !dense()) out += fmt::format(" with row stride {}", row_stride_);
  return out;
}

}  // namespace m2
