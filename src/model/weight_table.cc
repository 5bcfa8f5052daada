#include "model/weight_table.h"

#include <fmt/ranges.h>

#include <filesystem>

namespace m2::model {
namespace {

using parallel::Range;
using parallel::Topology;

namespace table {
using Id = WeightId;
using Kind = WeightKind;
using enum Axis;

// clang-format off
constexpr WeightSpec kRows[] = {
    {Id::embedding,  Scope::model,  "model.embed_tokens.weight", Kind::table,  vocabulary, hidden},
    {Id::norm,       Scope::model,  "model.norm.weight",         Kind::norm,   hidden,     none},
    {Id::head,       Scope::model,  "lm_head.weight",            Kind::table,  vocabulary, hidden},
    {Id::input_norm, Scope::layer,  "input_layernorm.weight",    Kind::norm,   hidden,     none},
    {Id::q,          Scope::layer,  "self_attn.q_proj.weight",   Kind::matrix, q_width,    hidden},
    {Id::k,          Scope::layer,  "self_attn.k_proj.weight",   Kind::matrix, kv_width,   hidden},
    {Id::v,          Scope::layer,  "self_attn.v_proj.weight",   Kind::matrix, kv_width,   hidden},
    {Id::q_norm,     Scope::layer,  "self_attn.q_norm.weight",   Kind::norm,   q_width,    none},
    {Id::k_norm,     Scope::layer,  "self_attn.k_norm.weight",   Kind::norm,   kv_width,   none},
    {Id::o,          Scope::layer,  "self_attn.o_proj.weight",   Kind::matrix, hidden,     q_width},
    {Id::post_attention_norm, Scope::layer, "post_attention_layernorm.weight",
                                                                 Kind::norm,   hidden,     none},
    {Id::gate,       Scope::layer,  "block_sparse_moe.gate.weight",
                                                                 Kind::router, experts,    hidden},
    {Id::routing_bias, Scope::layer, "block_sparse_moe.e_score_correction_bias",
                                                                 Kind::router, experts,    none},
    {Id::w1,         Scope::expert, "w1.weight",                 Kind::matrix, inner,      hidden},
    {Id::w2,         Scope::expert, "w2.weight",                 Kind::matrix, hidden,     inner},
    {Id::w3,         Scope::expert, "w3.weight",                 Kind::matrix, inner,      hidden},
};
// clang-format on
}  // namespace table

constexpr bool table_is_indexed_by_id() {
  size_t index = 0;
  for (const WeightSpec& spec : table::kRows)
    if (static_cast<size_t>(spec.id) != index++) return false;
  return index == kWeightIds;
}
static_assert(table_is_indexed_by_id());

// Heads of this rank. With more ranks than heads, ranks / heads neighbours hold the same head.
Range head_share(int64_t heads, const Topology& topology) {
  if (topology.tensor_size <= heads)
    return parallel::split_evenly(heads, topology.tensor_size, topology.tensor_rank);
  return {topology.tensor_rank / (topology.tensor_size / heads), 1};
}

Range head_channels(int64_t heads, int64_t head_dim, const Topology& topology) {
  const Range share = head_share(heads, topology);
  return {share.begin * head_dim, share.count * head_dim};
}

// Rank 1 for vectors, else rank 2.
std::vector<int64_t> shape_of(const WeightSpec& spec, const ModelConfig& config) {
  std::vector<int64_t> shape{axis_size(spec.rows, config)};
  if (spec.columns != Axis::none) shape.push_back(axis_size(spec.columns, config));
  return shape;
}

std::string base_name(const std::string& path) {
  return std::filesystem::path(path).filename().string();
}

// Checks one stored tensor after another against the table.
class WeightChecker {
 public:
  WeightChecker(const ModelConfig& config, const load::Checkpoint& checkpoint)
      : config_(config), checkpoint_(checkpoint), types_(config) {}

