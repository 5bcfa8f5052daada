// Layers of one decoded token in two kernels each, against the operations that these stand for,
// byte for byte; of tensor ranks, whose peers' words the test writes, too. Needs a Hopper GPU; says
// so and skips without one.
#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <numeric>
#include <thread>

#include "ops/cuda/attend_rows.h"
#include "ops/decode_layer.h"
#include "ops/norm.h"
#include "ops/route.h"
#include "tensor/stream.h"
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

// What a step of one decoded token says of it.
struct OneToken {
  // table: the blocks of its context, which is the token and all in front of it.
  OneToken(int64_t context, const std::vector<int32_t>& table)
      : ids(std::vector<int32_t>{5}, {1}),
        positions(std::vector<int32_t>{static_cast<int32_t>(context - 1)}, {1}),
        slots(std::vector<int32_t>{slot_of(context - 1, table)}, {1}),
        starts(std::vector<int32_t>{0, 1}, {2}),
        lens(std::vector<int32_t>{static_cast<int32_t>(context)}, {1}),
        tables(table, {1, std::ssize(table)}),
        rows(std::vector<int32_t>{0}, {1}) {}
  ops::BatchLayout layout() const { return {ids, positions, slots, starts, lens, tables, rows}; }

  const OnGpu ids, positions, slots, starts, lens, tables, rows;

 private:
  static int32_t slot_of(int64_t position, const std::vector<int32_t>& table) {
    return table[static_cast<size_t>(position / 16)] * 16 + static_cast<int32_t>(position % 16);
  }
};

// Blocks for so many pages, every one another, and two more.
std::vector<int32_t> any_blocks(std::mt19937& random, int64_t pages) {
  std::vector<int32_t> table(static_cast<size_t>(pages + 2));
  std::iota(table.begin(), table.end(), 0);
  std::shuffle(table.begin(), table.begin() + pages, random);
  return table;
}

// What a token's layers work on, and leave.
struct TokenState {
  explicit TokenState(const Numbers& from, int64_t rows = 1)
      : residual(from, {rows, kHidden}),
        hidden(DType::bf16, {rows, kHidden}),
        values(DType::f8_e4m3, {rows, kHidden}),
        scales(DType::f32, {rows, 24}),
        angles(DType::f32, {rows, 64}),
        ids(DType::i32, {rows, kTop}),
        weights(DType::f32, {rows, kTop}),
        delta(DType::bf16, {rows, kHidden}) {}
  template <class Tokens>
  void begin(const OnGpu& x, const Tokens& tokens) const {
    ops::rope_angles(gpu(), tokens.positions, 5e6f, angles);
    copy(x, hidden);
    ops::quantise(gpu(), hidden, quantised());
  }
  ops::Quantised quantised() const { return {values, scales}; }
  ops::AddNorm add_norm(const Tensor& weight) const {
    return {residual, weight, 1e-6f, hidden, quantised()};
  }
  ops::DecodeTensors tensors(const Tensor& scratch) const {
    return {residual, hidden, quantised(), angles, ids, weights, delta, scratch};
  }

  const OnGpu residual, hidden, values, scales, angles, ids, weights, delta;
};

void expect_same(const TokenState& apart, const TokenState& once) {
  EXPECT_EQ(differing(apart.residual, once.residual), 0) << "residual";
  EXPECT_EQ(differing(apart.hidden, once.hidden), 0) << "hidden";
  EXPECT_EQ(differing(apart.values, once.values), 0) << "values";
  EXPECT_EQ(differing(apart.scales, once.scales), 0) << "scales";
  EXPECT_EQ(differing(apart.ids, once.ids), 0) << "ids";
  EXPECT_EQ(differing(apart.weights, once.weights), 0) << "weights";
  for (const double value : once.hidden.values()) ASSERT_TRUE(std::isfinite(value));
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
      const OneToken token(context, any_blocks(random_, pages));
      const ops::BatchLayout layout = token.layout();
      const OnGpu x(random_numbers(random_, kHidden, DType::bf16), {1, kHidden});
      const Numbers residual = random_numbers(random_, kHidden, DType::bf16, 4.0);
      const TokenState apart(residual), once(residual);
      const float kv_scale = cache_dtype == DType::bf16 ? 1.0f : 0.03f;
      apart.begin(x, token);
      const OnGpu out(DType::bf16, {1, kQ + 2 * kKv}), sums(DType::f32, {1, 2}),
          attended(DType::bf16, {1, kQ}), attended_f8(DType::f8_e4m3, {1, kQ}),
          attended_scales(DType::f32, {1, 48});
      const ops::KvCache cache{k, v, kv_scale, kv_scale};
      // Two layers of the same weights.
      const auto one_by_one = [&] {
        ops::linear(gpu(), apart.hidden, parts, out, apart.quantised());
        ops::qk_norm_rope_store_whole(gpu(), out, sums, q_norm, k_norm, 1e-6f, apart.angles,
                                      token.slots, heads, cache);
        ops::paged_attention(gpu(), out.tensor().columns(0, kQ), cache, layout, heads, attended,
                             {attended_f8, attended_scales});
        ops::linear(gpu(), attended, layer.o, apart.delta, {attended_f8, attended_scales});
        ops::add_rms_norm(gpu(), apart.residual, apart.delta, norm, 1e-6f, apart.hidden,
                          apart.quantised());
        const ops::AddNorm after = apart.add_norm(input_norm);
        ops::route_experts(gpu(), apart.hidden, {gate, bias, token.slots}, experts, apart.ids,
                           apart.weights, scratch, apart.delta, apart.quantised(), &after);
      };
      one_by_one();
      one_by_one();
      once.begin(x, token);
      const ops::KvCache cache_once{k_once, v_once, kv_scale, kv_scale};
      const ops::DecodeTensors tensors = once.tensors(scratch);
      if (!ops::decodes_layer(gpu(), layer, cache_once, layout, heads, tensors))
        GTEST_SKIP() << "this GPU has too few multiprocessors for the kernel";
      const ops::DecodeBefore before{experts, input_norm};
      const ops::AddNorm after = once.add_norm(input_norm);
      ops::decode_layer(gpu(), layer, cache_once, layout, heads, tensors, nullptr, nullptr);
      ops::decode_layer(gpu(), layer, cache_once, layout, heads, tensors, &before, &after);
      expect_same(apart, once);
      EXPECT_EQ(differing(k, k_once), 0) << "k";
      EXPECT_EQ(differing(v, v_once), 0) << "v";
      ++cases;
    }
  EXPECT_EQ(cases, 40);
}

