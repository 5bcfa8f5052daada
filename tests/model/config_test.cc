#include "model/config.h"

#include <gtest/gtest.h>

#include <fstream>

namespace m2::model {
namespace {

// The fields of a released config.json, as model.md 1.1 lists them.
Json released() {
  return Json::parse(R"({
    "architectures": ["MiniMaxM2ForCausalLM"], "attn_type_list": [1, 1, 1], "head_dim": 128,
    "hidden_act": "silu", "hidden_size": 3072, "intermediate_size": 1536,
    "max_position_embeddings": 196608, "model_type": "minimax_m2", "num_attention_heads": 48,
    "num_experts_per_tok": 8, "num_hidden_layers": 62, "num_key_value_heads": 8,
    "num_local_experts": 256, "num_mtp_modules": 3, "qk_norm_type": "per_layer",
    "quantization_config": {"activation_scheme": "dynamic", "fmt": "float8_e4m3fn",
      "quant_method": "fp8", "weight_block_size": [128, 128],
      "modules_to_not_convert": ["gate", "e_score_correction_bias", "lm_head"]},
    "rms_norm_eps": 1e-06, "rope_theta": 5000000, "rotary_dim": 64, "scoring_func": "sigmoid",
    "shared_intermediate_size": 0, "tie_word_embeddings": false, "use_cache": true,
    "use_mtp": true, "use_qk_norm": true, "use_routing_bias": true, "vocab_size": 200064})");
}

std::string refusal(const Json& json) {
  const auto config = read_config(json);
  return config.ok() ? "accepted" : config.error().text;
}

Json with(const char* name, const Json& value) {
  Json json = released();
  json[name] = value;
  return json;
}

Json without(const char* name) {
  Json json = released();
  json.erase(name);
  return json;
}

TEST(Config, ReadsTheReleasedFields) {
  const auto config = read_config(released());
  ASSERT_TRUE(config.ok()) << config.error().text;
  EXPECT_EQ(config->hidden_size, 3072);
  EXPECT_EQ(config->intermediate_size, 1536);
  EXPECT_EQ(config->num_layers, 62);
  EXPECT_EQ(config->num_heads, 48);
  EXPECT_EQ(config->num_kv_heads, 8);
  EXPECT_EQ(config->head_dim, 128);
  EXPECT_EQ(config->rotary_dim, 64);
  EXPECT_EQ(config->rope_theta, 5e6);
  EXPECT_EQ(config->max_position_embeddings, 196608);
  EXPECT_EQ(config->rms_norm_eps, 1e-6);
  EXPECT_EQ(config->num_experts, 256);
  EXPECT_EQ(config->num_experts_per_token, 8);
  EXPECT_EQ(config->vocab_size, 200064);
  EXPECT_TRUE(config->fp8_blocks);
  EXPECT_EQ(config->eos_token_ids, std::vector<int64_t>{200020}) << "the family's";
  EXPECT_EQ(config->q_width(), 6144);
  EXPECT_EQ(config->kv_width(), 1024);
}

TEST(Config, ReadsTheReleasedFiles) {
  for (const char* name : {"config.m2.5.assembled.json", "config.m2.7.json"}) {
    std::ifstream in(std::string(M2_DATA_DIR "/") + name);
    if (!in) GTEST_SKIP() << "no " M2_DATA_DIR "/" << name;
    const auto config = read_config(Json::parse(in));
    ASSERT_TRUE(config.ok()) << name << ": " << config.error().text;
    EXPECT_EQ(config->num_layers, 62);
    EXPECT_TRUE(config->fp8_blocks);
  }
}

TEST(Config, IsRecognisedByItsArchitecture) {
  EXPECT_EQ(refusal(with("model_type", "minimax")), "accepted") << "an old quantised copy";
  EXPECT_EQ(refusal(with("architectures", {"Other", "MiniMaxM2ForCausalLM"})), "accepted");
  EXPECT_EQ(refusal(without("architectures")), "accepted") << "model_type says it";
  Json neither = without("architectures");
  neither["model_type"] = "llama";
  EXPECT_NE(refusal(neither).find("architectures"), std::string::npos);
  for (const Json& names : {Json({"LlamaForCausalLM"}), Json::array(), Json("MiniMaxM2ForCausalLM"),
                            Json(3), Json({3, nullptr})})
    EXPECT_NE(refusal(with("architectures", names)).find("MiniMaxM2ForCausalLM"),
              std::string::npos);
  for (const Json& no_object : {Json(), Json(3), Json::array(), Json("x")})
    EXPECT_NE(refusal(no_object), "accepted");
}

TEST(Config, IgnoresWhatDoesNotMatter) {
  Json json = released();
  json["torch_dtype"] = "bfloat16";
  json["dtype"] = "bfloat16";
  json["bos_token_id"] = 1;
  json["auto_map"] = {{"AutoConfig", "configuration_minimax_m2.MiniMaxM2Config"}};
  json["attention_dropout"] = 0.0;
  json["mlp_intermediate_size"] = 8192;
  json["sliding_window"] = nullptr;
  json["rope_scaling"] = nullptr;
  json["output_router_logits"] = false;
  json["whatever"] = {1, {{"a", nullptr}}};
  EXPECT_EQ(refusal(json), "accepted");
  EXPECT_EQ(refusal(without("quantization_config")), "accepted");
  EXPECT_FALSE(read_config(without("quantization_config"))->fp8_blocks);
}

TEST(Config, ReadsTheRotarySpellingOfNewerTransformers) {
  Json json = released();
  json.erase("rope_theta");
  json.erase("rotary_dim");
  json["rope_parameters"] = {
      {"rope_theta", 1e4}, {"partial_rotary_factor", 0.25}, {"rope_type", "default"}};
  const auto config = read_config(json);
  ASSERT_TRUE(config.ok()) << config.error().text;
  EXPECT_EQ(config->rope_theta, 1e4);
  EXPECT_EQ(config->rotary_dim, 32);
  json["rope_parameters"]["rope_type"] = "yarn";
  EXPECT_NE(refusal(json).find("rope_parameters.rope_type is \"yarn\""), std::string::npos);
  json["rope_parameters"] = {{"rope_theta", 1e4}};
  EXPECT_NE(refusal(json).find("rotary_dim"), std::string::npos);
  json["partial_rotary_factor"] = 0.5;
  EXPECT_EQ(read_config(json)->rotary_dim, 64);
}

TEST(Config, RefusesWhatTheGraphDoesNotModel) {
  const std::pair<const char*, Json> variants[] = {
      {"scoring_func", "softmax"},
      {"qk_norm_type", "per_head"},
      {"use_qk_norm", false},
      {"use_routing_bias", false},
      {"shared_intermediate_size", 8192},
      {"hidden_act", "gelu"},
      {"tie_word_embeddings", true},
      {"sliding_window", 4096},
      {"attn_type_list", {1, 0, 1}},
      {"attention_bias", true},
      {"routed_scaling_factor", 2.5},
      {"rope_scaling", {{"type", "yarn"}, {"factor", 4.0}}},
      {"rope_scaling", {{"factor", 4.0}}},
  };
  for (const auto& [name, value] : variants) {
    const auto config = read_config(with(name, value));
    ASSERT_FALSE(config.ok()) << name;
    EXPECT_NE(config.error().text.find(name), std::string::npos) << config.error().text;
    EXPECT_EQ(config.error().code, Code::unsupported) << config.error().text;
  }
}

TEST(Config, RefusesOtherQuantisations) {
  for (const char* method : {"awq", "gptq", "modelopt", "compressed-tensors"}) {
    const std::string text = refusal(with("quantization_config", {{"quant_method", method}}));
    EXPECT_NE(text.find(method), std::string::npos) << text;
  }
  Json json = released();
  json["quantization_config"]["weight_block_size"] = {64, 128};
  EXPECT_NE(refusal(json).find("weight_block_size"), std::string::npos);
  json["quantization_config"].erase("weight_block_size");
  EXPECT_NE(refusal(json).find("weight_block_size"), std::string::npos);
  json = released();
  json["quantization_config"]["fmt"] = "float8_e5m2";
  EXPECT_NE(refusal(json).find("float8_e5m2"), std::string::npos);
  EXPECT_NE(refusal(with("quantization_config", 3)).find("quantization_config"), std::string::npos);
}

constexpr const char* kStructural[] = {
    "hidden_size",         "intermediate_size", "num_hidden_layers",
    "num_attention_heads", "head_dim",          "vocab_size",
    "num_key_value_heads", "num_local_experts", "num_experts_per_tok",
    "rotary_dim",          "rope_theta",        "max_position_embeddings",
    "rms_norm_eps"};

TEST(Config, NamesTheStructuralFieldThatIsMissing) {
  for (const char* name : kStructural) {
    EXPECT_NE(refusal(without(name)).find(name), std::string::npos) << refusal(without(name));
    EXPECT_NE(refusal(with(name, nullptr)).find(name), std::string::npos);
  }
}

TEST(Config, NamesTheFieldWithAHostileValue) {
  for (const std::string name : kStructural) {
    const auto expect_named = [&](const char* text) {
      const std::string found = refusal(with(name.c_str(), Json::parse(text)));
      EXPECT_NE(found.find(name), std::string::npos) << name << " = " << text << ": " << found;
    };
    for (const char* text : {"-1", "18446744073709551615", "9223372036854775807", "1e308", "-1e308",
                             "\"x\"", "\"64\"", "[]", "[64]", "{}", "true"})
      expect_named(text);
    // Of these a norm's epsilon may be the first, and a base of angles the others.
    if (name != "rms_norm_eps") expect_named("0");
    if (name != "rope_theta") expect_named("2147483648");
    if (name != "rope_theta") expect_named("4294967296");
  }
  EXPECT_NE(refusal(with("hidden_size", 3072.5)).find("hidden_size"), std::string::npos);
}

TEST(Config, NoProductOfTheLargestSizesOverflows) {
  Json json = released();
  const auto raise = [&](const char* name) {
    int64_t low = 1, high = int64_t{1} << 40;  // the largest value that is accepted
    while (low < high) {
      const int64_t middle = low + (high - low + 1) / 2;
      json[name] = middle;
      (refusal(json) == "accepted" ? low : high) =
          refusal(json) == "accepted" ? middle : middle - 1;
    }
    json[name] = low;
  };
  json["num_key_value_heads"] = 1;
  for (const char* name :
       {"hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "head_dim",
        "num_local_experts", "vocab_size", "max_position_embeddings"})
    raise(name);
  json["num_key_value_heads"] = json["num_attention_heads"];
  const auto config = read_config(json);
  ASSERT_TRUE(config.ok()) << config.error().text;
  const auto wide = [](int64_t value) { return static_cast<__int128>(value); };
  const __int128 limit = INT64_MAX;
  const __int128 experts = wide(config->num_layers) * config->num_experts * 3 *
                           config->intermediate_size * config->hidden_size * 4;
  const __int128 attention =
      wide(config->num_layers) * 4 * config->q_width() * config->hidden_size * 4;
  const __int128 tables = wide(2) * config->vocab_size * config->hidden_size * 4;
  EXPECT_LT(experts + attention + tables, limit);
  EXPECT_LT(wide(config->max_position_embeddings) * config->num_layers * 2 * config->kv_width() * 4,
            limit);
}

TEST(Config, RefusesSizesThatDoNotFitEachOther) {
  EXPECT_NE(refusal(with("num_key_value_heads", 7)).find("does not divide"), std::string::npos);
  EXPECT_NE(refusal(with("num_key_value_heads", 96)).find("num_key_value_heads"),
            std::string::npos);
  EXPECT_NE(refusal(with("num_experts_per_tok", 257)).find("num_experts_per_tok"),
            std::string::npos);
  EXPECT_NE(refusal(with("rotary_dim", 130)).find("rotary_dim"), std::string::npos);
  EXPECT_NE(refusal(with("rotary_dim", 63)).find("rotary_dim"), std::string::npos);
}

TEST(Config, EndTokensComeFromTheGenerationConfigFirst) {
  GenerationDefaults generation;
  generation.eos_token_ids = {7, 8};
  EXPECT_EQ(read_config(with("eos_token_id", 2), generation)->eos_token_ids,
            (std::vector<int64_t>{7, 8}));
  EXPECT_EQ(read_config(with("eos_token_id", 2))->eos_token_ids, std::vector<int64_t>{2});
  EXPECT_EQ(read_config(with("eos_token_id", {2, 3}))->eos_token_ids, (std::vector<int64_t>{2, 3}));
  EXPECT_NE(refusal(with("eos_token_id", 200064)).find("eos_token_id"), std::string::npos);
  EXPECT_NE(refusal(with("eos_token_id", -1)).find("eos_token_id"), std::string::npos);
  EXPECT_NE(refusal(with("eos_token_id", {"x"})).find("eos_token_id"), std::string::npos);
  EXPECT_TRUE(read_config(with("vocab_size", 1000))->eos_token_ids.empty());
}

TEST(Config, OverridesAreMergedDeeply) {
  Json json = released();
  apply_overrides(json, Json::parse(R"({"num_hidden_layers": 2, "new": {"a": 1},
      "quantization_config": {"fmt": "e4m3", "x": {"y": 1}}, "attn_type_list": [1, 1]})"));
  EXPECT_EQ(json["num_hidden_layers"], 2);
  EXPECT_EQ(json["new"]["a"], 1);
  EXPECT_EQ(json["attn_type_list"].size(), 2u) << "lists are replaced";
  EXPECT_EQ(json["quantization_config"]["fmt"], "e4m3");
  EXPECT_EQ(json["quantization_config"]["quant_method"], "fp8") << "objects are merged";
  EXPECT_EQ(json["quantization_config"]["x"]["y"], 1);
  EXPECT_EQ(read_config(json)->num_layers, 2);
  apply_overrides(json, Json::parse(R"({"quantization_config": null})"));
  EXPECT_FALSE(read_config(json)->fp8_blocks);
  apply_overrides(json, Json::object());
  EXPECT_EQ(json["num_hidden_layers"], 2);
}

TEST(GenerationConfig, ReadsTheReleasedFields) {
  const auto defaults = read_generation_config(Json::parse(
      R"({"bos_token_id": 200019, "do_sample": true, "eos_token_id": 200020, "temperature": 1.0,
          "top_p": 0.95, "top_k": 40, "transformers_version": "4.46.1", "min_p": null})"));
  ASSERT_TRUE(defaults.ok()) << defaults.error().text;
  EXPECT_EQ(defaults->temperature, 1.0);
  EXPECT_EQ(defaults->top_p, 0.95);
  EXPECT_EQ(defaults->top_k, 40);
  EXPECT_FALSE(defaults->min_p || defaults->repetition_penalty || defaults->max_new_tokens);
  EXPECT_EQ(defaults->eos_token_ids, std::vector<int64_t>{200020});
  EXPECT_TRUE(read_generation_config(Json())->eos_token_ids.empty());
}

TEST(GenerationConfig, NamesTheFieldWithAHostileValue) {
  for (const char* name : {"temperature", "top_p", "min_p", "repetition_penalty", "top_k",
                           "max_new_tokens", "eos_token_id"})
    for (const char* text :
         {"-2", "1e308", "\"x\"", "{}", "true", "[-1]", "18446744073709551615"}) {
      const auto result = read_generation_config(Json{{name, Json::parse(text)}});
      ASSERT_FALSE(result.ok()) << name << " = " << text;
      EXPECT_NE(result.error().text.find(name), std::string::npos);
    }
  EXPECT_FALSE(read_generation_config(Json{{"eos_token_id", std::vector<int>(100, 1)}}).ok());
}

}  // namespace
}  // namespace m2::model