  Result<StoredTypes> check() {
    M2_TRY_VOID(
        for_each_weight(config_, [&](const WeightSpec& spec, int64_t layer, int64_t expert) {
          return check_weight(spec, layer, expert);
        }));
    return std::move(types_);
  }

 private:
  Result<void> check_weight(const WeightSpec& spec, int64_t layer, int64_t expert) {
    M2_TRY(const load::TensorInfo* tensor,
           find(weight_name(spec, layer, expert), shape_of(spec, config_)));
    M2_TRY(const DType dtype, memory_dtype(spec, *tensor));
    if (dtype == DType::f8_e4m3) M2_TRY_VOID(check_scale(spec, layer, expert));
    const WeightId leader = leader_of(spec.id);
    if (leader == spec.id && expert == 0) types_.set(spec.id, layer, dtype);
    const DType expected = types_.of(leader, layer);
    if (dtype != expected)
      return wrong(*tensor, fmt::format("is {}, but must be {} like the weights it is stacked with",
                                        name_of(dtype), name_of(expected)));
    types_.set(spec.id, layer, dtype);
    return {};
  }

  // The weight that sets the dtype of the block of memory this one is stacked into.
  static WeightId leader_of(WeightId id) {
    if (id == WeightId::k || id == WeightId::v) return WeightId::q;
    return id == WeightId::w3 ? WeightId::w1 : id;
  }

  Result<const load::TensorInfo*> find(const std::string& name,
                                       const std::vector<int64_t>& shape) const {
    const load::TensorInfo* tensor = checkpoint_.find(name);
    if (!tensor)
      return Error{
          Code::corrupt,
          fmt::format("{}: tensor {} is missing from the checkpoint", checkpoint_.folder(), name),
          checkpoint_.folder()};
    if (tensor->shape != shape)
      return wrong(*tensor, fmt::format("is {}, but config.json asks for [{}]", tensor->describe(),
                                        fmt::join(shape, ", ")));
    return tensor;
  }

  Result<DType> memory_dtype(const WeightSpec& spec, const load::TensorInfo& tensor) const {
    const auto dtype = tensor.dtype;
    const bool is_plain = dtype == DType::bf16 || dtype == DType::f16 || dtype == DType::f32;
    const bool is_fp8 = dtype == DType::f8_e4m3 && spec.kind == WeightKind::matrix;
    if (!is_plain && !is_fp8)
      return wrong(tensor,
                   fmt::format("is {}, which this program does not read here", tensor.describe()));
    if (is_fp8 && !config_.fp8_blocks)
      return wrong(tensor, "is F8_E4M3, but config.json has no quantization_config of method fp8");
    if (spec.kind == WeightKind::router) return DType::f32;
    if (spec.kind == WeightKind::norm && dtype == DType::f16) return DType::f32;
    return *dtype;
  }

  Result<void> check_scale(const WeightSpec& spec, int64_t layer, int64_t expert) const {
    std::vector<int64_t> shape = shape_of(spec, config_);
    for (int64_t& size : shape) size = blocks_of({0, size}).count;
    M2_TRY(const load::TensorInfo* scale, find(scale_name(spec, layer, expert), shape));
    if (scale->dtype != DType::f32)
      return wrong(*scale, fmt::format("is {}, but scales are F32", scale->describe()));
    return {};
  }

  Error wrong(const load::TensorInfo& tensor, const std::string& why) const {
    const std::string& path = checkpoint_.file_of(tensor).path();
    return Error{Code::corrupt, fmt::format("{}: tensor {} {}", path, tensor.name, why), path};
  }

