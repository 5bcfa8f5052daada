#include "server/completion.h"

#include <charconv>
#include <utility>

#include "base/log.h"
#include "base/prefetch.h"

namespace m2::server {

void Completion::serve(std::shared_ptr<Exchange> exchange, IoThread& thread, Context& context,
                       MakePlan make_plan) {
  std::allocate_shared<Completion>(DenseAllocator<Completion>(), std::move(exchange), thread,
                                   context)
      ->plan(make_plan);
}

Completion::Completion(std::shared_ptr<Exchange> exchange, IoThread& thread, Context& context)
    : exchange_(std::move(exchange)), thread_(thread), context_(context), slot_(context) {
  thread_.expect(1);
}

// ---- from the body to the engine

void Completion::plan(MakePlan make_plan) {
  exchange_->on_gone([weak = weak_from_this()] {
    const auto self = weak.lock();
    if (self && !self->plan_.background) self->cancel();
  });
  auto planned = std::make_shared<Planned>();
  thread_.run_aside([this, self = shared_from_this(), planned,
                     make_plan] { *planned = make_plan(exchange_->request(), context_); },
                    [self = shared_from_this(), planned] { self->submit(std::move(*planned)); });
}

void Completion::submit(Planned planned) {
  exchange_->release_body();
  if (over_) return;  // the client has left meanwhile
  if (const auto* error = std::get_if<api::ApiError>(&planned)) return fail(*error);
  if (const auto* refused = std::get_if<RefusedInStream>(&planned)) {
    over_ = true;
    exchange_->begin_events({});
    exchange_->write_events(refused->events);
    return exchange_->end_events();
  }
  plan_ = std::move(std::get<Plan>(planned));
  if (!submit_choices()) return;
  if (plan_.background) detach();
  if (!plan_.stream) return;
  streaming_ = true;
  exchange_->begin_events(plan_.headers);
}

// From here on the request does not end with its client's leaving. The client of one that does not
// stream is answered now.
void Completion::detach() {
  std::string accepted = plan_.answer->detach([weak = weak_from_this(), &thread = thread_] {
    thread.post([weak] {
      const auto self = weak.lock();
      if (!self || self->over_) return;
      self->cancel();
      self->exchange_->write_events(self->plan_.answer->cancelled());
      self->exchange_->end_events();
    });
  });
  if (!plan_.stream) send(std::move(accepted));
}

namespace {

// The engine that X-data-parallel-rank names; -1 if there is no such header.
Result<int64_t> asked_engine(const HttpRequest& request) {
  const std::string& text = request.data_parallel_rank;
  if (text.empty()) return -1;
  int64_t rank = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), rank);
  if (error != std::errc{} || end != text.data() + text.size() || rank < 0)
    return m2::fail(Code::invalid_argument, "X-data-parallel-rank must be a rank, 0 or more");
  return rank;
}

}  // namespace

// Submits every choice, or none: then the client has its refusal.
bool Completion::submit_choices() {
  const Result<int64_t> engine = asked_engine(exchange_->request());
  if (!engine) return fail(api::serving_error(engine.error())), false;
  const auto& tokenizer = context_.services()->tokenizer;
  choices_.reserve(plan_.requests.size());
  for (engine::Request& request : plan_.requests) {
    auto stop = text::StopStrings::make(plan_.stop, plan_.include_stop);
    if (!stop) return fail(api::serving_error(stop.error())), false;
    request.engine = *engine;
    auto id = context_.services()->engine->submit(std::move(request));
    if (!id) return fail(api::serving_error(id.error())), false;
    thread_.listen(*id, shared_from_this(), choices_.size());
    choices_.push_back(
        {*id, text::Detokenizer(tokenizer, plan_.skip_special_tokens), std::move(*stop)});
    ++open_choices_;
  }
  plan_.requests.clear();
  return true;
}

// ---- from the engine to the client

void Completion::on_event(size_t index, const engine::Event& event) {
  if (over_ || choices_[index].done) return;
  if (event.finish == engine::FinishReason::error)
    return fail(event.detail->unsatisfiable
                    ? api::ApiError{400, "BadRequestError", event.detail->error, {}}
                    : api::ApiError{500, "InternalServerError", event.detail->error, {}});
  static thread_local std::string out;  // one for all requests of the thread: it stays in its cache
  out.clear();
  read_prompt(index, event);
  if (!std::exchange(begun_, true)) plan_.answer->begin(out);
  read_token(index, event, out);
  exchange_->write_events(out);
  if (open_choices_ == 0) finish();
}

