#include "server/ids.h"

#include <fmt/format.h>
#include <openssl/rand.h>

#include <array>

#include "base/check.h"

namespace m2::server {

std::string random_hex() {
  std::array<unsigned char, 16> bytes;
  M2_CHECK(RAND_bytes(bytes.data(), static_cast<int>(bytes.size())) == 1, "no random numbers");
  std::string hex;
  for (const unsigned char byte : bytes) hex += fmt::format("{:02x}", byte);
  return hex;
}

std::string response_call_id() {
  return "call_" + random_hex();
}

std::string tool_use_id() {
  return "toolu_" + random_hex();
}

}  // namespace m2::server
