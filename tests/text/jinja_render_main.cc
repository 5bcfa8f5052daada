#include <iostream>
#include <string>

#include "text/chat_template.h"
#include "text/python_json.h"

// Renders templates for jinja_differential.py. Each line of standard input is a JSON object
// {"template", "variables"} or {"dump", "ensure_ascii", "indent"}; each line of output is
// {"text", "pieces"} or {"error", "code"}. A template equal to the line before's is parsed once.

namespace {

using m2::Json;
using namespace m2::text;

Json error_json(const m2::Error& error) {
  return {{"error", error.text}, {"code", static_cast<int>(error.code)}};
}

Json render(const ChatTemplate& chat_template, const Json& variables) {
  const auto text = chat_template.render(variables);
  if (!text.ok()) return error_json(text.error());
  const auto pieces = chat_template.render_pieces(variables);
  if (!pieces.ok()) return error_json(pieces.error());
  Json list = Json::array();
  for (const TextPiece& piece : *pieces)
    list.push_back({piece.text, piece.added == AddedTokens::nonspecial});
  return {{"text", *text}, {"pieces", std::move(list)}};
}

class Renderer {
 public:
  Json answer(const Json& line) {
    if (line.contains("dump"))
      return {{"text", python_json(line["dump"], line["ensure_ascii"], line["indent"])}};
    const std::string source = line["template"];
    if (!last_ || source != source_) {
      source_ = source;
      last_ = nullptr;
      auto parsed = ChatTemplate::parse(source);
      if (!parsed.ok()) return error_json(parsed.error());
      last_ = *parsed;
    }
    return render(*last_, line["variables"]);
  }

 private:
  std::string source_;
  std::shared_ptr<const ChatTemplate> last_;
};

}  // namespace

int main() {
  std::ios::sync_with_stdio(false);
  Renderer renderer;
  for (std::string line; std::getline(std::cin, line);)
    std::cout << renderer.answer(Json::parse(line)).dump() << '\n';
  return 0;
}
