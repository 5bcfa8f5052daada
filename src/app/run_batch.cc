#include "app/run_batch.h"

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstdio>
#include <filesystem>
#include <fstream>
#include <mutex>
#include <optional>
#include <random>
#include <thread>
#include <vector>

#include "app/terminal.h"
#include "load/file.h"

namespace m2::app {
namespace {

constexpr size_t kMostLineBytes = 16u << 20;
constexpr uint64_t kMostOutputBytes = uint64_t{64} << 30;

std::string random_id(const char* prefix) {
  static thread_local std::mt19937_64 random{std::random_device{}()};
  return fmt::format("{}{:016x}{:016x}", prefix, random(), random());
}

bool is_blank(std::string_view line) {
  return line.find_first_not_of(" \t\r") == std::string_view::npos;
}

// One line of the input.
struct BatchRequest {
  std::string custom_id;
  std::string url;
  Json body;
};

Result<std::string> text_field(const Json& line, const char* name) {
  const auto field = line.find(name);
  if (field == line.end() || !field->is_string() || field->get_ref<const std::string&>().empty())
    return fail(Code::invalid_argument, "a request needs a string `{}`", name);
  return field->get<std::string>();
}

Result<BatchRequest> request_of(const std::string& text) {
  if (text.size() > kMostLineBytes)
    return fail(Code::invalid_argument, "the line is longer than {} bytes", kMostLineBytes);
  M2_TRY(const Json line, parse_json(text));
  if (!line.is_object()) return fail(Code::invalid_argument, "a request should be a JSON object");
  BatchRequest out;
  M2_TRY(out.custom_id, text_field(line, "custom_id"));
  M2_TRY(const std::string method, text_field(line, "method"));
  M2_TRY(out.url, text_field(line, "url"));
  if (method != "POST") return fail(Code::invalid_argument, "the method should be POST");
  if (!out.url.starts_with("/v1/"))
    return fail(Code::invalid_argument, "the url should be a path such as /v1/chat/completions");
  if (!line.contains("body") || !line["body"].is_object())
    return fail(Code::invalid_argument, "a request needs an object `body`");
  out.body = line["body"];
  if (out.body.value("stream", Json()) == true)
    return fail(Code::invalid_argument, "a batch holds whole answers: `stream` cannot be true");
  return out;
}

// The custom_id of a line, however bad the rest is; null without one.
Json id_of(const std::string& text) {
  const Result<Json> line = parse_json(text);
  if (!line.ok() || !line->is_object()) return nullptr;
  const Json id = line->value("custom_id", Json());
  return id.is_string() ? id : Json();
}

Json failure(const std::string& code, const std::string& message) {
  return {{"code", code}, {"message", message}};
}

std::string output_line(const Json& custom_id, Json response, Json error) {
  Json out;
  out["id"] = random_id("batch_req_");
  out["custom_id"] = custom_id;
  out["response"] = std::move(response);
  out["error"] = std::move(error);
  return to_text(out) + "\n";
}

std::string answer_line(const std::string& custom_id, const HttpAnswer& answer) {
  Result<Json> body = parse_json(answer.body);
  Json response;
  response["status_code"] = answer.status;
  response["request_id"] = random_id("batch-");
  response["body"] = body.ok() ? *std::move(body) : Json(answer.body);
  if (answer.status == 200) return output_line(custom_id, std::move(response), nullptr);
  const std::string code = std::to_string(answer.status);
  const Json& sent = response["body"];
  const Json error = sent.is_object() ? sent.value("error", Json()) : Json();
  const Json said = error.is_object() ? error.value("message", Json()) : Json();
  const std::string message =
      said.is_string() ? said.get<std::string>() : "the server answered " + code;
  return output_line(custom_id, std::move(response), failure(code, message));
}

bool is_overload(long status) {
  return status == 429 || status == 503;
}

// The run: lines in from one file, out to another, by many threads.
class Run {
 public:
  Run(const BatchJob& job, const HttpClient& client, int64_t lines, std::set<std::string> done)
      : job_(job),
        client_(client),
        input_(job.input),
        done_(std::move(done)),
        bar_("Requests", ProgressBar::Unit::items) {
    outcome_.lines = lines;
  }

  Result<BatchOutcome> run(const std::string& mode) {
    output_ = std::fopen(job_.output.c_str(), mode.c_str());
    if (!output_) return fail(Code::unavailable, "cannot write {}", job_.output);
    std::vector<std::thread> threads;
    const int64_t wanted = std::min(job_.concurrency, std::max<int64_t>(1, outcome_.lines));
    for (int64_t i = 0; i < wanted; ++i) threads.emplace_back([this] { work(); });
    for (std::thread& thread : threads) thread.join();
    const bool closed = std::fclose(output_) == 0;
    if (!written_ || !closed) return fail(Code::unavailable, "writing {} failed", job_.output);
    outcome_.stopped = stop_;
    return outcome_;
  }

 private:
  void work() {
    while (const std::optional<std::string> line = next_line()) {
      const Result<BatchRequest> request = request_of(*line);
      if (!request.ok())
        write(output_line(id_of(*line), nullptr, failure("invalid_request", request.error().text)),
              false);
      else
        ask(*request);
    }
  }

