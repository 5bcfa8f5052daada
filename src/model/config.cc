#include "model/config.h"

#include <algorithm>
#include <string_view>
#include <utility>

#include "base/log.h"

namespace m2::model {
namespace {

constexpr int64_t kFamilyEos = 200020;  // "[e~[" (model.md 0.6)

// The value as an error message shows it.
std::string show(const Json& value) {
  return printable(to_text(value), 60);
}

Error bad_field(std::string_view name, const std::string& why) {
  return Error{Code::invalid_argument, fmt::format("{}: {}", name, why), std::string(name)};
}

Error not_modelled(std::string_view name, const Json& value, std::string_view expected) {
  return Error{Code::unsupported,
               fmt::format("config.json: {} is {}, but this program models only {}", name,
                           show(value), expected),
               std::string(name)};
}

// The field, or nullptr if it is absent or null.
const Json* field(const Json& object, const char* name) {
  const auto found = object.find(name);
  return found == object.end() || found->is_null() ? nullptr : &*found;
}

Result<int64_t> as_integer(std::string_view name, const Json& value, int64_t low, int64_t high) {
  // Numbers above int64_t's range are unsigned or floating here, and out of range as well.
  const bool fits = value.is_number_integer() &&
                    !(value.is_number_unsigned() && value.get<uint64_t>() > INT64_MAX);
  if (!fits || value.get<int64_t>() < low || value.get<int64_t>() > high)
    return bad_field(name, fmt::format("{} is no integer from {} to {}", show(value), low, high));
  return value.get<int64_t>();
}

Result<double> as_number(std::string_view name, const Json& value, double low, double high) {
  if (!value.is_number() || !(value.get<double>() >= low && value.get<double>() <= high))
    return bad_field(name, fmt::format("{} is no number from {} to {}", show(value), low, high));
  return value.get<double>();
}

Result<int64_t> require_integer(const Json& config, const char* name, int64_t high) {
  const Json* value = field(config, name);
  if (!value) return bad_field(name, "config.json lacks this field");
  return as_integer(name, *value, 1, high);
}

Result<double> require_number(const Json& config, const char* name, double low, double high) {
  const Json* value = field(config, name);
  if (!value) return bad_field(name, "config.json lacks this field");
  return as_number(name, *value, low, high);
}

// One token id or a list of them; none if the field is absent or null.
Result<std::vector<int64_t>> token_ids(const Json& object, const char* name) {
  constexpr int64_t kHighest = INT32_MAX;
  constexpr size_t kMost = 64;
  std::vector<int64_t> ids;
  const Json* value = field(object, name);
  if (!value) return ids;
  if (!value->is_array()) {
    M2_TRY(const int64_t id, as_integer(name, *value, 0, kHighest));
    return std::vector{id};
  }
  if (value->size() > kMost) return bad_field(name, fmt::format("more than {} ids", kMost));
  for (const Json& item : *value) {
    M2_TRY(const int64_t id, as_integer(name, item, 0, kHighest));
    ids.push_back(id);
  }
  return ids;
}

Result<void> check_architecture(const Json& config) {
  constexpr std::string_view kName = "MiniMaxM2ForCausalLM";
  const Json* names = field(config, "architectures");
  if (names && names->is_array())
    for (const Json& name : *names)
      if (name == kName) return {};
  const Json* type = field(config, "model_type");
  if (!names && type && *type == "minimax_m2") return {};
  return Error{Code::unsupported,
               fmt::format("config.json: architectures is {}, but this program runs {} only",
                           names ? show(*names) : "absent", kName),
               "architectures"};
}

// A field that, where it is present, must have this value.
Result<void> expect(const Json& config, const char* name, const Json& expected) {
  const Json* value = field(config, name);
  if (value && *value != expected) return not_modelled(name, *value, to_text(expected));
  return {};
}

// Refuses variants of the graph that this program does not compute (model.md 1.1).
Result<void> check_graph(const Json& config) {
  const std::pair<const char*, Json> expected[] = {
      {"hidden_act", "silu"},         {"scoring_func", "sigmoid"}, {"use_qk_norm", true},
      {"qk_norm_type", "per_layer"},  {"use_routing_bias", true},  {"shared_intermediate_size", 0},
      {"tie_word_embeddings", false}, {"attention_bias", false},   {"routed_scaling_factor", 1},
  };
  for (const auto& [name, value] : expected) M2_TRY_VOID(expect(config, name, value));
  if (const Json* window = field(config, "sliding_window"))
    return not_modelled("sliding_window", *window, "null");
  if (const Json* types = field(config, "attn_type_list")) {
    if (!types->is_array()) return bad_field("attn_type_list", "is no list");
    for (const Json& type : *types)
      if (type != 1)
        return not_modelled("attn_type_list", type, "1 (full attention) in each layer");
  }
  return {};
}

// Rope scaling of the old spelling (rope_scaling) or the new one (rope_parameters): none is
// modelled.
Result<void> check_rope_type(const char* name, const Json* rope) {
  if (!rope) return {};
  if (!rope->is_object()) return bad_field(name, "is no object");
  for (const char* key : {"rope_type", "type"})
    if (const Json* type = field(*rope, key); type && *type != "default")
      return not_modelled(fmt::format("{}.{}", name, key), *type, "\"default\"");
  if (const Json* factor = field(*rope, "factor"); factor && *factor != 1)
    return not_modelled(fmt::format("{}.factor", name), *factor, "no scaling");
  return {};
}

// A field of rope_parameters, else of config.json itself; nullptr if neither has it.
const Json* rope_field(const Json& config, const char* name) {
  const Json* nested = field(config, "rope_parameters");
  const Json* inner = nested ? field(*nested, name) : nullptr;
  return inner ? inner : field(config, name);
}

Result<int64_t> read_rotary_dim(const Json& config, int64_t head_dim) {
  int64_t dim = 0;
  if (const Json* direct = field(config, "rotary_dim")) {
    M2_TRY(dim, as_integer("rotary_dim", *direct, 2, head_dim));
  } else if (const Json* factor = rope_field(config, "partial_rotary_factor")) {
    M2_TRY(const double share, as_number("partial_rotary_factor", *factor, 0, 1));
    dim = static_cast<int64_t>(share * static_cast<double>(head_dim));
  } else {
    return bad_field("rotary_dim", "config.json has neither it nor partial_rotary_factor");
  }
  if (dim < 2 || dim % 2 != 0)
    return bad_field("rotary_dim", fmt::format("{} is no even number from 2 to {}", dim, head_dim));
  return dim;
}

Result<void> read_rope(const Json& config, ModelConfig& out) {
  M2_TRY_VOID(check_rope_type("rope_scaling", field(config, "rope_scaling")));
  M2_TRY_VOID(check_rope_type("rope_parameters", field(config, "rope_parameters")));
  const Json* theta = rope_field(config, "rope_theta");
  if (!theta) return bad_field("rope_theta", "config.json lacks this field");
  M2_TRY(out.rope_theta, as_number("rope_theta", *theta, 1, 1e12));
  M2_TRY(out.rotary_dim, read_rotary_dim(config, out.head_dim));
  return {};
}

Result<bool> read_quantization(const Json& config) {
  const Json* quantization = field(config, "quantization_config");
  if (!quantization) return false;
  if (!quantization->is_object()) return bad_field("quantization_config", "is no object");
  const Json* method = field(*quantization, "quant_method");
  if (!method || *method != "fp8")
    return not_modelled("quantization_config.quant_method", method ? *method : Json(), "\"fp8\"");
  const Json* format = field(*quantization, "fmt");
  if (format && *format != "float8_e4m3fn" && *format != "e4m3")
    return not_modelled("quantization_config.fmt", *format, "\"float8_e4m3fn\"");
  const Json* block = field(*quantization, "weight_block_size");
  if (!block || *block != Json::array({128, 128}))
    return not_modelled("quantization_config.weight_block_size", block ? *block : Json(),
                        "[128, 128]");
  return true;
}

// Bounds of the sizes. The largest product, bytes of all experts' weights, is at most
// 2^10 layers * 2^12 experts * 3 * 2^17 * 2^17 * 4 bytes < 2^60.
Result<void> read_sizes(const Json& config, ModelConfig& out) {
  M2_TRY(out.hidden_size, require_integer(config, "hidden_size", 1 << 17));
  M2_TRY(out.intermediate_size, require_integer(config, "intermediate_size", 1 << 17));
  M2_TRY(out.num_layers, require_integer(config, "num_hidden_layers", 1 << 10));
  M2_TRY(out.num_heads, require_integer(config, "num_attention_heads", 1 << 10));
  M2_TRY(out.num_kv_heads, require_integer(config, "num_key_value_heads", out.num_heads));
  M2_TRY(out.head_dim, require_integer(config, "head_dim", 1 << 10));
  M2_TRY(out.num_experts, require_integer(config, "num_local_experts", 1 << 12));
  M2_TRY(out.num_experts_per_token,
         require_integer(config, "num_experts_per_tok", std::min<int64_t>(out.num_experts, 32)));
  M2_TRY(out.vocab_size, require_integer(config, "vocab_size", 1 << 24));
  M2_TRY(out.max_position_embeddings, require_integer(config, "max_position_embeddings", 1 << 26));
  if (out.num_heads % out.num_kv_heads != 0)
    return bad_field("num_key_value_heads", fmt::format("{} does not divide num_attention_heads {}",
                                                        out.num_kv_heads, out.num_heads));
  return {};
}

Result<std::vector<int64_t>> read_end_tokens(const Json& config, const GenerationDefaults& defaults,
                                             int64_t vocab_size) {
  std::vector<int64_t> ids = defaults.eos_token_ids;
  if (ids.empty()) {
    M2_TRY(ids, token_ids(config, "eos_token_id"));
  }
  if (ids.empty() && kFamilyEos < vocab_size) ids = {kFamilyEos};
  for (const int64_t id : ids)
    if (id >= vocab_size)
      return bad_field("eos_token_id",
                       fmt::format("{} is not below vocab_size {}", id, vocab_size));
  return ids;
}

Result<void> merge_number(const Json& json, const char* name, double low, double high,
                          std::optional<double>& out) {
  if (const Json* value = field(json, name)) {
    M2_TRY(out, as_number(name, *value, low, high));
  }
  return {};
}

}  // namespace

Result<ModelConfig> read_config(const Json& json, const GenerationDefaults& generation) {
  if (!json.is_object()) return bad_field("config.json", "is no JSON object");
  M2_TRY_VOID(check_architecture(json));
  M2_TRY_VOID(check_graph(json));
  ModelConfig config;
  M2_TRY_VOID(read_sizes(json, config));
  M2_TRY_VOID(read_rope(json, config));
  M2_TRY(config.rms_norm_eps, require_number(json, "rms_norm_eps", 0, 1));
  M2_TRY(config.fp8_blocks, read_quantization(json));
  M2_TRY(config.eos_token_ids, read_end_tokens(json, generation, config.vocab_size));
  return config;
}

Result<GenerationDefaults> read_generation_config(const Json& json) {
  GenerationDefaults out;
  if (json.is_null()) return out;
  if (!json.is_object()) return bad_field("generation_config.json", "is no JSON object");
  M2_TRY_VOID(merge_number(json, "temperature", 0, 1e6, out.temperature));
  M2_TRY_VOID(merge_number(json, "top_p", 0, 1, out.top_p));
  M2_TRY_VOID(merge_number(json, "min_p", 0, 1, out.min_p));
  M2_TRY_VOID(merge_number(json, "repetition_penalty", 1e-6, 1e6, out.repetition_penalty));
  if (const Json* top_k = field(json, "top_k")) {
    M2_TRY(out.top_k, as_integer("top_k", *top_k, -1, INT32_MAX));
  }
  if (const Json* limit = field(json, "max_new_tokens")) {
    M2_TRY(out.max_new_tokens, as_integer("max_new_tokens", *limit, 1, INT32_MAX));
  }
  M2_TRY(out.eos_token_ids, token_ids(json, "eos_token_id"));
  return out;
}

void apply_overrides(Json& config, const Json& overrides) {
  if (!config.is_object() || !overrides.is_object()) {
    config = overrides;
    return;
  }
  // As deep as the parser's limit on nesting lets a value be.
  for (const auto& [name, value] : overrides.items()) apply_overrides(config[name], value);
}

}  // namespace m2::model
