#include "app/model_files.h"

#include <fmt/ranges.h>
#include <openssl/sha.h>

#include <fstream>

#include "app/environment.h"
#include "app/micro_model.h"
#include "load/file.h"
#include "load/hub.h"

namespace m2::app {
namespace {

namespace fs = std::filesystem;

constexpr uint64_t kMostTemplateBytes = 1u << 20;
constexpr uint64_t kMostConfigBytes = 16u << 20;

Result<Json> read_json(const fs::path& path) {
  M2_TRY(const std::string text, load::read_text(path, kMostConfigBytes));
  Result<Json> json = parse_json(text);
  if (!json.ok()) return fail(Code::corrupt, "{}: {}", path.string(), json.error().text);
  return json;
}

// tokenizer_config.json's chat_template: a string, or a list of {name, template} with a default.
Result<std::string> template_of_tokenizer_config(const fs::path& path) {
  M2_TRY(const Json config, read_json(path));
  const auto found = config.find("chat_template");
  if (found != config.end() && found->is_string()) return found->get<std::string>();
  if (found != config.end() && found->is_array()) {
    for (const Json& entry : *found) {
      if (entry.is_object() && entry.value("name", Json()) == "default" &&
          entry.value("template", Json()).is_string())
        return entry["template"].get<std::string>();
    }
  }
  return fail(
      Code::not_found,
      "{} has no chat_template, and there is no chat_template.jinja beside it; give one with "
      "--chat-template",
      path.string());
}

Result<std::string> template_text(const fs::path& folder, const std::string& flag) {
  std::error_code ignored;
  if (!flag.empty()) {
    if (fs::is_regular_file(flag, ignored)) return load::read_text(flag, kMostTemplateBytes);
    if (flag.find("{{") != std::string::npos || flag.find("{%") != std::string::npos) return flag;
    return fail(Code::not_found, "--chat-template {}: no such file, and no template either", flag);
  }
  const fs::path own = folder / "chat_template.jinja";
  if (fs::exists(own, ignored)) return load::read_text(own, kMostTemplateBytes);
  const fs::path config = folder / "tokenizer_config.json";
  if (fs::exists(config, ignored)) return template_of_tokenizer_config(config);
  return fail(Code::not_found,
              "{} has neither chat_template.jinja nor tokenizer_config.json; "
              "give a template with --chat-template",
              folder.string());
}

Result<Json> generation_json(const fs::path& folder, const std::string& source) {
  if (source == "vllm") return Json::object();
  const fs::path path = (source == "auto" ? folder : fs::path(source)) / "generation_config.json";
  std::error_code ignored;
  if (!fs::exists(path, ignored)) {
    if (source != "auto")
      return fail(Code::not_found, "--generation-config {}: no {}", source, path.string());
    return Json::object();
  }
  M2_TRY(Json json, read_json(path));
  if (!json.is_object()) return fail(Code::corrupt, "{}: not a JSON object", path.string());
  return json;
}

// The letter that stands for a byte in byte-level vocabularies: the byte's own Latin-1 letter where
// that is visible, else the next one from U+0100 on (GPT-2's table).
std::string byte_level_letter(int byte) {
  const auto visible = [](int c) {
    return (c >= 0x21 && c <= 0x7e) || (c >= 0xa1 && c <= 0xac) || (c >= 0xae && c <= 0xff);
  };
  int letter = byte;
  if (!visible(byte)) {
    letter = 0x100;
    for (int c = 0; c < byte; ++c) letter += !visible(c);
  }
  if (letter < 0x80) return {static_cast<char>(letter)};
  return {static_cast<char>(0xc0 | letter >> 6), static_cast<char>(0x80 | (letter & 0x3f))};
}

}  // namespace

Result<fs::path> model_folder(const std::string& model, const Values& values) {
  Result<fs::path> found = load::resolve_model(model, values.text("revision"),
                                               hub_locations(values.text("download-dir")));
  if (found.ok() || model != kMicroName) return found;
  Result<fs::path> micro = micro_model();
  return micro.ok() ? std::move(micro) : std::move(found);
}

namespace {

// Where tokenizer.json is: the model's folder, or what --tokenizer names as MODEL names a model.
Result<fs::path> tokenizer_folder(const fs::path& folder, const Values& values) {
  const std::string other = values.text("tokenizer");
  if (other.empty()) return folder;
  Result<fs::path> found = load::resolve_model(other, values.text("tokenizer-revision"),
                                               hub_locations(values.text("download-dir")));
  if (found.ok()) return found;
  return fail(found.error().code, "--tokenizer: {}", found.error().text);
}

std::string sha256(const std::string& text) {
  unsigned char digest[SHA256_DIGEST_LENGTH];
  SHA256(reinterpret_cast<const unsigned char*>(text.data()), text.size(), digest);
  return fmt::format("{:02x}", fmt::join(digest, ""));
}

}  // namespace

Result<ModelSettings> read_settings(const fs::path& folder, const Values& values) {
  M2_TRY(load::ModelDescription description, load::read_description(folder));
  model::apply_overrides(description.config, values.json("hf-overrides"));
  ModelSettings out;
  out.fingerprint = sha256(to_text(description.config));
  M2_TRY(out.generation_json, generation_json(folder, values.text("generation-config")));
  model::apply_overrides(out.generation_json, values.json("override-generation-config"));
  M2_TRY(out.generation, model::read_generation_config(out.generation_json));
  // End tokens are the model's whatever --generation-config says of sampling.
  M2_TRY(const model::GenerationDefaults own,
         model::read_generation_config(description.generation_config));
  M2_TRY(out.config, model::read_config(description.config, own));
  return out;
}

Result<std::shared_ptr<const text::Tokenizer>> read_tokenizer(const fs::path& folder) {
  const fs::path path = folder / "tokenizer.json";
  std::error_code ignored;
  if (!fs::exists(path, ignored))
    return fail(Code::not_found, "{} is missing; it holds the vocabulary", path.string());
  return text::Tokenizer::load(path.string());
}

Result<std::shared_ptr<const text::Tokenizer>> read_tokenizer(const fs::path& folder,
                                                              const Values& values) {
  M2_TRY(const fs::path place, tokenizer_folder(folder, values));
  return read_tokenizer(place);
}

std::shared_ptr<const text::Tokenizer> byte_tokenizer() {
  Json vocabulary = Json::object();
  for (int byte = 0; byte < 256; ++byte) vocabulary[byte_level_letter(byte)] = byte;
  const Json byte_level{{"type", "ByteLevel"}, {"add_prefix_space", false}};
  const Json file{{"pre_tokenizer", byte_level},
                  {"decoder", byte_level},
                  {"model", {{"type", "BPE"}, {"vocab", vocabulary}, {"merges", Json::array()}}}};
  Result<std::shared_ptr<const text::Tokenizer>> tokenizer = text::Tokenizer::parse(to_text(file));
  M2_CHECK(tokenizer.ok(), "{}", tokenizer.error().text);
  return *std::move(tokenizer);
}

Result<std::string> chat_template_text(const fs::path& folder, const Values& values) {
  return template_text(folder, values.text("chat-template"));
}

Result<std::shared_ptr<const text::ChatTemplate>> read_chat_template(const fs::path& folder,
                                                                     const Values& values) {
  M2_TRY(std::string source, chat_template_text(folder, values));
  return text::ChatTemplate::parse(std::move(source));
}

}  // namespace m2::app
