#pragma once

#include <string>

#include "base/result.h"

namespace m2::api {

// An error as the OpenAI surfaces write it (contract.md 4.2):
// {"error":{"message":...,"type":...,"param":...,"code":N}}.
struct ApiError {
  int status = 500;
  std::string type;
  std::string message;
  std::string param;  // empty: null
};

// A body that does not fit its schema: 400 with the type "Bad Request".
ApiError validation_error(const Error& error);

// A request that fits its schema but cannot be served: status and type follow the error's code.
ApiError serving_error(const Error& error);

// An error of the transport or the router: the type is the status' phrase.
ApiError http_error(int status, std::string message);

std::string to_json(const ApiError& error);

// The words of a status line: "Not Found" for 404.
const char* status_phrase(int status);

}  // namespace m2::api