// --- a tensor rank ------------------------------------------------------------------------------

using ops::cuda::RankRowsWords;
using ops::cuda::RankWords;

// A rank's part of a layer, whose experts are narrow.
struct RankLayer {
  static constexpr int64_t kInner = 128;
  const int64_t kv_heads, q, kv;
  const ops::HeadShape heads;
  OnGpu qkv, o, q_scale, k_scale, v_scale, o_scale, q_norm, k_norm, norm, input_norm, gate, bias;
  OnGpu w13, w2, w1_scale, w3_scale, w2_scale;
  const std::array<ops::Linear, 3> parts;
  const ops::Experts experts;
  const Buffer scratch_memory;
  const Tensor scratch;
  const ops::DecodeLayer layer;

  template <class Scales>
  RankLayer(std::mt19937& random, int64_t kv_heads_of, Scales scales)
      : kv_heads(kv_heads_of),
        q(kv_heads * 6 * 128),
        kv(kv_heads * 128),
        heads{kv_heads * 6, kv_heads, 128, 64},
        qkv(random_numbers(random, (q + 2 * kv) * kHidden, DType::f8_e4m3), {q + 2 * kv, kHidden}),
        o(random_numbers(random, kHidden * q, DType::f8_e4m3), {kHidden, q}),
        q_scale(scales(q / 128 * 24), {q / 128, 24}),
        k_scale(scales(kv_heads * 24), {kv_heads, 24}),
        v_scale(scales(kv_heads * 24), {kv_heads, 24}),
        o_scale(scales(24 * (q / 128)), {24, q / 128}),
        q_norm(random_numbers(random, q, DType::bf16), {q}),
        k_norm(random_numbers(random, kv, DType::bf16), {kv}),
        norm(random_numbers(random, kHidden, DType::bf16), {kHidden}),
        input_norm(random_numbers(random, kHidden, DType::bf16), {kHidden}),
        gate(random_numbers(random, kExperts * kHidden, DType::f32, 0.02), {kExperts, kHidden}),
        bias(random_numbers(random, kExperts, DType::f32, 0.01), {kExperts}),
        w13(random_pages(random, kExperts * 2 * kInner * kHidden, DType::f8_e4m3),
            {kExperts, 2 * kInner, kHidden}),
        w2(random_pages(random, kExperts * kHidden * kInner, DType::f8_e4m3),
           {kExperts, kHidden, kInner}),
        w1_scale(scales(kExperts * 24), {kExperts, 1, 24}),
        w3_scale(scales(kExperts * 24), {kExperts, 1, 24}),
        w2_scale(scales(kExperts * 24), {kExperts, 24, 1}),
        parts{linear(qkv.tensor().rows(0, q), q_scale), linear(qkv.tensor().rows(q, kv), k_scale),
              linear(qkv.tensor().rows(q + kv, kv), v_scale)},
        experts{w13, w1_scale, w3_scale, w2, w2_scale},
        scratch_memory(gpu().device, ops::experts_scratch_bytes(gpu().device, experts, 1, kTop)),
        scratch(scratch_memory.data(), DType::u8, {scratch_memory.bytes()}),
        layer{parts, q_norm, k_norm, linear(o, o_scale), norm, gate, bias, experts, 1e-6f} {
    clear(gpu(), scratch_memory.data(), scratch_memory.bytes());
  }
};

uint16_t bf16_at(const std::vector<uint8_t>& bytes, size_t i) {
  return static_cast<uint16_t>(bytes[2 * i] | bytes[2 * i + 1] << 8);
}
float float_of(uint16_t bf16) {
  const uint32_t bits = uint32_t{bf16} << 16;
  return std::bit_cast<float>(bits);
}

// What o makes, or experts (bf16), as it travels.
void code_words(const uint8_t* bf16, int64_t count, uint32_t* to) {
  const std::vector<uint8_t> bytes(bf16, bf16 + 2 * count);
  for (size_t i = 0; i < static_cast<size_t>(count / 2); ++i) {
    const uint32_t pair = bf16_at(bytes, 2 * i) | uint32_t{bf16_at(bytes, 2 * i + 1)} << 16;
    to[i] = ~(pair == ~0u ? 0x7fff7fffu : pair);
  }
}
// Sums of the squares of eights of q and k.
std::vector<float> eights_squared(const std::vector<uint8_t>& row, size_t first, size_t eights) {
  std::vector<float> sums(eights);
  for (size_t i = 0; i < eights; ++i)
    for (size_t c = 0; c < 8; c += 2) {
      const float one = float_of(bf16_at(row, first + 8 * i + c)),
                  other = float_of(bf16_at(row, first + 8 * i + c + 1));
      sums[i] = std::fma(one, one, std::fma(other, other, sums[i]));
    }
  return sums;
}

