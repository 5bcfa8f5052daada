#include "tests/text/toy_tokenizer.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <fstream>

#include "text/pretokenizer.h"
#include "text/unicode.h"

namespace m2::text {
namespace {

// GPT-2's character for a byte.
std::string byte_name(int byte) {
  char32_t c = 0x100;
  const auto printable = [](int b) {
    return (b >= '!' && b <= '~') || (b >= 0xa1 && b <= 0xac) || b >= 0xae;
  };
  for (int b = 0; b < byte; ++b) c += printable(b) ? 0 : 1;
  std::string name;
  append_utf8(printable(byte) ? static_cast<char32_t>(byte) : c, name);
  return name;
}

}  // namespace

Json toy_tokenizer_json() {
  Json json = Json::parse(R"({
    "version": "1.0", "truncation": null, "padding": null, "added_tokens": [],
    "normalizer": {"type": "NFC"},
    "pre_tokenizer": {"type": "Sequence", "pretokenizers": [
      {"type": "Split", "pattern": {"Regex": ""}, "behavior": "Removed", "invert": true},
      {"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false}]},
    "post_processor": null,
    "decoder": {"type": "ByteLevel", "add_prefix_space": true, "trim_offsets": true,
                "use_regex": true},
    "model": {"type": "BPE", "dropout": null, "unk_token": null,
              "continuing_subword_prefix": "", "end_of_word_suffix": "", "fuse_unk": false,
              "byte_fallback": false, "vocab": {}, "merges": []}})");
  json["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = std::string(kO200kPattern);
  Json& vocab = json["model"]["vocab"];
  for (int byte = 0; byte < 256; ++byte) vocab[byte_name(byte)] = byte;
  int id = 256;
  for (const char* merge : {"h e", "l l", "he ll", "hell o", "Ġ w", "o r", "Ġw or", "l d", "Ã ©"}) {
    std::string token = merge;
    token.erase(token.find(' '), 1);
    vocab[token] = id++;
    json["model"]["merges"].push_back(merge);
  }
  for (const auto& [text, special] :
       {std::pair{"]~b]", true}, {"<a>", true}, {"<think>", false}, {"<thi", false}})
    json["added_tokens"].push_back({{"id", id++},
                                    {"content", text},
                                    {"single_word", false},
                                    {"lstrip", false},
                                    {"rstrip", false},
                                    {"normalized", false},
                                    {"special", special}});
  return json;
}

Result<std::shared_ptr<const Tokenizer>> load_text(const std::string& json) {
  const std::string path = testing::TempDir() + "toy_tokenizer." + std::to_string(getpid());
  std::ofstream(path, std::ios::binary) << json;
  auto tokenizer = Tokenizer::load(path);
  std::filesystem::remove(path);
  return tokenizer;
}

}  // namespace m2::text
