#pragma once

#include <map>
#include <memory>
#include <optional>
#include <vector>

#include "base/thread_pool.h"
#include "engine/engine.h"
#include "tests/engine/history_model.h"

namespace m2::engine::test {

// Keeps what happened to each request.
class RecordingSink : public EventSink {
 public:
  struct Record {
    std::vector<TokenId> tokens;
    std::vector<Event> events;
    FinishReason finish = FinishReason::none;
    std::string error;
    int64_t cached_tokens = -1;
    TokenId stop_token = -1;
  };

  void on_events(std::vector<Event>&& events) override {
    for (Event& event : events) {
      Record& record = records[event.id];
      if (event.token >= 0) record.tokens.push_back(event.token);
      if (record.events.empty()) record.cached_tokens = event.cached_tokens;
      record.finish = event.finish;
      record.stop_token = event.stop_token;
      record.error = event.detail ? event.detail->error : "";
      record.events.push_back(std::move(event));
    }
  }

  std::map<RequestId, Record> records;
};

// An engine over a HistoryModel, with what it needs.
struct World {
  static constexpr int64_t kVocab = 64;
  static constexpr TokenId kIdLimit = 61;
  static constexpr TokenId kEos = 2;

  static model::StepModel::Limits limits(int64_t blocks = 64, int64_t block_size = 4,
                                         int64_t max_model_len = 200) {
    return {kVocab, blocks, block_size, max_model_len, 64, 16};
  }
  static EngineConfig config() {
    EngineConfig config;
    config.max_num_seqs = 8;
    config.max_num_batched_tokens = 32;
    config.eos_token_ids = {kEos};
    config.id_limit = kIdLimit;
    return config;
  }

  explicit World(const EngineConfig& config = World::config(),
                 const model::StepModel::Limits& limits = World::limits(), int threads = 1)
      : model(limits, config.id_limit),
        pool(threads),
        engine(config, model, pool, clock, sink, metrics) {}

  RequestId submit(Request request) {
    const Result<RequestId> id = engine.submit(std::move(request));
    return id.ok() ? *id : 0;
  }
  RecordingSink::Record& record(RequestId id) { return sink.records[id]; }
  bool finished(RequestId id) { return record(id).finish != FinishReason::none; }

  // Steps until there is nothing to do; false if that takes more than `limit` steps.
  bool run_until_idle(int limit = 10000) {
    for (int i = 0; i < limit; ++i) {
      if (!engine.step()) return true;
      clock.advance(kSecond / 100);
    }
    return false;
  }

  ManualClock clock;
  HistoryModel model;
  ThreadPool pool;
  RecordingSink sink;
  Metrics metrics;
  Engine engine;
};

// A greedy request of `size` prompt tokens, that ends by length alone.
inline Request greedy_request(int64_t size, int64_t max_tokens, TokenId first = 10) {
  Request request;
  for (int64_t i = 0; i < size; ++i)
    request.prompt.push_back(static_cast<TokenId>((first + 7 * i) % World::kIdLimit));
  request.params.temperature = 0;
  request.params.max_tokens = max_tokens;
  request.params.ignore_eos = true;
  return request;
}

}  // namespace m2::engine::test