// The memory that ranks exchange words in, all of it on one GPU, and what the peers of one of them
// bring to a launch.
class RankWordsOnGpu {
 public:
  RankWordsOnGpu(int size, int rank, int64_t kv_heads)
      : kv_heads_(kv_heads), given_up_(gpu().device, 4), sent_(gpu().device, kBytes) {
    std::memset(given_up_.data(), 0, 4);
    peers_.ranks = size;
    peers_.rank = rank;
    peers_.given_up = reinterpret_cast<const uint32_t*>(given_up_.data());
    for (int r = 0; r < size; ++r) {
      memory_.emplace_back(gpu().device, kBytes);
      clear(gpu(), memory_.back().data(), kBytes);
      peers_.memory[r] = memory_.back().data();
    }
    synchronize(gpu());
  }
  const ops::DecodePeers& peers() const { return peers_; }
  void give_up() { std::atomic_ref(*reinterpret_cast<uint32_t*>(given_up_.data())).store(1); }

  // Of the launch, from 1 on: each peer's row of q, k and v, and what its o makes and its experts
  // (bf16).
  void send(const Exec& exec, uint32_t launch, const std::vector<Numbers>& rows,
            const std::vector<Numbers>& outputs, const std::vector<Numbers>& experts) {
    auto& words = *reinterpret_cast<RankWords*>(sent_.data());
    std::byte* own = memory_[static_cast<size_t>(peers_.rank)].data();
    const auto eights = static_cast<size_t>(kv_heads_ * 7 * 16);
    for (int rank = 0; rank < peers_.ranks; ++rank) {
      if (rank == peers_.rank) continue;
      const auto r = static_cast<size_t>(rank);
      auto* squares = words.squares + r * eights;
      const std::vector<float> of_row = eights_squared(rows[r].bytes, 0, eights);
      for (size_t i = 0; i < eights; ++i) squares[i] = {of_row[i], launch};
      auto* sums = &words.sums[launch % 2][r][0][0];
      auto* of_experts = &words.experts[launch % 2][r][0][0];
      code_words(outputs[r].bytes.data(), kHidden, sums);
      code_words(experts[r].bytes.data(), kHidden, of_experts);
      for (const auto& [at, bytes] : {std::pair<const void*, size_t>{squares, eights * 8},
                                      {sums, kHidden * 2},
                                      {of_experts, kHidden * 2}})
        copy_to_device(exec, own + (static_cast<const std::byte*>(at) - sent_.data()), at,
                       static_cast<int64_t>(bytes));
    }
  }

  // Of a launch of several rows, from 1 on: as above, row after row.
  void send_rows(const Exec& exec, uint32_t launch, int64_t count, const std::vector<Numbers>& rows,
                 const std::vector<Numbers>& outputs) {
    auto& words = *reinterpret_cast<RankRowsWords*>(sent_.data() + RankRowsWords::kAt);
    std::byte* own = memory_[static_cast<size_t>(peers_.rank)].data();
    const auto eights = static_cast<size_t>(kv_heads_ * 7 * 16);
    for (int rank = 0; rank < peers_.ranks; ++rank) {
      if (rank == peers_.rank) continue;
      const auto r = static_cast<size_t>(rank);
      for (int64_t t = 0; t < count; ++t) {
        auto* squares = words.squares[t] + r * eights;
        const std::vector<float> of_row =
            eights_squared(rows[r].bytes, static_cast<size_t>(t * kv_heads_ * 8 * 128), eights);
        for (size_t i = 0; i < eights; ++i) squares[i] = {of_row[i], launch};
        auto* sums = &words.sums[launch % 2][r][t][0][0];
        code_words(outputs[r].bytes.data() + t * kHidden * 2, kHidden, sums);
        for (const auto& [at, bytes] :
             {std::pair<const void*, size_t>{squares, eights * 8}, {sums, kHidden * 2}})
          copy_to_device(exec, own + (static_cast<const std::byte*>(at) - sent_.data()), at,
                         static_cast<int64_t>(bytes));
      }
    }
  }

  void expect_rows_told(uint32_t launch, int64_t count) const {
    std::vector<RankRowsWords> heard(memory_.size());
    for (size_t r = 0; r < memory_.size(); ++r)
      copy_to_host(gpu(), &heard[r], memory_[r].data() + RankRowsWords::kAt, sizeof(RankRowsWords));
    synchronize(gpu());
    const auto rank = static_cast<size_t>(peers_.rank);
    const auto eights = static_cast<size_t>(kv_heads_ * 7 * 16);
    const RankRowsWords& own = heard[rank];
    EXPECT_EQ(own.launches, launch);
    for (const RankRowsWords& other : heard)
      for (int64_t t = 0; t < count; ++t) {
        EXPECT_EQ(std::memcmp(own.squares[t] + rank * eights, other.squares[t] + rank * eights,
                              eights * 8),
                  0);
        EXPECT_EQ(std::memcmp(own.sums[launch % 2][rank][t], other.sums[launch % 2][rank][t],
                              kHidden * 2),
                  0);
      }
    // What was there is cleared for the next launch.
    for (size_t r = 0; r < memory_.size(); ++r)
      for (const auto& row : own.sums[(launch + 1) % 2][r])
        for (const auto& word : row) ASSERT_EQ(word[0], 0u) << r;
  }

