#include "load/checkpoint.h"

#include <gtest/gtest.h>
#include <sys/stat.h>

#include <ctime>

#include "tests/load/test_checkpoint.h"
#include "tests/time_factor.h"

namespace m2::load {
namespace {

namespace fs = std::filesystem;
using test::StoredTensor;
using test::TempFolder;

std::vector<StoredTensor> some_tensors() {
  return {{"model.embed_tokens.weight", "BF16", {4, 2}, test::random_bytes(16, 1)},
          {"model.norm.weight", "BF16", {2}, test::random_bytes(4, 2)},
          {"lm_head.weight", "BF16", {4, 2}, test::random_bytes(16, 3)},
          {"extra", "F64", {1}, test::random_bytes(8, 4)}};
}

// A folder with config.json and `some_tensors()` in two shards.
class CheckpointTest : public testing::Test {
 protected:
  void SetUp() override {
    test::write_file(folder_ / "config.json", R"({"hidden_size": 2})");
    test::write_shards(folder_.path(), some_tensors(), 2);
  }

  std::string index() const { return test::read_file(folder_ / kIndex); }
  void write_index(const Json& json) const { test::write_file(folder_ / kIndex, json.dump()); }

  Error refusal() const {
    const std::clock_t start = std::clock();
    auto result = Checkpoint::open(folder_.path());
    const double seconds = static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
    EXPECT_LT(seconds, 2.0 * kTimeFactor);
    return result.ok() ? Error{Code::internal, "accepted", ""} : result.error();
  }

  void expect_refusal(std::initializer_list<const char*> parts) const {
    const Error error = refusal();
    EXPECT_NE(error.text, "accepted");
    for (const char* part : parts)
      EXPECT_NE(error.text.find(part), std::string::npos) << part << " in: " << error.text;
  }

