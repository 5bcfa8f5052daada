#include "api/opaque.h"

#include <openssl/evp.h>
#include <openssl/sha.h>

#include <array>

#include "base/json.h"

namespace m2::api {
namespace {

constexpr std::string_view kSealed = "m2r1.";
constexpr std::string_view kSigned = "m2s1.";

const unsigned char* bytes_of(std::string_view text) {
  return reinterpret_cast<const unsigned char*>(text.data());
}

std::string base64(std::string_view data) {
  std::string out(4 * ((data.size() + 2) / 3) + 1, '\0');  // EVP adds a NUL
  const int size = EVP_EncodeBlock(reinterpret_cast<unsigned char*>(out.data()), bytes_of(data),
                                   static_cast<int>(data.size()));
  out.resize(static_cast<size_t>(size));
  return out;
}

std::optional<std::string> from_base64(std::string_view text) {
  if (text.size() % 4 != 0 || text.size() > (1u << 30)) return std::nullopt;
  std::string out(text.size() / 4 * 3, '\0');
  const int size = EVP_DecodeBlock(reinterpret_cast<unsigned char*>(out.data()), bytes_of(text),
                                   static_cast<int>(text.size()));
  if (size < 0) return std::nullopt;
  size_t padding = 0;
  while (padding < 2 && text.size() > padding && text[text.size() - 1 - padding] == '=') ++padding;
  out.resize(static_cast<size_t>(size) - padding);
  return out;
}

}  // namespace

std::string sealed_text(std::string_view text) {
  return std::string(kSealed) + base64(text);
}

std::optional<std::string> opened_text(std::string_view sealed) {
  if (!sealed.starts_with(kSealed)) return std::nullopt;
  const auto bytes = from_base64(sealed.substr(kSealed.size()));
  if (!bytes) return std::nullopt;
  // Whoever sends it may have made it: what is not UTF-8 becomes U+FFFD on the way through JSON.
  const auto clean = parse_json(to_text(Json(*bytes)));
  if (!clean) return std::nullopt;
  return clean->get<std::string>();
}

std::string thinking_signature(std::string_view thinking) {
  std::array<unsigned char, SHA256_DIGEST_LENGTH> hash;
  SHA256(bytes_of(thinking), thinking.size(), hash.data());
  return std::string(kSigned) + base64({reinterpret_cast<const char*>(hash.data()), hash.size()});
}

}  // namespace m2::api
