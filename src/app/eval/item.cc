#include "app/eval/item.h"

#include <cctype>
#include <fstream>

#include "app/eval/judge.h"

namespace m2::app::eval {
namespace {

constexpr size_t kMostLineBytes = 16u << 20;

const Json* first_of(const Json& line, std::initializer_list<const char*> names) {
  for (const char* name : names)
    if (const auto found = line.find(name); found != line.end() && !found->is_null())
      return &*found;
  return nullptr;
}

Result<Json> read_messages(const Json& line) {
  const Json* const asked = first_of(line, {"messages", "input", "question", "problem", "prompt"});
  if (!asked)
    return fail(Code::invalid_argument,
                "a line needs `messages` or `input`, or a text `question`, `problem` or `prompt`");
  if (asked->is_array()) return *asked;
  if (asked->is_string()) return Json::array({{{"role", "user"}, {"content", *asked}}});
  return fail(Code::invalid_argument, "the question should be a text or a list of messages");
}

Result<std::vector<std::string>> read_answers(const Json& line) {
  const Json* const right = first_of(line, {"answer", "ideal", "expected", "target"});
  std::vector<std::string> out;
  if (!right)
    return fail(Code::invalid_argument,
                "a line needs an `answer` (or `ideal`, `expected`, `target`)");
  for (const Json& one : right->is_array() ? *right : Json::array({*right}))
    out.push_back(one.is_string() ? one.get<std::string>() : to_text(one));
  if (out.empty()) return fail(Code::invalid_argument, "the list of right answers is empty");
  return out;
}

Result<std::vector<Step>> read_steps(const Json& line) {
  std::vector<Step> out;
  const Json* const steps = first_of(line, {"steps"});
  if (!steps) return out;
  try {
    for (const Json& step : *steps) {
      Step& to = out.emplace_back();
      for (const Json& call : step.at("calls"))
        to.calls.push_back({call.at("name").get<std::string>(), call.at("arguments")});
      to.results = step.at("results").get<std::vector<std::string>>();
      if (to.results.size() != to.calls.size())
        return fail(Code::invalid_argument, "a step needs one of `results` for each of `calls`");
    }
  } catch (const Json::exception& fault) {
    return fail(Code::invalid_argument, "steps: {}", fault.what());
  }
  return out;
}

bool is_letter(const std::string& text) {
  return text.size() == 1 && text[0] >= 'A' && text[0] <= 'Z';
}

Result<Match> read_match(const Json& line, const std::string& answer) {
  const Json* const given = first_of(line, {"match"});
  if (!given) {
    if (is_letter(answer)) return Match::choice;
    return number_in(answer) ? Match::number : Match::contains;
  }
  constexpr std::pair<const char*, Match> kNames[] = {{"exact", Match::exact},
                                                      {"contains", Match::contains},
                                                      {"number", Match::number},
                                                      {"choice", Match::choice},
                                                      {"json", Match::json}};
  for (const auto& [name, match] : kNames)
    if (*given == name) return match;
  return fail(Code::invalid_argument,
              "`match` is one of exact, contains, number, choice, json; got {}", to_text(*given));
}

}  // namespace

Result<Item> read_item(const Json& line, int64_t number) {
  if (!line.is_object()) return fail(Code::invalid_argument, "a line should be a JSON object");
  Item out;
  const Json* const id = first_of(line, {"id"});
  out.id = !id ? std::to_string(number) : id->is_string() ? id->get<std::string>() : to_text(*id);
  M2_TRY(out.messages, read_messages(line));
  if (const Json* const tools = first_of(line, {"tools"})) out.tools = *tools;
  M2_TRY(out.steps, read_steps(line));
  M2_TRY(out.answers, read_answers(line));
  M2_TRY(out.match, read_match(line, out.answers.front()));
  return out;
}

Result<ItemSet> read_item_set(const std::filesystem::path& path) {
  std::ifstream file(path);
  if (!file) return fail(Code::not_found, "cannot read {}", path.string());
  ItemSet out{path.stem().string(), {}};
  std::string text;
  for (int64_t number = 1; std::getline(file, text); ++number) {
    if (text.find_first_not_of(" \t\r") == std::string::npos) continue;
    if (text.size() > kMostLineBytes)
      return fail(Code::invalid_argument, "{}:{}: the line is longer than {} bytes", path.string(),
                  number, kMostLineBytes);
    const Result<Json> line = parse_json(text);
    Result<Item> item = line.ok() ? read_item(*line, number) : Result<Item>(line.error());
    if (!item.ok())
      return fail(Code::invalid_argument, "{}:{}: {}", path.string(), number, item.error().text);
    out.items.push_back(*std::move(item));
  }
  if (out.items.empty()) return fail(Code::invalid_argument, "{} has no items", path.string());
  return out;
}

}  // namespace m2::app::eval
