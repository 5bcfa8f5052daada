#include "model/memory_plan.h"

#include <gtest/gtest.h>

#include "tests/model/small_model.h"

namespace m2::model {
namespace {

// MiniMax-M2.5's sizes (model.md 1.1).
ModelConfig released_config() {
  ModelConfig config;
  config.hidden_size = 3072;
  config.intermediate_size = 1536;
  config.num_layers = 62;
  config.num_heads = 48;
  config.num_kv_heads = 8;
  config.head_dim = 128;
  config.vocab_size = 200064;
  return config;
}

TEST(MemoryPlan, BytesOfATokenAreThePublishedOnes) {
  EXPECT_EQ(kv_bytes_per_token(released_config(), 8, DType::bf16), 253'952);
  EXPECT_EQ(kv_bytes_per_token(released_config(), 8, DType::f8_e4m3), 126'976);
  EXPECT_EQ(kv_bytes_per_token(released_config(), 2, DType::bf16), 63'488);  // a rank of TP4
  EXPECT_EQ(kv_bytes_per_token(released_config(), 1, DType::bf16), 31'744);  // a rank of TP8
}

class SmallPlan : public testing::Test {
 protected:
  const ModelConfig config_ = small_config();
  const Weights weights_ = *dummy_weights(config_, {}, Device{}, 1);
  MemoryRequest request_ = small_memory(config_);
  const int64_t block_bytes_ = kv_bytes_per_token(config_, 2, DType::bf16) * kBlockSize;

  Result<MemoryPlan> plan() { return plan_memory(config_, weights_, request_, Device{}); }
};

TEST_F(SmallPlan, FlagsDecideTheBlocks) {
  request_.num_blocks = 40;
  EXPECT_EQ(plan()->num_blocks, 40);
  request_.num_blocks = 0;
  request_.kv_cache_bytes = 50 * block_bytes_ + 1;
  EXPECT_EQ(plan()->num_blocks, 50);
  EXPECT_EQ(plan()->kv_bytes, 50 * block_bytes_);
}

TEST_F(SmallPlan, WhatWasAskedForMustFit) {
  const int64_t others = plan()->weight_bytes + plan()->scratch_bytes + plan()->exchange_bytes;
  request_.available_bytes = others + 64 * block_bytes_;
  request_.memory_utilization = 0.1;  // of what is chosen, not of what is asked for
  request_.num_blocks = 64;
  EXPECT_EQ(plan()->num_blocks, 64);
  request_.num_blocks = 65;
  EXPECT_EQ(plan().error().code, Code::resource_exhausted);
  request_.num_blocks = 0;
  request_.kv_cache_bytes = int64_t{1} << 40;
  const Result<MemoryPlan> refused = plan();
  ASSERT_FALSE(refused.ok());
  EXPECT_TRUE(refused.error().text.starts_with(
      "The KV cache that was asked for, 1024.00 GiB, does not fit: "))
      << refused.error().text;
}

TEST_F(SmallPlan, NoMoreBlocksThanTheSequencesCanUse) {
  request_.num_blocks = 0;
  request_.available_bytes = int64_t{1} << 40;
  EXPECT_EQ(plan()->num_blocks, 8 * 512 / 16);
  request_.max_num_seqs = 2;
  EXPECT_EQ(plan()->num_blocks, 2 * 512 / 16);
}

TEST_F(SmallPlan, OneLongestSequenceMustFit) {
  request_.num_blocks = 31;  // 512 tokens need 32
  const Result<MemoryPlan> refused = plan();
  ASSERT_FALSE(refused.ok());
  EXPECT_EQ(refused.error().code, Code::resource_exhausted);
  EXPECT_NE(refused.error().text.find("the estimated maximum model length is 496"),
            std::string::npos)
      << refused.error().text;
  request_.max_model_len = 496;
  EXPECT_TRUE(plan().ok());
}

TEST_F(SmallPlan, NoMemoryIsSaidInWords) {
  request_.num_blocks = 0;
  request_.available_bytes = weights_.buffer.bytes();
  const Result<MemoryPlan> refused = plan();
  ASSERT_FALSE(refused.ok());
  EXPECT_NE(refused.error().text.find("No available memory for the cache blocks"),
            std::string::npos);
}

TEST(MemoryPlan, HostMemoryIsThere) {
  EXPECT_GT(available_host_memory(), int64_t{16} << 20);
  EXPECT_LT(available_host_memory(), int64_t{1} << 50);
}

}  // namespace
}  // namespace m2::model
