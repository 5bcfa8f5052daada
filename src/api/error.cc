#include "api/error.h"

#include "base/json.h"

namespace m2::api {

ApiError validation_error(const Error& error) {
  return {400, "Bad Request", error.text, error.param};
}

ApiError serving_error(const Error& error) {
  switch (error.code) {
    case Code::not_found:
      return {404, "NotFoundError", error.text, error.param};
    case Code::resource_exhausted:
      return {429, "rate_limit_error", error.text, error.param};
    case Code::unavailable:
      return {503, "ServiceUnavailableError", error.text, error.param};
    case Code::internal:
      return {500, "InternalServerError", error.text, error.param};
    case Code::invalid_argument:
    case Code::corrupt:
    case Code::unsupported:
      break;
  }
  return {400, "BadRequestError", error.text, error.param};
}

ApiError http_error(int status, std::string message) {
  return {status, status_phrase(status), std::move(message), {}};
}

std::string to_json(const ApiError& error) {
  Json body;
  body["message"] = error.message;
  body["type"] = error.type;
  body["param"] = error.param.empty() ? Json() : Json(error.param);
  body["code"] = error.status;
  return to_text(Json{{"error", std::move(body)}});
}

const char* status_phrase(int status) {
  switch (status) {
    case 100:
      return "Continue";
    case 200:
      return "OK";
    case 400:
      return "Bad Request";
    case 401:
      return "Unauthorized";
    case 404:
      return "Not Found";
    case 405:
      return "Method Not Allowed";
    case 408:
      return "Request Timeout";
    case 411:
      return "Length Required";
    case 413:
      return "Request Entity Too Large";
    case 414:
      return "URI Too Long";
    case 415:
      return "Unsupported Media Type";
    case 417:
      return "Expectation Failed";
    case 429:
      return "Too Many Requests";
    case 431:
      return "Request Header Fields Too Large";
    case 500:
      return "Internal Server Error";
    case 501:
      return "Not Implemented";
    case 503:
      return "Service Unavailable";
    case 505:
      return "HTTP Version Not Supported";
    default:
      return "Unknown";
  }
}

}  // namespace m2::api
