#include "text/tokenizer.h"

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <optional>
#include <unordered_map>

#include "text/added_tokens.h"
#include "text/bpe.h"
#include "text/normalizer.h"
#include "text/pretokenizer.h"
#include "text/tokenizer_file.h"
#include "text/unicode.h"

namespace m2::text {
namespace {

constexpr size_t kMaxFileBytes = 256u << 20;

// A stretch of text up to `end` and the added tokens that may match in it.
struct Stretch {
  size_t end;
  AddedTokens added;
};

// Whether an added token may match at a place of a text made of stretches: every stretch it
// touches must allow it. Asked with growing places.
class Permission {
 public:
  explicit Permission(std::span<const Stretch> stretches) : next_(stretches) {}

  bool operator()(bool special, size_t begin, size_t end) {
    while (next_.front().end <= begin) next_ = next_.subspan(1);
    for (const Stretch& stretch : next_) {
      if (stretch.added == AddedTokens::none) return false;
      if (stretch.added == AddedTokens::nonspecial && special) return false;
      if (stretch.end >= end) break;
    }
    return true;
  }

 private:
  std::span<const Stretch> next_;  // from the one that holds the last place asked about
};

class BpeTokenizer final : public Tokenizer {
 public:
  BpeTokenizer(bool nfc, SplitPattern pattern, Bpe bpe, std::vector<AddedToken> added)
      : nfc_(nfc),
        pattern_(pattern),
        bpe_(std::move(bpe)),
        added_(std::move(added)),
        matcher_(added_) {
    for (const AddedToken& token : added_) {
      const auto id = static_cast<size_t>(token.id);
      if (id >= added_by_id_.size()) added_by_id_.resize(id + 1, nullptr);
      added_by_id_[id] = &token;
      added_by_text_[token.text] = &token;
    }
  }

  std::vector<TokenId> encode(std::string_view text, AddedTokens added) const override {
    const Stretch whole{text.size(), added};
    return encode(text, {&whole, 1});
  }

  std::vector<TokenId> encode(std::span<const TextPiece> pieces) const override {
    std::string text;
    std::vector<Stretch> stretches;
    for (const TextPiece& piece : pieces) {
      text += piece.text;
      if (!piece.text.empty()) stretches.push_back({text.size(), piece.added});
    }
    return encode(text, stretches);
  }

  std::string_view bytes(TokenId id) const override {
    const AddedToken* added = added_token(id);
    return added != nullptr ? std::string_view(added->text) : bpe_.vocabulary().bytes(id);
  }
  bool is_added(TokenId id) const override { return added_token(id) != nullptr; }
  bool is_special(TokenId id) const override {
    const AddedToken* added = added_token(id);
    return added != nullptr && added->special;
  }

  std::string decode(std::span<const TokenId> ids, bool skip_special) const override {
    std::string joined;
    for (const TokenId id : ids)
      if (!skip_special || !is_special(id)) joined += bytes(id);
    std::string text;
    append_replacing_invalid(joined, text);
    return text;
  }

  TokenId id_of(std::string_view token) const override {
    const auto added = added_by_text_.find(token);
    return added != added_by_text_.end() ? added->second->id : bpe_.vocabulary().find(token);
  }

  TokenId id_limit() const override {
    return std::max(bpe_.vocabulary().id_limit(), static_cast<TokenId>(added_by_id_.size()));
  }
  TokenId base_vocab_size() const override { return bpe_.vocabulary().size(); }

 private:
  const AddedToken* added_token(TokenId id) const {
    const bool known = id >= 0 && static_cast<size_t>(id) < added_by_id_.size();
    return known ? added_by_id_[static_cast<size_t>(id)] : nullptr;
  }

  // `stretches` end at growing places, the last one at the end of the text.
  std::vector<TokenId> encode(std::string_view text, std::span<const Stretch> stretches) const {
    std::vector<TokenId> ids;
    ids.reserve(text.size() / 3 + 8);
    Permission allowed(stretches);
    std::string storage;
    size_t at = 0;
    while (const auto match = matcher_.find(text, at, std::ref(allowed))) {
      encode_plain(text.substr(at, match->begin - at), storage, ids);
      ids.push_back(match->id);
      at = match->end;
    }
    encode_plain(text.substr(at), storage, ids);
    return ids;
  }

  // The text between two added tokens.
  void encode_plain(std::string_view text, std::string& storage, std::vector<TokenId>& ids) const {
    Pretokenizer pretokens(pattern_, normalize(text, nfc_, storage));
    for (auto word = pretokens.next(); !word.empty(); word = pretokens.next())
      bpe_.encode(word, ids);
  }

  bool nfc_;
  SplitPattern pattern_;
  Bpe bpe_;
  std::vector<AddedToken> added_;
  AddedTokenMatcher matcher_;
  std::vector<const AddedToken*> added_by_id_;
  std::unordered_map<std::string_view, const AddedToken*> added_by_text_;
};

Result<std::string> read_file(const std::string& path) {
  std::error_code ignored;
  if (!std::filesystem::is_regular_file(path, ignored))  // opening a pipe would wait for ever
    return fail(Code::not_found, "{} is no file", path);
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  if (!file) return fail(Code::not_found, "cannot open {}", path);
  const std::streamoff size = file.tellg();
  if (size < 0 || static_cast<size_t>(size) > kMaxFileBytes)
    return fail(Code::resource_exhausted, "{} is not a file of at most {} MiB", path,
                kMaxFileBytes >> 20);
  std::string text(static_cast<size_t>(size), '\0');
  file.seekg(0);
  if (!file.read(text.data(), size)) return fail(Code::corrupt, "cannot read {}", path);
  return text;
}

}  // namespace

Result<std::shared_ptr<const Tokenizer>> Tokenizer::parse(std::string_view json) {
  M2_TRY(TokenizerFile file, parse_tokenizer_file(json));
  M2_TRY(Bpe bpe,
         Bpe::build(std::move(file.vocabulary), std::move(file.merges), file.whole_words_first));
  return std::shared_ptr<const Tokenizer>(std::make_shared<BpeTokenizer>(
      file.nfc, file.pattern, std::move(bpe), std::move(file.added)));
}

Result<std::shared_ptr<const Tokenizer>> Tokenizer::load(const std::string& path) {
  M2_TRY(const std::string json, read_file(path));
  auto tokenizer = parse(json);
  if (tokenizer.ok()) return tokenizer;
  Error error = std::move(tokenizer).error();
  error.text = fmt::format("{}: {}", path, error.text);
  error.param = path;
  return error;
}

}  // namespace m2::text
