#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "model/config.h"
#include "parallel/comm.h"
#include "parallel/topology.h"
#include "tensor/buffer.h"
#include "tensor/exec.h"
#include "tensor/stream.h"

namespace m2::model {

// How tokens travel to the ranks that hold their experts, and the results back.
enum class ExchangeKind : uint8_t {
  all_gather,  // every rank sees every token; results are reduce-scattered
  // A token goes to the ranks that hold one of its experts, which are whole. Who sends how many to
  // whom differs from layer to layer, and the host has to know: it waits for the device in each.
  all_to_all,
};

// Tokens of a step and what was chosen for them.
struct RoutedTokens {
  Tensor hidden;   // A [n, H]
  Tensor ids;      // i32 [n, top]
  Tensor weights;  // f32 [n, top]
  Tensor delta;    // A [n, H] what the experts make of them
};

// Where engines share experts (contract.md 7), the tokens of all their steps meet in every layer:
// each rank brings its share of its own engine's tokens, and takes their results home. All ranks
// step together; an engine without work brings no tokens. One thread.
class Exchange {
 public:
  // `ranks`: all ranks of all engines, in the order of Topology. `max_tokens`: of one engine's
  // step.
  Exchange(parallel::Comm& ranks, const parallel::Topology& topology, ExchangeKind kind,
           const ModelConfig& config, int64_t max_tokens, Device device);

  // Bytes the constructor takes.
  static int64_t bytes(const parallel::Topology& topology, ExchangeKind kind,
                       const ModelConfig& config, int64_t max_tokens, Device device);

  // Before a step: the tokens that each engine brings to it.
  void begin(std::span<const int64_t> engine_tokens);

  // This rank's share of its engine's tokens, and everyone's of the engine.
  parallel::Range own_rows() const { return own_; }
  parallel::Rows engine_rows() const { return engine_rows_; }

  // Sends this rank's tokens off; returns those that came here, with room for their results.
  RoutedTokens dispatch(const Exec& exec, const RoutedTokens& own);
  // delta of the own tokens = the sum, in order of ranks, of what was made of them.
  void combine(const Exec& exec, const RoutedTokens& here, Tensor delta);

 private:
  struct Memory {
    RoutedTokens here;
    // all_to_all's own: of all ranks' tokens, in their order, what was chosen; and this rank's
    // tokens once for each rank they go to, on their way there and back.
    Tensor all_ids, all_weights;
    Tensor sent, returned;
    Tensor lists;  // i32, see Lists
  };
  // How the tokens of one layer travel by all_to_all.
  struct Lists {
    Tensor back;  // i32 [own tokens, copies]: rows of `returned` to add up; -1: no more
    Tensor sent;  // i32 [rows sent]: the own token of each
    Tensor came;  // i32 [rows received]: the token of each among all ranks' tokens
  };
  static Memory place(Arena& arena, const parallel::Topology& topology, ExchangeKind kind,
                      const ModelConfig& config, int64_t max_tokens, Device device);
  RoutedTokens all_gather(const Exec& exec, const RoutedTokens& own);
  RoutedTokens all_to_all(const Exec& exec, const RoutedTokens& own);
  bool fetch_ids(const Exec& exec, Tensor ids);
  void plan_routes(bool known);
  int32_t* list_sent(int32_t* back, int32_t* sent);
  int32_t* list_came(int32_t* came);
  bool goes_to(int64_t token, size_t rank) const;

  parallel::Comm& ranks_;
  const parallel::Topology topology_;
  const ExchangeKind kind_;
  Buffer buffer_;
  Memory memory_;
  parallel::Range own_{0, 0};
  std::vector<int64_t> rank_rows_;    // tokens that each rank brings
  std::vector<int64_t> engine_rows_;  // of them this engine's ranks
  std::vector<int64_t> owners_;       // rank of each expert (all_to_all)
  std::vector<int64_t> send_rows_, recv_rows_;
  int64_t copies_ = 0;      // most ranks that a token goes to
  HostBuffer ids_, lists_;  // on the host, of all_ids and lists
  Event ids_came_;
  Lists routes_;  // of this layer
};

}  // namespace m2::model
