// scripted_server DATA_DIR CONFIG_JSON: the real HTTP server and engine with the released tokenizer
// and template over a ScriptedModel. Prints "PORT n" once it serves. See scripted.py.

#include <cstdio>
#include <fstream>
#include <iterator>
#include <thread>

#include "base/log.h"
#include "server/server.h"
#include "tests/e2e/scripted_model.h"

namespace m2::e2e {
namespace {

Result<std::string> file_text(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) return fail(Code::not_found, "cannot open {}", path);
  return std::string(std::istreambuf_iterator<char>(file), {});
}

void set_nanos(const Json& config, const char* name, Nanos& out) {
  if (config.contains(name)) out = static_cast<Nanos>(config[name].get<double>() * 1e9);
}

server::ServerOptions server_options(const Json& config) {
  server::ServerOptions options;
  options.host = "127.0.0.1";
  options.port = 0;
  options.uds = config.value("uds", std::string());
  options.few_connections = config.value("few_connections", size_t{1});  // both threads at work
  options.served_model_names =
      config.value("model_names", std::vector<std::string>{"scripted", "other-name"});
  options.api_keys = config.value("api_keys", std::vector<std::string>());
  options.drain_seconds = config.value("drain_seconds", 5.0);
  options.engine_deadline_seconds = config.value("engine_deadline_seconds", 10.0);
  options.live_deadline_seconds = config.value("live_deadline_seconds", 120.0);
  options.access_log = config.value("access_log", false);
  options.enable_request_id_headers = config.value("request_id_headers", false);
  options.content_format = static_cast<server::ContentFormat>(config.value("content_format", 0));
  options.openapi = config.value("openapi", true);
  options.isolate_api_keys = config.value("isolate_api_keys", true);
  options.stream_interval = config.value("stream_interval", options.stream_interval);
  options.log_requests = config.value("log_requests", false);
  options.enable_prompt_tokens_details = config.value("prompt_tokens_details", false);
  options.priority_scheduling = config.value("priority", false);
  options.default_chat_template_kwargs = config.value("default_kwargs", Json::object());
  options.enable_tokenizer_info_endpoint = config.value("tokenizer_info", false);
  options.root_path = config.value("root_path", std::string());
  options.tls.certificate_file = config.value("ssl_certfile", std::string());
  options.tls.key_file = config.value("ssl_keyfile", std::string());
  options.tls.ca_file = config.value("ssl_ca_certs", std::string());
  options.tls.refresh = config.value("ssl_refresh", false);
  if (config.value("ssl_cert_reqs", 0) == 2)
    options.tls.client_certificate = server::TlsOptions::ClientCertificate::required;
  options.cors.origins = config.value("origins", options.cors.origins);
  options.cors.methods = config.value("methods", options.cors.methods);
  options.cors.headers = config.value("headers", options.cors.headers);
  options.cors.credentials = config.value("credentials", false);
  options.unlogged_paths = config.value("unlogged_paths", std::vector<std::string>());
  options.keep_turns = config.value("keep_turns", true);
  options.store_responses = config.value("store_responses", false);
  server::Limits& limits = options.limits;
  set_nanos(config, "header_deadline", limits.header_deadline);
  set_nanos(config, "write_stall", limits.write_stall);
  set_nanos(config, "keep_alive_idle", limits.keep_alive_idle);
  set_nanos(config, "ping_interval", limits.ping_interval);
  limits.max_body = config.value("max_body", limits.max_body);
  limits.max_all_bodies = config.value("max_all_bodies", limits.max_all_bodies);
  limits.max_responses = config.value("max_responses", limits.max_responses);
  limits.max_event_bytes = config.value("max_event_bytes", limits.max_event_bytes);
  limits.max_turns = config.value("max_turns", limits.max_turns);
  limits.max_requests = config.value("max_requests", limits.max_requests);
  return options;
}

engine::EngineConfig engine_config(const Json& config) {
  engine::EngineConfig out;
  out.max_num_seqs = config.value("max_num_seqs", 256);
  out.max_num_batched_tokens = config.value("max_num_batched_tokens", 2048);
  if (config.value("priority", false)) out.policy = engine::SchedulingPolicy::priority;
  out.max_queued_requests = config.value("max_queued_requests", 1024);
  out.eos_token_ids = {200020};
  out.id_limit = 200054;
  out.metric_labels = "model_name=\"scripted\",engine=\"0\"";
  return out;
}

Result<int> run(const std::string& data, const Json& config) {
  start_logging(config.value("log_level", std::string("warning")), "scripted");
  Metrics metrics;
  server::Server server(server_options(config), metrics);
  M2_TRY_VOID(server.start());
  std::printf("PORT %d\n", server.port());
  std::fflush(stdout);
  std::this_thread::sleep_for(std::chrono::milliseconds(config.value("load_ms", 0)));
  server.set_progress("loading the tokenizer");

  M2_TRY(const auto tokenizer, text::Tokenizer::load(data + "/tokenizer.json"));
  M2_TRY(std::string source, file_text(data + "/chat_template.jinja"));
  const std::string source_text = source;
  M2_TRY(const auto chat_template, text::ChatTemplate::parse(std::move(source)));
  ScriptedModel model({.vocab_size = 200064,
                       .num_blocks = config.value("num_blocks", 8192),
                       .block_size = 16,
                       .max_model_len = config.value("max_model_len", 8192),
                       .max_step_tokens = 2048,
                       .max_sequences = 256},
                      tokenizer, config.value("scripts", Json::object()),
                      config.value("script_window", size_t{96}));
  ThreadPool pool(config.value("threads", 1));
  const SteadyClock clock;
  engine::Engine engine(engine_config(config), model, pool, clock, server, metrics);
  std::jthread engine_thread([&](std::stop_token stop) { engine.run(stop); });

  server::ModelServices services;
  services.tokenizer = tokenizer;
  services.chat_template = chat_template;
  engine::Engines engines({&engine});
  services.engine = &engines;
  services.max_model_len = model.limits().max_model_len;
  services.vocab_size = model.limits().vocab_size;
  services.eos_token = "[e~[";
  services.chat_template_source = source_text;
  services.eos_token_ids = {200020};
  server.ready(std::move(services));
  std::printf("READY\n");
  std::fflush(stdout);
  server.wait();
  return 0;
}

int main(int argc, char** argv) {
  if (argc != 3) {
    std::fprintf(stderr, "usage: scripted_server DATA_DIR CONFIG_JSON\n");
    return 2;
  }
  const auto config = parse_json(argv[2]);
  const auto done = config ? run(argv[1], *config) : Result<int>(config.error());
  if (!done) std::fprintf(stderr, "scripted_server: %s\n", done.error().text.c_str());
  return done ? *done : 1;
}

}  // namespace
}  // namespace m2::e2e

int main(int argc, char** argv) {
  return m2::e2e::main(argc, argv);
}