  // What the rank has told the others is what it has told itself.
  void expect_told(uint32_t launch) const {
    std::vector<RankWords> heard(memory_.size());
    for (size_t r = 0; r < memory_.size(); ++r)
      copy_to_host(gpu(), &heard[r], memory_[r].data(), sizeof(RankWords));
    synchronize(gpu());
    const auto rank = static_cast<size_t>(peers_.rank);
    const auto eights = static_cast<size_t>(kv_heads_ * 7 * 16);
    const RankWords& own = heard[rank];
    EXPECT_EQ(own.launches, launch);
    for (const RankWords& other : heard) {
      EXPECT_EQ(std::memcmp(own.squares + rank * eights, other.squares + rank * eights, eights * 8),
                0);
      EXPECT_EQ(std::memcmp(own.sums[launch % 2][rank], other.sums[launch % 2][rank], kHidden * 2),
                0);
    }
    // What was there is cleared for the next launch.
    for (size_t r = 0; r < memory_.size(); ++r)
      for (size_t i = 0; i < kHidden / 8; ++i) {
        ASSERT_EQ(own.sums[(launch + 1) % 2][r][i][0], 0u) << r << ", " << i;
        for (const auto& turn : own.experts) ASSERT_EQ(turn[r][i][3], 0u) << r << ", " << i;
      }
  }

 private:
  static constexpr int64_t kBytes = ops::DecodePeers::kBytes;
  const int64_t kv_heads_;
  std::vector<Buffer> memory_;
  HostBuffer given_up_, sent_;
  ops::DecodePeers peers_;
};

class GpuDecodeRank : public GpuDecodeLayer {
 protected:
  enum class Peers { none, early, late };  // late only where the kernels have run before

  RankLayer rank_layer(int64_t kv_heads) {
    return RankLayer(random_, kv_heads, [this](int64_t count) { return scales(count); });
  }

  // Layers one after another, all of the same weights: the first launched, the others recorded if
  // there are no peers.
  void expect_operations(const RankLayer& of, int size, int rank, int64_t context,
                         DType cache_dtype, Peers when) {
    SCOPED_TRACE(testing::Message() << of.kv_heads << " KV heads, rank " << rank << " of " << size
                                    << ", " << context << " positions, " << name_of(cache_dtype));
    constexpr int kLayers = 3;
    const int64_t pages = (context + 15) / 16, blocks = pages + 3, q = of.q, kv = of.kv;
    const auto cells = {blocks, of.kv_heads, int64_t{16}, int64_t{128}};
    const OnGpu k(random_pages(random_, blocks * kv * 16, cache_dtype), cells),
        v(random_pages(random_, blocks * kv * 16, cache_dtype), cells);
    const OnGpu k_once(cache_dtype, cells), v_once(cache_dtype, cells);
    copy(k, k_once);
    copy(v, v_once);
    const OneToken token(context, any_blocks(random_, pages));
    const ops::BatchLayout layout = token.layout();
    const OnGpu x(random_numbers(random_, kHidden, DType::bf16), {1, kHidden});
    const Numbers residual = random_numbers(random_, kHidden, DType::bf16, 4.0);
    const TokenState apart(residual), once(residual);
    apart.begin(x, token);
    once.begin(x, token);
    const float kv_scale = cache_dtype == DType::bf16 ? 1.0f : 0.03f;
    const ops::KvCache cache{k, v, kv_scale, kv_scale},
        cache_once{k_once, v_once, kv_scale, kv_scale};
    std::vector<std::vector<Numbers>> peer_rows, peer_outputs, peer_experts;
    for (int l = 0; l < kLayers; ++l) {
      peer_rows.emplace_back();
      peer_outputs.emplace_back();
      peer_experts.emplace_back();
      for (int r = 0; r < size; ++r) {
        peer_rows.back().push_back(random_numbers(random_, q + 2 * kv, DType::bf16, 3.0));
        peer_outputs.back().push_back(random_numbers(random_, kHidden, DType::bf16));
        peer_experts.back().push_back(random_numbers(random_, kHidden, DType::bf16));
      }
    }

    const int64_t ranks = 8 / of.kv_heads;
    const OnGpu out(DType::bf16, {1, q + 2 * kv}), sums(DType::f32, {1, 2}),
        attended(DType::bf16, {1, q}), attended_f8(DType::f8_e4m3, {1, q}),
        attended_scales(DType::f32, {1, q / 128});
    for (int l = 0; l < kLayers; ++l) {
      const auto layer = static_cast<size_t>(l);
      const auto of_all = [&](const auto& own, const auto& of_peer) {
        auto total = rank == 0 ? own : of_peer(0);
        for (int r = 1; r < size; ++r) {
          const auto part = r == rank ? own : of_peer(r);
          for (size_t i = 0; i < total.size(); ++i) total[i] += part[i];
        }
        return total;
      };
      const auto floats = [](const std::vector<double>& values) {
        return std::vector<float>(values.begin(), values.end());
      };
      ops::linear(gpu(), apart.hidden, of.parts, out, apart.quantised());
      ops::qk_sum_squares(gpu(), out, of.heads, sums);
      const std::vector<float> all_sums = of_all(floats(sums.values()), [&](int r) {
        const OnGpu row(peer_rows[layer][static_cast<size_t>(r)], {1, q + 2 * kv}),
            part(DType::f32, {1, 2});
        ops::qk_sum_squares(gpu(), row, of.heads, part);
        return floats(part.values());
      });
      ops::qk_norm_rope_store(gpu(), out, OnGpu(all_sums, {1, 2}), of.q_norm, of.k_norm, ranks * q,
                              ranks * kv, 1e-6f, apart.angles, token.slots, of.heads, cache);
      ops::paged_attention(gpu(), out.tensor().columns(0, q), cache, layout, of.heads, attended,
                           {attended_f8, attended_scales});
      ops::linear(gpu(), attended, of.layer.o, apart.delta, {attended_f8, attended_scales});
      const auto sum_into_norm = [&](const std::vector<Numbers>& of_peers, const Tensor& norm) {
        const std::vector<float> all = of_all(floats(apart.delta.values()), [&](int r) {
          return floats(of_peers[static_cast<size_t>(r)].values);
        });
        Numbers total{DType::bf16, {}, {}};
        for (const float value : all) {
          const BF16 rounded = to_bf16(value);
          total.bytes.push_back(static_cast<uint8_t>(rounded.bits & 0xff));
          total.bytes.push_back(static_cast<uint8_t>(rounded.bits >> 8));
        }
        ops::add_rms_norm(gpu(), apart.residual, OnGpu(total, {1, kHidden}), norm, 1e-6f,
                          apart.hidden, apart.quantised());
        synchronize(gpu());
      };
      sum_into_norm(peer_outputs[layer], of.norm);
      ops::route_experts(gpu(), apart.hidden, {of.gate, of.bias, token.slots}, of.experts,
                         apart.ids, apart.weights, of.scratch, apart.delta, apart.quantised(),
                         nullptr);
      sum_into_norm(peer_experts[layer], of.input_norm);
    }

    RankWordsOnGpu words(size, rank, of.kv_heads);
    const ops::DecodeTensors tensors = once.tensors(of.scratch);
    const ops::DecodeRanks all_ranks{ranks, words.peers()};
    if (!ops::decodes_layer(gpu(), of.layer, cache_once, layout, of.heads, tensors, all_ranks))
      GTEST_SKIP() << "this GPU has too few multiprocessors for the kernel";
    const ops::AddNorm after = once.add_norm(of.input_norm);
    const auto decode = [&] {
      ops::decode_layer(gpu(), of.layer, cache_once, layout, of.heads, tensors, nullptr, &after,
                        all_ranks);
    };
    if (when == Peers::none) {
      decode();
      synchronize(gpu());
      const Graph graph = Graph::record(gpu(), [&] {
        for (int l = 1; l < kLayers; ++l) decode();
      });
      graph.launch(gpu());
    } else {
      const Stream other(gpu().device);
      const Exec sending{gpu().device, nullptr, other.handle()};
      for (int l = 0; l < kLayers; ++l) {
        if (when == Peers::late) {
          decode();
          std::this_thread::sleep_for(std::chrono::milliseconds(2));
        }
        words.send(sending, static_cast<uint32_t>(l + 1), peer_rows[static_cast<size_t>(l)],
                   peer_outputs[static_cast<size_t>(l)], peer_experts[static_cast<size_t>(l)]);
        synchronize(sending);
        if (when == Peers::early) decode();
        synchronize(gpu());
      }
    }
    synchronize(gpu());
    words.expect_told(kLayers);
    expect_same(apart, once);
    EXPECT_EQ(differing(k, k_once), 0) << "k";
    EXPECT_EQ(differing(v, v_once), 0) << "v";
    ++cases_;
  }

