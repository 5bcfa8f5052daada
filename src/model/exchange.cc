#include "model/exchange.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "model/weight_table.h"

namespace m2::model {
namespace {

RoutedTokens place_tokens(Arena& arena, const ModelConfig& config, int64_t count, Device device) {
  const DType activation = activation_dtype(device);
  const int64_t top = config.num_experts_per_token;
  RoutedTokens out;
  out.hidden = arena.place(activation, {count, config.hidden_size});
  out.ids = arena.place(DType::i32, {count, top});
  out.weights = arena.place(DType::f32, {count, top});
  out.delta = arena.place(activation, {count, config.hidden_size});
  return out;
}

RoutedTokens first_rows(const RoutedTokens& tokens, int64_t count) {
  return {tokens.hidden.rows(0, count), tokens.ids.rows(0, count), tokens.weights.rows(0, count),
          tokens.delta.rows(0, count)};
}

int64_t sum(const std::vector<int64_t>& rows) {
  return std::accumulate(rows.begin(), rows.end(), int64_t{0});
}

void copy_row(Tensor from, int64_t row, Tensor to, int64_t to_row) {
  const int64_t bytes = from.size(1) * size_of(from.dtype());
  std::memcpy(static_cast<std::byte*>(to.data()) + to_row * bytes,
              static_cast<const std::byte*>(from.data()) + row * bytes, static_cast<size_t>(bytes));
}

}  // namespace

Exchange::Memory Exchange::place(Arena& arena, const parallel::Topology& topology,
                                 ExchangeKind kind, const ModelConfig& config, int64_t max_tokens,
                                 Device device) {
  Memory out;
  out.here = place_tokens(arena, config, max_tokens * topology.data_size, device);
  if (kind == ExchangeKind::all_gather) return out;
  const int64_t own = (max_tokens + topology.tensor_size - 1) / topology.tensor_size;
  const int64_t copies = std::min(config.num_experts_per_token, topology.expert_size());
  out.sent = place_tokens(arena, config, own * copies, device);
  return out;
}

int64_t Exchange::bytes(const parallel::Topology& topology, ExchangeKind kind,
                        const ModelConfig& config, int64_t max_tokens, Device device) {
  Arena dry;
  place(dry, topology, kind, config, max_tokens, device);
  return dry.bytes();
}

Exchange::Exchange(parallel::Comm& ranks, const parallel::Topology& topology, ExchangeKind kind,
                   const ModelConfig& config, int64_t max_tokens, Device device)
    : ranks_(ranks),
      topology_(topology),
      kind_(kind),
      buffer_(device, bytes(topology, kind, config, max_tokens, device)),
      rank_rows_(static_cast<size_t>(ranks.size())),
      engine_rows_(static_cast<size_t>(topology.tensor_size)) {
  M2_CHECK(ranks.size() == topology.expert_size() && ranks.rank() == topology.expert_rank());
  Arena arena(buffer_);
  memory_ = place(arena, topology, kind, config, max_tokens, device);
  if (kind == ExchangeKind::all_gather) return;
  M2_CHECK(topology.expert_parallel && host_addressable(device));
  for (int64_t e = 0; e < config.num_experts; ++e)
    owners_.push_back(owner_of_expert(e, config, topology));
  send_rows_.resize(rank_rows_.size());
  recv_rows_.resize(rank_rows_.size());
  ones_.assign(rank_rows_.size(), 1);
  sent_tokens_.resize(static_cast<size_t>(memory_.sent.hidden.size(0)));
}

void Exchange::begin(std::span<const int64_t> engine_tokens) {
  M2_CHECK(static_cast<int64_t>(engine_tokens.size()) == topology_.data_size);
  for (size_t rank = 0; rank < rank_rows_.size(); ++rank) {
    const auto there = parallel::with_rank(topology_, static_cast<int64_t>(rank));
    const int64_t tokens = engine_tokens[static_cast<size_t>(there.data_rank)];
    const auto share = parallel::split_evenly(tokens, there.tensor_size, there.tensor_rank);
    rank_rows_[rank] = share.count;
    if (there.data_rank != topology_.data_rank) continue;
    engine_rows_[static_cast<size_t>(there.tensor_rank)] = share.count;
    if (there.tensor_rank == topology_.tensor_rank) own_ = share;
  }
}

RoutedTokens Exchange::dispatch(const Exec& exec, const RoutedTokens& own) {
  return kind_ == ExchangeKind::all_gather ? all_gather(exec, own) : all_to_all(exec, own);
}

RoutedTokens Exchange::all_gather(const Exec& exec, const RoutedTokens& own) {
  const RoutedTokens here = first_rows(memory_.here, sum(rank_rows_));
  ranks_.all_gather(exec, own.hidden, rank_rows_, here.hidden);
  ranks_.all_gather(exec, own.ids, rank_rows_, here.ids);
  ranks_.all_gather(exec, own.weights, rank_rows_, here.weights);
  return here;
}

RoutedTokens Exchange::all_to_all(const Exec& exec, const RoutedTokens& own) {
  pack(own);
  const auto size = static_cast<int64_t>(send_rows_.size());
  ranks_.all_to_all(exec, Tensor(send_rows_.data(), DType::i64, {size}), ones_,
                    Tensor(recv_rows_.data(), DType::i64, {size}), ones_);
  // After a failed collective the numbers are anything.
  if (!ranks_.status().ok()) std::fill(recv_rows_.begin(), recv_rows_.end(), 0);
  const RoutedTokens sent = first_rows(memory_.sent, sum(send_rows_));
  const RoutedTokens here = first_rows(memory_.here, sum(recv_rows_));
  ranks_.all_to_all(exec, sent.hidden, send_rows_, here.hidden, recv_rows_);
  ranks_.all_to_all(exec, sent.ids, send_rows_, here.ids, recv_rows_);
  ranks_.all_to_all(exec, sent.weights, send_rows_, here.weights, recv_rows_);
  return here;
}

// Copies each own token once for every rank that holds one of its experts, rank after rank.
void Exchange::pack(const RoutedTokens& own) {
  const int64_t top = own.ids.size(1);
  const auto* ids = own.ids.as<int32_t>();
  int64_t row = 0;
  for (size_t rank = 0; rank < send_rows_.size(); ++rank) {
    const int64_t first = row;
    for (int64_t token = 0; token < own.hidden.size(0); ++token) {
      const std::span chosen(ids + token * top, static_cast<size_t>(top));
      const bool goes = std::ranges::any_of(chosen, [&](int32_t expert) {
        return owners_[static_cast<size_t>(expert)] == static_cast<int64_t>(rank);
      });
      if (!goes) continue;
      copy_row(own.hidden, token, memory_.sent.hidden, row);
      copy_row(own.ids, token, memory_.sent.ids, row);
      copy_row(own.weights, token, memory_.sent.weights, row);
      sent_tokens_[static_cast<size_t>(row++)] = token;
    }
    send_rows_[rank] = row - first;
  }
}

void Exchange::combine(const Exec& exec, const RoutedTokens& here, Tensor delta) {
  if (kind_ == ExchangeKind::all_gather)
    return ranks_.reduce_scatter(exec, here.delta, rank_rows_, delta);
  const Tensor back = memory_.sent.delta.rows(0, sum(send_rows_));
  ranks_.all_to_all(exec, here.delta, recv_rows_, back, send_rows_);
  const int64_t width = delta.size(1);
  auto* sums = delta.as<float>();
  std::fill_n(sums, delta.elements(), 0.0f);
  for (int64_t row = 0; row < back.size(0); ++row) {
    const float* from = back.as<float>() + row * width;
    float* to = sums + sent_tokens_[static_cast<size_t>(row)] * width;
    for (int64_t i = 0; i < width; ++i) to[i] += from[i];
  }
}

}  // namespace m2::model
