#include "model/weights.h"

#include <algorithm>
#include <atomic>
#include <cmath>
#include <optional>
#include <utility>

#include "base/thread_pool.h"
#include "load/slices.h"
#include "ops/requantise.h"
#include "tensor/staging.h"

namespace m2::model {
namespace {

using parallel::Range;
using parallel::Topology;

// Which part of which tensor of the model a piece of memory holds.
struct Part {
  const WeightSpec* spec;
  int64_t layer;
  int64_t expert;
  bool is_scale;  // of the weight's block scales, rows and columns counted in blocks
  int64_t first_row;
  int64_t first_column;
  Tensor to;
};

// Lays out a rank's weights in an arena. With a dry arena it only counts bytes; with a real one it
// also lists the parts that are to be filled.
class Placer {
 public:
  Placer(Arena& arena, bool dry, const ModelConfig& config, const Topology& topology,
         const StoredTypes& types)
      : arena_(arena), dry_(dry), config_(config), topology_(topology), types_(types) {}

  Weights place() {
    Weights weights;
    weights.embedding = plain(WeightId::embedding, 0);
    weights.first_id = axis_share(Axis::vocabulary, config_, topology_).begin;
    for (int64_t rank = 0; rank < topology_.tensor_size; ++rank)
      weights.vocabulary_rows.push_back(
          parallel::split_evenly(config_.vocab_size, topology_.tensor_size, rank).count);
    for (int64_t layer = 0; layer < config_.num_layers; ++layer)
      weights.layers.push_back(place_layer(layer));
    weights.norm = plain(WeightId::norm, 0);
    weights.head.weight = plain(WeightId::head, 0);
    return weights;
  }

  const std::vector<Part>& parts() const { return parts_; }

 private:
  Layer place_layer(int64_t layer) {
    Layer out;
    out.input_norm = plain(WeightId::input_norm, layer);
    out.qkv = qkv(layer);
    out.q_norm = plain(WeightId::q_norm, layer);
    out.k_norm = plain(WeightId::k_norm, layer);
    out.o = matrix(WeightId::o, layer);
    out.post_attention_norm = plain(WeightId::post_attention_norm, layer);
    out.gate = plain(WeightId::gate, layer);
    out.routing_bias = plain(WeightId::routing_bias, layer);
    out.experts = experts(layer);
    return out;
  }

  // A weight without scales.
  Tensor plain(WeightId id, int64_t layer) {
    const WeightSpec& spec = spec_of(id);
    const Range rows = share(spec.rows);
    const Range columns = share(spec.columns);
    const DType dtype = types_.of(id, layer);
    const Tensor out = spec.columns == Axis::none
                           ? arena_.place(dtype, {rows.count})
                           : arena_.place(dtype, {rows.count, columns.count});
    fill(spec, layer, 0, rows.begin, columns.begin, out);
    return out;
  }

  ops::Linear matrix(WeightId id, int64_t layer) {
    const WeightSpec& spec = spec_of(id);
    const Tensor weight =
        arena_.place(types_.of(id, layer), {share(spec.rows).count, share(spec.columns).count});
    return matrix_at(id, layer, weight);
  }

  // A matrix whose weights lie in memory placed before; places its scales.
  ops::Linear matrix_at(WeightId id, int64_t layer, Tensor weight) {
    const WeightSpec& spec = spec_of(id);
    const Range rows = share(spec.rows);
    const Range columns = share(spec.columns);
    fill(spec, layer, 0, rows.begin, columns.begin, weight);
    ops::Linear out;
    out.weight = weight;
    if (!has_scale(id, layer)) return out;
    out.scale = arena_.place(DType::f32, {blocks_of(rows).count, blocks_of(columns).count});
    out.first_row = rows.begin % kScaleBlock;
    out.first_column = columns.begin % kScaleBlock;
    fill_scale(spec, layer, 0, out.scale);
    return out;
  }

  // q, k and v under each other, as one product reads them.
  std::array<ops::Linear, 3> qkv(int64_t layer) {
    const int64_t q_rows = share(Axis::q_width).count;
    const int64_t kv_rows = share(Axis::kv_width).count;
    const Tensor joint =
        arena_.place(types_.of(WeightId::q, layer), {q_rows + 2 * kv_rows, config_.hidden_size});
    return {matrix_at(WeightId::q, layer, rows_of(joint, 0, q_rows)),
            matrix_at(WeightId::k, layer, rows_of(joint, q_rows, kv_rows)),
            matrix_at(WeightId::v, layer, rows_of(joint, q_rows + kv_rows, kv_rows))};
  }