  int cases_ = 0;
};

TEST_F(GpuDecodeRank, AloneIsTheOperationsOneAfterAnother) {
  for (const int64_t kv_heads : {2, 1, 4}) {
    const RankLayer layer = rank_layer(kv_heads);
    for (const DType dtype : {DType::bf16, DType::f8_e4m3})
      for (const int64_t context : {1,   2,    15,   16,   17,   100,  127,  128,  129,   300,
                                    512, 1000, 2047, 2048, 2049, 4100, 8192, 8193, 20000, 70001})
        expect_operations(layer, 1, 0, context, dtype, Peers::none);
  }
  EXPECT_EQ(cases_, 120);
}

TEST_F(GpuDecodeRank, WithPeersIsTheOperationsAndTheirSums) {
  for (const int64_t kv_heads : {2, 1, 4}) {
    const RankLayer layer = rank_layer(kv_heads);
    for (int size = 2; size <= 8 / kv_heads; ++size)
      for (const Peers when : {Peers::early, Peers::late})
        expect_operations(layer, size, (size * 5 + 1) % size, size % 2 ? 2048 : 1000 * size,
                          size % 2 ? DType::bf16 : DType::f8_e4m3, when);
  }
  EXPECT_EQ(cases_, 22);
}

// Short enough for a sanitizer.
TEST_F(GpuDecodeRank, OneOfTwoIsTheOperationsAndTheirSums) {
  expect_operations(rank_layer(1), 2, 1, 300, DType::bf16, Peers::early);
}

// Peers that never come end in nothing, and leave nothing behind.
TEST_F(GpuDecodeRank, EndsWhenPeersAreGivenUp) {
  const RankLayer of = rank_layer(2);
  // First with peers that come: kernels are loaded when they are first launched, for which the
  // driver waits until the GPU stands still, and here it would not before the host goes on.
  expect_operations(of, 3, 1, 300, DType::bf16, Peers::early);
  constexpr int64_t kContext = 1000, kPages = 63, kBlocks = kPages + 2;
  const OnGpu cache(random_numbers(random_, kBlocks * 2 * 16 * 128, DType::bf16),
                    {kBlocks, 2, 16, 128});
  const OneToken token(kContext, any_blocks(random_, kPages));
  const ops::BatchLayout layout = token.layout();
  const TokenState state(random_numbers(random_, kHidden, DType::bf16));
  const OnGpu x(random_numbers(random_, kHidden, DType::bf16), {1, kHidden});
  state.begin(x, token);
  RankWordsOnGpu words(3, 1, 2);
  const ops::DecodeTensors tensors = state.tensors(of.scratch);
  const ops::DecodeRanks ranks{4, words.peers()};
  const ops::KvCache both{cache, cache};
  if (!ops::decodes_layer(gpu(), of.layer, both, layout, of.heads, tensors, ranks))
    GTEST_SKIP() << "this GPU has too few multiprocessors for the kernel";
  const ops::AddNorm after = state.add_norm(of.input_norm);
  const auto decode = [&] {
    ops::decode_layer(gpu(), of.layer, both, layout, of.heads, tensors, nullptr, &after, ranks);
  };
  decode();
  decode();
  std::this_thread::sleep_for(std::chrono::milliseconds(5));
  words.give_up();
  synchronize(gpu());
  decode();
  synchronize(gpu());
  expect_operations(of, 1, 0, kContext, DType::bf16, Peers::none);
  expect_operations(of, 3, 2, kContext, DType::bf16, Peers::late);
}

