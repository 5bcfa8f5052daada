#include "model/kv_scales.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>

#include "tests/model/test_model.h"

namespace m2::model {
namespace {

using test::ModelShape;
using test::StoredTensor;
using test::TempFolder;

template <class T>
std::string bytes_of(T value) {
  std::string out(sizeof(T), '\0');
  std::memcpy(out.data(), &value, sizeof(T));
  return out;
}

class KvScales : public testing::Test {
 protected:
  // The scales of a model of two layers with these tensors beside its weights.
  Result<std::vector<float>> read(const std::vector<StoredTensor>& scales) {
    const ModelShape shape;
    std::vector<StoredTensor> tensors = test::model_tensors(shape);
    tensors.insert(tensors.end(), scales.begin(), scales.end());
    const TempFolder folder;
    write_model(folder.path(), config_json(shape), tensors);
    M2_TRY(const load::Checkpoint checkpoint, load::Checkpoint::open(folder.path()));
    M2_TRY(const ModelConfig config, read_config(checkpoint.config()));
    M2_TRY(Weights weights, load_weights(config, checkpoint, {}, Device{}, {}));
    M2_TRY(found_, read_kv_scales(checkpoint, weights));
    std::vector<float> out;
    for (const Layer& layer : weights.layers) {
      out.push_back(layer.k_scale);
      out.push_back(layer.v_scale);
    }
    return out;
  }

  static StoredTensor number(const std::string& name, float value) {
    return {name, "F32", {}, bytes_of(value)};
  }

  int64_t found_ = -1;
  const std::string at_[2] = {"model.layers.0.self_attn.", "model.layers.1.self_attn."};
};

TEST_F(KvScales, AreOneWithoutAny) {
  EXPECT_EQ(*read({}), (std::vector<float>{1, 1, 1, 1}));
  EXPECT_EQ(found_, 0);
}

TEST_F(KvScales, AreReadUnderEveryNameAndDtype) {
  EXPECT_EQ(*read({number(at_[0] + "k_proj.k_scale", 0.5f), number(at_[0] + "v_proj.v_scale", 2),
                   number(at_[1] + "attn.k_scale", 3), number(at_[1] + "attn.v_scale", 4)}),
            (std::vector<float>{0.5f, 2, 3, 4}));
  EXPECT_EQ(found_, 2);
  EXPECT_EQ(*read({{at_[1] + "k_scale", "BF16", {1}, bytes_of(to_bf16(0.25f).bits)},
                   {at_[1] + "v_scale", "F16", {1, 1}, bytes_of(to_f16(0.125f).bits)}}),
            (std::vector<float>{1, 1, 0.25f, 0.125f}));
  EXPECT_EQ(found_, 1);
  EXPECT_EQ(*read({number(at_[0] + "kv_scale", 0.5f), number(at_[1] + "k_scale", 0.75f)}),
            (std::vector<float>{0.5f, 0.5f, 0.75f, 0.75f}))
      << "one for both";
}

TEST_F(KvScales, RefusesWhatIsNoScale) {
  const std::string name = at_[1] + "k_scale";
  const auto refusal = [&](StoredTensor tensor) {
    const auto result = read({std::move(tensor)});
    return result.ok() ? "accepted" : result.error().text;
  };
  for (const float bad : {0.0f, -1.0f, NAN, INFINITY})
    EXPECT_NE(refusal(number(name, bad)).find(name), std::string::npos) << bad;
  EXPECT_NE(refusal({name, "F32", {2}, std::string(8, '\x3d')}).find("only one scale a layer"),
            std::string::npos);
  EXPECT_NE(refusal({name, "F32", {0}, ""}).find("only one scale"), std::string::npos);
  EXPECT_NE(refusal({name, "F8_E4M3", {1}, "\x38"}).find("is no scale"), std::string::npos);
  EXPECT_NE(refusal(number(at_[0] + "v_scale", 1)).find("no k_scale"), std::string::npos);
}

}  // namespace
}  // namespace m2::model
