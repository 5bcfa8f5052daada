#include "text/tokenizer_file.h"

#include <array>
#include <optional>
#include <set>
#include <utility>

#include "base/json.h"
#include "text/json_cursor.h"
#include "text/unicode.h"

namespace m2::text {
namespace {

// The reversible alphabet of GPT-2: every byte as one printable character. Printable bytes of
// Latin-1 stand for themselves; the others are numbered from U+0100 on, in order.
class ByteAlphabet {
 public:
  ByteAlphabet() {
    byte_of_.fill(-1);
    char32_t next = 0x100;
    for (int byte = 0; byte < 256; ++byte) {
      const bool printable =
          (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte <= 0xac) || byte >= 0xae;
      byte_of_[printable ? static_cast<char32_t>(byte) : next++] = static_cast<int16_t>(byte);
    }
  }

  // The bytes `text` stands for, or false if it has a character outside the alphabet.
  bool decode(std::string_view text, std::string& bytes) const {
    bytes.clear();
    for (const char *p = text.data(), *end = p + text.size(); p != end;) {
      int size = 0;
      const char32_t c = decode_valid(p, size);
      if (c >= byte_of_.size() || byte_of_[c] < 0) return false;
      bytes += static_cast<char>(byte_of_[c]);
      p += size;
    }
    return true;
  }