// --- two tokens of a tensor rank ----------------------------------------------------------------

// What a step of two tokens says of them.
struct FewTokens {
  // Tokens of a draft, `count` of them, of which the first has `context` positions with its own; of
  // 0 positions: a row that pads the step.
  struct Draft {
    int64_t context;
    int64_t count = 1;
  };
  struct Lists {
    std::vector<int32_t> ids, positions, slots, starts, lens, tables, rows;
    int64_t width = 0, blocks = 0;
  };
  FewTokens(std::mt19937& random, const std::vector<Draft>& drafts)
      : FewTokens(lists_of(random, drafts)) {}
  ops::BatchLayout layout() const { return {ids, positions, slots, starts, lens, tables, rows}; }
  int64_t count() const { return ids.tensor().size(0); }

  const int64_t blocks;
  const OnGpu ids, positions, slots, starts, lens, tables, rows;

 private:
  explicit FewTokens(const Lists& of)
      : blocks(of.blocks),
        ids(of.ids, {std::ssize(of.ids)}),
        positions(of.positions, {std::ssize(of.ids)}),
        slots(of.slots, {std::ssize(of.ids)}),
        starts(of.starts, {std::ssize(of.starts)}),
        lens(of.lens, {std::ssize(of.ids)}),
        tables(of.tables, {std::ssize(of.ids), of.width}),
        rows(of.rows, {std::ssize(of.ids)}) {}
  static Lists lists_of(std::mt19937& random, const std::vector<Draft>& drafts) {
    Lists out;
    for (const Draft& draft : drafts)
      out.width = std::max(out.width, (draft.context + draft.count - 1 + 15) / 16 + 1);
    out.blocks = out.width * std::ssize(drafts);
    std::vector<int32_t> all(static_cast<size_t>(out.blocks));
    std::iota(all.begin(), all.end(), 0);
    std::shuffle(all.begin(), all.end(), random);
    for (size_t d = 0; d < drafts.size(); ++d) {
      const auto table = all.begin() + static_cast<int64_t>(d) * out.width;
      for (int64_t i = 0; i < drafts[d].count; ++i) {
        const int64_t context = drafts[d].context + i, position = context - 1;
        const bool pads = drafts[d].context == 0;
        out.starts.push_back(static_cast<int32_t>(out.ids.size()));
        out.rows.push_back(static_cast<int32_t>(out.ids.size()));
        out.ids.push_back(5);
        out.positions.push_back(pads ? 0 : static_cast<int32_t>(position));
        out.slots.push_back(pads ? -1
                                 : table[position / 16] * 16 + static_cast<int32_t>(position % 16));
        out.lens.push_back(static_cast<int32_t>(context));
        out.tables.insert(out.tables.end(), table, table + out.width);
      }
    }
    out.starts.push_back(static_cast<int32_t>(out.ids.size()));
    return out;
  }
};

class GpuDecodeRows : public GpuDecodeRank {
 protected:
  using Drafts = std::vector<FewTokens::Draft>;

