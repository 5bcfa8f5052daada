#include "server/sampling.h"

#include <gtest/gtest.h>

#include "tests/text/toy_tokenizer.h"

namespace m2::server {
namespace {

ModelServices services() {
  ModelServices out;
  out.tokenizer = *text::load_text(to_text(text::toy_tokenizer_json()));
  out.max_model_len = 100;
  out.vocab_size = out.tokenizer->id_limit();
  out.eos_token_ids = {66, 67};
  return out;
}

// The error's text; empty if the fields may be served.
std::string refusal(const api::GenerationFields& fields) {
  const auto params = sampling_params(fields, {}, ServerOptions(), services());
  return params ? std::string() : params.error().text;
}

TEST(SamplingParams, AllowedIdsLeaveAChoice) {
  constexpr const char* kNone =
      "allowed_token_ids holds only tokens that min_tokens or bad_words forbid.";
  api::GenerationFields fields;
  fields.allowed_token_ids = {66, 67};
  EXPECT_EQ(refusal(fields), "");
  fields.min_tokens = 1;  // masks every token that ends the text
  EXPECT_EQ(refusal(fields), kNone);
  fields.allowed_token_ids = {67};
  EXPECT_EQ(refusal(fields), kNone);
  fields.allowed_token_ids = {67, 68};
  EXPECT_EQ(refusal(fields), "");
  fields.stop_token_ids = {68};
  EXPECT_EQ(refusal(fields), kNone);
  fields.min_tokens = 0;
  fields.bad_words = {"B", "C"};  // bytes 66 and 67
  EXPECT_EQ(refusal(fields), "");
  fields.bad_words.push_back("D");
  EXPECT_EQ(refusal(fields), kNone);
}

}  // namespace
}  // namespace m2::server
