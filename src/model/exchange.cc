#include "model/exchange.h"

#include <algorithm>
#include <numeric>

#include "model/weight_table.h"
#include "ops/embed.h"

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

// The first `rank` ranks' rows.
int64_t rows_before(const std::vector<int64_t>& rows, int64_t rank) {
  return std::accumulate(rows.begin(), rows.begin() + rank, int64_t{0});
}

int64_t most_copies(const parallel::Topology& topology, const ModelConfig& config) {
  return std::min(config.num_experts_per_token, topology.expert_size());
}

int64_t bytes_of(const Tensor& tensor) {
  return tensor.elements() * size_of(tensor.dtype());
}

}  // namespace

Exchange::Memory Exchange::place(Arena& arena, const parallel::Topology& topology,
                                 ExchangeKind kind, const ModelConfig& config, int64_t max_tokens,
                                 Device device) {
  Memory out;
  out.here = place_tokens(arena, config, max_tokens * topology.data_size, device);
  if (kind == ExchangeKind::all_gather) return out;
  const int64_t all = out.here.ids.size(0);
  const int64_t own = (max_tokens + topology.tensor_size - 1) / topology.tensor_size;
  const int64_t sent = own * most_copies(topology, config);
  out.all_ids = arena.place(DType::i32, {all, config.num_experts_per_token});
  out.all_weights = arena.place(DType::f32, {all, config.num_experts_per_token});
  out.sent = arena.place(activation_dtype(device), {sent, config.hidden_size});
  out.returned = arena.place(activation_dtype(device), {sent, config.hidden_size});
  out.lists = arena.place(DType::i32, {sent + sent + all});
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
  M2_CHECK(topology.expert_parallel);
  for (int64_t e = 0; e < config.num_experts; ++e)
    owners_.push_back(owner_of_expert(e, config, topology));
  send_rows_.resize(rank_rows_.size());
  recv_rows_.resize(rank_rows_.size());
  copies_ = most_copies(topology, config);
  ids_ = HostBuffer(device, bytes_of(memory_.all_ids));
  lists_ = HostBuffer(device, bytes_of(memory_.lists));
  ids_came_ = Event(device);
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

// Everyone learns what was chosen for all tokens, which is little; the tokens themselves go where
// they are wanted.
RoutedTokens Exchange::all_to_all(const Exec& exec, const RoutedTokens& own) {
  const Tensor ids = memory_.all_ids.rows(0, sum(rank_rows_));
  const Tensor weights = memory_.all_weights.rows(0, sum(rank_rows_));
  ranks_.all_gather(exec, own.ids, rank_rows_, ids);
  ranks_.all_gather(exec, own.weights, rank_rows_, weights);
  plan_routes(fetch_ids(exec, ids));
  copy_to_device(exec, memory_.lists.data(), lists_.data(),
                 bytes_of(routes_.back) + bytes_of(routes_.sent) + bytes_of(routes_.came));

  const Tensor sent = memory_.sent.rows(0, routes_.sent.size(0));
  const RoutedTokens here = first_rows(memory_.here, routes_.came.size(0));
  ops::gather_rows(exec, own.hidden, routes_.sent, sent);
  ranks_.all_to_all(exec, sent, send_rows_, here.hidden, recv_rows_);
  ops::gather_rows(exec, ids, routes_.came, here.ids);
  ops::gather_rows(exec, weights, routes_.came, here.weights);
  return here;
}

// False if what came has no meaning, because a collective or the device failed.
bool Exchange::fetch_ids(const Exec& exec, Tensor ids) {
  copy_to_host(exec, ids_.data(), ids.data(), bytes_of(ids));
  ids_came_.record(exec);
  return ids_came_.wait().ok() && ranks_.status().ok();
}

bool Exchange::goes_to(int64_t token, size_t rank) const {
  const auto top = static_cast<size_t>(memory_.all_ids.size(1));
  const auto* ids = reinterpret_cast<const int32_t*>(ids_.data());
  return std::ranges::any_of(
      std::span(ids + static_cast<size_t>(token) * top, top), [&](int32_t expert) {
        return owners_[static_cast<size_t>(expert)] == static_cast<int64_t>(rank);
      });
}

// Makes the lists, on the host one after another as on the device. Unless it is known what was
// chosen, nothing travels.
void Exchange::plan_routes(bool known) {
  const int64_t own = rank_rows_[static_cast<size_t>(ranks_.rank())];
  auto* const back = reinterpret_cast<int32_t*>(lists_.data());
  int32_t* const sent = back + own * copies_;
  std::fill(back, sent, -1);
  std::ranges::fill(send_rows_, 0);
  std::ranges::fill(recv_rows_, 0);
  int32_t* const came = known ? list_sent(back, sent) : sent;
  int32_t* const end = known ? list_came(came) : came;
  auto* const lists = memory_.lists.as<int32_t>();
  routes_ = {Tensor(lists, DType::i32, {own, copies_}),
             Tensor(lists + (sent - back), DType::i32, {came - sent}),
             Tensor(lists + (came - back), DType::i32, {end - came})};
}

// This rank's tokens in their order, for each rank that holds one of a token's experts. Returns the
// list's end.
int32_t* Exchange::list_sent(int32_t* back, int32_t* sent) {
  const int64_t own = rank_rows_[static_cast<size_t>(ranks_.rank())];
  const int64_t first = rows_before(rank_rows_, ranks_.rank());
  int32_t* end = sent;
  for (size_t rank = 0; rank < rank_rows_.size(); ++rank)
    for (int64_t token = 0; token < own; ++token) {
      if (!goes_to(first + token, rank)) continue;
      *std::find(back + token * copies_, back + (token + 1) * copies_, -1) =
          static_cast<int32_t>(end - sent);
      *end++ = static_cast<int32_t>(token);
      ++send_rows_[rank];
    }
  return end;
}

// Every rank's tokens in their order that come here.
int32_t* Exchange::list_came(int32_t* came) {
  int32_t* end = came;
  int64_t token = 0;
  for (size_t rank = 0; rank < rank_rows_.size(); ++rank)
    for (const int64_t next = token + rank_rows_[rank]; token < next; ++token) {
      if (!goes_to(token, static_cast<size_t>(ranks_.rank()))) continue;
      *end++ = static_cast<int32_t>(token);
      ++recv_rows_[rank];
    }
  return end;
}

void Exchange::combine(const Exec& exec, const RoutedTokens& here, Tensor delta) {
  if (kind_ == ExchangeKind::all_gather)
    return ranks_.reduce_scatter(exec, here.delta, rank_rows_, delta);
  const Tensor returned = memory_.returned.rows(0, routes_.sent.size(0));
  ranks_.all_to_all(exec, here.delta, recv_rows_, returned, send_rows_);
  ops::sum_rows(exec, returned, routes_.back, delta);
}

}  // namespace m2::model
