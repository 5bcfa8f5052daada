#include "app/inspect.h"

#include <array>
#include <charconv>
#include <cstdio>

#include "app/environment.h"
#include "app/model_files.h"
#include "app/terminal.h"
#include "model/weight_table.h"
#include "server/conversation.h"
#include "text/output_reader.h"

namespace m2::app {
namespace {

using enum OptionKind;

// clang-format off
// What finds and reads the model; the same in every command, and the same as in `m2 serve`.
#define M2_MODEL_OPTIONS                                                                           \
  {"revision", "", "model", text, "main", "Branch, tag or commit of a hub name."},                 \
  {"download-dir", "", "model", text, "", "Hub cache to look in, instead of HF_HUB_CACHE or HF_HOME."}, \
  {"tokenizer", "", "model", text, "", "Folder with tokenizer.json, or name in the hub cache, if not the model's."}, \
  {"tokenizer-revision", "", "model", text, "main", "Branch, tag or commit of --tokenizer, if that is a hub name."}, \
  {"chat-template", "", "model", text, "", "Chat template: a file, or the template itself."},      \
  {"hf-overrides", "", "model", json, "", "Fields of config.json to replace."},                    \
  {"generation-config", "", "model", text, "auto", "auto, vllm (none), or a folder."},             \
  {"override-generation-config", "", "model", json, "", "Fields of generation_config.json to replace."}

constexpr Option kModelOptions[] = {M2_MODEL_OPTIONS};

constexpr Option kRenderOptions[] = {
  {"ids", "", "output", flag, "false", "Print token ids instead of text."},
  M2_MODEL_OPTIONS,
};

constexpr Option kParseOptions[] = {
  {"tools", "", "input", text, "", "JSON file with the request's tools, which type the arguments."},
  {"reasoning-parser", "", "input", text, "minimax_m2", "minimax_m2, minimax_m2_append_think or none."},
  {"tool-call-parser", "", "input", text, "minimax_m2", "minimax_m2 or none."},
  {"split", "", "input", integer, "0", "Feed the text this many bytes at a time; 0: all at once."},
  {"thinking", "", "input", flag, "true", "The prompt ended inside thinking, as the template leaves it."},
  {"cut", "", "input", flag, "false", "The text was cut by a length limit."},
  {"stream", "", "output", flag, "false", "Print the deltas, one JSON object a line."},
  M2_MODEL_OPTIONS,
};

constexpr Option kWeightsOptions[] = {
  {"tensor-parallel-size", "-tp", "parallel", integer, "1", "Show the share of one of this many ranks."},
  {"rank", "", "parallel", integer, "0", "Which rank."},
  {"enable-expert-parallel", "-ep", "parallel", flag, "false", "Ranks hold whole experts."},
  M2_MODEL_OPTIONS,
};
// clang-format on

constexpr Command kCommands[] = {
    {"inspect tokenize", "MODEL", "Text on standard input -> JSON array of token ids.",
     "Added tokens in the text are matched, as the tokenizers package does.", kModelOptions},
    {"inspect detokenize", "MODEL", "Token ids on standard input -> text.",
     "Ids stand in a JSON array, or are parted by blanks or commas.", kModelOptions},
    {"inspect render", "MODEL", "Chat request (JSON) on standard input -> the prompt's text.", "",
     kRenderOptions},
    {"inspect parse", "MODEL",
     "What the model wrote, on standard input -> the message a client would get (JSON).",
     "The same state machine as the server's; the result does not depend on --split.",
     kParseOptions},
    {"inspect weights", "MODEL", "The checkpoint's table of weights.", "", kWeightsOptions},
};

int report(const Error& error) {
  std::fprintf(stderr, "m2 inspect: %s\n", error.text.c_str());
  return 1;
}

void print_line(const std::string& text) {
  std::fwrite(text.data(), 1, text.size(), stdout);
  std::fputc('\n', stdout);
}

std::string ids_text(std::span<const text::TokenId> ids) {
  std::string out = "[";
  for (const text::TokenId id : ids) out += fmt::format("{}{}", out.size() > 1 ? ", " : "", id);
  return out + "]";
}

Result<std::vector<text::TokenId>> read_ids(std::string_view text) {
  constexpr std::string_view kBetween = " \t\r\n,[]";
  std::vector<text::TokenId> out;
  while (true) {
    const size_t begin = text.find_first_not_of(kBetween);
    if (begin == std::string_view::npos) return out;
    text.remove_prefix(begin);
    const std::string_view word = text.substr(0, text.find_first_of(kBetween));
    text::TokenId id;
    const auto [end, error] = std::from_chars(word.data(), word.data() + word.size(), id);
    if (error != std::errc{} || end != word.data() + word.size())
      return fail(Code::invalid_argument, "'{}' is no token id", word.substr(0, 40));
    out.push_back(id);
    text.remove_prefix(word.size());
  }
}

Result<void> tokenize(const std::filesystem::path& folder, const Values& values) {
  M2_TRY(const auto tokenizer, read_tokenizer(folder, values));
  print_line(ids_text(tokenizer->encode(read_stdin(), text::AddedTokens::all)));
  return {};
}

Result<void> detokenize(const std::filesystem::path& folder, const Values& values) {
  M2_TRY(const auto tokenizer, read_tokenizer(folder, values));
  M2_TRY(const std::vector<text::TokenId> ids, read_ids(read_stdin()));
  for (const text::TokenId id : ids) {
    if (id < 0 || tokenizer->bytes(id).empty())
      return fail(Code::invalid_argument, "the tokenizer has no token {}", id);
  }
  print_line(tokenizer->decode(ids, false));
  return {};
}

// The prompt of a chat request, made as the server makes it.
Result<std::vector<text::TextPiece>> prompt_pieces(const std::filesystem::path& folder,
                                                   const Values& values, const Json& body) {
  std::vector<std::string> unknown_fields;
  M2_TRY(const api::ChatRequest request, api::chat_request_from_json(body, unknown_fields));
  const server::ServerOptions options;
  server::ModelServices services;
  M2_TRY(services.chat_template, read_chat_template(folder, values));
  const server::ChatPromptFields fields{request.messages,
                                        request.tools,
                                        request.add_generation_prompt,
                                        request.continue_final_message,
                                        request.chat_template,
                                        request.chat_template_kwargs,
                                        request.documents};
  M2_TRY(server::ChatText text, server::chat_text(fields, options, services));
  return std::move(text.pieces);
}

Result<void> render(const std::filesystem::path& folder, const Values& values) {
  M2_TRY(const Json body, parse_json(read_stdin()));
  M2_TRY(const std::vector<text::TextPiece> pieces, prompt_pieces(folder, values, body));
  if (values.flag("ids")) {
    M2_TRY(const auto tokenizer, read_tokenizer(folder, values));
    print_line(ids_text(tokenizer->encode(pieces)));
    return {};
  }
  for (const text::TextPiece& piece : pieces)
    std::fwrite(piece.text.data(), 1, piece.text.size(), stdout);
  return {};
}

Json delta_json(const text::OutputDelta& delta) {
  using Kind = text::OutputDelta::Kind;
  switch (delta.kind) {
    case Kind::reasoning:
      return {{"reasoning", delta.text}};
    case Kind::content:
      return {{"content", delta.text}};
    case Kind::call_begin:
      return {{"index", delta.call_index}, {"id", delta.id}, {"name", delta.name}};
    case Kind::call_arguments:
      return {{"index", delta.call_index}, {"arguments", delta.text}};
  }
  return {};
}

Json message_json(const text::AssistantMessage& message) {
  Json out;
  out["role"] = "assistant";
  out["reasoning"] = message.has_reasoning ? Json(message.reasoning) : Json();
  out["content"] = message.has_content ? Json(message.content) : Json();
  out["tool_calls"] = Json::array();
  for (const auto& call : message.tool_calls) {
    out["tool_calls"].push_back(
        {{"id", call.id},
         {"type", "function"},
         {"function", {{"name", call.name}, {"arguments", call.arguments}}}});
  }
  return out;
}

Result<text::ReaderOptions> reader_options(const Values& values) {
  text::ReaderOptions out;
  M2_TRY(out.reasoning, text::reasoning_parser_named(values.text("reasoning-parser")));
  M2_TRY(out.tools, text::tool_call_parser_named(values.text("tool-call-parser")));
  out.starts_in_reasoning = values.flag("thinking");
  if (const std::string path = values.text("tools"); !path.empty()) {
    M2_TRY(const std::string text, load::read_text(path, 16u << 20));
    M2_TRY(out.tool_schemas, parse_json(text));
  }
  return out;
}

Result<void> parse(const std::filesystem::path&, const Values& values) {
  M2_TRY(text::ReaderOptions options, reader_options(values));
  text::OutputReader reader(std::move(options));
  const std::string input = read_stdin();
  const auto split = static_cast<size_t>(std::max<int64_t>(*values.integer("split"), 0));
  const size_t step = split == 0 ? std::max<size_t>(input.size(), 1) : split;
  // The end of the piece that begins at `begin`: never inside a character, as a server feeds it.
  const auto piece_end = [&](size_t begin) {
    size_t end = std::min(begin + step, input.size());
    while (end < input.size() && (static_cast<unsigned char>(input[end]) & 0xc0) == 0x80) ++end;
    return end;
  };

  std::vector<text::OutputDelta> deltas;
  const auto print_deltas = [&] {
    if (values.flag("stream")) {
      for (const text::OutputDelta& delta : deltas) print_line(to_text(delta_json(delta)));
    }
    deltas.clear();
  };
  for (size_t begin = 0, end; begin < input.size(); begin = end) {
    end = piece_end(begin);
    reader.feed(std::string_view(input).substr(begin, end - begin), deltas);
    print_deltas();
  }
  reader.finish(values.flag("cut"), deltas);
  print_deltas();
  if (!values.flag("stream")) print_line(message_json(reader.message()).dump(2));
  return {};
}

Result<void> weights(const std::filesystem::path& folder, const Values& values) {
  M2_TRY(const ModelSettings settings, read_settings(folder, values));
  M2_TRY(const load::Checkpoint checkpoint, load::Checkpoint::open(folder));
  parallel::Topology topology;
  topology.tensor_size = *values.integer("tensor-parallel-size");
  topology.tensor_rank = *values.integer("rank");
  topology.expert_parallel = values.flag("enable-expert-parallel");
  M2_TRY(const std::string table, model::describe_weights(settings.config, checkpoint, topology));
  std::fwrite(table.data(), 1, table.size(), stdout);
  return {};
}

using Body = Result<void> (*)(const std::filesystem::path&, const Values&);
constexpr std::array<Body, std::size(kCommands)> kBodies{tokenize, detokenize, render, parse,
                                                         weights};

void print_overview() {
  std::fputs("usage: m2 inspect WHAT MODEL [options]\n\n", stdout);
  for (const Command& command : kCommands)
    print_line(
        fmt::format("  m2 {:<20} {:<6} {}", command.name, command.positionals, command.summary));
  std::fputs("\nm2 inspect WHAT --help tells more.\n", stdout);
}

Result<void> run(const Command& command, Body body, std::span<const std::string> words) {
  M2_TRY(const Values values, parse_command_line(command, words, environment_variable));
  if (values.positionals().size() != 1)
    return fail(Code::invalid_argument, "usage: m2 {} MODEL (see m2 {} --help)", command.name,
                command.name);
  M2_TRY(const std::filesystem::path folder, model_folder(values.positionals()[0], values));
  return body(folder, values);
}

}  // namespace

std::span<const Command> inspect_commands() {
  return kCommands;
}

int inspect(const std::vector<std::string>& words) {
  if (words.empty() || words[0] == "--help" || words[0] == "-h") {
    print_overview();
    return 0;
  }
  for (size_t i = 0; i < std::size(kCommands); ++i) {
    const Command& command = kCommands[i];
    if ("inspect " + words[0] != command.name) continue;
    const std::span<const std::string> rest = std::span(words).subspan(1);
    for (const std::string& word : rest) {
      if (word != "--help" && word != "-h") continue;
      std::fputs(help_text(command, "").c_str(), stdout);
      return 0;
    }
    const Result<void> result = run(command, kBodies[i], rest);
    return result.ok() ? 0 : report(result.error());
  }
  print_overview();
  return report(fail(Code::invalid_argument, "no such thing to inspect: {}", words[0]));
}

}  // namespace m2::app
