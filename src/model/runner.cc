#include "model/runner.h"

#include <algorithm>
#include <array>
#include <cstring>
#include <optional>

#include "base/clock.h"
#include "base/log.h"
#include "model/step_arrays.h"
#include "ops/sample.h"
#include "ops/unpack_step.h"
#include "tensor/stream.h"

namespace m2::model {
namespace {

constexpr double kGiB = 1 << 30;

int64_t size_of(std::span<const int32_t> values) {
  return static_cast<int64_t>(values.size());
}

// Host memory of one step on its way: what goes to the device, and what comes back.
struct Mailbox {
  HostBuffer packed, edits, masks;
  HostBuffer samples, top_ids, top_logprobs;
  Event done;
  int64_t rows = 0;
  bool has_tops = false;
};

Weights scaled(const Exec& exec, Weights weights, ScaleFormat scales) {
  if (scales == ScaleFormat::e8m0) requantise(exec, weights);
  return weights;
}

class Runner : public StepModel {
 public:
  Runner(const Exec& exec, const RankPlace& place, ModelConfig config, Weights weights,
         const MemoryPlan& plan, int64_t max_model_len, const RunnerOptions& options)
      : exec_(exec),
        groups_(place.groups),
        config_(std::move(config)),
        weights_(scaled(exec, std::move(weights), options.scales)),
        plan_(plan),
        max_model_len_(max_model_len),
        id_limit_(options.id_limit > 0 ? options.id_limit : config_.vocab_size),
        samples_(ops::can_sample(exec.device)),
        kv_memory_(exec.device, plan.kv_bytes),
        scratch_memory_(exec.device, plan.scratch_bytes) {
    Arena arena(scratch_memory_);
    scratch_ = place_scratch(arena, config_, weights_, plan.limits, exec.device);
    arrays_ = place_step_arrays(arena, plan.limits, config_.vocab_size, exec.device);
    clear(exec_, scratch_.experts.data(), scratch_.experts.elements());
    exec_.scales = options.scales;
    exec_.workspace = scratch_.workspace.data();
    exec_.workspace_bytes = scratch_.workspace.elements();
    place_kv();
    groups_.tensor.introduce(scratch_.delta);
    if (groups_.engines)
      exchange_.emplace(*groups_.engines, place.topology, place.exchange, config_,
                        plan.limits.tokens, exec.device);
    make_mailboxes();
    // Where engines share experts, how many rows travel differs from step to step.
    if (can_record(exec.device) && !exchange_) record_graphs(options.graph_sizes);
  }

  Limits limits() const override {
    Limits out{config_.vocab_size, plan_.num_blocks,    kBlockSize,
               max_model_len_,     plan_.limits.tokens, plan_.limits.sequences};
    if (!samples_) return out;
    out.most_edits = kMostEdits;
    out.mask_words = (id_limit_ + 31) / 32;
    out.most_logprobs = plan_.limits.most_logprobs;
    return out;
  }

  Result<void> step(const StepInput& input, LogitsSink& sink) override {
    const ops::StepSizes sizes = sizes_of(input, false);
    send(mail_[0], input, {}, sizes, 0);
    const ops::BatchLayout layout =
        layout_of(arrays_, sizes.tokens, sizes.sequences, sizes.rows, sizes.width);
    if (exchange_) exchange_->begin(input.engine_tokens);
    forward(context(), layout);
    M2_TRY_VOID(groups_status());
    for (int64_t first = 0; first < sizes.rows; first += plan_.limits.logit_rows) {
      const int64_t count = std::min(plan_.limits.logit_rows, sizes.rows - first);
      const Tensor slice = logits(context(), layout, first, count);
      M2_TRY_VOID(groups_status());
      if (slice.empty()) continue;
      M2_TRY(const Tensor here, on_host(slice));
      sink.on_logits(first, here);
    }
    // The next step writes into the mailbox that this one was sent from.
    mail_[0].done.record(exec_);
    return mail_[0].done.wait();
  }

  bool samples() const override { return samples_; }

