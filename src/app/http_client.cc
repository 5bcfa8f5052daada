#include "app/http_client.h"

#include <curl/curl.h>

#include <memory>
#include <utility>

#include "base/check.h"

namespace m2::app {
namespace {

constexpr long kConnectSeconds = 10;
constexpr size_t kMostErrorBytes = 1u << 20;

struct CurlDeleter {
  void operator()(CURL* handle) const { curl_easy_cleanup(handle); }
};
struct ListDeleter {
  void operator()(curl_slist* list) const { curl_slist_free_all(list); }
};

// One transfer: bytes of a 200 go to `sink`, those of any other answer are kept for its message.
struct Transfer {
  std::unique_ptr<CURL, CurlDeleter> handle{curl_easy_init()};
  std::unique_ptr<curl_slist, ListDeleter> headers;
  std::function<bool(std::string_view)> sink;
  std::function<bool()> is_wanted;  // may be empty
  std::string error_body;
  bool any_status = false;  // every answer goes to `sink`
  bool stopped = false;

  void add_header(const std::string& line) {
    headers.reset(curl_slist_append(headers.release(), line.c_str()));
  }

  long status() const {
    long code = 0;
    curl_easy_getinfo(handle.get(), CURLINFO_RESPONSE_CODE, &code);
    return code;
  }

  static size_t receive(char* bytes, size_t, size_t count, void* self) {
    auto& transfer = *static_cast<Transfer*>(self);
    if (transfer.status() != 200 && !transfer.any_status) {
      if (transfer.error_body.size() < kMostErrorBytes) transfer.error_body.append(bytes, count);
      return count;
    }
    if (transfer.sink({bytes, count})) return count;
    transfer.stopped = true;
    return 0;  // curl ends the transfer
  }

