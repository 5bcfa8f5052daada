#pragma once

#include <filesystem>
#include <memory>
#include <string>

#include "app/options.h"
#include "base/result.h"
#include "load/checkpoint.h"
#include "model/config.h"
#include "text/chat_template.h"
#include "text/tokenizer.h"

namespace m2::app {

// The folder of a MODEL argument: a folder, a name in the local hub cache, or m2-micro, as servers
// of the model that comes with the program name it. `values` may have --revision and
// --download-dir.
Result<std::filesystem::path> model_folder(const std::string& model, const Values& values);

// config.json with --hf-overrides applied, and generation_config.json with
// --override-generation-config (or none of it: --generation-config vllm).
struct ModelSettings {
  model::ModelConfig config;
  model::GenerationDefaults generation;
  std::string fingerprint;  // of config.json with its overrides: equal for equal ones
  Json generation_json;     // what `generation` was read from, for the start-up log line
};
Result<ModelSettings> read_settings(const std::filesystem::path& folder, const Values& values);

// tokenizer.json of the folder.
Result<std::shared_ptr<const text::Tokenizer>> read_tokenizer(const std::filesystem::path& folder);
// Or of --tokenizer, if that is given: a folder, or a name in the local hub cache, of
// --tokenizer-revision.
Result<std::shared_ptr<const text::Tokenizer>> read_tokenizer(const std::filesystem::path& folder,
                                                              const Values& values);

// A tokenizer of the 256 bytes and nothing else, for --load-format dummy without a tokenizer.json.
std::shared_ptr<const text::Tokenizer> byte_tokenizer();

// --chat-template (a file or the text itself), else chat_template.jinja of the folder, else
// tokenizer_config.json's chat_template.
Result<std::shared_ptr<const text::ChatTemplate>> read_chat_template(
    const std::filesystem::path& folder, const Values& values);
// Its source.
Result<std::string> chat_template_text(const std::filesystem::path& folder, const Values& values);

}  // namespace m2::app