  ops::Experts experts(int64_t layer) {
    const ExpertShare held = expert_share(config_, topology_);
    const Range inner = share(Axis::inner);
    const int64_t hidden = config_.hidden_size;
    ops::Experts out;
    out.w13 = arena_.place(types_.of(WeightId::w1, layer), {held.count, 2 * inner.count, hidden});
    out.w2 = arena_.place(types_.of(WeightId::w2, layer), {held.count, hidden, inner.count});
    const int64_t inner_blocks = blocks_of(inner).count;
    const int64_t hidden_blocks = blocks_of({0, hidden}).count;
    if (has_scale(WeightId::w1, layer)) {
      out.w1_scale = arena_.place(DType::f32, {held.count, inner_blocks, hidden_blocks});
      out.w3_scale = arena_.place(DType::f32, {held.count, inner_blocks, hidden_blocks});
    }
    if (has_scale(WeightId::w2, layer))
      out.w2_scale = arena_.place(DType::f32, {held.count, hidden_blocks, inner_blocks});
    out.first_expert = held.first;
    out.expert_step = held.step;
    out.first_inner = inner.begin;
    out.scale_row = blocks_of(inner).begin;
    if (!dry_) fill_experts(layer, out);
    return out;
  }

  void fill_experts(int64_t layer, const ops::Experts& experts) {
    const int64_t inner = experts.inner();
    for (int64_t i = 0; i < experts.count(); ++i) {
      const int64_t expert = experts.first_expert + i * experts.expert_step;
      const WeightSpec& w1 = spec_of(WeightId::w1);
      const WeightSpec& w2 = spec_of(WeightId::w2);
      const WeightSpec& w3 = spec_of(WeightId::w3);
      const Tensor w13 = experts.w13.at(i);
      fill(w1, layer, expert, experts.first_inner, 0, w13.rows(0, inner));
      fill(w3, layer, expert, experts.first_inner, 0, w13.rows(inner, inner));
      fill(w2, layer, expert, 0, experts.first_inner, experts.w2.at(i));
      if (has_scale(WeightId::w1, layer)) {
        fill_scale(w1, layer, expert, experts.w1_scale.at(i));
        fill_scale(w3, layer, expert, experts.w3_scale.at(i));
      }
      if (has_scale(WeightId::w2, layer)) fill_scale(w2, layer, expert, experts.w2_scale.at(i));
    }
  }

  void fill(const WeightSpec& spec, int64_t layer, int64_t expert, int64_t first_row,
            int64_t first_column, Tensor to) {
    if (!dry_) parts_.push_back({&spec, layer, expert, false, first_row, first_column, to});
  }

  void fill_scale(const WeightSpec& spec, int64_t layer, int64_t expert, Tensor to) {
    if (!dry_)
      parts_.push_back({&spec, layer, expert, true, blocks_of(share(spec.rows)).begin,
                        blocks_of(share(spec.columns)).begin, to});
  }

  // A dry arena's tensors have no memory to take rows of.
  Tensor rows_of(Tensor tensor, int64_t begin, int64_t count) const {
    return dry_ ? Tensor() : tensor.rows(begin, count);
  }

  Range share(Axis axis) const { return axis_share(axis, config_, topology_); }
  bool has_scale(WeightId id, int64_t layer) const {
    return types_.of(id, layer) == DType::f8_e4m3;
  }

