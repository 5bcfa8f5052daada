#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "load/file.h"
#include "tensor/dtype.h"

// The safetensors format: u64 little-endian N, N bytes of JSON header, tensor data.
// The rules are those of the reference (huggingface/safetensors, safetensors/src/tensor.rs): the
// header has at most 100,000,000 bytes and begins with '{'; sorted by offset, the tensors cover the
// data section exactly, with no gap, overlap or trailing bytes; every tensor's bytes are its shape
// times its dtype. Names and fields may not repeat. Alignment is not required.

namespace m2::load {

constexpr uint64_t kMaxHeaderBytes = 100'000'000;

// One tensor of a file, checked against the file's size.
struct TensorInfo {
  std::string name;
  std::string dtype_name;      // as the header spells it
  std::optional<DType> dtype;  // none for dtypes this program does not use
  std::vector<int64_t> shape;
  uint64_t begin = 0;  // offset of its data in the file
  uint64_t bytes = 0;
  int32_t file = 0;  // index into Checkpoint::files()

  std::string describe() const;  // "F32[4, 3072]", for messages
};

// Parses a header, given where the data section begins and how long it is. Tensors in the order of
// their offsets. A dtype the format does not know is accepted with dtype none, since nothing but a
// tensor that is asked for must be understood.
Result<std::vector<TensorInfo>> parse_safetensors_header(std::string_view header,
                                                         uint64_t data_begin, uint64_t data_bytes);

// Reads a file's header. Errors name the file.
Result<std::vector<TensorInfo>> read_safetensors_header(const File& file);

}  // namespace m2::load
