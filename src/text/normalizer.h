#pragma once

#include <string>
#include <string_view>

namespace m2::text {

// `text` as valid UTF-8 (ill-formed sequences become U+FFFD) and, if `nfc`, in Unicode
// normalisation form C. Returns `text` itself where nothing had to change, else a view of
// `storage`. Takes O(n) time, and O(k log k) for a run of k combining marks.
std::string_view normalize(std::string_view text, bool nfc, std::string& storage);

}  // namespace m2::text
