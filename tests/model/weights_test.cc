#include "model/weights.h"

#include <gtest/gtest.h>

#include <bit>
#include <cmath>
#include <cstring>
#include <fstream>
#include <map>
#include <random>
#include <set>

#include "ops/route.h"
#include "tests/model/test_model.h"

namespace m2::model {
namespace {

namespace fs = std::filesystem;
using parallel::Topology;
using test::ModelShape;
using test::StoredTensor;
using test::TempFolder;

constexpr Device kCpu{};

// ---- The reference: whole tensors, sliced and multiplied by the definition ----

class Reference {
 public:
  explicit Reference(const std::vector<StoredTensor>& tensors) {
    for (const StoredTensor& tensor : tensors) tensors_[tensor.name] = tensor;
  }

  // Element of a stored tensor, before any scale.
  float raw(const std::string& name, int64_t row, int64_t column) const {
    const StoredTensor& tensor = tensors_.at(name);
    const int64_t columns = tensor.shape.size() == 2 ? tensor.shape[1] : 1;
    const size_t i = static_cast<size_t>(row * columns + column);
    if (tensor.dtype == "F8_E4M3") return to_float(F8E4M3{static_cast<uint8_t>(tensor.data.at(i))});
    if (tensor.dtype == "F32") return read<float>(tensor, i);
    const auto bits = read<uint16_t>(tensor, i);
    return tensor.dtype == "BF16" ? to_float(BF16{bits}) : to_float(F16{bits});
  }

  // Element of the weight: FP8 times its block's scale (model.md 7).
  float value(const std::string& name, int64_t row, int64_t column) const {
    const float element = raw(name, row, column);
    if (tensors_.at(name).dtype != "F8_E4M3") return element;
    return element * raw(name + "_scale_inv", row / 128, column / 128);
  }

 private:
  template <class T>
  static T read(const StoredTensor& tensor, size_t i) {
    T out;
    std::memcpy(&out, tensor.data.data() + i * sizeof(T), sizeof(T));
    return out;
  }

