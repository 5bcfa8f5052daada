#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/dense_memory.h"
#include "server/answer.h"
#include "server/context.h"
#include "server/exchange.h"
#include "server/plan.h"
#include "text/stop_strings.h"

namespace m2::server {

// The owner of one generating request, from its body to its last byte:
//
//   plan (worker thread)     body -> engine requests and an Answer
//   submit                   refused with a status, or under way
//   on_event, per token      id -> text -> stop strings -> Answer -> client
//   finish                   the end of the stream, or the whole reply
//
// Cancels what it started if the client goes away. Lives on one io thread.
class Completion : public EventReceiver, public std::enable_shared_from_this<Completion> {
 public:
  using MakePlan = Planned (*)(const HttpRequest&, Context&);

  // Serves the exchange with what `make_plan` makes of it.
  static void serve(std::shared_ptr<Exchange> exchange, IoThread& thread, Context& context,
                    MakePlan make_plan);

  Completion(std::shared_ptr<Exchange> exchange, IoThread& thread, Context& context);
  ~Completion() override { thread_.expect(-1); }

  void on_event(size_t choice, const engine::Event& event) override;
  void prefetch(size_t choice) const override;
  void on_shutdown() override;

 private:
  // One sequence the engine writes for us.
  struct Choice {
    engine::RequestId id = 0;
    text::Detokenizer detokenizer;
    text::StopStrings stop;
    int64_t tokens = 0;
    int64_t shown = 0;  // of them, when the stream last said something
    bool done = false;
  };

  void plan(MakePlan make_plan);
  void submit(Planned planned);
  bool submit_choices();
  void detach();
  void read_prompt(size_t index, const engine::Event& event);
  void read_token(size_t index, const engine::Event& event, std::string& out);
  std::string text_of(Choice& choice, const engine::Event& event);
  void finish();
  void send(std::string body);
  void fail(const api::ApiError& error);
  void cancel();

  const std::shared_ptr<Exchange> exchange_;
  IoThread& thread_;
  Context& context_;
  const Context::Slot slot_;
  Plan plan_;
  DenseVector<Choice> choices_;
  size_t open_choices_ = 0;
  bool streaming_ = false;  // the status line has gone out
  bool begun_ = false;      // the answer has
  bool over_ = false;
};

}  // namespace m2::server