  // A few layers one after another, each of other tokens: the first launched, the others recorded
  // if there are no peers.
  void expect_rows(const RankLayer& of, int size, int rank, const Drafts& drafts, DType cache_dtype,
                   Peers when) {
    const FewTokens tokens(random_, drafts);
    const int64_t count = tokens.count(), q = of.q, kv = of.kv;
    testing::Message what;
    for (const FewTokens::Draft& draft : drafts) what << draft.context << "x" << draft.count << " ";
    SCOPED_TRACE(what << "positions, " << of.kv_heads << " KV heads, rank " << rank << " of "
                      << size << ", " << name_of(cache_dtype));
    constexpr int kLayers = 3;
    const auto cells = {tokens.blocks, of.kv_heads, int64_t{16}, int64_t{128}};
    const OnGpu k(random_pages(random_, tokens.blocks * kv * 16, cache_dtype), cells),
        v(random_pages(random_, tokens.blocks * kv * 16, cache_dtype), cells);
    const OnGpu k_once(cache_dtype, cells), v_once(cache_dtype, cells);
    copy(k, k_once);
    copy(v, v_once);
    const ops::BatchLayout layout = tokens.layout();
    const float kv_scale = cache_dtype == DType::bf16 ? 1.0f : 0.03f;
    const ops::KvCache cache{k, v, kv_scale, kv_scale},
        cache_once{k_once, v_once, kv_scale, kv_scale};
    const int64_t ranks = 8 / of.kv_heads;
    const int64_t scratch_bytes = ops::experts_scratch_bytes(gpu().device, of.experts, count, kTop);
    const Buffer scratch_memory(gpu().device, 2 * scratch_bytes);
    const Tensor scratch(scratch_memory.data(), DType::u8, {scratch_bytes}),
        scratch_once(scratch_memory.data() + scratch_bytes, DType::u8, {scratch_bytes});
    RankWordsOnGpu words(size, rank, of.kv_heads);
    const Stream other(gpu().device);
    const Exec sending{gpu().device, nullptr, other.handle()};
    for (int l = 0; l < kLayers; ++l) {
      SCOPED_TRACE(testing::Message() << "layer " << l);
      clear(gpu(), scratch_memory.data(), 2 * scratch_bytes);
      const OnGpu x(random_numbers(random_, count * kHidden, DType::bf16), {count, kHidden});
      const Numbers residual = random_numbers(random_, count * kHidden, DType::bf16, 4.0);
      const TokenState apart(residual, count), once(residual, count);
      apart.begin(x, tokens);
      once.begin(x, tokens);
      std::vector<Numbers> peer_rows, peer_outputs;
      for (int r = 0; r < size; ++r) {
        peer_rows.push_back(random_numbers(random_, count * (q + 2 * kv), DType::bf16, 3.0));
        peer_outputs.push_back(random_numbers(random_, count * kHidden, DType::bf16));
      }

      const auto of_all = [&](const std::vector<double>& own, const auto& of_peer) {
        const std::vector<float> mine(own.begin(), own.end());
        std::vector<float> total = rank == 0 ? mine : of_peer(0);
        for (int r = 1; r < size; ++r) {
          const std::vector<float> part = r == rank ? mine : of_peer(r);
          for (size_t i = 0; i < total.size(); ++i) total[i] += part[i];
        }
        return total;
      };
      const OnGpu out(DType::bf16, {count, q + 2 * kv}), sums(DType::f32, {count, 2}),
          attended(DType::bf16, {count, q}), attended_f8(DType::f8_e4m3, {count, q}),
          attended_scales(DType::f32, {count, q / 128});
      ops::linear(gpu(), apart.hidden, of.parts, out, apart.quantised());
      ops::qk_sum_squares(gpu(), out, of.heads, sums);
      const std::vector<float> all_sums = of_all(sums.values(), [&](int r) {
        const OnGpu row(peer_rows[static_cast<size_t>(r)], {count, q + 2 * kv}),
            part(DType::f32, {count, 2});
        ops::qk_sum_squares(gpu(), row, of.heads, part);
        const std::vector<double> values = part.values();
        return std::vector<float>(values.begin(), values.end());
      });
      ops::qk_norm_rope_store(gpu(), out, OnGpu(all_sums, {count, 2}), of.q_norm, of.k_norm,
                              ranks * q, ranks * kv, 1e-6f, apart.angles, tokens.slots, of.heads,
                              cache);
      ops::paged_attention(gpu(), out.tensor().columns(0, q), cache, layout, of.heads, attended,
                           {attended_f8, attended_scales});
      ops::linear(gpu(), attended, of.layer.o, apart.delta, {attended_f8, attended_scales});
      Numbers total{DType::bf16, {}, {}};
      for (const float value : of_all(apart.delta.values(), [&](int r) {
             const std::vector<double>& values = peer_outputs[static_cast<size_t>(r)].values;
             return std::vector<float>(values.begin(), values.end());
           })) {
        const BF16 rounded = to_bf16(value);
        total.bytes.push_back(static_cast<uint8_t>(rounded.bits & 0xff));
        total.bytes.push_back(static_cast<uint8_t>(rounded.bits >> 8));
      }
      ops::add_rms_norm(gpu(), apart.residual, OnGpu(total, {count, kHidden}), of.norm, 1e-6f,
                        apart.hidden, apart.quantised());
      ops::UnsummedExperts left;
      ops::route_experts(gpu(), apart.hidden, {of.gate, of.bias, tokens.slots}, of.experts,
                         apart.ids, apart.weights, scratch, apart.delta, apart.quantised(), nullptr,
                         &left);
      ASSERT_NE(left.results, nullptr);

      const ops::DecodeTensors tensors = once.tensors(scratch_once);
      const ops::DecodeRanks all_ranks{ranks, words.peers()};
      if (!ops::decodes_rows(gpu(), of.layer, cache_once, layout, of.heads, tensors, all_ranks))
        GTEST_SKIP() << "this GPU has too few multiprocessors for the kernel";
      ops::UnsummedExperts left_once;
      const auto decode = [&] {
        left_once =
            ops::decode_rows(gpu(), of.layer, cache_once, layout, of.heads, tensors, all_ranks);
      };
      const auto send = [&] {
        words.send_rows(sending, static_cast<uint32_t>(l + 1), count, peer_rows, peer_outputs);
        synchronize(sending);
      };
      synchronize(gpu());
      if (when == Peers::early) send();
      if (when != Peers::none || l == 0)
        decode();
      else
        Graph::record(gpu(), decode).launch(gpu());
      if (when == Peers::late) {
        std::this_thread::sleep_for(std::chrono::milliseconds(2));
        send();
      }
      synchronize(gpu());
      words.expect_rows_told(static_cast<uint32_t>(l + 1), count);
      expect_same_rows(apart, once, tokens);
      expect_same_results(left, left_once, once.ids.values());
      if (HasFailure()) return;
    }
    EXPECT_EQ(differing(k, k_once), 0) << "k";
    EXPECT_EQ(differing(v, v_once), 0) << "v";
    ++cases_;
  }

  // Of rows that pad a step nothing but the choice has a meaning.
  static void expect_same_rows(const TokenState& apart, const TokenState& once,
                               const FewTokens& tokens) {
    const std::vector<double> slots = tokens.slots.values();
    const auto expect_same_in_rows = [&](const OnGpu& a, const OnGpu& b, const char* what) {
      const std::vector<uint8_t> one = a.bytes(), other = b.bytes();
      const size_t row = one.size() / slots.size();
      for (size_t r = 0; r < slots.size(); ++r)
        EXPECT_TRUE(slots[r] < 0 || std::memcmp(&one[r * row], &other[r * row], row) == 0)
            << what << " of row " << r;
    };
    expect_same_in_rows(apart.residual, once.residual, "residual");
    expect_same_in_rows(apart.hidden, once.hidden, "hidden");
    expect_same_in_rows(apart.values, once.values, "values");
    expect_same_in_rows(apart.scales, once.scales, "scales");
    EXPECT_EQ(differing(apart.ids, once.ids), 0) << "ids";
    EXPECT_EQ(differing(apart.weights, once.weights), 0) << "weights";
    for (const double value : once.hidden.values()) ASSERT_TRUE(std::isfinite(value));
  }

