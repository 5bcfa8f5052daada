// Layers of one decoded token in two kernels each, against the operations that these stand for,
// byte for byte. Needs a Hopper GPU; says so and skips without one.
#include <algorithm>
#include <array>
#include <numeric>

#include "ops/decode_layer.h"
#include "ops/norm.h"
#include "ops/route.h"
#include "tests/ops/cuda/gpu_support.h"

namespace m2::gpu_test {
namespace {

constexpr int64_t kHidden = 3072, kQ = 6144, kKv = 1024, kExperts = 256, kTop = 8;

class GpuDecodeLayer : public testing::Test {
 protected:
  void SetUp() override {
    std::string why;
    if (!gpu_present(why)) GTEST_SKIP() << "needs a GPU: " << why;
    if (!ops::wants_quantised(gpu().device)) GTEST_SKIP() << "needs a Hopper GPU";
  }
  std::mt19937 random_{4321};

  std::vector<float> scales(int64_t count) {
    std::vector<float> out(static_cast<size_t>(count));
    for (float& scale : out) scale = std::uniform_real_distribution<float>(1e-4f, 4e-4f)(random_);
    return out;
  }
};

// Pages of keys or values: few random numbers over and over, at other places of each page.
Numbers random_pages(std::mt19937& random, int64_t count, DType dtype) {
  Numbers numbers = random_numbers(random, std::min<int64_t>(count, 100'003), dtype);
  std::vector<uint8_t> bytes;
  const size_t wanted = static_cast<size_t>(count * size_of(dtype));
  while (bytes.size() < wanted)
    bytes.insert(bytes.end(), numbers.bytes.begin(), numbers.bytes.end());
  bytes.resize(wanted);
  return {dtype, {}, std::move(bytes)};
}

// How many bytes differ.
int64_t differing(const OnGpu& a, const OnGpu& b) {
  const std::vector<uint8_t> one = a.bytes(), other = b.bytes();
  return std::inner_product(one.begin(), one.end(), other.begin(), int64_t{0}, std::plus<>(),
                            std::not_equal_to<>());
}

// A linear whose weights and scales live on the GPU.
ops::Linear linear(Tensor weight, Tensor scale) {
  return {weight, scale, 0, 0};
}

// The router's rows and biases, in groups of equal ones: ties that the choice has to break alike.
Numbers in_equal_rows(const Numbers& rows, int64_t columns, int64_t group) {
  Numbers out = rows;
  const int64_t row_bytes = columns * size_of(rows.dtype);
  for (int64_t r = 0; r < std::ssize(rows.bytes) / row_bytes; ++r)
    std::copy_n(rows.bytes.begin() + r / group * group * row_bytes, row_bytes,
                out.bytes.begin() + r * row_bytes);
  return out;
}

TEST_F(GpuDecodeLayer, IsTheOperationsOneAfterAnother) {
  const ops::HeadShape heads{48, 8, 128, 64};
  const OnGpu qkv(random_numbers(random_, (kQ + 2 * kKv) * kHidden, DType::f8_e4m3),
                  {kQ + 2 * kKv, kHidden});
  const OnGpu o(random_numbers(random_, kHidden * kQ, DType::f8_e4m3), {kHidden, kQ});
  const OnGpu q_scale(scales(48 * 24), {48, 24}), k_scale(scales(8 * 24), {8, 24}),
      v_scale(scales(8 * 24), {8, 24}), o_scale(scales(24 * 48), {24, 48});
  const std::array<ops::Linear, 3> parts{linear(qkv.tensor().rows(0, kQ), q_scale),
                                         linear(qkv.tensor().rows(kQ, kKv), k_scale),
                                         linear(qkv.tensor().rows(kQ + kKv, kKv), v_scale)};
  const OnGpu q_norm(random_numbers(random_, kQ, DType::bf16), {kQ}),
      k_norm(random_numbers(random_, kKv, DType::bf16), {kKv}),
      norm(random_numbers(random_, kHidden, DType::bf16), {kHidden});
  const Numbers gate_rows = random_numbers(random_, kExperts * kHidden, DType::f32, 0.02),
                biases = random_numbers(random_, kExperts, DType::f32, 0.01);
  // The experts behind it are narrow.
  constexpr int64_t kInner = 128;
  const OnGpu w13(random_pages(random_, kExperts * 2 * kInner * kHidden, DType::f8_e4m3),
                  {kExperts, 2 * kInner, kHidden}),
      w2(random_pages(random_, kExperts * kHidden * kInner, DType::f8_e4m3),
         {kExperts, kHidden, kInner}),
      w1_scale(scales(kExperts * 24), {kExperts, 1, 24}),
      w3_scale(scales(kExperts * 24), {kExperts, 1, 24}),
      w2_scale(scales(kExperts * 24), {kExperts, 24, 1}),
      input_norm(random_numbers(random_, kHidden, DType::bf16), {kHidden});
  const ops::Experts experts{w13, w1_scale, w3_scale, w2, w2_scale};
  const Buffer scratch_memory(gpu().device,
                              ops::experts_scratch_bytes(gpu().device, experts, 1, kTop));
  clear(gpu(), scratch_memory.data(), scratch_memory.bytes());
  const Tensor scratch(scratch_memory.data(), DType::u8, {scratch_memory.bytes()});
  int cases = 0;
  for (const DType cache_dtype : {DType::bf16, DType::f8_e4m3})
    for (const int64_t context : {1,   2,    15,   16,   17,   100,  255,  256,  257,   300,
                                  320, 1000, 2047, 2048, 2049, 4100, 8192, 8193, 20000, 70001}) {
      SCOPED_TRACE(testing::Message() << context << " positions, " << name_of(cache_dtype));
      const int64_t group = context == 16 ? 2 : context == 17 ? 5 : context == 300 ? kExperts : 1;
      const OnGpu gate(in_equal_rows(gate_rows, kHidden, group), {kExperts, kHidden}),
          bias(in_equal_rows(biases, 1, group), {kExperts});
      const ops::DecodeLayer layer{parts, q_norm,  k_norm, linear(o, o_scale), norm, gate,
                                   bias,  experts, 1e-6f};
      const int64_t pages = (context + 15) / 16, blocks = pages + 3;
      const OnGpu k(random_pages(random_, blocks * kKv * 16, cache_dtype), {blocks, 8, 16, 128}),
          v(random_pages(random_, blocks * kKv * 16, cache_dtype), {blocks, 8, 16, 128});
      const OnGpu k_once(cache_dtype, {blocks, 8, 16, 128}),
          v_once(cache_dtype, {blocks, 8, 16, 128});
      copy(k, k_once);
      copy(v, v_once);
      std::vector<int32_t> table(static_cast<size_t>(pages + 2));
      // Every page of the context is another block.
      std::iota(table.begin(), table.end(), 0);
      std::shuffle(table.begin(), table.begin() + pages, random_);
      const auto position = static_cast<int32_t>(context - 1);
      const int32_t slot = table[static_cast<size_t>(position / 16)] * 16 + position % 16;
      const OnGpu ids(std::vector<int32_t>{5}, {1}), positions(std::vector<int32_t>{position}, {1}),
          slots(std::vector<int32_t>{slot}, {1}), starts(std::vector<int32_t>{0, 1}, {2}),
          lens(std::vector<int32_t>{static_cast<int32_t>(context)}, {1}),
          tables(table, {1, pages + 2}), rows(std::vector<int32_t>{0}, {1});
      const ops::BatchLayout layout{ids, positions, slots, starts, lens, tables, rows};
      const OnGpu x(random_numbers(random_, kHidden, DType::bf16), {1, kHidden});
      const Numbers residual = random_numbers(random_, kHidden, DType::bf16, 4.0);

      struct Step {
        OnGpu residual, hidden, values, scales, angles, ids, weights;
        explicit Step(const Numbers& from)
            : residual(from, {1, kHidden}),
              hidden(DType::bf16, {1, kHidden}),
              values(DType::f8_e4m3, {1, kHidden}),
              scales(DType::f32, {1, 24}),
              angles(DType::f32, {1, 64}),
              ids(DType::i32, {1, kTop}),
              weights(DType::f32, {1, kTop}) {}
        ops::Quantised quantised() const { return {values, scales}; }
        ops::AddNorm add_norm(const Tensor& weight) const {
          return {residual, weight, 1e-6f, hidden, quantised()};
        }
      };
      const Step apart(residual), once(residual);
      const auto begin = [&](const Step& step) {
        ops::rope_angles(gpu(), positions, 5e6f, step.angles);
        copy(x, step.hidden);
        ops::quantise(gpu(), step.hidden, step.quantised());
      };
      const float kv_scale = cache_dtype == DType::bf16 ? 1.0f : 0.03f;
      begin(apart);
      const OnGpu out(DType::bf16, {1, kQ + 2 * kKv}), sums(DType::f32, {1, 2}),
          attended(DType::bf16, {1, kQ}), attended_f8(DType::f8_e4m3, {1, kQ}),
          attended_scales(DType::f32, {1, 48}), delta(DType::bf16, {1, kHidden});
      const ops::KvCache cache{k, v, kv_scale, kv_scale};
      // Two layers of the same weights.
      const auto one_by_one = [&] {
        ops::linear(gpu(), apart.hidden, parts, out, apart.quantised());
        ops::qk_norm_rope_store_whole(gpu(), out, sums, q_norm, k_norm, 1e-6f, apart.angles, slots,
                                      heads, cache);
        ops::paged_attention(gpu(), out.tensor().columns(0, kQ), cache, layout, heads, attended,
                             {attended_f8, attended_scales});
        ops::linear(gpu(), attended, layer.o, delta, {attended_f8, attended_scales});
        ops::add_rms_norm(gpu(), apart.residual, delta, norm, 1e-6f, apart.hidden,
                          apart.quantised());
        const ops::AddNorm after = apart.add_norm(input_norm);
        ops::route_experts(gpu(), apart.hidden, {gate, bias, slots}, experts, apart.ids,
                           apart.weights, scratch, delta, apart.quantised(), &after);
      };
      const auto expect_same = [&] {
        EXPECT_EQ(differing(apart.residual, once.residual), 0) << "apart.residual";
        EXPECT_EQ(differing(apart.hidden, once.hidden), 0) << "apart.hidden";
        EXPECT_EQ(differing(apart.values, once.values), 0) << "apart.values";
        EXPECT_EQ(differing(apart.scales, once.scales), 0) << "apart.scales";
        EXPECT_EQ(differing(apart.ids, once.ids), 0) << "apart.ids";
        EXPECT_EQ(differing(apart.weights, once.weights), 0) << "apart.weights";
        EXPECT_EQ(differing(k, k_once), 0) << "k";
        EXPECT_EQ(differing(v, v_once), 0) << "v";
        for (const double value : once.hidden.values()) ASSERT_TRUE(std::isfinite(value));
      };
      one_by_one();
      one_by_one();
      begin(once);
      const ops::KvCache cache_once{k_once, v_once, kv_scale, kv_scale};
      const ops::DecodeTensors tensors{once.residual, once.hidden, once.quantised(),
                                       once.angles,   once.ids,    once.weights,
                                       delta,         scratch};
      if (!ops::decodes_layer(gpu(), layer, cache_once, layout, heads, tensors))
        GTEST_SKIP() << "this GPU has too few multiprocessors for the kernel";
      const ops::DecodeBefore before{experts, input_norm};
      const ops::AddNorm after = once.add_norm(input_norm);
      ops::decode_layer(gpu(), layer, cache_once, layout, heads, tensors, nullptr, nullptr);
      ops::decode_layer(gpu(), layer, cache_once, layout, heads, tensors, &before, &after);
      expect_same();
      ++cases;
    }
  EXPECT_EQ(cases, 40);
}

}  // namespace
}  // namespace m2::gpu_test