void Completion::prefetch(size_t choice) const {
  constexpr size_t kAnswer = 448, kExchange = 128;  // bytes that a token needs of them, about
  const auto fetch = [](const void* memory, size_t size) {
    fetch_lines(memory, static_cast<const char*>(memory) + size);
  };
  fetch(&choices_[choice], sizeof(Choice));
  fetch(plan_.answer.get(), kAnswer);
  fetch(exchange_.get(), kExchange);
}

void Completion::read_prompt(size_t index, const engine::Event& event) {
  if (event.cached_tokens >= 0) plan_.answer->cached_tokens(event.cached_tokens);
  if (event.detail && !event.detail->prompt_logprobs.empty())
    plan_.answer->prompt_logprobs(index, event.detail->prompt_logprobs);
}

// The text a token makes certain. The text of the token a generation stops at is left out, unless
// asked for.
std::string Completion::text_of(Choice& choice, const engine::Event& event) {
  const bool stops = event.finish == engine::FinishReason::stop;
  std::string text;
  if (event.token >= 0 && (!stops || plan_.include_stop))
    text = choice.detokenizer.add(event.token);
  if (event.finish != engine::FinishReason::none) text += choice.detokenizer.finish();
  return text;
}

namespace {

api::Finish finish_of(const engine::Event& event) {
  switch (event.finish) {
    case engine::FinishReason::stop:
      return {"stop", event.stop_token >= 0 ? Json(event.stop_token) : Json()};
    case engine::FinishReason::length:
      return {"length", {}};
    default:
      return {"abort", {}};
  }
}

}  // namespace

void Completion::read_token(size_t index, const engine::Event& event, std::string& out) {
  Choice& choice = choices_[index];
  const bool last = event.finish != engine::FinishReason::none;
  if (event.token < 0 && !last) return;
  if (event.token >= 0) ++choice.tokens;

  text::StopStrings::Step read =
      choice.stop.feed(text_of(choice, event), choice.tokens > plan_.min_tokens);
  api::Finish finish;
  if (read.match) {
    finish = {"stop", choice.stop.string(*read.match)};
    if (!last) context_.services()->engine->cancel(choice.id);
  } else if (last) {
    finish = finish_of(event);
    read.text += choice.stop.finish();
  }
  const bool ends = read.match || last;

  Step step;
  step.text = read.text;
  step.token = event.token;
  step.logprobs = event.logprobs();
  step.finish = ends ? &finish : nullptr;
  step.shows = ends || choice.shown == 0 || choice.tokens - choice.shown >= plan_.stream_interval;
  if (step.shows) choice.shown = choice.tokens;
  plan_.answer->step(index, step, out);
  if (!ends) return;
  choice.done = true;
  --open_choices_;
  thread_.forget(choice.id);
}

// ---- ends

void Completion::finish() {
  over_ = true;
  context_.count_choices(plan_.n);
  std::string end = plan_.answer->end();
  if (plan_.stream) {
    exchange_->write_events(end);
    exchange_->end_events();
  } else {
    send(std::move(end));
  }
}

void Completion::send(std::string body) {
  HttpReply reply;
  reply.body = std::move(body);
  reply.headers = plan_.headers;
  exchange_->send(std::move(reply));
}

// Stops the engine's work for this request; the client hears nothing more.
void Completion::cancel() {
  over_ = true;
  for (Choice& choice : choices_) {
    if (std::exchange(choice.done, true)) continue;
    context_.services()->engine->cancel(choice.id);
    thread_.forget(choice.id);
  }
}

void Completion::fail(const api::ApiError& error) {
  if (over_) return;
  cancel();
  if (error.status == 500) log_error("request failed: {}", printable(error.message));
  const std::string events = plan_.answer ? plan_.answer->fail(error) : std::string();
  if (streaming_) {
    exchange_->write_events(events);
    exchange_->end_events();
  } else {
    exchange_->send(error_reply(error));
  }
}

void Completion::on_shutdown() {
  fail({503, "ServiceUnavailableError", "the server is shutting down", {}});
}

}  // namespace m2::server