  const ModelConfig& config_;
  const load::Checkpoint& checkpoint_;
  StoredTypes types_;
};

std::string_view split_name(Axis axis, const Topology& topology) {
  switch (axis) {
    case Axis::vocabulary:
      return "vocabulary";
    case Axis::q_width:
      return "heads";
    case Axis::kv_width:
      return "kv heads";
    case Axis::inner:
      return topology.expert_parallel ? "" : "inner";
    case Axis::none:
    case Axis::hidden:
    case Axis::experts:
      return "";
  }
  return "";
}

// "rows by heads", "columns by inner", "experts", or "-" for what every rank has whole.
std::string describe_split(const WeightSpec& spec, const Topology& topology) {
  if (const auto rows = split_name(spec.rows, topology); !rows.empty())
    return fmt::format("rows by {}", rows);
  if (const auto columns = split_name(spec.columns, topology); !columns.empty())
    return fmt::format("columns by {}", columns);
  return spec.scope == Scope::expert && topology.expert_parallel ? "experts" : "-";
}

// Lines of `m2 inspect weights`, and the sums under them.
class WeightLines {
 public:
  explicit WeightLines(const load::Checkpoint& checkpoint) : checkpoint_(checkpoint) {
    add_line("NAME", "SHAPE", "DTYPE", "SPLIT", "BYTES", "FILE");
  }

  void add(const std::string& name, const std::string& split) {
    const load::TensorInfo* tensor = checkpoint_.find(name);
    add_line(name, fmt::format("[{}]", fmt::join(tensor->shape, ", ")), tensor->dtype_name, split,
             fmt::format("{}", tensor->bytes), base_name(checkpoint_.file_of(*tensor).path()));
    ++used_;
    used_bytes_ += tensor->bytes;
  }

  std::string finish() {
    uint64_t all_bytes = 0;
    for (const auto& [name, tensor] : checkpoint_.tensors()) all_bytes += tensor.bytes;
    text_ += fmt::format("{} tensors, {} bytes ({:.2f} GiB) in {} files\n", used_, used_bytes_,
                         static_cast<double>(used_bytes_) / (1 << 30), checkpoint_.files().size());
    text_ += fmt::format("not used: {} tensors, {} bytes\n", checkpoint_.tensors().size() - used_,
                         all_bytes - used_bytes_);
    return std::move(text_);
  }

 private:
  void add_line(std::string_view name, std::string_view shape, std::string_view dtype,
                std::string_view split, std::string_view bytes, std::string_view file) {
    text_ += fmt::format("{:<68} {:<16} {:<8} {:<18} {:>13}  {}\n", name, shape, dtype, split,
                         bytes, file);
  }

