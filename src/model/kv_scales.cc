#include "model/kv_scales.h"

#include <array>
#include <cmath>
#include <cstring>
#include <optional>

namespace m2::model {
namespace {

template <class T>
float as_number(const std::array<std::byte, 4>& bytes) {
  T value;
  std::memcpy(&value, bytes.data(), sizeof(T));
  return to_float(value);
}

Result<float> read_scale(const load::Checkpoint& checkpoint, const load::TensorInfo& tensor) {
  const auto wrong = [&](const std::string& why) {
    const std::string& path = checkpoint.file_of(tensor).path();
    return Error{Code::corrupt, fmt::format("{}: tensor {} {}", path, tensor.name, why), path};
  };
  int64_t count = 1;
  for (const int64_t size : tensor.shape) count *= size;
  if (count != 1)
    return wrong(fmt::format("is {}: only one scale a layer is supported", tensor.describe()));
  const auto dtype = tensor.dtype;
  if (dtype != DType::f32 && dtype != DType::bf16 && dtype != DType::f16)
    return wrong(fmt::format("is {}, which is no scale", tensor.describe()));
  std::array<std::byte, 4> bytes{};
  const auto size = static_cast<size_t>(size_of(*dtype));
  M2_TRY_VOID(checkpoint.read(tensor, 0, std::span(bytes).first(size)));
  float value;
  std::memcpy(&value, bytes.data(), 4);
  if (dtype == DType::bf16) value = as_number<BF16>(bytes);
  if (dtype == DType::f16) value = as_number<F16>(bytes);
  if (!(std::isfinite(value) && value > 0))
    return wrong(fmt::format("is {}, but a scale is finite and positive", value));
  return value;
}

// The scale under the first of the names that the checkpoint has.
Result<std::optional<float>> find_scale(const load::Checkpoint& checkpoint, const std::string& at,
                                        std::initializer_list<const char*> names) {
  for (const char* name : names) {
    const load::TensorInfo* tensor = checkpoint.find(at + name);
    if (!tensor) continue;
    M2_TRY(const float scale, read_scale(checkpoint, *tensor));
    return std::optional(scale);
  }
  return std::optional<float>();
}

}  // namespace

Result<int64_t> read_kv_scales(const load::Checkpoint& checkpoint, Weights& weights) {
  int64_t found = 0;
  for (size_t l = 0; l < weights.layers.size(); ++l) {
    const std::string at = fmt::format("model.layers.{}.self_attn.", l);
    M2_TRY(const auto k,
           find_scale(checkpoint, at, {"k_proj.k_scale", "k_scale", "attn.k_scale", "kv_scale"}));
    M2_TRY(const auto v, find_scale(checkpoint, at, {"v_proj.v_scale", "v_scale", "attn.v_scale"}));
    if (v && !k)
      return fail(Code::corrupt, "{}: layer {} has a v_scale, but no k_scale", checkpoint.folder(),
                  l);
    if (!k) continue;
    weights.layers[l].k_scale = *k;
    weights.layers[l].v_scale = v.value_or(*k);
    ++found;
  }
  return found;
}

}  // namespace m2::model