  void enqueue(const StepInput& input, const StepSampling& sampling) override {
    M2_CHECK(samples_ && enqueued_ - collected_ < kMostInFlight);
    Mailbox& mail = mail_[static_cast<size_t>(enqueued_++ % kMostInFlight)];
    const ops::StepSizes sizes = sizes_of(input, true);
    const Recording* recording = recording_for(sizes);
    send(mail, input, sampling, sizes, recording ? recording->rows : 0);
    if (exchange_) exchange_->begin(input.engine_tokens);
    if (!groups_status().ok()) {
      // collect() says why. A recording holds collectives of a group that is no more.
    } else if (recording) {
      recording->graph.launch(exec_);
    } else {
      run(layout_of(arrays_, sizes.tokens, sizes.sequences, sizes.rows, sizes.width));
    }
    fetch_samples(mail, sampling, sizes.rows);
  }

  Result<StepResult> collect() override {
    M2_CHECK(collected_ < enqueued_);
    const Mailbox& mail = mail_[static_cast<size_t>(collected_++ % kMostInFlight)];
    M2_TRY_VOID(mail.done.wait());
    M2_TRY_VOID(groups_status());
    const auto rows = static_cast<size_t>(mail.rows);
    StepResult out;
    out.rows = {reinterpret_cast<const ops::SampledRow*>(mail.samples.data()), rows};
    if (!mail.has_tops) return out;
    out.most_logprobs = plan_.limits.most_logprobs;
    const size_t count = rows * static_cast<size_t>(out.most_logprobs);
    out.top_ids = {reinterpret_cast<const int32_t*>(mail.top_ids.data()), count};
    out.top_logprobs = {reinterpret_cast<const float*>(mail.top_logprobs.data()), count};
    return out;
  }

 private:
  struct Recording {
    int64_t rows;
    Graph graph;
  };

  // A collective that failed has left numbers of no meaning.
  Result<void> groups_status() const {
    M2_TRY_VOID(groups_.tensor.status());
    return groups_.engines ? groups_.engines->status() : Result<void>();
  }

  ForwardContext context() {
    return {exec_, groups_.tensor, config_, weights_,
            kv_,   scratch_,       heads_,  exchange_ ? &*exchange_ : nullptr};
  }

  void place_kv() {
    heads_ = {weights_.layers[0].qkv[0].weight.size(0) / config_.head_dim,
              weights_.layers[0].qkv[1].weight.size(0) / config_.head_dim, config_.head_dim,
              config_.rotary_dim};
    Arena arena(kv_memory_);
    const auto place = [&] {
      return arena.place(plan_.kv_dtype,
                         {plan_.num_blocks, heads_.kv_heads, kBlockSize, config_.head_dim});
    };
    const bool scaled = plan_.kv_dtype == DType::f8_e4m3;
    for (const Layer& layer : weights_.layers) {
      const Tensor k = place();
      kv_.push_back({k, place(), scaled ? layer.k_scale : 1, scaled ? layer.v_scale : 1});
    }
  }

  void make_mailboxes() {
    const auto like = [&](const Tensor& tensor) {
      return HostBuffer(exec_.device, tensor.elements() * m2::size_of(tensor.dtype()));
    };
    for (Mailbox& mail : mail_) {
      mail.packed = like(arrays_.packed);
      mail.done = Event(exec_.device);
      if (!samples_) continue;
      mail.edits = like(arrays_.edits);
      mail.masks = like(arrays_.masks);
      mail.samples = like(arrays_.samples);
      mail.top_ids = like(arrays_.top_ids);
      mail.top_logprobs = like(arrays_.top_logprobs);
    }
    if (!host_addressable(exec_.device))
      host_logits_ = like(scratch_.all_logits.empty() ? scratch_.logits : scratch_.all_logits);
  }

  ops::StepSizes sizes_of(const StepInput& input, bool sampled) const {
    const ops::StepSizes sizes{size_of(input.token_ids), size_of(input.context_lens),
                               input.max_blocks_per_sequence, size_of(input.logit_rows), sampled};
    M2_CHECK(sizes.tokens <= plan_.limits.tokens && sizes.sequences <= plan_.limits.sequences &&
                 sizes.width <= plan_.limits.blocks_per_sequence,
             "a step of {} tokens, {} sequences, {} blocks is larger than planned", sizes.tokens,
             sizes.sequences, sizes.width);
    return sizes;
  }

