#include "app/plan.h"

#include <gtest/gtest.h>

#include <fstream>
#include <sstream>

#include "app/model_files.h"

// The guide's rows and the roofline's, from the released config.

namespace m2::app {
namespace {

std::string released() {
  return std::string(M2_DATA_DIR) + "/config.m2.5.assembled.json";
}

class Plan : public testing::Test {
 protected:
  void SetUp() override {
    if (!std::ifstream(released())) GTEST_SKIP() << "no " << released();
    std::ifstream file(released());
    std::stringstream text;
    text << file.rdbuf();
    config_ = *model::read_config(*parse_json(text.str()));
    request_.max_model_len = 196608;
  }

  static parallel::Topology shape(int64_t tensor, int64_t data, bool whole) {
    parallel::Topology out;
    out.tensor_size = tensor;
    out.data_size = data;
    out.expert_parallel = whole;
    return out;
  }

  PlanRow row(const char* gpus, const parallel::Topology& topology, PlanFormats formats = {}) {
    return plan_row(config_, topology, *parse_gpus(gpus), formats, request_);
  }

  model::ModelConfig config_;
  PlanRequest request_;
};

TEST_F(Plan, TheGuidesRows) {
  const PlanRow small = row("4x96G", shape(4, 1, false));
  // model.md 8: 230.12 GB with scales and the F32 router; the guide rounds to 220 GB.
  EXPECT_NEAR(small.all_weights, 230.12e9, 0.01e9);
  EXPECT_NEAR(small.weights / (1 << 30), 53.75, 0.15) << "vLLM's TP4";
  EXPECT_EQ(small.kv_per_token * 4, 253952) << "254 GB per 1M tokens; the guide says 240";
  EXPECT_NEAR(static_cast<double>(small.kv_tokens), 400e3, 20e3);
  EXPECT_NEAR(static_cast<double>(row("8x144G", shape(8, 1, false)).kv_tokens), 3.0e6, 0.15e6);
}

TEST_F(Plan, FormatsAndReplicas) {
  const PlanRow bf16 = row("4x96G", shape(4, 1, false));
  const PlanRow fp8 = row("4x96G", shape(4, 1, false), {true, false});
  EXPECT_NEAR(static_cast<double>(fp8.kv_tokens) / static_cast<double>(bf16.kv_tokens), 2, 0.001);
  // model.md 8: 4-bit experts of group 128 take 115.9 GB instead of 224.7 + scales.
  const PlanRow int4 = row("4x96G", shape(4, 1, false), {true, true});
  EXPECT_NEAR(bf16.all_weights - int4.all_weights, 224.735e9 - 115.85e9, 0.1e9);
  // 16 ranks hold each of 8 kv heads twice.
  EXPECT_EQ(row("16x96G", shape(16, 1, false)).kv_per_token,
            row("8x96G", shape(8, 1, false)).kv_per_token);
  // DP8 + EP8: attention, embedding and head are on every rank.
  EXPECT_GT(row("8x144G", shape(1, 8, true)).weights,
            row("8x144G", shape(8, 1, true)).weights + 4e9);
  const PlanRow none = row("1x96G", shape(1, 1, false));
  EXPECT_EQ(none.kv_tokens, 0);
  EXPECT_EQ(none.longest_context, 0);
}

// roofline.py --gpu h200 --batch B --ctx 2048 (HBM ms).
TEST_F(Plan, DecodeFloorsAreTheRooflines) {
  const Gpus h200x4 = *parse_gpus("4xh200"), h200x8 = *parse_gpus("8xh200");
  EXPECT_NEAR(decode_floor(config_, shape(4, 1, false), h200x4, {}, 1, 2048) * 1e3, 0.64, 0.01);
  EXPECT_NEAR(decode_floor(config_, shape(8, 1, false), h200x8, {}, 1, 2048) * 1e3, 0.34, 0.01);
  EXPECT_NEAR(decode_floor(config_, shape(1, 8, true), h200x8, {}, 256, 4096) * 1e3, 13.65, 0.1);
}

TEST_F(Plan, TextJsonAndRefusals) {
  const auto run = [](std::vector<std::string> words) {
    return plan_text(*parse_command_line(plan_command(), words,
                                         [](const char*) -> const char* { return nullptr; }));
  };
  const std::string text = *run({released(), "--gpus", "4x96G", "8x144G"});
  EXPECT_NE(text.find("weights 230.12 GB (214.32 GiB)"), std::string::npos) << text;
  EXPECT_NE(text.find("4x96G: m2 serve " + released() + " -tp 4\n"), std::string::npos) << text;
  EXPECT_NE(run({released(), "--gpus", "4x96G", "--kv-cache-dtype", "fp8"})
                ->find("m2 serve " + released() + " -tp 4 --kv-cache-dtype fp8\n"),
            std::string::npos);
  const Json json =
      *parse_json(*run({released(), "--gpus", "8xh200", "-tp", "8", "-ep", "--json"}));
  EXPECT_EQ(json["rows"].size(), 3u);
  EXPECT_EQ(json["rows"][0]["fits"], true);
  EXPECT_EQ(run({released(), "--gpus", "7x96G", "-tp", "7"}).error().text,
            "Total number of attention heads (48) must be divisible by tensor parallel size (7).");
  EXPECT_EQ(run({released(), "--gpus", "8x96G", "-tp", "4"}).error().text,
            "4 ranks (1 engines of 4) on 8 GPUs");
  for (const char* bad : {"x96G", "4x", "0x96G", "4x96T", "4x-1G", "4xh300", "4x96GiBs"})
    EXPECT_FALSE(run({released(), "--gpus", bad}).ok()) << bad;
}

}  // namespace
}  // namespace m2::app
