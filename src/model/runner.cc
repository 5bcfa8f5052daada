#include "model/runner.h"

#include <algorithm>

namespace m2::model {
namespace {

// A step's integers in device memory, sized for the largest step.
struct LayoutStorage {
  Tensor token_ids, positions, slots, query_starts, context_lens, block_tables, logit_rows;
};

LayoutStorage place_layout(Arena& arena, const StepLimits& limits) {
  LayoutStorage out;
  out.token_ids = arena.place(DType::i32, {limits.tokens});
  out.positions = arena.place(DType::i32, {limits.tokens});
  out.slots = arena.place(DType::i32, {limits.tokens});
  out.query_starts = arena.place(DType::i32, {limits.sequences + 1});
  out.context_lens = arena.place(DType::i32, {limits.sequences});
  out.block_tables = arena.place(DType::i32, {limits.sequences * limits.blocks_per_sequence});
  out.logit_rows = arena.place(DType::i32, {limits.tokens});
  return out;
}

class Runner : public StepModel {
 public:
  Runner(const Exec& exec, parallel::Comm& comm, ModelConfig config, Weights weights,
         const MemoryPlan& plan, int64_t max_model_len)
      : exec_(exec),
        comm_(comm),
        config_(std::move(config)),
        weights_(std::move(weights)),
        plan_(plan),
        max_model_len_(max_model_len),
        kv_memory_(exec.device, plan.kv_bytes),
        scratch_memory_(exec.device, plan.scratch_bytes) {
    Arena scratch(scratch_memory_);
    scratch_ = place_scratch(scratch, config_, weights_, plan.limits, exec.device);
    Arena dry;
    place_layout(dry, plan.limits);
    layout_memory_ = Buffer(exec.device, dry.bytes());
    Arena layout(layout_memory_);
    layout_ = place_layout(layout, plan.limits);
    place_kv();
  }

  Limits limits() const override {
    return {config_.vocab_size, plan_.num_blocks,    kBlockSize,
            max_model_len_,     plan_.limits.tokens, plan_.limits.sequences};
  }

  Result<void> step(const StepInput& input, LogitsSink& sink) override {
    const ops::BatchLayout layout = upload(input);
    const ForwardContext context{exec_, comm_, config_, weights_, kv_, scratch_, heads_};
    forward(context, layout);
    const auto rows = static_cast<int64_t>(input.logit_rows.size());
    for (int64_t first = 0; first < rows; first += plan_.limits.logit_rows) {
      const int64_t count = std::min(plan_.limits.logit_rows, rows - first);
      sink.on_logits(first, logits(context, layout.logit_rows.rows(first, count)));
    }
    return {};
  }

 private:
  void place_kv() {
    heads_ = {weights_.layers[0].qkv[0].weight.size(0) / config_.head_dim,
              weights_.layers[0].qkv[1].weight.size(0) / config_.head_dim, config_.head_dim,
              config_.rotary_dim};
    Arena arena(kv_memory_);
    kv_.resize(weights_.layers.size());
    for (ops::KvCache& cache : kv_) {
      for (Tensor* tensor : {&cache.k, &cache.v})
        *tensor = arena.place(DType::bf16,
                              {plan_.num_blocks, heads_.kv_heads, kBlockSize, config_.head_dim});
    }
  }

  // Copies one list of integers to the device and returns the view of it.
  Tensor upload(std::span<const int32_t> values, Tensor storage) {
    const auto count = static_cast<int64_t>(values.size());
    M2_CHECK(count <= storage.size(0), "step of {} where {} is planned", count, storage.size(0));
    copy_to_device(exec_, storage.data(), values.data(), count * size_of(DType::i32));
    return storage.rows(0, count);
  }

  ops::BatchLayout upload(const StepInput& input) {
    const auto sequences = static_cast<int64_t>(input.context_lens.size());
    ops::BatchLayout out;
    out.token_ids = upload(input.token_ids, layout_.token_ids);
    out.positions = upload(input.positions, layout_.positions);
    out.slots = upload(input.slots, layout_.slots);
    out.query_starts = upload(input.query_starts, layout_.query_starts);
    out.context_lens = upload(input.context_lens, layout_.context_lens);
    out.block_tables = upload(input.block_tables, layout_.block_tables)
                           .reshaped({sequences, input.max_blocks_per_sequence});
    out.logit_rows = upload(input.logit_rows, layout_.logit_rows);
    return out;
  }

  const Exec exec_;
  parallel::Comm& comm_;
  const ModelConfig config_;
  const Weights weights_;
  const MemoryPlan plan_;
  const int64_t max_model_len_;
  ops::HeadShape heads_{};
  Buffer kv_memory_, scratch_memory_, layout_memory_;
  Scratch scratch_;
  LayoutStorage layout_;
  std::vector<ops::KvCache> kv_;
};

}  // namespace

std::unique_ptr<StepModel> make_runner(const Exec& exec, parallel::Comm& comm, ModelConfig config,
                                       Weights weights, const MemoryPlan& plan,
                                       int64_t max_model_len) {
  return std::make_unique<Runner>(exec, comm, std::move(config), std::move(weights), plan,
                                  max_model_len);
}

}  // namespace m2::model