  // The next line that is not in the output yet.
  std::optional<std::string> next_line() {
    std::lock_guard lock(mutex_);
    std::string line;
    while (!stop_ && std::getline(input_, line)) {
      if (is_blank(line)) continue;
      const Json id = id_of(line);
      if (!id.is_string() || !done_.contains(id.get<std::string>())) return line;
      ++outcome_.kept;
      show_progress();
    }
    return std::nullopt;
  }

  void ask(const BatchRequest& request) {
    Json body = request.body;
    if (!body.contains("model") && !job_.model.empty()) body["model"] = job_.model;
    std::string why;
    for (int64_t attempt = 0; attempt < job_.attempts && !stop_; ++attempt) {
      if (attempt > 0)
        std::this_thread::sleep_for(
            std::chrono::milliseconds(100 << std::min<int64_t>(attempt, 7)));
      const Result<HttpAnswer> answer = client_.post(request.url, body);
      if (answer.ok() && !is_overload(answer->status))
        return write(answer_line(request.custom_id, *answer), answer->status == 200);
      why =
          answer.ok() ? fmt::format("the server answered {}", answer->status) : answer.error().text;
    }
    // A server that is still away is not worth the rest of the file.
    if (!stop_.exchange(true)) std::fprintf(stderr, "m2: %s\n", why.c_str());
  }

  void write(const std::string& line, bool good) {
    std::lock_guard lock(mutex_);
    written_ = written_ && std::fwrite(line.data(), 1, line.size(), output_) == line.size() &&
               std::fflush(output_) == 0;
    if (!written_) stop_ = true;
    ++(good ? outcome_.answered : outcome_.failed);
    show_progress();
  }

  void show_progress() {
    bar_.update(outcome_.kept + outcome_.answered + outcome_.failed, outcome_.lines);
  }

  const BatchJob& job_;
  const HttpClient& client_;
  std::ifstream input_;
  const std::set<std::string> done_;
  std::FILE* output_ = nullptr;
  std::mutex mutex_;
  BatchOutcome outcome_;
  ProgressBar bar_;
  bool written_ = true;
  std::atomic<bool> stop_{false};
};

// The ids of the input, each once; lines without one are reported where they are met.
Result<std::pair<std::set<std::string>, int64_t>> read_ids(const std::string& path) {
  std::ifstream input(path);
  std::error_code ignored;
  if (!input) return fail(Code::not_found, "cannot read {}", path);
  if (!std::filesystem::is_regular_file(path, ignored))
    return fail(Code::invalid_argument, "cannot read {} twice, which is done here: it is no file",
                path);
  std::set<std::string> ids;
  std::string line;
  int64_t number = 0, count = 0;
  while (std::getline(input, line)) {
    ++number;
    if (is_blank(line)) continue;
    ++count;
    const Json id = id_of(line);
    if (id.is_string() && !ids.insert(id.get<std::string>()).second)
      return fail(Code::invalid_argument, "{}: line {}: the custom_id {} is there twice", path,
                  number, id.get<std::string>());
  }
  return std::pair{std::move(ids), count};
}

bool exists(const std::string& path) {
  return std::ifstream(path).good();
}

// Beside the file, then over it, so that an interruption loses nothing.
Result<void> replace_file(const std::string& path, const std::string& text) {
  const std::string beside = path + ".part";
  std::ofstream file(beside, std::ios::binary | std::ios::trunc);
  file.write(text.data(), static_cast<std::streamsize>(text.size()));
  file.close();
  if (!file || std::rename(beside.c_str(), path.c_str()) != 0)
    return fail(Code::unavailable, "cannot write {}", path);
  return {};
}

}  // namespace

Result<KeptLines> kept_lines(std::string_view output, const std::set<std::string>& expected) {
  KeptLines kept;
  while (true) {
    const size_t end = output.find('\n');
    if (end == std::string_view::npos) return kept;  // the rest was cut off in writing
    const std::string_view text = output.substr(0, end + 1);
    output.remove_prefix(end + 1);
    const Result<Json> line = parse_json(text.substr(0, end));
    const bool is_ours =
        line.ok() && line->is_object() && line->contains("custom_id") && line->contains("response");
    if (!is_ours) return fail(Code::invalid_argument, "a line is not a batch's output");
    const Json& id = (*line)["custom_id"];
    const Json& response = (*line)["response"];
    if (!id.is_string()) continue;
    if (!expected.contains(id.get<std::string>()))
      return fail(Code::invalid_argument, "it holds the request {}, which is not asked here",
                  id.get<std::string>());
    const Json status = response.is_object() ? response.value("status_code", Json()) : Json();
    const bool final = status.is_number_integer() && status != 429 && status < 500;
    if (!final || !kept.ids.insert(id.get<std::string>()).second) continue;
    kept.text += text;
  }
}

Result<BatchOutcome> run_batch(const BatchJob& job, const HttpClient& client) {
  M2_TRY(const auto found, read_ids(job.input));
  const auto& [ids, lines] = found;
  std::set<std::string> done;
  if (job.resume && exists(job.output)) {
    M2_TRY(const std::string text, load::read_text(job.output, kMostOutputBytes));
    Result<KeptLines> kept = kept_lines(text, ids);
    if (!kept.ok())
      return fail(Code::invalid_argument, "{}: {}; --no-resume replaces it", job.output,
                  kept.error().text);
    M2_TRY_VOID(replace_file(job.output, kept->text));
    done = std::move(kept->ids);
  }
  return Run(job, client, lines, std::move(done)).run(job.resume ? "ab" : "wb");
}

}  // namespace m2::app
