#pragma once

#include <memory>
#include <string>
#include <vector>

#include "base/json.h"
#include "text/tokenizer.h"

// A tokenizer.json of a few hundred tokens for tests, in the released form, to load or to spoil.

namespace m2::text {

// Bytes as tokens 0..255 in byte order; then one token per merge of "he", "ll", "hell", "o " ...;
// then the added tokens "]~b]" and "<a>" (special), "<think>" and "<thi" (not).
Json toy_tokenizer_json();

// Writes `json` to a file of its own and loads it.
Result<std::shared_ptr<const Tokenizer>> load_text(const std::string& json);

}  // namespace m2::text