  std::map<std::string, StoredTensor> tensors_;
};

// Element of a tensor of rank 1 or 2 in memory.
float element(const Tensor& tensor, int64_t row, int64_t column = 0) {
  const int64_t i = row * tensor.row_stride() + column;
  switch (tensor.dtype()) {
    case DType::f8_e4m3:
      return to_float(tensor.as<F8E4M3>()[i]);
    case DType::bf16:
      return to_float(tensor.as<BF16>()[i]);
    case DType::f16:
      return to_float(tensor.as<F16>()[i]);
    default:
      return tensor.as<float>()[i];
  }
}

// Element of a matrix by the formula of ops/linear.h.
float element(const ops::Linear& matrix, int64_t row, int64_t column) {
  const float out = element(matrix.weight, row, column);
  if (matrix.scale.empty()) return out;
  return out * element(matrix.scale, (matrix.first_row + row) / 128,
                       (matrix.first_column + column) / 128);
}

bool same(float a, float b) {
  return std::bit_cast<uint32_t>(a) == std::bit_cast<uint32_t>(b);
}

// Expects `actual` to be the rectangle of the named weight that begins at [row, column].
void expect_matrix(const Reference& reference, const std::string& name, const ops::Linear& actual,
                   int64_t row, int64_t column) {
  for (int64_t r = 0; r < actual.weight.size(0); ++r)
    for (int64_t c = 0; c < actual.weight.size(1); ++c)
      ASSERT_TRUE(same(element(actual, r, c), reference.value(name, row + r, column + c)))
          << name << " [" << row + r << ", " << column + c << "]";
}

void expect_vector(const Reference& reference, const std::string& name, const Tensor& actual,
                   int64_t begin) {
  for (int64_t i = 0; i < actual.size(0); ++i)
    ASSERT_TRUE(same(element(actual, i), reference.raw(name, begin + i, 0))) << name << " " << i;
}

// What a rank should hold, worked out by the test.
struct Expected {
  int64_t q_head, q_heads, kv_head, kv_heads, inner, inner_count, vocab, vocab_count;
  int64_t expert, expert_count;
};

void expect_experts(const Reference& reference, const std::string& at, const ops::Experts& actual,
                    const Expected& rank) {
  EXPECT_EQ(actual.first_expert, rank.expert);
  EXPECT_EQ(actual.first_inner, rank.inner);
  ASSERT_EQ(actual.count(), rank.expert_count);
  ASSERT_EQ(actual.inner(), rank.inner_count);
  const int64_t inner = rank.inner_count;
  const bool scaled = !actual.w1_scale.empty();
  for (int64_t e = 0; e < rank.expert_count; ++e) {
    const std::string name = at + std::to_string(rank.expert + e);
    const Tensor w13 = actual.w13.at(e);
    const Tensor w2 = actual.w2.at(e);
    // By the formulas of ops/experts.h.
    const auto inner_block = [&](int64_t i) {
      return (actual.first_inner + i) / 128 - actual.scale_row;
    };
    for (int64_t i = 0; i < inner; ++i)
      for (int64_t h = 0; h < actual.hidden(); ++h) {
        float w1 = element(w13, i, h), w3 = element(w13, inner + i, h), down = element(w2, h, i);
        if (scaled) {
          w1 *= element(actual.w1_scale.at(e), inner_block(i), h / 128);
          w3 *= element(actual.w3_scale.at(e), inner_block(i), h / 128);
          down *= element(actual.w2_scale.at(e), h / 128, inner_block(i));
        }
        ASSERT_TRUE(same(w1, reference.value(name + ".w1.weight", rank.inner + i, h))) << name;
        ASSERT_TRUE(same(w3, reference.value(name + ".w3.weight", rank.inner + i, h))) << name;
        ASSERT_TRUE(same(down, reference.value(name + ".w2.weight", h, rank.inner + i))) << name;
      }
  }
}

void expect_layer(const Reference& reference, const std::string& at, const Layer& layer,
                  const Expected& rank, int64_t head_dim) {
  const int64_t q = rank.q_head * head_dim, kv = rank.kv_head * head_dim;
  const std::string attention = at + "self_attn.";
  expect_matrix(reference, attention + "q_proj.weight", layer.qkv[0], q, 0);
  expect_matrix(reference, attention + "k_proj.weight", layer.qkv[1], kv, 0);
  expect_matrix(reference, attention + "v_proj.weight", layer.qkv[2], kv, 0);
  expect_matrix(reference, attention + "o_proj.weight", layer.o, 0, q);
  expect_vector(reference, attention + "q_norm.weight", layer.q_norm, q);
  expect_vector(reference, attention + "k_norm.weight", layer.k_norm, kv);
  EXPECT_EQ(layer.qkv[0].weight.size(0), rank.q_heads * head_dim);
  EXPECT_EQ(layer.qkv[1].weight.size(0), rank.kv_heads * head_dim);
  EXPECT_EQ(layer.qkv[2].weight.size(0), rank.kv_heads * head_dim);
  EXPECT_EQ(layer.o.weight.size(1), rank.q_heads * head_dim);
  EXPECT_EQ(layer.q_norm.size(0), rank.q_heads * head_dim);
  EXPECT_EQ(layer.k_norm.size(0), rank.kv_heads * head_dim);
  // One product reads q, k and v: their rows follow each other.
  for (size_t i = 0; i < 2; ++i) {
    const Tensor& upper = layer.qkv[i].weight;
    EXPECT_EQ(static_cast<char*>(upper.data()) + upper.elements() * size_of(upper.dtype()),
              layer.qkv[i + 1].weight.data());
  }
  expect_vector(reference, at + "input_layernorm.weight", layer.input_norm, 0);
  expect_vector(reference, at + "post_attention_layernorm.weight", layer.post_attention_norm, 0);
  EXPECT_EQ(layer.gate.dtype(), DType::f32);
  EXPECT_EQ(layer.routing_bias.dtype(), DType::f32);
  const ops::Linear gate{layer.gate, Tensor(), 0, 0};
  expect_matrix(reference, at + "block_sparse_moe.gate.weight", gate, 0, 0);
  expect_vector(reference, at + "block_sparse_moe.e_score_correction_bias", layer.routing_bias, 0);
  expect_experts(reference, at + "block_sparse_moe.experts.", layer.experts, rank);
}

class LoadWeights : public testing::Test {
 protected:
  void write(const ModelShape& shape) {
    shape_ = shape;
    tensors_ = test::model_tensors(shape);
    test::write_model(folder_.path(), test::config_json(shape), tensors_);
  }

  Result<Weights> load(const Topology& topology, const LoadProgress& progress = {}) {
    M2_TRY(const load::Checkpoint checkpoint, load::Checkpoint::open(folder_.path()));
    M2_TRY(const ModelConfig config, read_config(checkpoint.config()));
    return load_weights(config, checkpoint, topology, kCpu, progress);
  }

