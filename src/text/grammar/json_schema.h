#pragma once

#include <map>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "base/json.h"
#include "base/result.h"
#include "text/grammar/pattern.h"
#include "text/grammar/rules.h"

// JSON Schema to grammar rules. What a keyword says is kept exactly or the keyword is refused by
// name; nothing is passed over in silence. Of the values that a schema accepts the grammar writes
// those a model should: properties in the order declared, undeclared ones only where the schema
// asks for them, a schema without `type` read as the type its keywords speak of, numbers of at most
// 18 digits, a few forms of blanks.

namespace m2::text {

struct SchemaOptions {
  Spelling spelling = Spelling::json;  // or json_value
  // Keywords that have no grammar are passed over and noted, instead of refused.
  bool lenient = false;
  bool any_whitespace = true;  // else one blank after ',' and ':'
  std::optional<std::string> whitespace =
      {};  // blanks between tokens, as regex_pattern() gives them
};

class SchemaGrammar {
 public:
  // `root` is what "$ref"s point into; check_references() let it pass. Both outlive this.
  SchemaGrammar(const Json& root, SchemaOptions options, Rules& rules);

  // JSON texts of the values `schema` accepts. Errors: invalid_argument (names the keyword that is
  // malformed or not supported), resource_exhausted.
  Result<Language> values(const Json& schema);

  // The schema as alternatives free of $ref, allOf, anyOf and oneOf, one of which must hold.
  Result<std::vector<Json>> expand(const Json& schema);

  // Whether `value` fits a schema that expand() made; of its keywords only those of single values.
  static bool admits(const Json& schema, const Json& value);

  // The types that such a schema names or its keywords speak of; none: any.
  static Result<std::vector<std::string>> types_of(const Json& schema);

  // A string's characters by minLength, maxLength, pattern and format, and `close`, the literal
  // that ends them. `open` is the byte before them.
  Result<Language> string_until(const Json& schema, Spelling spelling, char open,
                                const std::string& close);
  Result<Language> integers(const Json& schema);
  Result<Language> numbers(const Json& schema);

  const std::set<std::string>& ignored() const { return ignored_; }
  const std::string& any_value();

 private:
  static constexpr int kMaxDepth = 64;            // of schemas within schemas
  static constexpr int64_t kMaxVisited = 20'000;  // schemas looked at, with those made of them

  Result<void> unsupported(const std::string& keyword, const std::string& why = "");
  Result<void> note_compared(uint64_t many, uint64_t others);
  Result<void> check_keywords(const Json& schema);
  Result<std::vector<Json>> expand(const Json& schema, int depth);
  Result<std::vector<Json>> branches(const Json& list, const std::string& keyword, int depth);
  Result<bool> disjoint(const Json& a, const Json& b);
  Result<Json> merge(const Json& a, const Json& b);
  Result<std::optional<Json>> merge_keyword(const Json& a, const Json& b, const std::string& key);
  Result<void> check_merge(const Json& a, const Json& b);

  Result<Language> rule_of(const Json& schema);
  Result<Language> union_of(const Json& list);
  Result<Language> flat(const Json& schema);
  Result<Language> finite(const Json& schema, const Json& members);
  Result<Language> of_type(const Json& schema, const std::string& type);
  Result<std::string> regex_of(const Json& schema, Spelling spelling);
  Result<Language> string_body(const std::string& regex, Spelling spelling, TextLimit& limit);
  Result<Language> strings(const Json& schema);
  Result<Language> arrays(const Json& schema);
  Result<Language> objects(const Json& schema);
  Result<std::string> map_members(const Json& schema, const Json& value_schema, const Json* key);

  // A declared member, "key": value.
  struct Member {
    std::string text;
    bool required;
  };
  // What the schema says of names that are not declared: schemas of their values and of the names
  // themselves; null: no such member, or any name.
  struct OtherMembers {
    const Json* values = nullptr;
    const Json* names = nullptr;
    bool none() const { return !values || *values == Json(false); }
  };
  Result<OtherMembers> other_members(const Json& schema, const Json& properties, Json& pattern);
  Result<std::optional<std::vector<Member>>> declared_members(const Json& properties,
                                                              std::set<std::string> required,
                                                              OtherMembers& others);
  std::string in_order(const std::vector<Member>& declared, size_t first_required,
                       const std::string& next_map);
  std::string any_of_them(const std::vector<Member>& declared, const std::string& map,
                          const std::string& next_map);
  Result<Language> members(const Json& schema);
  std::string blanks();
  std::string comma() { return "\",\" " + gap_; }

  const Json& root_;
  const SchemaOptions options_;
  Rules& rules_;
  std::string blank_, gap_;  // between brackets and values; after ',' and ':'
  std::string any_;
  std::map<std::string, std::string> known_;  // rule by schema text
  std::set<std::string> ignored_;
  int64_t visited_ = 0;
  uint64_t compared_ = 0;
  int depth_ = 0;
};

// Whole grammars. `schema` null means any JSON object.
Result<GrammarText> json_schema_grammar(const Json& schema, const SchemaOptions& options);

}  // namespace m2::text