  // Packs a step and sends it off: one copy, two more if logits are edited or masked.
  void send(Mailbox& mail, const StepInput& input, const StepSampling& sampling,
            const ops::StepSizes& sizes, int64_t padded) {
    std::byte* to = mail.packed.data();
    const auto append = [&](const auto& values) {
      if (values.empty()) return;
      std::memcpy(to, values.data(), values.size_bytes());
      to += values.size_bytes();
    };
    for (const std::span<const int32_t>& values :
         {input.token_ids, input.positions, input.slots, input.query_starts, input.context_lens,
          input.block_tables, input.logit_rows})
      append(values);
    append(sampling.rows);
    if (posts_samples()) name_places(mail, to, sampling.rows.size());
    const int64_t words = ops::packed_step_words(sizes);
    M2_CHECK(to == mail.packed.data() + words * 4, "a step's arrays do not fit together");
    const Tensor packed = arrays_.packed.rows(0, words);
    copy_to_device(exec_, packed.data(), mail.packed.data(), words * 4);
    if (!sampling.edits.empty()) send_to(arrays_.edits, mail.edits, sampling.edits);
    if (!sampling.masks.empty()) send_to(arrays_.masks, mail.masks, sampling.masks);
    ops::unpack_step(exec_, sizes, packed, arrays_.samples, padded, arrays_.layout,
                     arrays_.sample_rows);
  }

  // Whether the device writes samples to the host itself: a copy of them, behind the step, is what
  // the next one would wait for. Where several ranks sample for one another they are copied.
  bool posts_samples() const { return samples_ && groups_.tensor.size() == 1; }

  // Tells the last `count` rows before `end` where in the mailbox their samples belong.
  static void name_places(const Mailbox& mail, std::byte* end, size_t count) {
    std::byte* at = end - count * sizeof(ops::SampleRow);
    for (size_t r = 0; r < count; ++r, at += sizeof(ops::SampleRow)) {
      const auto place =
          reinterpret_cast<uint64_t>(mail.samples.data() + r * sizeof(ops::SampledRow));
      auto* row = reinterpret_cast<ops::SampleRow*>(at);
      row->also_low = static_cast<uint32_t>(place);
      row->also_high = static_cast<uint32_t>(place >> 32);
    }
  }

  template <class T>
  void send_to(const Tensor& to, const HostBuffer& through, std::span<const T> values) {
    M2_CHECK(static_cast<int64_t>(values.size_bytes()) <= through.bytes());
    std::memcpy(through.data(), values.data(), values.size_bytes());
    copy_to_device(exec_, to.data(), through.data(), static_cast<int64_t>(values.size_bytes()));
  }

  // The layers, then logits and samples slice by slice. Everything a graph records.
  void run(const ops::BatchLayout& layout) {
    forward(context(), layout);
    const int64_t rows = layout.logit_rows.size(0);
    const Tensor masks = arrays_.masks;
    for (int64_t first = 0; first < rows; first += plan_.limits.logit_rows) {
      const int64_t count = std::min(plan_.limits.logit_rows, rows - first);
      const Tensor slice = logits(context(), layout, first, count);
      if (slice.empty()) continue;
      ops::sample(exec_, slice, id_limit_,
                  {arrays_.sample_rows.rows(first, count), arrays_.edits, masks}, arrays_.scratch,
                  {arrays_.samples.rows(first, count), arrays_.top_ids.rows(first, count),
                   arrays_.top_logprobs.rows(first, count)});
    }
    // The next step of every rank begins with the tokens that the first one chose.
    if (rows > 0 && groups_.tensor.size() > 1)
      groups_.tensor.broadcast(exec_, arrays_.samples.rows(0, rows), 0);
  }