  // Of tokens that chose some.
  void expect_same_results(const ops::UnsummedExperts& apart, const ops::UnsummedExperts& once,
                           const std::vector<double>& ids) {
    const auto bytes_of = [&](const void* results) {
      std::vector<uint8_t> bytes(ids.size() * kHidden * 2);
      copy_to_host(gpu(), bytes.data(), results, std::ssize(bytes));
      synchronize(gpu());
      return bytes;
    };
    const std::vector<uint8_t> one = bytes_of(apart.results), other = bytes_of(once.results);
    for (size_t i = 0; i < ids.size(); ++i)
      if (ids[i] >= 0) {
        EXPECT_EQ(std::memcmp(&one[i * kHidden * 2], &other[i * kHidden * 2], kHidden * 2), 0)
            << "results of choice " << i;
      }
  }

  static std::vector<Drafts> steps() {
    return {{{1}, {2}},      {{16}, {17}},       {{100}, {5000}}, {{2047}, {2048}},
            {{8193}, {300}}, {{20000}, {70001}}, {{300}, {0}},    {{0}, {0}},
            {{17, 2}},       {{30, 2}},          {{2051, 2}},     {{70004, 2}}};
  }
};

TEST_F(GpuDecodeRows, AloneAreTheOperationsOneAfterAnother) {
  for (const int64_t kv_heads : {2, 1, 4}) {
    const RankLayer layer = rank_layer(kv_heads);
    for (const DType dtype : {DType::bf16, DType::f8_e4m3})
      for (const Drafts& drafts : steps()) expect_rows(layer, 1, 0, drafts, dtype, Peers::none);
  }
  EXPECT_EQ(cases_, 72);
}

TEST_F(GpuDecodeRows, WithPeersAreTheOperationsAndTheirSums) {
  for (const int64_t kv_heads : {2, 1, 4}) {
    const RankLayer layer = rank_layer(kv_heads);
    for (const int size : {2, 3, 4, 7, 8}) {
      if (size > 8 / kv_heads) continue;
      for (const Peers when : {Peers::early, Peers::late})
        for (const Drafts& drafts : {Drafts{{1000}, {2048}}, Drafts{{777, 2}}})
          expect_rows(layer, size, (size * 5 + 1) % size, drafts,
                      size % 2 ? DType::bf16 : DType::f8_e4m3, when);
    }
  }
  EXPECT_EQ(cases_, 36);
}

// Peers that never come end in nothing, and leave nothing behind.
TEST_F(GpuDecodeRows, EndWhenPeersAreGivenUp) {
  const RankLayer of = rank_layer(2);
  // First with peers that come, as above: kernels are loaded when they are first launched.
  expect_rows(of, 3, 1, {{300}, {12}}, DType::bf16, Peers::early);
  const FewTokens tokens(random_, {{1000}, {700}});
  const ops::BatchLayout layout = tokens.layout();
  const OnGpu cache(random_numbers(random_, tokens.blocks * 2 * 16 * 128, DType::bf16),
                    {tokens.blocks, 2, 16, 128});
  const TokenState state(random_numbers(random_, 2 * kHidden, DType::bf16), 2);
  const OnGpu x(random_numbers(random_, 2 * kHidden, DType::bf16), {2, kHidden});
  state.begin(x, tokens);
  RankWordsOnGpu words(3, 1, 2);
  const Buffer scratch_memory(gpu().device,
                              ops::experts_scratch_bytes(gpu().device, of.experts, 2, kTop));
  clear(gpu(), scratch_memory.data(), scratch_memory.bytes());
  const ops::DecodeTensors tensors =
      state.tensors(Tensor(scratch_memory.data(), DType::u8, {scratch_memory.bytes()}));
  const ops::DecodeRanks ranks{4, words.peers()};
  const ops::KvCache both{cache, cache};
  if (!ops::decodes_rows(gpu(), of.layer, both, layout, of.heads, tensors, ranks))
    GTEST_SKIP() << "this GPU has too few multiprocessors for the kernel";
  const auto decode = [&] {
    // What nobody has summed would be waited for by the experts of the next layer.
    ops::decode_rows(gpu(), of.layer, both, layout, of.heads, tensors, ranks);
    clear(gpu(), scratch_memory.data(), scratch_memory.bytes());
  };
  decode();
  decode();
  std::this_thread::sleep_for(std::chrono::milliseconds(5));
  words.give_up();
  synchronize(gpu());
  decode();
  synchronize(gpu());
  expect_rows(of, 1, 0, {{1000}, {700}}, DType::bf16, Peers::none);
  expect_rows(of, 3, 2, {{1000, 2}}, DType::bf16, Peers::early);
}

// Short enough for a sanitizer.
TEST_F(GpuDecodeRows, OneOfTwoAreTheOperationsAndTheirSums) {
  expect_rows(rank_layer(1), 2, 1, {{300}, {12}}, DType::bf16, Peers::early);
  expect_rows(rank_layer(2), 2, 0, {{300, 2}}, DType::bf16, Peers::early);
}

}  // namespace
}  // namespace m2::gpu_test