  void expect_rank(const Topology& topology, const Expected& rank) {
    const auto weights = load(topology);
    ASSERT_TRUE(weights.ok()) << weights.error().text;
    const Reference reference(tensors_);
    ASSERT_EQ(weights->layers.size(), static_cast<size_t>(shape_.layers));
    for (int64_t layer = 0; layer < shape_.layers; ++layer)
      expect_layer(reference, "model.layers." + std::to_string(layer) + ".",
                   weights->layers[static_cast<size_t>(layer)], rank, shape_.head_dim);
    EXPECT_EQ(weights->first_id, rank.vocab);
    EXPECT_EQ(weights->embedding.size(0), rank.vocab_count);
    EXPECT_EQ(weights->head.weight.size(0), rank.vocab_count);
    const ops::Linear embedding{weights->embedding, Tensor(), 0, 0};
    expect_matrix(reference, "model.embed_tokens.weight", embedding, rank.vocab, 0);
    expect_matrix(reference, "lm_head.weight", weights->head, rank.vocab, 0);
    expect_vector(reference, "model.norm.weight", weights->norm, 0);
  }

  static Topology tensor_parallel(int64_t size, int64_t rank) {
    Topology topology;
    topology.tensor_size = size;
    topology.tensor_rank = rank;
    return topology;
  }

