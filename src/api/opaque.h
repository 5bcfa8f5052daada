#pragma once

#include <optional>
#include <string>
#include <string_view>

// Text that clients carry for us without looking into it.

namespace m2::api {

// What `encrypted_content` of a reasoning item holds: the reasoning itself, so that a client that
// keeps nothing else can give it back. Not a secret: the same reply says it in clear.
std::string sealed_text(std::string_view text);
// The text, if it was sealed here; else nothing (another server's, or damaged).
std::optional<std::string> opened_text(std::string_view sealed);

// The signature of a thinking block: a digest by which a block is known as ours and unchanged.
std::string thinking_signature(std::string_view thinking);

}  // namespace m2::api