  static int look_up(void* self, curl_off_t, curl_off_t, curl_off_t, curl_off_t) {
    auto& transfer = *static_cast<Transfer*>(self);
    if (transfer.is_wanted && !transfer.is_wanted()) transfer.stopped = true;
    return transfer.stopped ? 1 : 0;
  }
};

// The `message` of an error body, or the body itself.
std::string message_of(const std::string& body) {
  const Result<Json> json = parse_json(body);
  if (json.ok() && json->is_object() && json->contains("error")) {
    const Json& error = (*json)["error"];
    if (error.is_string()) return error.get<std::string>();
    if (error.is_object() && error.contains("message") && error["message"].is_string())
      return error["message"].get<std::string>();
  }
  return body.substr(0, 500);
}

Result<void> perform(Transfer& transfer, const std::string& url) {
  CURL* handle = transfer.handle.get();
  curl_easy_setopt(handle, CURLOPT_URL, url.c_str());
  curl_easy_setopt(handle, CURLOPT_HTTPHEADER, transfer.headers.get());
  curl_easy_setopt(handle, CURLOPT_CONNECTTIMEOUT, kConnectSeconds);
  curl_easy_setopt(handle, CURLOPT_NOSIGNAL, 1L);
  curl_easy_setopt(handle, CURLOPT_WRITEFUNCTION, &Transfer::receive);
  curl_easy_setopt(handle, CURLOPT_WRITEDATA, &transfer);
  curl_easy_setopt(handle, CURLOPT_NOPROGRESS, 0L);
  curl_easy_setopt(handle, CURLOPT_XFERINFOFUNCTION, &Transfer::look_up);
  curl_easy_setopt(handle, CURLOPT_XFERINFODATA, &transfer);
  const CURLcode code = curl_easy_perform(handle);
  if (transfer.stopped) return {};
  if (code != CURLE_OK) return fail(Code::unavailable, "{}: {}", url, curl_easy_strerror(code));
  if (transfer.status() != 200 && !transfer.any_status)
    return fail(Code::invalid_argument, "{} answered {}: {}", url, transfer.status(),
                message_of(transfer.error_body));
  return {};
}

}  // namespace

HttpClient::HttpClient(std::string base_url, std::string api_key)
    : base_url_(std::move(base_url)), api_key_(std::move(api_key)) {
  static const CURLcode once = curl_global_init(CURL_GLOBAL_DEFAULT);  // before any second thread
  M2_CHECK(once == CURLE_OK);
  while (base_url_.ends_with('/')) base_url_.pop_back();
  if (base_url_.ends_with("/v1")) base_url_.resize(base_url_.size() - 3);
}

Result<Json> HttpClient::get(const std::string& path) const {
  M2_TRY(const std::string body, get_text(path));
  return parse_json(body);
}

Result<std::string> HttpClient::get_text(const std::string& path) const {
  Transfer transfer;
  std::string body;
  transfer.sink = [&](std::string_view bytes) {
    body += bytes;
    return true;
  };
  if (!api_key_.empty()) transfer.add_header("Authorization: Bearer " + api_key_);
  M2_TRY_VOID(perform(transfer, base_url_ + path));
  return body;
}

Result<HttpAnswer> HttpClient::post(const std::string& path, const Json& body) const {
  Transfer transfer;
  transfer.any_status = true;
  HttpAnswer answer;
  transfer.sink = [&](std::string_view bytes) {
    answer.body += bytes;
    return true;
  };
  transfer.add_header("Content-Type: application/json");
  transfer.add_header("Expect:");  // no round trip before long bodies
  if (!api_key_.empty()) transfer.add_header("Authorization: Bearer " + api_key_);
  const std::string text = to_text(body);
  curl_easy_setopt(transfer.handle.get(), CURLOPT_POSTFIELDSIZE, static_cast<long>(text.size()));
  curl_easy_setopt(transfer.handle.get(), CURLOPT_POSTFIELDS, text.c_str());
  M2_TRY_VOID(perform(transfer, base_url_ + path));
  answer.status = transfer.status();
  return answer;
}

Result<void> HttpClient::stream(const std::string& path, const Json& body,
                                const std::function<bool(std::string_view)>& on_event,
                                std::function<bool()> is_wanted) const {
  Transfer transfer;
  transfer.is_wanted = std::move(is_wanted);
  SseReader reader;
  transfer.sink = [&](std::string_view bytes) { return reader.feed(bytes, on_event); };
  transfer.add_header("Content-Type: application/json");
  if (!api_key_.empty()) transfer.add_header("Authorization: Bearer " + api_key_);
  const std::string text = to_text(body);
  curl_easy_setopt(transfer.handle.get(), CURLOPT_POSTFIELDSIZE, static_cast<long>(text.size()));
  curl_easy_setopt(transfer.handle.get(), CURLOPT_POSTFIELDS, text.c_str());
  return perform(transfer, base_url_ + path);
}

Result<std::string> first_model(const HttpClient& client) {
  M2_TRY(const Json models, client.get("/v1/models"));
  const Json data = models.is_object() ? models.value("data", Json()) : Json();
  const bool has_first = data.is_array() && !data.empty() && data[0].is_object();
  const Json id = has_first ? data[0].value("id", Json()) : Json();
  if (!id.is_string())
    return fail(Code::unavailable, "the server names no model; give one with --model");
  return id.get<std::string>();
}

bool SseReader::feed(std::string_view bytes, const std::function<bool(std::string_view)>& on_data) {
  while (true) {
    const size_t end = bytes.find('\n');
    if (end == std::string_view::npos) break;
    std::string_view line = bytes.substr(0, end);
    bytes.remove_prefix(end + 1);
    std::string joined;
    if (!line_.empty()) {
      joined = std::exchange(line_, {});
      line = joined += line;
    }
    if (line.ends_with('\r')) line.remove_suffix(1);
    if (!take_line(line, on_data)) return false;
  }
  line_ += bytes;
  return true;
}

bool SseReader::take_line(std::string_view line,
                          const std::function<bool(std::string_view)>& on_data) {
  if (line.empty()) {
    if (!std::exchange(has_data_, false)) return true;
    const bool goes_on = on_data(data_);
    data_.clear();  // its memory is for the next event
    return goes_on;
  }
  constexpr std::string_view kField = "data:";
  if (!line.starts_with(kField)) return true;
  line.remove_prefix(kField.size());
  if (line.starts_with(' ')) line.remove_prefix(1);
  if (has_data_) data_ += '\n';
  data_ += line;
  has_data_ = true;
  return true;
}

}  // namespace m2::app