  const load::Checkpoint& checkpoint_;
  std::string text_;
  size_t used_ = 0;
  uint64_t used_bytes_ = 0;
};

}  // namespace

std::span<const WeightSpec> weight_table() {
  return table::kRows;
}

std::string weight_name(const WeightSpec& spec, int64_t layer, int64_t expert) {
  switch (spec.scope) {
    case Scope::model:
      return std::string(spec.name);
    case Scope::layer:
      return fmt::format("model.layers.{}.{}", layer, spec.name);
    case Scope::expert:
      return fmt::format("model.layers.{}.block_sparse_moe.experts.{}.{}", layer, expert,
                         spec.name);
  }
  return {};
}

std::string scale_name(const WeightSpec& spec, int64_t layer, int64_t expert) {
  return weight_name(spec, layer, expert) + "_scale_inv";
}

int64_t axis_size(Axis axis, const ModelConfig& config) {
  switch (axis) {
    case Axis::none:
      return 1;
    case Axis::vocabulary:
      return config.vocab_size;
    case Axis::hidden:
      return config.hidden_size;
    case Axis::q_width:
      return config.q_width();
    case Axis::kv_width:
      return config.kv_width();
    case Axis::inner:
      return config.intermediate_size;
    case Axis::experts:
      return config.num_experts;
  }
  return 0;
}

Range axis_share(Axis axis, const ModelConfig& config, const Topology& topology) {
  const Range whole{0, axis_size(axis, config)};
  switch (axis) {
    case Axis::none:
    case Axis::hidden:
    case Axis::experts:
      return whole;
    case Axis::q_width:
      return head_channels(config.num_heads, config.head_dim, topology);
    case Axis::kv_width:
      return head_channels(config.num_kv_heads, config.head_dim, topology);
    case Axis::inner:
      if (topology.expert_parallel) return whole;
      return parallel::split_evenly(whole.count, topology.expert_size(), topology.expert_rank());
    case Axis::vocabulary:
      return parallel::split_evenly(whole.count, topology.tensor_size, topology.tensor_rank);
  }
  return whole;
}

ExpertShare expert_share(const ModelConfig& config, const Topology& topology) {
  const int64_t size = topology.expert_size();
  const int64_t rank = topology.expert_rank();
  if (!topology.expert_parallel) return {0, config.num_experts};
  if (topology.round_robin) return {rank, (config.num_experts - rank + size - 1) / size, size};
  const Range run = parallel::split_evenly(config.num_experts, size, rank);
  return {run.begin, run.count};
}

int64_t owner_of_expert(int64_t expert, const ModelConfig& config, const Topology& topology) {
  const int64_t size = topology.expert_size();
  if (topology.round_robin) return expert % size;
  const int64_t base = config.num_experts / size;
  const int64_t longer = config.num_experts % size * (base + 1);  // experts of the longer runs
  return expert < longer ? expert / (base + 1)
                         : config.num_experts % size + (expert - longer) / base;
}

Result<void> check_topology(const ModelConfig& config, const Topology& topology) {
  const int64_t size = topology.tensor_size;
  if (size < 1 || config.num_heads % size != 0)
    return fail(Code::invalid_argument,
                "Total number of attention heads ({}) must be divisible by tensor parallel size "
                "({}).",
                config.num_heads, size);
  if (config.num_kv_heads % size != 0 && size % config.num_kv_heads != 0)
    return fail(Code::invalid_argument,
                "tensor parallel size {} must divide the {} key-value heads or be a multiple of "
                "them",
                size, config.num_kv_heads);
  if (topology.data_size < 1)
    return fail(Code::invalid_argument, "data parallel size {} is less than 1", topology.data_size);
  if (!topology.expert_parallel && config.intermediate_size < topology.expert_size())
    return fail(Code::invalid_argument, "{} ranks are more than the expert width {}",
                topology.expert_size(), config.intermediate_size);
  if (topology.expert_parallel && topology.expert_size() > config.num_experts)
    return fail(Code::invalid_argument,
                "Tensor parallel size {} is greater than the number of experts {}.",
                topology.expert_size(), config.num_experts);
  if (config.vocab_size < size)
    return fail(Code::invalid_argument, "tensor parallel size {} is greater than the vocabulary {}",
                size, config.vocab_size);
  return {};
}

StoredTypes::StoredTypes(const ModelConfig& config)
    : types_(static_cast<size_t>(config.num_layers) * kWeightIds, DType::bf16) {
  for (int64_t layer = 0; layer < config.num_layers; ++layer)
    for (const WeightSpec& spec : weight_table()) {
      if (spec.kind == WeightKind::router) set(spec.id, layer, DType::f32);
      if (spec.kind == WeightKind::matrix && config.fp8_blocks) set(spec.id, layer, DType::f8_e4m3);
    }
}

Result<StoredTypes> check_weights(const ModelConfig& config, const load::Checkpoint& checkpoint) {
  return WeightChecker(config, checkpoint).check();
}

Result<std::string> describe_weights(const ModelConfig& config, const load::Checkpoint& checkpoint,
                                     const Topology& topology) {
  M2_TRY_VOID(check_topology(config, topology));
  M2_TRY(const StoredTypes types, check_weights(config, checkpoint));
  WeightLines lines(checkpoint);
  M2_TRY_VOID(for_each_weight(config, [&](const WeightSpec& spec, int64_t layer, int64_t expert) {
    const std::string split = describe_split(spec, topology);
    lines.add(weight_name(spec, layer, expert), split);
    if (types.of(spec.id, layer) == DType::f8_e4m3)
      lines.add(scale_name(spec, layer, expert), split);
    return Result<void>();
  }));
  return lines.finish();
}

}  // namespace m2::model