  void fetch_samples(Mailbox& mail, const StepSampling& sampling, int64_t rows) {
    mail.rows = rows;
    mail.has_tops = std::ranges::any_of(sampling.rows,
                                        [](const ops::SampleRow& row) { return row.logprobs > 0; });
    const auto fetch = [&](const HostBuffer& to, const Tensor& from) {
      const Tensor part = from.rows(0, rows);
      copy_to_host(exec_, to.data(), part.data(), part.elements() * 4);
    };
    if (rows > 0 && !posts_samples()) fetch(mail.samples, arrays_.samples);
    if (mail.has_tops) {
      fetch(mail.top_ids, arrays_.top_ids);
      fetch(mail.top_logprobs, arrays_.top_logprobs);
    }
    mail.done.record(exec_);
  }

  // Logits where the host may read and change them.
  Result<Tensor> on_host(const Tensor& logits) {
    if (host_addressable(exec_.device)) return logits;
    copy_to_host(exec_, host_logits_.data(), logits.data(), logits.elements() * 4);
    mail_[1].done.record(exec_);
    M2_TRY_VOID(mail_[1].done.wait());
    return Tensor(host_logits_.data(), DType::f32, {logits.size(0), logits.size(1)});
  }

  // The recording of a step of decoding alone, if there is one as large.
  const Recording* recording_for(const ops::StepSizes& sizes) const {
    if (sizes.tokens != sizes.sequences || sizes.rows != sizes.tokens) return nullptr;
    const auto found = std::ranges::lower_bound(recordings_, sizes.tokens, {}, &Recording::rows);
    return found == recordings_.end() ? nullptr : &*found;
  }

  // Records a graph for every size, the smallest first. Each runs once before, with inert rows
  // only, because a kernel's first launch loads it, which must not happen while recording.
  void record_graphs(const std::vector<int64_t>& sizes) {
    if (sizes.empty()) return;
    M2_CHECK(sizes.back() <= plan_.limits.padded_rows && std::ranges::is_sorted(sizes));
    log_info("Capturing CUDA graphs (decode, FULL)");
    const SteadyClock clock;
    const Nanos start = clock.now();
    const int64_t free_before = device_memory(exec_.device).free;
    const ops::StepSizes nothing{0, 0, 0, 0, true};
    std::memset(mail_[0].packed.data(), 0, 4);  // query_starts of no sequence
    const Tensor packed = arrays_.packed.rows(0, ops::packed_step_words(nothing));
    copy_to_device(exec_, packed.data(), mail_[0].packed.data(), 4);
    for (const int64_t rows : sizes) {
      ops::unpack_step(exec_, nothing, packed, {}, rows, arrays_.layout, arrays_.sample_rows);
      const ops::BatchLayout layout =
          layout_of(arrays_, rows, rows, rows, plan_.limits.blocks_per_sequence);
      run(layout);
      synchronize(exec_);
      recordings_.push_back({rows, Graph::record(exec_, [&] { run(layout); })});
    }
    synchronize(exec_);
    const int64_t taken = free_before - device_memory(exec_.device).free;
    log_info("Graph capturing finished in {:.0f} secs, took {:.2f} GiB",
             seconds(clock.now() - start), static_cast<double>(taken) / kGiB);
  }

  Exec exec_;
  const parallel::Groups groups_;
  const ModelConfig config_;
  const Weights weights_;
  const MemoryPlan plan_;
  const int64_t max_model_len_;
  const int64_t id_limit_;
  const bool samples_;
  ops::HeadShape heads_{};
  Buffer kv_memory_, scratch_memory_;
  Scratch scratch_;
  StepArrays arrays_;
  std::vector<ops::KvCache> kv_;
  std::optional<Exchange> exchange_;
  std::array<Mailbox, kMostInFlight> mail_;
  HostBuffer host_logits_;
  std::vector<Recording> recordings_;
  int64_t enqueued_ = 0, collected_ = 0;
};

}  // namespace

std::unique_ptr<StepModel> make_runner(const Exec& exec, const RankPlace& place, ModelConfig config,
                                       Weights weights, const MemoryPlan& plan,
                                       int64_t max_model_len, const RunnerOptions& options) {
  use_device(exec.device);
  return std::make_unique<Runner>(exec, place, std::move(config), std::move(weights), plan,
                                  max_model_len, options);
}

}  // namespace m2::model