  ModelShape shape_;
  std::vector<StoredTensor> tensors_;
  TempFolder folder_;
};

TEST_F(LoadWeights, OneRankHoldsEverything) {
  for (const char* dtype : {"F8_E4M3", "BF16", "F16", "F32"}) {
    ModelShape shape;
    shape.matrix_dtype = dtype;
    write(shape);
    expect_rank({}, {0, 4, 0, 2, 0, 192, 0, 96, 0, 4});
  }
}

TEST_F(LoadWeights, RouterAndNormsOfOtherDTypesAreWidened) {
  for (const char* dtype : {"BF16", "F16", "F32"}) {
    ModelShape shape;
    shape.router_dtype = shape.norm_dtype = dtype;
    write(shape);
    expect_rank({}, {0, 4, 0, 2, 0, 192, 0, 96, 0, 4});
  }
}

// 2 ranks of 192 inner columns: one and a half blocks each. q is 4 heads of 80: blocks cut
// anywhere.
TEST_F(LoadWeights, TwoRanksCutInsideBlocks) {
  ModelShape shape;
  shape.inner = 384;
  shape.hidden = 160;
  shape.head_dim = 80;
  shape.vocab = 97;
  write(shape);
  expect_rank(tensor_parallel(2, 0), {0, 2, 0, 1, 0, 192, 0, 49, 0, 4});
  expect_rank(tensor_parallel(2, 1), {2, 2, 1, 1, 192, 192, 49, 48, 0, 4});
}

TEST_F(LoadWeights, ThreeRanksOfUnevenWidth) {
  ModelShape shape;
  shape.heads = 6;
  shape.kv_heads = 3;
  shape.inner = 200;
  write(shape);
  expect_rank(tensor_parallel(3, 0), {0, 2, 0, 1, 0, 67, 0, 32, 0, 4});
  expect_rank(tensor_parallel(3, 1), {2, 2, 1, 1, 67, 67, 32, 32, 0, 4});
  expect_rank(tensor_parallel(3, 2), {4, 2, 2, 1, 134, 66, 64, 32, 0, 4});
}

// The released widths of an expert: 1536 over 8 ranks; and fewer kv heads than ranks.
TEST_F(LoadWeights, EightRanksWithReplicatedKvHeads) {
  ModelShape shape;
  shape.layers = 1;
  shape.experts = 2;
  shape.heads = 8;
  shape.inner = 1536;
  shape.hidden = 64;
  write(shape);
  for (int64_t rank = 0; rank < 8; ++rank)
    expect_rank(tensor_parallel(8, rank),
                {rank, 1, rank / 4, 1, 192 * rank, 192, 12 * rank, 12, 0, 2});
}

TEST_F(LoadWeights, ExpertParallelRanksHoldWholeExperts) {
  ModelShape shape;
  shape.experts = 5;
  write(shape);
  Topology topology = tensor_parallel(2, 0);
  topology.expert_parallel = true;
  expect_rank(topology, {0, 2, 0, 1, 0, 192, 0, 48, 0, 3});
  topology.tensor_rank = 1;
  expect_rank(topology, {2, 2, 1, 1, 0, 192, 48, 48, 3, 2});
}

// Bytes that this process has asked files for.
int64_t bytes_read() {
  std::ifstream file("/proc/self/io");
  std::string name;
  int64_t bytes = 0;
  file >> name >> bytes;
  M2_CHECK(name == "rchar:", "{}", name);
  return bytes;
}

// Of matrices cut by columns (o and w2) too: eight ranks read little more than the model.
TEST_F(LoadWeights, ARankReadsNoMoreThanItsPart) {
  for (const char* dtype : {"F8_E4M3", "BF16"}) {
    ModelShape shape;
    shape.layers = 1;
    shape.experts = 3;
    shape.heads = 8;
    shape.head_dim = 128;
    shape.inner = 1536;
    shape.hidden = 1024;
    shape.matrix_dtype = dtype;
    write(shape);
    const auto checkpoint = load::Checkpoint::open(folder_.path());
    ASSERT_TRUE(checkpoint.ok());
    const ModelConfig config = *read_config(checkpoint->config());
    const auto read_by = [&](const Topology& topology) {
      const int64_t before = bytes_read();
      const auto weights = load_weights(config, *checkpoint, topology, kCpu, {});
      M2_CHECK(weights.ok(), "{}", weights.error().text);
      const int64_t read = bytes_read() - before;
      EXPECT_GT(static_cast<double>(read), 0.98 * static_cast<double>(weights->buffer.bytes()));
      EXPECT_LT(static_cast<double>(read), 1.02 * static_cast<double>(weights->buffer.bytes()));
      return read;
    };
    const int64_t whole = read_by({});
    for (int64_t rank = 0; rank < 8; ++rank) {
      const int64_t read = read_by(tensor_parallel(8, rank));
      // Two kv heads are on four ranks each; router and norms on all.
      EXPECT_LT(static_cast<double>(read), 0.14 * static_cast<double>(whole)) << rank;
    }
  }
}

TEST_F(LoadWeights, ReportsProgressToTheEnd) {
  write({});
  int64_t last = -1, total = 0;
  const auto weights = load({}, [&](int64_t done, int64_t all) {
    EXPECT_GE(done, last);
    last = done;
    total = all;
  });
  ASSERT_TRUE(weights.ok());
  EXPECT_EQ(last, total);
  int64_t bytes = 0;
  for (const StoredTensor& tensor : tensors_) bytes += static_cast<int64_t>(tensor.data.size());
  EXPECT_EQ(total, bytes) << "every byte of the model is read once";
}

TEST_F(LoadWeights, TakesTheMemoryThatThePlanSays) {
  write({});
  const auto weights = load({});
  const auto config = read_config(test::config_json(shape_));
  EXPECT_EQ(weights->buffer.bytes(), weight_bytes(*config, {}, StoredTypes(*config)));
}

TEST_F(LoadWeights, RefusesWhatItCannotSplit) {
  write({});
  EXPECT_FALSE(load(tensor_parallel(3, 0)).ok());
}

TEST_F(LoadWeights, AShardShortenedAfterOpenIsNamed) {
  write({});
  const auto checkpoint = load::Checkpoint::open(folder_.path());
  const auto config = read_config(checkpoint->config());
  const std::string path = checkpoint->files()[1].path();
  fs::resize_file(path, fs::file_size(path) - 1);
  const auto weights = load_weights(*config, *checkpoint, {}, kCpu, {});
  ASSERT_FALSE(weights.ok());
  EXPECT_NE(weights.error().text.find(path), std::string::npos);
  EXPECT_NE(weights.error().text.find("lm_head.weight"), std::string::npos);
}

// F12: a shard cut anywhere is refused before anything is served.
TEST_F(LoadWeights, EveryKindOfTruncationIsRefused) {
  write({});
  const fs::path path = folder_ / "model-00001-of-00130.safetensors";
  const std::string whole = test::read_file(path);
  uint64_t header = 0;
  std::memcpy(&header, whole.data(), 8);
  std::vector<uint64_t> sizes{0, 1, 7, 8, 9, 8 + header - 1, 8 + header, 8 + header + 1};
  const auto infos = load::read_safetensors_header(*load::File::open(path));
  for (const load::TensorInfo& info : *infos)
    sizes.insert(sizes.end(), {info.begin - 1, info.begin, info.begin + 1});
  std::mt19937_64 random(1);
  for (int i = 0; i < 200; ++i) sizes.push_back(random() % whole.size());
  sizes.push_back(whole.size() - 1);
  for (const uint64_t size : sizes) {
    test::write_file(path, whole.substr(0, size));
    const auto weights = load({});
    ASSERT_FALSE(weights.ok()) << size;
    EXPECT_NE(weights.error().text.find(path.string()), std::string::npos) << size;
    const bool names_tensor = weights.error().text.find("tensor ") != std::string::npos;
    EXPECT_EQ(names_tensor, size >= 8 + header) << weights.error().text;
  }
}

// ---- Dummy weights ----

ModelConfig dummy_config() {
  ModelShape shape;
  shape.inner = 384;
  shape.hidden = 160;
  return *read_config(test::config_json(shape));
}

TEST(DummyWeights, DependOnTheSeedAlone) {
  const auto a = dummy_weights(dummy_config(), {}, kCpu, 1);
  const auto b = dummy_weights(dummy_config(), {}, kCpu, 1);
  const auto c = dummy_weights(dummy_config(), {}, kCpu, 2);
  const Tensor& wa = a->layers[1].experts.w13;
  const size_t bytes = static_cast<size_t>(wa.elements());
  EXPECT_EQ(0, std::memcmp(wa.data(), b->layers[1].experts.w13.data(), bytes));
  EXPECT_NE(0, std::memcmp(wa.data(), c->layers[1].experts.w13.data(), bytes));
  EXPECT_NE(0, std::memcmp(wa.data(), a->layers[0].experts.w13.data(), bytes));
}

TEST(DummyWeights, KeepTheSizeOfASignalAndHaveNoNaN) {
  const auto weights = dummy_weights(dummy_config(), {}, kCpu, 3);
  const auto deviation = [](const ops::Linear& matrix) {
    double sum = 0, squares = 0;
    const int64_t rows = matrix.weight.size(0), columns = matrix.weight.size(1);
    for (int64_t r = 0; r < rows; ++r)
      for (int64_t c = 0; c < columns; ++c) {
        const double value = element(matrix, r, c);
        EXPECT_TRUE(std::isfinite(value));
        sum += value;
        squares += value * value;
      }
    const double count = static_cast<double>(rows * columns);
    EXPECT_NEAR(sum / count, 0, 0.05 * std::sqrt(squares / count));
    return std::sqrt(squares / count);
  };
  const Layer& layer = weights->layers[0];
  EXPECT_NEAR(deviation(layer.qkv[0]), 1 / std::sqrt(160.0), 0.005);
  EXPECT_NEAR(deviation(layer.o), 1 / std::sqrt(128.0), 0.005);
  EXPECT_NEAR(deviation({weights->embedding, Tensor(), 0, 0}), 1, 0.05);
  EXPECT_NEAR(deviation({layer.gate, Tensor(), 0, 0}), 1 / std::sqrt(160.0), 0.01);
  for (int64_t i = 0; i < layer.input_norm.size(0); ++i)
    EXPECT_NEAR(element(layer.input_norm, i), 1, 0.2);
}

// As many experts are read as a trained, balanced router would have: 64 tokens, 8 of 256.
TEST(DummyWeights, TokensChooseExpertsAboutEvenly) {
  constexpr int64_t kTokens = 64, kHidden = 256, kExperts = 256, kTop = 8;
  ModelConfig config = dummy_config();
  config.hidden_size = kHidden;
  config.intermediate_size = 128;
  config.num_layers = 2;
  config.num_experts = kExperts;
  config.num_experts_per_token = kTop;
  const auto weights = dummy_weights(config, {}, kCpu, 1);
  std::mt19937 random(1);
  std::normal_distribution<float> normal;
  std::vector<float> x(kTokens * kHidden), shares(kTokens * kTop);
  for (float& number : x) number = normal(random);
  std::vector<int32_t> ids(kTokens * kTop);
  ThreadPool pool(1);
  for (const Layer& layer : weights->layers) {
    ops::route({kCpu, &pool}, Tensor(x.data(), DType::f32, {kTokens, kHidden}), layer.gate,
               layer.routing_bias, Tensor(ids.data(), DType::i32, {kTokens, kTop}),
               Tensor(shares.data(), DType::f32, {kTokens, kTop}));
    const double even = kExperts * (1 - std::pow(1 - double{kTop} / kExperts, kTokens));
    EXPECT_NEAR(static_cast<double>(std::set(ids.begin(), ids.end()).size()), even, 0.05 * even);
  }
}

// Ranks hold slices of one model, whatever the split.
TEST(DummyWeights, RanksHoldSlicesOfOneModel) {
  const ModelConfig config = dummy_config();
  const auto whole = dummy_weights(config, {}, kCpu, 5);
  for (int64_t rank = 0; rank < 2; ++rank) {
    Topology topology;
    topology.tensor_size = 2;
    topology.tensor_rank = rank;
    const auto part = dummy_weights(config, topology, kCpu, 5);
    const Layer& a = whole->layers[1];
    const Layer& b = part->layers[1];
    for (int64_t r = 0; r < 160; ++r)
      for (int64_t c = 0; c < 64; ++c)
        ASSERT_TRUE(same(element(a.o, r, 64 * rank + c), element(b.o, r, c)));
    const Tensor all = a.experts.w2.at(3);
    const Tensor some = b.experts.w2.at(3);
    for (int64_t r = 0; r < 160; ++r)
      for (int64_t c = 0; c < 192; ++c)
        ASSERT_TRUE(same(element(all, r, 192 * rank + c), element(some, r, c)));
    for (int64_t c = 0; c < 160; ++c)
      ASSERT_TRUE(
          same(element(whole->embedding, 48 * rank + 7, c), element(part->embedding, 7, c)));
  }
}

// Whole matrices and ranks' slices, whose blocks may be cut: every scale becomes a power of two,
// and a weight moves by what rounding it once more allows.
TEST(Requantise, GivesEveryFp8MatrixPowersOfTwo) {
  const ModelConfig config = dummy_config();
  ThreadPool pool(2);
  for (const int64_t ranks : {1, 2}) {
    Topology topology;
    topology.tensor_size = ranks;
    topology.tensor_rank = ranks - 1;
    const auto before = dummy_weights(config, topology, kCpu, 5);
    auto after = dummy_weights(config, topology, kCpu, 5);
    requantise({kCpu, &pool}, *after);
    const auto expect_near = [&](const ops::Linear& a, const ops::Linear& b) {
      for (int64_t i = 0; i < b.scale.elements(); ++i) {
        int exponent;
        EXPECT_EQ(std::frexp(b.scale.as<float>()[i], &exponent), 0.5f);
      }
      double squares = 0, moved = 0;
      for (int64_t r = 0; r < a.weight.size(0); ++r)
        for (int64_t c = 0; c < a.weight.size(1); ++c) {
          const double from = element(a, r, c), to = element(b, r, c);
          ASSERT_LE(std::abs(to - from), std::abs(from) / 16 * 1.0001) << r << ", " << c;
          squares += from * from;
          moved += (to - from) * (to - from);
        }
      EXPECT_GT(moved, 1e-6 * squares);
      EXPECT_LT(moved, 2e-3 * squares);
    };
    for (size_t l = 0; l < after->layers.size(); ++l) {
      const Layer &a = before->layers[l], &b = after->layers[l];
      for (size_t i = 0; i < 3; ++i) expect_near(a.qkv[i], b.qkv[i]);
      expect_near(a.o, b.o);
      const int64_t inner = a.experts.inner(), first = a.experts.first_inner % 128;
      for (int64_t e = 0; e < a.experts.count(); ++e) {
        const auto part = [&](const ops::Experts& x, int which) {
          const Tensor w13 = x.w13.at(e);
          return which == 0   ? ops::Linear{w13.rows(0, inner), x.w1_scale.at(e), first, 0}
                 : which == 1 ? ops::Linear{w13.rows(inner, inner), x.w3_scale.at(e), first, 0}
                              : ops::Linear{x.w2.at(e), x.w2_scale.at(e), 0, first};
        };
        for (const int which : {0, 1, 2})
          expect_near(part(a.experts, which), part(b.experts, which));
        if (HasFailure()) return;
      }
      EXPECT_EQ(0, std::memcmp(a.gate.data(), b.gate.data(),
                               static_cast<size_t>(a.gate.elements() * size_of(a.gate.dtype()))));
    }
    EXPECT_EQ(0, std::memcmp(before->embedding.data(), after->embedding.data(),
                             static_cast<size_t>(after->embedding.elements() *
                                                 size_of(after->embedding.dtype()))));
  }
}

TEST(DummyWeights, WithoutQuantisationTheyAreBf16) {
  ModelConfig config = dummy_config();
  config.fp8_blocks = false;
  const auto weights = dummy_weights(config, {}, kCpu, 1);
  EXPECT_EQ(weights->layers[0].experts.w13.dtype(), DType::bf16);
  EXPECT_TRUE(weights->layers[0].experts.w1_scale.empty());
  EXPECT_EQ(weights->layers[0].gate.dtype(), DType::f32);
}

}  // namespace
}  // namespace m2::model
