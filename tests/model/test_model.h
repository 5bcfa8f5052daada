#pragma once

#include <string>
#include <vector>

#include "base/json.h"
#include "tests/load/test_checkpoint.h"

// Small random models in the released form, with every tensor name spelled out by hand.

namespace m2::test {

struct ModelShape {
  int64_t layers = 2, hidden = 128, inner = 192, heads = 4, kv_heads = 2, head_dim = 32;
  int64_t experts = 4, vocab = 96;
  std::string matrix_dtype = "F8_E4M3";  // or BF16, F16, F32
  std::string router_dtype = "F32";
  std::string norm_dtype = "BF16";
};

inline Json config_json(const ModelShape& shape) {
  Json json = {{"architectures", {"MiniMaxM2ForCausalLM"}},
               {"hidden_size", shape.hidden},
               {"intermediate_size", shape.inner},
               {"num_hidden_layers", shape.layers},
               {"num_attention_heads", shape.heads},
               {"num_key_value_heads", shape.kv_heads},
               {"head_dim", shape.head_dim},
               {"rotary_dim", shape.head_dim / 2},
               {"rope_theta", 5000000},
               {"max_position_embeddings", 4096},
               {"rms_norm_eps", 1e-6},
               {"num_local_experts", shape.experts},
               {"num_experts_per_tok", 2},
               {"vocab_size", shape.vocab}};
  if (shape.matrix_dtype == "F8_E4M3")
    json["quantization_config"] = {{"quant_method", "fp8"}, {"weight_block_size", {128, 128}}};
  return json;
}

class TensorList {
 public:
  explicit TensorList(const ModelShape& shape) : shape_(shape) {
    add("model.embed_tokens.weight", "BF16", {shape.vocab, shape.hidden});
    for (int64_t layer = 0; layer < shape.layers; ++layer)
      add_layer("model.layers." + std::to_string(layer) + ".");
    add("model.norm.weight", shape.norm_dtype, {shape.hidden});
    add("lm_head.weight", "BF16", {shape.vocab, shape.hidden});
  }

  std::vector<StoredTensor> take() { return std::move(tensors_); }

 private:
  void add_layer(const std::string& at) {
    const int64_t q = shape_.heads * shape_.head_dim;
    const int64_t kv = shape_.kv_heads * shape_.head_dim;
    add(at + "input_layernorm.weight", shape_.norm_dtype, {shape_.hidden});
    add(at + "post_attention_layernorm.weight", shape_.norm_dtype, {shape_.hidden});
    add(at + "self_attn.q_norm.weight", shape_.norm_dtype, {q});
    add(at + "self_attn.k_norm.weight", shape_.norm_dtype, {kv});
    add_matrix(at + "self_attn.q_proj.weight", q, shape_.hidden);
    add_matrix(at + "self_attn.k_proj.weight", kv, shape_.hidden);
    add_matrix(at + "self_attn.v_proj.weight", kv, shape_.hidden);
    add_matrix(at + "self_attn.o_proj.weight", shape_.hidden, q);
    add(at + "block_sparse_moe.gate.weight", shape_.router_dtype, {shape_.experts, shape_.hidden});
    add(at + "block_sparse_moe.e_score_correction_bias", shape_.router_dtype, {shape_.experts});
    for (int64_t e = 0; e < shape_.experts; ++e) {
      const std::string expert = at + "block_sparse_moe.experts." + std::to_string(e) + ".";
      add_matrix(expert + "w1.weight", shape_.inner, shape_.hidden);
      add_matrix(expert + "w2.weight", shape_.hidden, shape_.inner);
      add_matrix(expert + "w3.weight", shape_.inner, shape_.hidden);
    }
  }

  void add_matrix(const std::string& name, int64_t rows, int64_t columns) {
    add(name, shape_.matrix_dtype, {rows, columns});
    if (shape_.matrix_dtype == "F8_E4M3")
      add(name + "_scale_inv", "F32", {(rows + 127) / 128, (columns + 127) / 128});
  }

  // Random bytes, but positive finite numbers where they are numbers of more than a byte.
  void add(const std::string& name, const std::string& dtype, std::vector<int64_t> shape) {
    const size_t width = dtype == "F8_E4M3" ? 1 : dtype == "F32" ? 4 : 2;
    size_t count = 1;
    for (const int64_t size : shape) count *= static_cast<size_t>(size);
    std::string data = random_bytes(count * width, ++seed_);
    for (size_t i = 0; i < data.size(); ++i) {
      if (width == 1) data[i] = static_cast<char>(data[i] & 0xbf);
      if (width > 1 && i % width == width - 1) data[i] = 0x3d;
    }
    tensors_.push_back({name, dtype, std::move(shape), std::move(data)});
  }

  ModelShape shape_;
  std::vector<StoredTensor> tensors_;
  uint64_t seed_ = 0;
};

inline std::vector<StoredTensor> model_tensors(const ModelShape& shape) {
  return TensorList(shape).take();
}

inline void write_model(const std::filesystem::path& folder, const Json& config,
                        const std::vector<StoredTensor>& tensors, size_t shards = 2) {
  write_file(folder / "config.json", config.dump());
  write_shards(folder, tensors, shards);
}

}  // namespace m2::test