  Arena& arena_;
  bool dry_;
  const ModelConfig& config_;
  const Topology& topology_;
  const StoredTypes& types_;
  std::vector<Part> parts_;
};

// Allocates a rank's weights and says what is to be filled in.
std::pair<Weights, std::vector<Part>> allocate(const ModelConfig& config, const Topology& topology,
                                               const StoredTypes& types, Device device) {
  Buffer buffer(device, weight_bytes(config, topology, types));
  Arena arena(buffer);
  Placer placer(arena, false, config, topology, types);
  Weights weights = placer.place();
  weights.buffer = std::move(buffer);
  return {std::move(weights), placer.parts()};
}

// ---- Random weights ----

// A good mix of 64 bits (the finaliser of SplitMix64, Steele et al. 2014).
uint64_t mix(uint64_t x) {
  x ^= x >> 30;
  x *= 0xbf58476d1ce4e5b9u;
  x ^= x >> 27;
  x *= 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

// Uniform in [-1, 1), from 16 bits.
float unit(uint64_t bits) {
  return static_cast<float>(static_cast<int16_t>(bits & 0xffff)) * (1.0f / 32768.0f);
}

// FP8 codes of random sign, exponent 4 to 7 of 15 and mantissa: magnitudes from 1/8 to 1.875.
constexpr uint64_t kCodeBits = 0x9f9f9f9f9f9f9f9fu;
constexpr uint64_t kCodeBase = 0x2020202020202020u;

// Root mean square of those codes.
float code_rms() {
  float sum = 0;
  for (int code = 0x20; code < 0x40; ++code) {
    const float value = to_float(F8E4M3{static_cast<uint8_t>(code)});
    sum += value * value;
  }
  return std::sqrt(sum / 32);
}

// Makes the elements of one part. The element in row r and column c of the whole tensor comes from
// word (r, c / n) of a counter-based generator, n elements to a word.
class RandomFiller {
 public:
  RandomFiller(const ModelConfig& config, const Part& part, uint64_t seed)
      : part_(part), columns_(axis_size(part.spec->columns, config)) {
    const auto id = static_cast<uint64_t>(part.spec->id);
    key_ = mix(mix(mix(seed + 1) + id) + static_cast<uint64_t>(part.layer * 4096 + part.expert));
    center_ = part.spec->kind == WeightKind::norm ? 1.0f : 0.0f;
    spread_ = spread();
  }

  // Row `row` of part.to, into host memory.
  void fill_row(int64_t row, std::byte* out) const {
    const int64_t count = part_.to.elements() / part_.to.size(0);
    if (part_.is_scale) {
      std::fill_n(reinterpret_cast<float*>(out), count, spread_ / code_rms());
      return;
    }
    switch (part_.to.dtype()) {
      case DType::f8_e4m3:
        return fill_codes(row, reinterpret_cast<uint8_t*>(out), count);
      case DType::f32:
        return fill_numbers(row, reinterpret_cast<float*>(out), count);
      default:
        return fill_numbers(row, reinterpret_cast<BF16*>(out), count);
    }
  }

 private:
  // Standard deviation: products of n terms keep the size of their input with 1 / sqrt(n).
  float spread() const {
    if (part_.spec->id == WeightId::embedding) return 1.0f;
    // About 0, and small beside scores: choices are near even, which is what it is trained for.
    if (part_.spec->id == WeightId::routing_bias) return 0.01f;
    if (part_.spec->columns == Axis::none) return 0.1f;  // norms about 1
    return 1.0f / std::sqrt(static_cast<float>(columns_));
  }

  uint64_t word(int64_t row, int64_t column, int64_t per_word) const {
    const int64_t words = (columns_ + per_word - 1) / per_word;
    const auto index = static_cast<uint64_t>((part_.first_row + row) * words + column / per_word);
    return mix(key_ + (index + 1) * 0x9e3779b97f4a7c15u);
  }

  void fill_codes(int64_t row, uint8_t* out, int64_t count) const {
    for (int64_t i = 0; i < count;) {
      const int64_t column = part_.first_column + i;
      uint64_t bits = ((word(row, column, 8) & kCodeBits) | kCodeBase) >> (column % 8 * 8);
      for (int64_t n = std::min(8 - column % 8, count - i); n > 0; --n, bits >>= 8)
        out[i++] = static_cast<uint8_t>(bits);
    }
  }

  template <class T>
  void fill_numbers(int64_t row, T* out, int64_t count) const {
    const float range = spread_ * std::sqrt(3.0f);  // a uniform's deviation is range / sqrt(3)
    for (int64_t i = 0; i < count;) {
      const int64_t column = part_.first_column + i;
      uint64_t bits = word(row, column, 4) >> (column % 4 * 16);
      for (int64_t n = std::min(4 - column % 4, count - i); n > 0; --n, bits >>= 16)
        store(center_ + range * unit(bits), out[i++]);
    }
  }

  static void store(float value, float& out) { out = value; }
  static void store(float value, BF16& out) { out = to_bf16(value); }

  const Part& part_;
  int64_t columns_;
  uint64_t key_ = 0;
  float center_ = 0;
  float spread_ = 0;
};

// Fills parts one after another; one per thread.
class PartWriter {
 public:
  PartWriter(const ModelConfig& config, uint64_t seed, Device device)
      : config_(config), seed_(seed) {
    if (!host_addressable(device)) staging_.emplace(device, kPieceBytes);
  }

  Result<void> write(const Part& part) {
    const RandomFiller filler(config_, part, seed_);
    const int64_t rows = part.to.size(0);
    const int64_t row_bytes = part.to.elements() * size_of(part.to.dtype()) / rows;
    auto* to = static_cast<std::byte*>(part.to.data());
    if (!staging_) {
      for (int64_t row = 0; row < rows; ++row) filler.fill_row(row, to + row * row_bytes);
      return {};
    }
    const int64_t step = kPieceBytes / row_bytes;
    M2_CHECK(step > 0, "a row of {} bytes", row_bytes);
    for (int64_t first = 0; first < rows; first += step) {
      const int64_t count = std::min(step, rows - first);
      M2_TRY(std::byte* const place, staging_->take());
      for (int64_t i = 0; i < count; ++i) filler.fill_row(first + i, place + i * row_bytes);
      staging_->send(to + first * row_bytes, count * row_bytes);
    }
    return {};
  }
  Result<void> finish() { return staging_ ? staging_->finish() : Result<void>(); }

 private:
  static constexpr int64_t kPieceBytes = 4 << 20;
  const ModelConfig& config_;
  const uint64_t seed_;
  std::optional<Staging> staging_;
};

}  // namespace

int64_t weight_bytes(const ModelConfig& config, const Topology& topology,
                     const StoredTypes& types) {
  Arena dry;
  Placer(dry, true, config, topology, types).place();
  return dry.bytes();
}

Result<Weights> load_weights(const ModelConfig& config, const load::Checkpoint& checkpoint,
                             const Topology& topology, Device device,
                             const LoadProgress& progress) {
  M2_TRY_VOID(check_topology(config, topology));
  M2_TRY(const StoredTypes types, check_weights(config, checkpoint));
  auto [weights, parts] = allocate(config, topology, types, device);
  std::vector<load::Slice> slices;
  slices.reserve(parts.size());
  for (const Part& part : parts) {
    const auto name = part.is_scale ? scale_name : weight_name;
    slices.push_back({checkpoint.find(name(*part.spec, part.layer, part.expert)), part.first_row,
                      part.first_column, part.to});
  }
  M2_TRY_VOID(load::read_slices(checkpoint, slices, {device, 0, progress}));
  return std::move(weights);
}

Result<Weights> dummy_weights(const ModelConfig& config, const Topology& topology, Device device,
                              uint64_t seed) {
  M2_TRY_VOID(check_topology(config, topology));
  auto [weights, parts] = allocate(config, topology, StoredTypes(config), device);
  ThreadPool pool(0);
  std::atomic<size_t> next{0};
  std::atomic<bool> failed{false};
  pool.run([&, &all = parts](int) {
    PartWriter writer(config, seed, device);
    for (size_t i = next++; i < all.size() && !failed; i = next++)
      if (!writer.write(all[i]).ok()) failed = true;
    if (!writer.finish().ok()) failed = true;
  });
  if (failed) return fail(Code::internal, "the device failed while weights were written");
  return std::move(weights);
}

void requantise(const Exec& exec, Weights& weights) {
  for (Layer& layer : weights.layers) {
    for (const ops::Linear& part : layer.qkv) ops::requantise(exec, part);
    ops::requantise(exec, layer.o);
    const ops::Experts& experts = layer.experts;
    if (experts.w1_scale.empty()) continue;
    const int64_t inner = experts.inner();
    const int64_t first = experts.first_inner - experts.scale_row * kScaleBlock;
    for (int64_t i = 0; i < experts.count(); ++i) {
      const Tensor w13 = experts.w13.at(i);
      ops::requantise(exec, {w13.rows(0, inner), experts.w1_scale.at(i), first, 0});
      ops::requantise(exec, {w13.rows(inner, inner), experts.w3_scale.at(i), first, 0});
      ops::requantise(exec, {experts.w2.at(i), experts.w2_scale.at(i), 0, first});
    }
  }
}

}  // namespace m2::model
