#include "engine/seat.h"

#include <algorithm>
#include <array>
#include <string>

namespace m2::engine {
namespace {

using model::StepInput;
using parallel::Comm;

constexpr int64_t kMostErrorBytes = 4096;

const Exec& host() {
  static const Exec exec{};
  return exec;
}

// Words of four bytes from the relay to the seat; on the relay they are only read.
void travel(Comm& comm, const void* words, int64_t count) {
  if (count > 0) comm.broadcast(host(), Tensor(const_cast<void*>(words), DType::i32, {count}), 1);
}

// What the relay answers; more may follow it.
struct Reply {
  enum Kind : int64_t {
    kDone,     // number: tokens of all engines, or whether all leave
    kLogits,   // a slice: first row, rows; f32 [rows, vocab] follows
    kSampled,  // rows, whether there are top logprobs; the arrays follow
    kFailed,   // bytes of the error's text, which follows
  };
  int64_t kind = kDone;
  int64_t number = 0, rows = 0;

  // On both sides.
  void travel(Comm& comm) {
    std::array<int64_t, 3> words{kind, number, rows};
    comm.broadcast(host(), Tensor(words.data(), DType::i64, {3}), 1);
    kind = words[0], number = words[1], rows = words[2];
  }
};

void travel(Comm& comm, std::string& text) {
  comm.broadcast(host(), Tensor(text.data(), DType::u8, {static_cast<int64_t>(text.size())}), 1);
}

// An error if the collective failed, or the rank answers that it has.
Result<Reply> receive(Comm& comm) {
  Reply reply;
  reply.travel(comm);
  M2_TRY_VOID(comm.status());
  if (reply.kind != Reply::kFailed) return reply;
  std::string text(static_cast<size_t>(std::clamp<int64_t>(reply.number, 0, kMostErrorBytes)), 0);
  travel(comm, text);
  M2_TRY_VOID(comm.status());
  return fail(Code::unavailable, "{}", text);
}

Error out_of_turn() {
  return fail(Code::corrupt, "the first rank of another process answers out of turn");
}

}  // namespace

Result<void> tell_of_model(Comm& comm, const model::StepModel& model) {
  SeatedModel told{model.limits(), model.samples()};
  travel(comm, &told, sizeof told / 4);
  return comm.status();
}

Result<SeatedModel> hear_of_model(Comm& comm) {
  SeatedModel told{};
  travel(comm, &told, sizeof told / 4);
  M2_TRY_VOID(comm.status());
  return told;
}

Seat::Seat(Comm& comm, const SeatedModel& model, Rounds& rounds)
    : comm_(comm),
      limits_(model.limits),
      samples_(model.samples != 0),
      rounds_(rounds),
      orders_(comm) {
  M2_CHECK(comm.size() == 2 && comm.rank() == 0);
}

Result<void> Seat::step(const StepInput& input, model::LogitsSink& sink) {
  rounds_.begin();
  M2_TRY_VOID(orders_.send(Order::step, input));
  const auto wanted = static_cast<int64_t>(input.logit_rows.size());
  while (true) {
    M2_TRY(const Reply reply, receive(comm_));
    if (reply.kind == Reply::kDone) {
      rounds_.end(reply.number);
      return {};
    }
    if (reply.kind != Reply::kLogits || reply.rows < 0 || reply.rows > wanted || reply.number < 0 ||
        reply.number > wanted - reply.rows)
      return out_of_turn();
    logits_.resize(static_cast<size_t>(reply.rows * limits_.vocab_size));
    travel(comm_, logits_.data(), reply.rows * limits_.vocab_size);
    M2_TRY_VOID(comm_.status());
    sink.on_logits(reply.number,
                   Tensor(logits_.data(), DType::f32, {reply.rows, limits_.vocab_size}));
  }
}

// Failures are told by collect(). The step has tokens of this engine, so nobody sleeps after it.
void Seat::enqueue(const StepInput& input, const model::StepSampling& sampling) {
  if (!enqueued_.ok()) return;
  rounds_.begin();
  enqueued_ = orders_.send(Order::enqueue, input, &sampling);
  rounds_.end(static_cast<int64_t>(input.token_ids.size()));
}

Result<model::StepResult> Seat::collect() {
  M2_TRY_VOID(enqueued_);
  M2_TRY_VOID(orders_.send(Order::collect));
  M2_TRY(const Reply reply, receive(comm_));
  if (reply.kind != Reply::kSampled || reply.rows < 0 || reply.rows > limits_.max_step_tokens)
    return out_of_turn();
  rows_.resize(static_cast<size_t>(reply.rows));
  travel(comm_, rows_.data(), reply.rows * ops::kSampledRowWords);
  model::StepResult out;
  if (reply.number > 0) {
    const auto count = static_cast<size_t>(reply.rows * limits_.most_logprobs);
    top_ids_.resize(count);
    top_logprobs_.resize(count);
    travel(comm_, top_ids_.data(), static_cast<int64_t>(count));
    travel(comm_, top_logprobs_.data(), static_cast<int64_t>(count));
    out.top_ids = top_ids_;
    out.top_logprobs = top_logprobs_;
    out.most_logprobs = limits_.most_logprobs;
  }
  M2_TRY_VOID(comm_.status());
  out.rows = rows_;
  return out;
}

Result<bool> Seat::idle() {
  if (!rounds_.due()) return false;
  rounds_.begin();
  M2_TRY_VOID(orders_.send(Order::idle));
  M2_TRY(const Reply reply, receive(comm_));
  rounds_.end(reply.number);
  return reply.number > 0;
}

void Seat::stop() {
  while (comm_.status().ok()) {
    rounds_.begin();
    if (!orders_.send(Order::leave).ok()) return;
    const Result<Reply> reply = receive(comm_);
    if (!reply.ok() || reply->number > 0) return;
    rounds_.end(0);
  }
}

namespace {

// Sends the logits on.
class SendLogits : public model::LogitsSink {
 public:
  explicit SendLogits(Comm& comm) : comm_(comm) {}
  void on_logits(int64_t first_row, Tensor logits) override {
    Reply{Reply::kLogits, first_row, logits.size(0)}.travel(comm_);
    travel(comm_, logits.data(), logits.elements());
  }