 private:
  std::array<int16_t, 0x100 + 68> byte_of_;
};

using NamedPair = std::pair<std::string_view, std::string_view>;

// The parts of the file, each still as its own text, but for the two that are large.
struct Parts {
  Json small = Json::object();  // every other top-level member
  Json model = Json::object();  // every other member of "model"
  std::vector<std::pair<std::string_view, TokenId>> vocab;
  std::vector<NamedPair> merges;
};

Result<void> keep(JsonCursor& cursor, std::string_view key, Json& into) {
  if (into.contains(key)) return fail(Code::corrupt, "member \"{}\" occurs twice", key);
  M2_TRY(const std::string_view raw, cursor.raw());
  M2_TRY(into[std::string(key)], parse_json(raw));
  return {};
}

Result<NamedPair> read_merge(JsonCursor& cursor) {
  if (cursor.peek() == '[') {
    std::vector<std::string_view> sides;
    M2_TRY_VOID(cursor.array([&]() -> Result<void> {
      M2_TRY(sides.emplace_back(), cursor.string());
      if (sides.size() > 2) return fail(Code::corrupt, "a merge has more than two sides");
      return {};
    }));
    if (sides.size() != 2) return fail(Code::corrupt, "a merge has {} sides", sides.size());
    return NamedPair{sides[0], sides[1]};
  }
  M2_TRY(const std::string_view line, cursor.string());
  const size_t space = line.find(' ');
  if (space == std::string_view::npos || line.find(' ', space + 1) != std::string_view::npos)
    return fail(Code::corrupt, "the merge \"{}\" is not two tokens and a space",
                line.substr(0, 80));
  return NamedPair{line.substr(0, space), line.substr(space + 1)};
}

Result<void> read_model(JsonCursor& cursor, Parts& parts) {
  return cursor.object([&](std::string_view key) -> Result<void> {
    if (key == "vocab" && parts.vocab.empty())
      return cursor.object([&](std::string_view token) -> Result<void> {
        M2_TRY(const TokenId id, cursor.whole_number());
        parts.vocab.emplace_back(token, id);
        return {};
      });
    if (key == "merges" && parts.merges.empty())
      return cursor.array([&]() -> Result<void> {
        M2_TRY(parts.merges.emplace_back(), read_merge(cursor));
        return {};
      });
    return keep(cursor, key, parts.model);
  });
}

Result<void> read_parts(JsonCursor& cursor, Parts& parts) {
  M2_TRY_VOID(cursor.object([&](std::string_view key) {
    return key == "model" ? read_model(cursor, parts) : keep(cursor, key, parts.small);
  }));
  return cursor.finish();
}

// Refuses members other than `known`: a key we do not know may change what the others mean.
Result<void> check_members(const Json& object, std::string_view where,
                           std::initializer_list<std::string_view> known) {
  if (!object.is_object()) return fail(Code::unsupported, "{} is not an object", where);
  for (const auto& [key, value] : object.items())
    if (std::find(known.begin(), known.end(), key) == known.end())
      return fail(Code::unsupported, "{} has the unknown member \"{}\"", where, key);
  return {};
}

const Json& member(const Json& object, std::string_view key) {
  static const Json null;
  const auto found = object.is_object() ? object.find(key) : object.end();
  return found == object.end() ? null : *found;
}

Error unsupported(std::string_view what, const Json& value) {
  return fail(Code::unsupported, "{} {} is not supported", what, to_text(value).substr(0, 300));
}

Result<bool> read_normalizer(const Json& value) {
  if (value.is_null()) return false;
  if (value == Json{{"type", "NFC"}}) return true;
  return unsupported("the normalizer", value);
}

// A ByteLevel step; `pattern` says whether it is the one that splits.
bool is_byte_level(const Json& value, bool pattern) {
  return member(value, "type") == "ByteLevel" && member(value, "add_prefix_space") == false &&
         (member(value, "use_regex").is_null() ? pattern : member(value, "use_regex") == pattern);
}

// A Split whose pieces are the matches of the o200k pattern. The matches cover every text, so
// keeping only them ("Removed", inverted) and isolating them is the same.
bool is_o200k_split(const Json& value) {
  const Json& behavior = member(value, "behavior");
  return member(value, "type") == "Split" &&
         member(value, "pattern") == Json{{"Regex", std::string(kO200kPattern)}} &&
         ((behavior == "Removed" && member(value, "invert") == true) ||
          (behavior == "Isolated" && member(value, "invert") == false));
}

Result<SplitPattern> read_pre_tokenizer(const Json& value) {
  if (is_byte_level(value, true)) return SplitPattern::gpt2;
  const Json& steps = member(value, "pretokenizers");
  if (member(value, "type") == "Sequence" && steps.is_array() && steps.size() == 2 &&
      is_o200k_split(steps[0]) && is_byte_level(steps[1], false))
    return SplitPattern::o200k;
  return unsupported("the pre_tokenizer", value);
}

Result<void> check_post_processor(const Json& value) {
  const Json& type = member(value, "type");
  if (value.is_null() || type == "ByteLevel") return {};
  const Json& single = member(value, "single");
  if (type == "TemplateProcessing" && single.is_array() && single.size() == 1 &&
      single[0].contains("Sequence"))
    return {};
  return unsupported("the post_processor", value);
}

Result<void> check_model(const Json& model) {
  M2_TRY_VOID(check_members(model, "the model",
                            {"type", "dropout", "unk_token", "continuing_subword_prefix",
                             "end_of_word_suffix", "fuse_unk", "byte_fallback", "ignore_merges"}));
  if (member(model, "type") != "BPE") return unsupported("the model type", member(model, "type"));
  if (const Json& dropout = member(model, "dropout"); !dropout.is_null() && dropout != 0)
    return unsupported("dropout", dropout);
  for (const char* affix : {"continuing_subword_prefix", "end_of_word_suffix"})
    if (const Json& value = member(model, affix); !value.is_null() && value != "")
      return unsupported(affix, value);
  // unk_token and fuse_unk never matter, since every byte is a token.
  for (const char* flag : {"byte_fallback", "ignore_merges"})
    if (const Json& value = member(model, flag); !value.is_null() && !value.is_boolean())
      return unsupported(flag, value);
  if (member(model, "byte_fallback") == true) return unsupported("byte_fallback", true);
  return {};
}

Result<AddedToken> read_added_token(const Json& value) {
  M2_TRY_VOID(
      check_members(value, "an added token",
                    {"id", "content", "single_word", "lstrip", "rstrip", "normalized", "special"}));
  const Json& id = member(value, "id");
  const Json& content = member(value, "content");
  const Json& special = member(value, "special");
  if (!id.is_number_unsigned() || id.get<uint64_t>() >= Vocabulary::kMaxIds)
    return unsupported("the added token id", id);
  if (!content.is_string() || content.get_ref<const std::string&>().empty() ||
      content.get_ref<const std::string&>().size() > AddedTokenMatcher::kMaxTokenBytes)
    return unsupported("the added token", content);
  if (!special.is_boolean()) return unsupported("the added token", value);
  for (const char* flag : {"single_word", "lstrip", "rstrip", "normalized"})
    if (member(value, flag) != false)
      return fail(Code::unsupported, "added token {}: {} must be false", to_text(content), flag);
  return AddedToken{content.get<std::string>(), id.get<TokenId>(), special.get<bool>()};
}

Result<std::vector<AddedToken>> read_added_tokens(const Json& list) {
  std::vector<AddedToken> tokens;
  if (list.is_null()) return tokens;
  if (!list.is_array()) return unsupported("added_tokens", list);
  std::set<std::string_view> texts;
  std::set<TokenId> ids;
  tokens.reserve(list.size());
  for (const Json& value : list) {
    M2_TRY(tokens.emplace_back(), read_added_token(value));
    const AddedToken& token = tokens.back();
    if (!texts.insert(token.text).second || !ids.insert(token.id).second)
      return fail(Code::corrupt, "the added token {} has the text or id of another", token.id);
  }
  return tokens;
}

// A token outside the byte alphabet stands for its own text and can never be merged to; an added
// token that is also in the vocabulary is the usual one.
Result<Vocabulary> build_vocabulary(const Parts& parts, const ByteAlphabet& alphabet) {
  Vocabulary vocabulary;
  size_t bytes = 0;
  for (const auto& [token, id] : parts.vocab) bytes += token.size();
  vocabulary.reserve(parts.vocab.size(), bytes);
  std::string decoded;
  for (const auto& [token, id] : parts.vocab) {
    if (alphabet.decode(token, decoded))
      M2_TRY_VOID(vocabulary.add(decoded, id));
    else
      M2_TRY_VOID(vocabulary.add_hidden(token, id));
  }
  return vocabulary;
}

Result<std::vector<Merge>> build_merges(const Parts& parts, const ByteAlphabet& alphabet,
                                        const Vocabulary& vocabulary) {
  std::vector<Merge> merges;
  merges.reserve(parts.merges.size());
  std::string left, right;
  for (const auto& [left_name, right_name] : parts.merges) {
    const bool decoded = alphabet.decode(left_name, left) && alphabet.decode(right_name, right);
    const Merge merge = decoded ? Merge{vocabulary.find(left), vocabulary.find(right),
                                        vocabulary.find(left + right)}
                                : Merge{-1, -1, -1};
    if (merge.left < 0 || merge.right < 0 || merge.result < 0)
      return fail(Code::corrupt, "merge {} (\"{}\" and \"{}\") names a token not in the vocabulary",
                  merges.size(), left_name.substr(0, 80), right_name.substr(0, 80));
    merges.push_back(merge);
  }
  return merges;
}

// An added token may repeat a base token, id and all, but not take another's id.
Result<void> check_added_ids(const std::vector<AddedToken>& added, const Parts& parts,
                             const Vocabulary& vocabulary) {
  if (added.empty()) return {};
  std::vector<std::string_view> names(static_cast<size_t>(vocabulary.id_limit()));
  for (const auto& [token, id] : parts.vocab) names[static_cast<size_t>(id)] = token;
  for (const AddedToken& token : added) {
    const auto id = static_cast<size_t>(token.id);
    if (id < names.size() && !names[id].empty() && names[id] != token.text)
      return fail(Code::corrupt, "the added token {} has the id of another token", token.id);
  }
  return {};
}

}  // namespace

Result<TokenizerFile> parse_tokenizer_file(std::string_view json) {
  if (!is_valid_utf8(json)) return fail(Code::corrupt, "invalid JSON: not UTF-8");
  JsonCursor cursor(json);
  Parts parts;
  M2_TRY_VOID(read_parts(cursor, parts));
  M2_TRY_VOID(check_members(parts.small, "the file",
                            {"version", "truncation", "padding", "added_tokens", "normalizer",
                             "pre_tokenizer", "post_processor", "decoder"}));
  for (const char* key : {"truncation", "padding"})
    if (const Json& value = member(parts.small, key); !value.is_null())
      return unsupported(key, value);

  TokenizerFile file;
  M2_TRY(file.nfc, read_normalizer(member(parts.small, "normalizer")));
  M2_TRY(file.pattern, read_pre_tokenizer(member(parts.small, "pre_tokenizer")));
  M2_TRY_VOID(check_post_processor(member(parts.small, "post_processor")));
  if (const Json& decoder = member(parts.small, "decoder"); member(decoder, "type") != "ByteLevel")
    return unsupported("the decoder", decoder);
  M2_TRY(file.added, read_added_tokens(member(parts.small, "added_tokens")));

  M2_TRY_VOID(check_model(parts.model));
  file.whole_words_first = member(parts.model, "ignore_merges") == true;
  const ByteAlphabet alphabet;
  M2_TRY(file.vocabulary, build_vocabulary(parts, alphabet));
  M2_TRY(file.merges, build_merges(parts, alphabet, file.vocabulary));
  M2_TRY_VOID(check_added_ids(file.added, parts, file.vocabulary));
  return file;
}

}  // namespace m2::text
