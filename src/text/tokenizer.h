#pragma once

#include <cstdint>
#include <memory>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "base/result.h"

namespace m2::text {

using TokenId = int32_t;

// Which added tokens are cut out of a text before it is split (model.md 3.3).
enum class AddedTokens {
  all,         // every one: rendered prompts
  nonspecial,  // only those with special=false: text typed by people or returned by tools
  none,
};

// A piece of a prompt and how control tokens in it are read. Adjacent pieces are encoded as one
// text: byte pairs merge across a border as they would in the joined string.
struct TextPiece {
  std::string text;
  AddedTokens added = AddedTokens::all;
};

// A byte-level BPE tokenizer read from a Hugging Face tokenizer.json. Immutable after load;
// all methods are const and thread-safe.
class Tokenizer {
 public:
  // Reads tokenizer.json. Accepts the family's form: NFC normalizer or none, a Split pre-tokenizer
  // with the o200k pattern followed by ByteLevel, or ByteLevel with GPT-2's own pattern, a BPE
  // model with any vocabulary and merge list over all bytes, a ByteLevel decoder, no post-processor
  // or one that adds nothing. Anything else is refused by name (text/tokenizer_file.h has the
  // list). Errors: not_found, corrupt, unsupported, resource_exhausted; param is the path.
  static Result<std::shared_ptr<const Tokenizer>> load(const std::string& path);

  // The same from the text of a tokenizer.json.
  static Result<std::shared_ptr<const Tokenizer>> parse(std::string_view json);

  virtual ~Tokenizer() = default;

  // The ids of `text`, the same as the `tokenizers` package gives. O(n log n) at worst, whatever
  // the text (which must be shorter than 1 GiB). Where it is not valid UTF-8, each ill-formed
  // sequence is read as one U+FFFD, as Python's and Rust's lossy decoding do.
  virtual std::vector<TokenId> encode(std::string_view text, AddedTokens added) const = 0;
  // The ids of the pieces' joined text. An added token matches where every piece it touches allows
  // it: leftmost first, and the longest of those allowed.
  virtual std::vector<TokenId> encode(std::span<const TextPiece> pieces) const = 0;

  // The bytes of one token: an added token's text, or the bytes a base token stands for. Empty for
  // an id the tokenizer does not have.
  virtual std::string_view bytes(TokenId id) const = 0;
  virtual bool is_added(TokenId id) const = 0;
  virtual bool is_special(TokenId id) const = 0;

  // The text of ids: bytes joined, invalid UTF-8 replaced by U+FFFD as the reference does.
  virtual std::string decode(std::span<const TokenId> ids, bool skip_special) const = 0;

  // The id of the added token with this text, else of the base token with these bytes, or -1.
  virtual TokenId id_of(std::string_view token) const = 0;

  // One more than the largest id (added tokens included).
  virtual TokenId id_limit() const = 0;
  // Size of the base vocabulary, without added tokens.
  virtual TokenId base_vocab_size() const = 0;
};

// Turns a growing list of ids into text that never ends inside a UTF-8 character. One per request.
class Detokenizer {
 public:
  Detokenizer(std::shared_ptr<const Tokenizer> tokenizer, bool skip_special);

  // The text that became certain with this id: complete characters only; bytes of an unfinished
  // character are kept back. A byte that cannot begin or continue a character becomes U+FFFD.
  // Cost is independent of how many ids came before.
  std::string add(TokenId id);

  // The end: what is still held back, as U+FFFD.
  std::string finish();

 private:
  std::shared_ptr<const Tokenizer> tokenizer_;
  bool skip_special_;
  std::string pending_;  // at most 3 bytes of an unfinished character
};

}  // namespace m2::text