  static constexpr const char* kIndex = "model.safetensors.index.json";
  static constexpr const char* kFirst = "model-00000-of-00130.safetensors";
  static constexpr const char* kSecond = "model-00001-of-00130.safetensors";
  TempFolder folder_;
};

TEST_F(CheckpointTest, OpensShardsThroughTheIndex) {
  const auto checkpoint = Checkpoint::open(folder_.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.error().text;
  EXPECT_EQ(checkpoint->config().at("hidden_size"), 2);
  EXPECT_TRUE(checkpoint->generation_config().is_null());
  EXPECT_EQ(checkpoint->tensors().size(), 4u);
  EXPECT_EQ(checkpoint->files().size(), 2u);
  EXPECT_EQ(checkpoint->find("absent"), nullptr);
  for (const StoredTensor& expected : some_tensors()) {
    const TensorInfo* tensor = checkpoint->find(expected.name);
    ASSERT_NE(tensor, nullptr);
    std::string data(tensor->bytes, '\0');
    ASSERT_TRUE(checkpoint->read(*tensor, 0, std::as_writable_bytes(std::span(data))).ok());
    EXPECT_EQ(data, expected.data);
    std::string tail(2, '\0');
    ASSERT_TRUE(
        checkpoint->read(*tensor, tensor->bytes - 2, std::as_writable_bytes(std::span(tail))).ok());
    EXPECT_EQ(tail, expected.data.substr(expected.data.size() - 2));
  }
}

TEST_F(CheckpointTest, OpensOneFileWithoutIndex) {
  fs::remove(folder_ / kIndex);
  test::write_file(folder_ / "model.safetensors", test::safetensors(some_tensors()));
  test::write_file(folder_ / "generation_config.json", R"({"top_k": 40})");
  const auto checkpoint = Checkpoint::open(folder_.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.error().text;
  EXPECT_EQ(checkpoint->tensors().size(), 4u);
  EXPECT_EQ(checkpoint->generation_config().at("top_k"), 40);
}

TEST_F(CheckpointTest, TheIndexDecidesWhichFilesAndTensorsBelong) {
  // Files that are not the model, one of them damaged, and a tensor that the index does not map.
  test::write_file(folder_ / "model-00002-of-00130.safetensors", "rubbish");
  test::write_file(folder_ / "input_scales.safetensors", test::safetensors(some_tensors()));
  Json json = Json::parse(index());
  json["weight_map"].erase("extra");
  write_index(json);
  const auto checkpoint = Checkpoint::open(folder_.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.error().text;
  EXPECT_EQ(checkpoint->files().size(), 2u);
  EXPECT_EQ(checkpoint->find("extra"), nullptr);
}

TEST_F(CheckpointTest, TheIndexDecidesBetweenTwoFilesWithOneTensor) {
  auto tensors = some_tensors();
  tensors[3] = tensors[0];
  tensors[3].data = test::random_bytes(16, 9);
  test::write_file(folder_ / kSecond, test::safetensors({tensors[2], tensors[3]}));
  Json json = Json::parse(index());
  json["weight_map"].erase("extra");
  write_index(json);
  const auto checkpoint = Checkpoint::open(folder_.path());
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.error().text;
  EXPECT_EQ(checkpoint->file_of(*checkpoint->find(tensors[0].name)).path(),
            (folder_ / kFirst).string());
}

TEST_F(CheckpointTest, TotalSizeAndOtherFieldsOfTheIndexAreNotBelieved) {
  Json json = Json::parse(index());
  json["metadata"]["total_size"] = -1;
  json["metadata"]["weight_map"] = {{"x", "y"}};
  json["other"] = {1, {2, {{"weight_map", {{"a", "b"}}}}}, nullptr, 1e300};
  write_index(json);
  EXPECT_EQ(refusal().text, "accepted");
}

TEST_F(CheckpointTest, FollowsSymbolicLinksAsTheHubCacheUsesThem) {
  TempFolder blobs;
  fs::rename(folder_ / kFirst, blobs / "blob");
  fs::create_symlink(blobs / "blob", folder_ / kFirst);
  EXPECT_EQ(refusal().text, "accepted");
}

TEST_F(CheckpointTest, NamesTheFileAndTensorOfAMissingShard) {
  fs::remove(folder_ / kSecond);
  expect_refusal({kSecond, "tensor extra", "No such file"});
}

TEST_F(CheckpointTest, NamesTheFileAndTensorThatAShardLacks) {
  Json json = Json::parse(index());
  json["weight_map"]["model.layers.7.absent"] = kFirst;
  write_index(json);
  expect_refusal({kFirst, "model.layers.7.absent", "1 such tensor"});
  json["weight_map"].erase("model.layers.7.absent");
  json["weight_map"]["lm_head.weight"] = kFirst;  // it is in the other one
  write_index(json);
  expect_refusal({kFirst, "lm_head.weight"});
}

TEST_F(CheckpointTest, RefusesNamesThatLeadOutOfTheFolder) {
  TempFolder outside;
  test::write_file(outside / "x.safetensors", test::safetensors(some_tensors()));
  for (const std::string name : {"../x.safetensors", "..", ".", "", "/etc/passwd",
                                 "a/b.safetensors", "a\\b", "./x", "x\nsafetensors"}) {
    Json json = Json::parse(index());
    json["weight_map"]["lm_head.weight"] = name;
    write_index(json);
    expect_refusal({kIndex, "lm_head.weight"});
  }
  Json json = Json::parse(index());
  json["weight_map"]["lm_head.weight"] = std::string("model\0x", 7);
  write_index(json);
  expect_refusal({kIndex});
}

TEST_F(CheckpointTest, RefusesAMalformedIndex) {
  for (const char* text :
       {"", "[]", "3", "{", "{}", R"({"weight_map": 3})", R"({"weight_map": []})",
        R"({"weight_map": null})", R"({"weight_map": {"a": 3}})", R"({"weight_map": {"a": {}}})",
        R"({"weight_map": {"a": ["b"]}})", R"({"weight_map": {"a": null}})",
        R"({"weight_map": {"a": "b", "a": "b"}})", R"({"weight_map": {}, "weight_map": {}})",
        R"({"weight_map": {}} trailing)"}) {
    test::write_file(folder_ / kIndex, text);
    expect_refusal({kIndex});
  }
}

TEST_F(CheckpointTest, RefusesWhatIsNoRegularFile) {
  fs::remove(folder_ / kSecond);
  fs::create_directory(folder_ / kSecond);
  expect_refusal({kSecond, "not a regular file"});
  fs::remove(folder_ / kSecond);
  ASSERT_EQ(::mkfifo((folder_ / kSecond).c_str(), 0600), 0);
  expect_refusal({kSecond, "not a regular file"});  // and does not wait for a writer
}

TEST_F(CheckpointTest, RefusesAMissingOrMalformedConfig) {
  for (const char* text : {"", "[]", "nul", "{\"a\": 1, \"a\": 2}", "{\"a\": 1e999}"}) {
    test::write_file(folder_ / "config.json", text);
    expect_refusal({"config.json"});
  }
  fs::remove(folder_ / "config.json");
  expect_refusal({"config.json", "No such file"});
  EXPECT_EQ(refusal().code, Code::not_found);
}

TEST_F(CheckpointTest, RefusesAMalformedGenerationConfig) {
  test::write_file(folder_ / "generation_config.json", "{");
  expect_refusal({"generation_config.json"});
}

TEST_F(CheckpointTest, SaysWhatIsMissingFromAnEmptyFolder) {
  fs::remove(folder_ / kIndex);
  expect_refusal({kIndex, "model.safetensors", "download"});
}

TEST_F(CheckpointTest, AFileShortenedAfterOpenIsAnErrorNotASignal) {
  const auto checkpoint = Checkpoint::open(folder_.path());
  ASSERT_TRUE(checkpoint.ok());
  const TensorInfo* tensor = checkpoint->find("lm_head.weight");
  std::string data(tensor->bytes, '\0');
  for (const uint64_t size : {tensor->begin + tensor->bytes - 1, tensor->begin, uint64_t{0}}) {
    fs::resize_file(checkpoint->file_of(*tensor).path(), size);
    const auto result = checkpoint->read(*tensor, 0, std::as_writable_bytes(std::span(data)));
    ASSERT_FALSE(result.ok()) << size;
    EXPECT_NE(result.error().text.find("lm_head.weight"), std::string::npos);
    EXPECT_NE(result.error().text.find(kSecond), std::string::npos);
    EXPECT_EQ(result.error().code, Code::corrupt);
  }
}

TEST_F(CheckpointTest, EveryTruncationOfAShardIsRefusedByName) {
  const std::string whole = test::read_file(folder_ / kSecond);
  for (size_t size = 0; size < whole.size(); ++size) {
    test::write_file(folder_ / kSecond, whole.substr(0, size));
    expect_refusal({kSecond});
  }
}

TEST_F(CheckpointTest, AHugeIndexIsReadInASecond) {
  std::vector<StoredTensor> tensors;
  for (int i = 0; i < 100'000; ++i)
    tensors.push_back({"model.layers.0.block_sparse_moe.experts." + std::to_string(i) + ".weight",
                       "U8",
                       {1},
                       "x"});
  std::string index = R"({"weight_map":{)";
  for (const StoredTensor& tensor : tensors)
    index += (index.size() > 16 ? ",\"" : "\"") + tensor.name + "\":\"" + kFirst + "\"";
  test::write_file(folder_ / kIndex, index + "}}");
  test::write_file(folder_ / kFirst, test::safetensors(tensors));
  const std::clock_t start = std::clock();
  const auto checkpoint = Checkpoint::open(folder_.path());
  const double seconds = static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
  ASSERT_TRUE(checkpoint.ok()) << checkpoint.error().text;
  EXPECT_EQ(checkpoint->tensors().size(), 100'000u);
  EXPECT_LT(seconds, 2.0 * kTimeFactor);
}

}  // namespace
}  // namespace m2::load
