#pragma once

#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"
#include "text/added_tokens.h"
#include "text/bpe.h"
#include "text/pretokenizer.h"

namespace m2::text {

// What a tokenizer.json of the kind we know says, checked.
struct TokenizerFile {
  bool nfc = false;
  SplitPattern pattern = SplitPattern::o200k;
  std::vector<AddedToken> added;
  bool whole_words_first = false;
  Vocabulary vocabulary;
  std::vector<Merge> merges;
};

// Reads the text of a Hugging Face tokenizer.json (`tokenizers` 0.10 and later). Accepts:
//   normalizer      null or NFC
//   pre_tokenizer   Sequence of Split by kO200kPattern and ByteLevel, or ByteLevel with its own
//                   pattern (kGpt2Pattern); no prefix space
//   model           BPE over bytes; merges as "a b" or ["a", "b"]; every byte a token
//   decoder         ByteLevel
//   post_processor  null, ByteLevel, or a template that adds no token
//   added_tokens    literal ones (normalized, lstrip, rstrip, single_word false)
//   truncation, padding   null
// Refuses anything else, naming it. Errors: corrupt, unsupported.
Result<TokenizerFile> parse_tokenizer_file(std::string_view json);

}  // namespace m2::text
