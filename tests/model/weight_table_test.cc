#include "model/weight_table.h"

#include <gtest/gtest.h>

#include <ctime>
#include <functional>
#include <set>

#include "tests/model/test_model.h"

namespace m2::model {
namespace {

namespace fs = std::filesystem;
using parallel::Range;
using parallel::Topology;
using test::ModelShape;
using test::StoredTensor;
using test::TempFolder;

// The released model's sizes.
ModelConfig released() {
  ModelShape shape{62, 3072, 1536, 48, 8, 128, 256, 200064};
  return *read_config(test::config_json(shape));
}

Topology tensor_parallel(int64_t size, int64_t rank) {
  Topology topology;
  topology.tensor_size = size;
  topology.tensor_rank = rank;
  return topology;
}

bool operator==(const Range& a, const Range& b) {
  return a.begin == b.begin && a.count == b.count;
}

TEST(WeightTable, ListsTheReleasedTensors) {
  // model.md 2: 96,103 = 251 BF16 + 124 F32 + 47,864 FP8 pairs.
  int64_t pairs = 0, routers = 0, others = 0;
  std::set<std::string> names;
  ASSERT_TRUE(for_each_weight(released(), [&](const WeightSpec& spec, int64_t l, int64_t e) {
                names.insert(weight_name(spec, l, e));
                (spec.kind == WeightKind::matrix   ? pairs
                 : spec.kind == WeightKind::router ? routers
                                                   : others)++;
                return Result<void>();
              }).ok());
  EXPECT_EQ(pairs, 47864);
  EXPECT_EQ(routers, 124);
  EXPECT_EQ(others, 251);
  EXPECT_EQ(names.size(), 48239u);
  for (const char* name :
       {"model.embed_tokens.weight", "model.norm.weight", "lm_head.weight",
        "model.layers.61.input_layernorm.weight", "model.layers.0.self_attn.q_proj.weight",
        "model.layers.3.post_attention_layernorm.weight",
        "model.layers.3.block_sparse_moe.gate.weight",
        "model.layers.3.block_sparse_moe.e_score_correction_bias",
        "model.layers.61.block_sparse_moe.experts.255.w2.weight"})
    EXPECT_EQ(names.count(name), 1u) << name;
  EXPECT_EQ(scale_name(spec_of(WeightId::o), 5, 0),
            "model.layers.5.self_attn.o_proj.weight_scale_inv");
}

TEST(WeightTable, ParametersAddUpToThePublishedNumber) {
  const ModelConfig config = released();
  int64_t parameters = 0;
  ASSERT_TRUE(for_each_weight(config, [&](const WeightSpec& spec, int64_t, int64_t) {
                parameters += axis_size(spec.rows, config) * axis_size(spec.columns, config);
                return Result<void>();
              }).ok());
  EXPECT_EQ(parameters, 228'689'764'864) << "model.md 8";
}

TEST(WeightTable, SharesOfTheReleasedModel) {
  const ModelConfig config = released();
  EXPECT_TRUE(axis_share(Axis::inner, config, tensor_parallel(8, 3)) == (Range{576, 192}));
  EXPECT_TRUE(axis_share(Axis::q_width, config, tensor_parallel(8, 3)) == (Range{2304, 768}));
  EXPECT_TRUE(axis_share(Axis::kv_width, config, tensor_parallel(4, 3)) == (Range{768, 256}));
  // 16 ranks, 8 kv heads: two neighbours hold the same head.
  EXPECT_TRUE(axis_share(Axis::kv_width, config, tensor_parallel(16, 6)) == (Range{384, 128}));
  EXPECT_TRUE(axis_share(Axis::kv_width, config, tensor_parallel(16, 7)) == (Range{384, 128}));
  EXPECT_TRUE(axis_share(Axis::vocabulary, config, tensor_parallel(8, 7)) ==
              (Range{175056, 25008}));
  EXPECT_TRUE(axis_share(Axis::hidden, config, tensor_parallel(8, 7)) == (Range{0, 3072}));
  Topology experts = tensor_parallel(8, 3);
  experts.expert_parallel = true;
  EXPECT_TRUE(axis_share(Axis::inner, config, experts) == (Range{0, 1536}));
  EXPECT_TRUE(expert_share(config, experts) == (ExpertShare{96, 32}));
  EXPECT_TRUE(expert_share(config, tensor_parallel(8, 3)) == (ExpertShare{0, 256}));
  experts.round_robin = true;
  EXPECT_TRUE(expert_share(config, experts) == (ExpertShare{3, 32, 8}));
  // Two engines of four ranks: attention by four, experts by eight.
  Topology engines = tensor_parallel(4, 1);
  engines.data_size = 2;
  engines.data_rank = 1;
  EXPECT_TRUE(axis_share(Axis::q_width, config, engines) == (Range{1536, 1536}));
  EXPECT_TRUE(axis_share(Axis::inner, config, engines) == (Range{960, 192}));
  engines.expert_parallel = true;
  EXPECT_TRUE(expert_share(config, engines) == (ExpertShare{160, 32}));
}

TEST(WeightTable, SharesCoverEveryAxisOnce) {
  const ModelConfig config = released();
  for (const int64_t size : {1, 2, 4, 8})
    for (const Axis axis : {Axis::vocabulary, Axis::q_width, Axis::kv_width, Axis::inner}) {
      int64_t next = 0;
      for (int64_t rank = 0; rank < size; ++rank) {
        const Range share = axis_share(axis, config, tensor_parallel(size, rank));
        EXPECT_EQ(share.begin, next);
        next += share.count;
      }
      EXPECT_EQ(next, axis_size(axis, config));
    }
}

TEST(WeightTable, RefusesTopologiesThatDoNotDivide) {
  const ModelConfig config = released();
  for (const int64_t size : {1, 2, 4, 8, 16, 24, 48})
    EXPECT_TRUE(check_topology(config, tensor_parallel(size, 0)).ok()) << size;
  EXPECT_EQ(check_topology(config, tensor_parallel(7, 0)).error().text,
            "Total number of attention heads (48) must be divisible by tensor parallel size (7).");
  for (const int64_t size : {0, 3, 6, 12, 96})
    EXPECT_FALSE(check_topology(config, tensor_parallel(size, 0)).ok()) << size;
  Topology experts;
  experts.expert_parallel = true;
  experts.data_size = 257;
  EXPECT_FALSE(check_topology(config, experts).ok());
}

// Every expert is on exactly the rank that is said to own it, for even and uneven numbers.
TEST(WeightTable, EveryExpertHasOneOwner) {
  ModelConfig config = released();
  for (const int64_t experts : {256, 5, 13, 8})
    for (const int64_t ranks : {1, 2, 3, 5})
      for (const bool round_robin : {false, true}) {
        config.num_experts = experts;
        Topology topology;
        topology.expert_parallel = true;
        topology.round_robin = round_robin;
        topology.data_size = ranks;
        std::vector<int64_t> owners(static_cast<size_t>(experts), -1);
        for (int64_t rank = 0; rank < ranks; ++rank) {
          const ExpertShare share = expert_share(config, parallel::with_rank(topology, rank));
          for (int64_t i = 0; i < share.count; ++i) {
            int64_t& owner = owners.at(static_cast<size_t>(share.first + i * share.step));
            EXPECT_EQ(owner, -1);
            owner = rank;
          }
        }
        for (int64_t e = 0; e < experts; ++e)
          EXPECT_EQ(owner_of_expert(e, config, topology), owners[static_cast<size_t>(e)])
              << experts << " on " << ranks;
      }
}

TEST(WeightTable, BlocksOfARange) {
  EXPECT_TRUE(blocks_of({0, 1536}) == (Range{0, 12}));
  EXPECT_TRUE(blocks_of({192, 192}) == (Range{1, 2}));
  EXPECT_TRUE(blocks_of({576, 192}) == (Range{4, 2}));
  EXPECT_TRUE(blocks_of({100, 100}) == (Range{0, 2}));
  EXPECT_TRUE(blocks_of({127, 1}) == (Range{0, 1}));
  EXPECT_EQ(blocks_of({200, 0}).count, 0);
}

// ---- Checking a checkpoint ----

class CheckWeights : public testing::Test {
 protected:
  // The refusal of a checkpoint with these tensors, or "accepted".
  std::string refusal(const std::vector<StoredTensor>& tensors) {
    test::write_model(folder_.path(), test::config_json(shape_), tensors);
    return refusal_of_folder();
  }

  std::string refusal_of_folder() {
    const std::clock_t start = std::clock();
    auto checkpoint = load::Checkpoint::open(folder_.path());
    if (!checkpoint.ok()) return checkpoint.error().text;
    auto config = read_config(checkpoint->config());
    if (!config.ok()) return config.error().text;
    const auto types = check_weights(*config, *checkpoint);
    EXPECT_LT(std::clock() - start, 2 * CLOCKS_PER_SEC);
    return types.ok() ? "accepted" : types.error().text;
  }

  // The refusal after a change to the tensor of this name.
  std::string refusal_after(const std::string& name,
                            const std::function<void(StoredTensor&)>& change) {
    auto tensors = test::model_tensors(shape_);
    for (StoredTensor& tensor : tensors)
      if (tensor.name == name) change(tensor);
    return refusal(tensors);
  }

  ModelShape shape_;
  TempFolder folder_;
};

TEST_F(CheckWeights, AcceptsTheReleasedForm) {
  EXPECT_EQ(refusal(test::model_tensors(shape_)), "accepted");
  shape_.router_dtype = "BF16";
  shape_.norm_dtype = "F32";
  EXPECT_EQ(refusal(test::model_tensors(shape_)), "accepted");
  for (const char* dtype : {"BF16", "F16", "F32"}) {
    shape_.matrix_dtype = dtype;
    EXPECT_EQ(refusal(test::model_tensors(shape_)), "accepted") << dtype;
  }
}

TEST_F(CheckWeights, ATensorThatIsMissingIsNamed) {
  for (const StoredTensor& absent : test::model_tensors(shape_)) {
    auto tensors = test::model_tensors(shape_);
    std::erase_if(tensors, [&](const StoredTensor& tensor) { return tensor.name == absent.name; });
    EXPECT_NE(refusal(tensors).find(absent.name + " is missing"), std::string::npos) << absent.name;
  }
}

TEST_F(CheckWeights, ATensorOfAnotherShapeOrDTypeIsNamedWithItsFile) {
  for (const StoredTensor& changed : test::model_tensors(shape_)) {
    const auto transposed = [](StoredTensor& tensor) {
      if (tensor.shape.size() == 2 && tensor.shape[0] != tensor.shape[1])
        std::swap(tensor.shape[0], tensor.shape[1]);
      else
        tensor.shape.push_back(1);
    };
    const auto integers = [](StoredTensor& tensor) {
      tensor.dtype = tensor.dtype == "F32" ? "I32" : tensor.dtype == "BF16" ? "I16" : "U8";
    };
    for (const std::string& text :
         {refusal_after(changed.name, transposed), refusal_after(changed.name, integers)}) {
      EXPECT_NE(text.find("tensor " + changed.name + " is "), std::string::npos) << text;
      EXPECT_NE(text.find(".safetensors"), std::string::npos) << text;
    }
  }
}

TEST_F(CheckWeights, WeightsStackedTogetherMustAgree) {
  const auto to_bf16 = [](StoredTensor& tensor) {
    tensor.dtype = "BF16";
    tensor.data += tensor.data;
  };
  for (const char* name : {"self_attn.k_proj", "self_attn.v_proj", "block_sparse_moe.experts.0.w3",
                           "block_sparse_moe.experts.2.w1", "block_sparse_moe.experts.3.w2"}) {
    const std::string full = std::string("model.layers.1.") + name + ".weight";
    EXPECT_NE(refusal_after(full, to_bf16).find(full + " is BF16"), std::string::npos) << name;
  }
  // A whole group may be of another dtype, as in builds that quantise only the experts.
  auto tensors = test::model_tensors(shape_);
  for (StoredTensor& tensor : tensors)
    if (tensor.dtype == "F8_E4M3" && tensor.name.find("self_attn") != std::string::npos)
      to_bf16(tensor);
  EXPECT_EQ(refusal(tensors), "accepted");
}

TEST_F(CheckWeights, FP8NeedsItsConfig) {
  test::write_model(folder_.path(), test::config_json(shape_), test::model_tensors(shape_));
  Json config = test::config_json(shape_);
  config.erase("quantization_config");
  test::write_file(folder_ / "config.json", config.dump());
  EXPECT_NE(refusal_of_folder().find("quantization_config"), std::string::npos);
}

TEST_F(CheckWeights, TensorsBeyondTheModelAreNotLookedAt) {
  auto tensors = test::model_tensors(shape_);
  tensors.push_back({"model.layers.2.self_attn.q_proj.weight", "Q3_X", {1}, "x"});
  tensors.push_back({"model.layers.0.self_attn.rotary_emb.inv_freq", "F32", {1}, "abcd"});
  tensors.push_back({"mtp.0.weight", "F64", {1}, "abcdefgh"});
  tensors.push_back({"model.layers.0.self_attn.q_proj.bias", "C64", {1}, "abcdefgh"});
  EXPECT_EQ(refusal(tensors), "accepted");
}

TEST_F(CheckWeights, MoreLayersOrExpertsThanThereAreIsRefused) {
  shape_.layers = 1;
  const auto tensors = test::model_tensors(shape_);
  shape_.layers = 1000;
  EXPECT_NE(refusal(tensors).find("model.layers.1."), std::string::npos);
  shape_.layers = 1;
  shape_.experts = 4096;
  EXPECT_NE(refusal(tensors).find("[4096"), std::string::npos);
}

// F13: a flipped bit in a header is refused by name, or changes nothing that is loaded.
TEST_F(CheckWeights, EveryBitFlipInAHeaderIsRefusedOrChangesNothing) {
  shape_.layers = 1;
  shape_.experts = 1;
  shape_.hidden = shape_.inner = 16;
  shape_.heads = shape_.kv_heads = 1;
  shape_.vocab = 4;
  test::write_file(folder_ / "config.json", [&] {
    Json json = test::config_json(shape_);
    json["num_experts_per_tok"] = 1;
    return json.dump();
  }());
  const auto tensors = test::model_tensors(shape_);
  const std::string file = test::safetensors(tensors);
  uint64_t length = 0;
  std::memcpy(&length, file.data(), 8);
  const fs::path path = folder_ / "model.safetensors";
  test::write_file(path, file);
  const auto original = load::Checkpoint::open(folder_.path());
  ASSERT_TRUE(original.ok());
  const auto config = read_config(original->config());
  ASSERT_TRUE(config.ok()) << config.error().text;
  ASSERT_TRUE(check_weights(*config, *original).ok());

  std::fstream raw(path, std::ios::binary | std::ios::in | std::ios::out);
  const auto put = [&](size_t at, char byte) {
    raw.seekp(static_cast<std::streamoff>(at));
    raw.put(byte);
    raw.flush();
  };
  int64_t harmless = 0;
  for (size_t bit = 0; bit < (8 + length) * 8; ++bit) {
    const size_t at = bit / 8;
    put(at, static_cast<char>(file[at] ^ (1 << (bit % 8))));
    const auto changed = load::Checkpoint::open(folder_.path());
    if (changed.ok() && check_weights(*config, *changed).ok()) {
      ++harmless;
      for (const StoredTensor& tensor : tensors) {
        const load::TensorInfo* a = original->find(tensor.name);
        const load::TensorInfo* b = changed->find(tensor.name);
        ASSERT_TRUE(b && a->dtype == b->dtype && a->shape == b->shape && a->begin == b->begin)
            << tensor.name << " at bit " << bit;
      }
    }
    put(at, file[at]);
  }
  EXPECT_LT(harmless, 200) << "only the metadata's own text may change";
}

TEST_F(CheckWeights, DescribesEveryTensor) {
  auto tensors = test::model_tensors(shape_);
  tensors.push_back({"mtp.0.weight", "F64", {1}, "abcdefgh"});
  test::write_model(folder_.path(), test::config_json(shape_), tensors);
  const auto checkpoint = load::Checkpoint::open(folder_.path());
  const auto config = read_config(checkpoint->config());
  const auto text = describe_weights(*config, *checkpoint, tensor_parallel(2, 0));
  ASSERT_TRUE(text.ok()) << text.error().text;
  for (const StoredTensor& tensor : tensors)
    EXPECT_EQ(text->find(tensor.name + " ") != std::string::npos, tensor.name != "mtp.0.weight");
  EXPECT_NE(text->find("not used: 1 tensors, 8 bytes"), std::string::npos);
  EXPECT_NE(text->find("columns by heads"), std::string::npos);
  EXPECT_NE(text->find("rows by inner"), std::string::npos);
  EXPECT_NE(text->find("model-00001-of-00130.safetensors"), std::string::npos);
}

}  // namespace
}  // namespace m2::model
