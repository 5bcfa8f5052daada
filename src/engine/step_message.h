#pragma once

#include <cstdint>
#include <vector>

#include "model/step_model.h"
#include "parallel/comm.h"

// What ranks tell each other around a step: its plan, from the first rank of a group to the others.
// In host memory.

namespace m2::engine {

enum class Order : int64_t {
  stop,     // the last one
  idle,     // nothing to run: be there, and in step with other engines
  leave,    // the same, of an engine that wants to end
  step,     // StepModel::step()
  enqueue,  // StepModel::enqueue()
  collect,  // StepModel::collect()
};

struct StepMessage {
  Order order = Order::stop;
  model::StepInput input;        // of step and enqueue, else no tokens
  model::StepSampling sampling;  // of enqueue, if it was sent
};

// A step of no tokens.
model::StepInput no_tokens();

// Sends orders to every other rank of a group; rank 0 of it. One thread.
class OrderSender {
 public:
  explicit OrderSender(parallel::Comm& comm) : comm_(comm) {}
  Result<void> send(Order order);
  // A step or enqueue; the sampling travels only if it is given.
  Result<void> send(Order order, const model::StepInput& input,
                    const model::StepSampling* sampling = nullptr);

 private:
  parallel::Comm& comm_;
  std::vector<int32_t> words_;
};

// Receives them. Plans come from another process: one that reaches beyond what `limits` allow is
// refused (corrupt). One thread.
class OrderReceiver {
 public:
  OrderReceiver(parallel::Comm& comm, const model::StepModel::Limits& limits)
      : comm_(comm), limits_(limits) {}
  // Waits for the next order; views in it are good until the one after.
  Result<StepMessage> receive();

 private:
  parallel::Comm& comm_;
  const model::StepModel::Limits limits_;
  std::vector<int32_t> words_;
  std::vector<ops::SampleRow> rows_;
  std::vector<ops::LogitEdit> edits_;
  std::vector<uint32_t> masks_;
};

}  // namespace m2::engine