 private:
  Comm& comm_;
};

// Answers orders of the seat.
class Relay {
 public:
  Relay(FirstRank& first, Comm& comm) : first_(first), comm_(comm), orders_(comm, first.limits()) {}

  // One order. False if it was the last.
  Result<bool> next() {
    M2_TRY(const StepMessage message, orders_.receive());
    switch (message.order) {
      case Order::step:
        return answer(step(message.input));
      case Order::enqueue:
        if (!first_.samples() || message.sampling.rows.size() != message.input.logit_rows.size())
          return fail(Code::corrupt, "the seat's plan is none for this rank's model");
        first_.enqueue(message.input, message.sampling);
        return true;
      case Order::collect:
        return collect();
      case Order::idle:
        return answer(first_.join());
      case Order::leave: {
        const Result<bool> all = first_.leave();
        if (!all.ok()) return answer(all.error());
        M2_TRY_VOID(answer(int64_t{*all}));
        return !*all;
      }
      case Order::stop:
        break;
    }
    return false;
  }

 private:
  Result<int64_t> step(const StepInput& input) {
    SendLogits sink(comm_);
    M2_TRY_VOID(first_.step(input, sink));
    // The step has tokens of this engine, so nobody sleeps after it.
    return static_cast<int64_t>(input.token_ids.size());
  }

  Result<bool> collect() {
    const Result<model::StepResult> result = first_.collect();
    if (!result.ok()) return answer(result.error());
    const auto rows = static_cast<int64_t>(result->rows.size());
    const bool tops = !result->top_ids.empty();
    Reply{Reply::kSampled, tops, rows}.travel(comm_);
    travel(comm_, result->rows.data(), rows * ops::kSampledRowWords);
    if (tops) {
      travel(comm_, result->top_ids.data(), static_cast<int64_t>(result->top_ids.size()));
      travel(comm_, result->top_logprobs.data(), static_cast<int64_t>(result->top_logprobs.size()));
    }
    M2_TRY_VOID(comm_.status());
    return true;
  }

  // A failure is told to the seat, and ends this side.
  Result<bool> answer(const Result<int64_t>& number) {
    if (number.ok()) {
      Reply{Reply::kDone, *number, 0}.travel(comm_);
      M2_TRY_VOID(comm_.status());
      return true;
    }
    std::string text = number.error().text.substr(0, kMostErrorBytes);
    Reply{Reply::kFailed, static_cast<int64_t>(text.size()), 0}.travel(comm_);
    travel(comm_, text);
    return number.error();
  }

  FirstRank& first_;
  Comm& comm_;
  OrderReceiver orders_;
};

}  // namespace

Result<void> relay(FirstRank& first, Comm& comm) {
  Relay relay(first, comm);
  while (true) {
    M2_TRY(const bool more, relay.next());
    if (!more) return {};
  }
}

}  // namespace m2::engine
