#include "ops/attention.h"

#include <algorithm>

#include "tests/ops/oracle.h"

namespace m2::ops {
namespace {

using namespace test;

struct Sequence {
  int64_t context;  // tokens in the cache, this step's included
  int64_t queries;  // the last `queries` of them are asked for
};

// Sequences with random contexts in a cache whose blocks are dealt at random; whatever no sequence
// owns, and every table entry behind a sequence's last block, is poison.
struct Batch {
  Batch(Random& random, const std::vector<Sequence>& sequences, const HeadShape& shape,
        int64_t block_size, DType dtype = DType::bf16)
      : heads(shape),
        k(dtype,
          {count_blocks(sequences, block_size) + 3, shape.kv_heads, block_size, shape.head_dim}),
        v(dtype,
          {count_blocks(sequences, block_size) + 3, shape.kv_heads, block_size, shape.head_dim}) {
    if (dtype == DType::f8_e4m3) {
      k_scale = 0.02f;
      v_scale = 1.75f;
    }
    std::vector<int32_t> free;
    for (int32_t b = 0; b < static_cast<int32_t>(k.view().size(0)); ++b) free.push_back(b);
    for (size_t i = free.size(); i > 1; --i)
      std::swap(free[i - 1], free[static_cast<size_t>(random.below(static_cast<int64_t>(i)))]);
    for (const Sequence& s : sequences)
      max_blocks = std::max(max_blocks, (s.context + block_size - 1) / block_size + 1);
    starts.push_back(0);
    for (const Sequence& s : sequences) {
      const int64_t used = (s.context + block_size - 1) / block_size;
      for (int64_t b = 0; b < max_blocks; ++b) {
        tables.push_back(b < used ? free.back() : -7);
        if (b < used) free.pop_back();
      }
      for (int64_t p = 0; p < s.context; ++p) fill(random, tables.size() - max_blocks, p);
      for (int64_t p = s.context - s.queries; p < s.context; ++p)
        positions.push_back(static_cast<int32_t>(p));
      lengths.push_back(static_cast<int32_t>(s.context));
      starts.push_back(static_cast<int32_t>(positions.size()));
    }
  }

  static int64_t count_blocks(const std::vector<Sequence>& sequences, int64_t block_size) {
    int64_t count = 0;
    for (const Sequence& s : sequences) count += (s.context + block_size - 1) / block_size;
    return count;
  }

  int64_t cache_index(size_t table, int64_t position, int64_t head) const {
    const int64_t block_size = k.view().size(2);
    const int64_t block = tables[table + static_cast<size_t>(position / block_size)];
    return ((block * heads.kv_heads + head) * block_size + position % block_size) * heads.head_dim;
  }
  void fill(Random& random, size_t table, int64_t position) {
    for (int64_t h = 0; h < heads.kv_heads; ++h)
      for (int64_t d = 0; d < heads.head_dim; ++d) {
        store(k, cache_index(table, position, h) + d, random.normal() / k_scale);
        store(v, cache_index(table, position, h) + d, random.normal() / v_scale);
      }
  }

  KvCache cache() const { return {k, v, k_scale, v_scale}; }
  double key(int64_t index) const { return load(k, index) * k_scale; }
  double value(int64_t index) const { return load(v, index) * v_scale; }
  int64_t tokens() const { return static_cast<int64_t>(positions.size()); }
  BatchLayout layout() {
    BatchLayout out;
    const auto view = [](std::vector<int32_t>& list) {
      return Tensor(list.data(), DType::i32, {static_cast<int64_t>(list.size())});
    };
    out.token_ids = out.positions = view(positions);
    out.query_starts = view(starts);
    out.context_lens = view(lengths);
    out.block_tables =
        Tensor(tables.data(), DType::i32, {static_cast<int64_t>(lengths.size()), max_blocks});
    return out;
  }

  HeadShape heads;
  Host k, v;
  float k_scale = 1, v_scale = 1;
  int64_t max_blocks = 0;
  std::vector<int32_t> positions, starts, lengths, tables;
};

// One head of one token, in double precision.
void expect_head(const Batch& batch, const Tensor& q, int64_t sequence, int64_t token, int64_t head,
                 const Tensor& out, const std::string& where) {
  const int64_t dim = batch.heads.head_dim;
  const int64_t kv_head = head / (batch.heads.q_heads / batch.heads.kv_heads);
  const size_t table = static_cast<size_t>(sequence * batch.max_blocks);
  const int64_t seen = batch.positions[static_cast<size_t>(token)] + 1;
  std::vector<double> scores;
  double largest = -INFINITY;
  for (int64_t p = 0; p < seen; ++p) {
    double dot = 0;
    for (int64_t d = 0; d < dim; ++d)
      dot += load(q, token, head * dim + d) * batch.key(batch.cache_index(table, p, kv_head) + d);
    scores.push_back(dot / std::sqrt(static_cast<double>(dim)));
    largest = std::max(largest, scores.back());
  }
  double total = 0;
  for (double& score : scores) total += score = std::exp(score - largest);
  for (int64_t d = 0; d < dim; ++d) {
    double sum = 0, magnitude = 0;
    for (int64_t p = 0; p < seen; ++p) {
      const double term = scores[static_cast<size_t>(p)] / total *
                          batch.value(batch.cache_index(table, p, kv_head) + d);
      sum += term;
      magnitude += std::fabs(term);
    }
    // A score is off by a few units in its last place, its exponential by as much.
    expect_close(load(out, token, head * dim + d), sum, 4 * magnitude, out.dtype(), where);
  }
}

class AttentionTest : public testing::Test {
 protected:
  ThreadPool pool_{2};
  Exec exec_{Device{}, &pool_};
};

TEST_F(AttentionTest, MatchesDoublePrecision) {
  const HeadShape shapes[] = {{6, 1, 128, 64}, {4, 2, 16, 8},   {48, 8, 128, 64},
                              {3, 3, 80, 4},   {100, 2, 32, 8}, {2, 1, 256, 64}};
  const std::vector<std::vector<Sequence>> batches = {
      {{1, 1}}, {{64, 1}, {65, 1}, {200, 1}}, {{40, 40}}, {{130, 70}, {7, 7}, {300, 1}, {17, 2}}};
  Random random(1);
  for (const HeadShape& heads : shapes) {
    for (const auto& sequences : batches) {
      for (const auto& [cache_dtype, dtype] : {std::pair{DType::bf16, DType::f32},
                                               {DType::bf16, DType::bf16},
                                               {DType::f8_e4m3, DType::f32},
                                               {DType::f8_e4m3, DType::bf16}}) {
        Batch batch(random, sequences, heads, 16, cache_dtype);
        // q is a part of a wider row, as it is in qkv.
        Host q(dtype, {batch.tokens(), heads.q_heads * heads.head_dim}, 32);
        q.fill(random, 2);
        Host out(dtype == DType::f32 ? DType::bf16 : DType::f32,
                 {batch.tokens(), heads.q_heads * heads.head_dim});
        for_each_target([&](const char* target, bool) {
          out.poison();
          paged_attention(exec_, q, batch.cache(), batch.layout(), heads, out);
          for (int64_t s = 0; s < static_cast<int64_t>(sequences.size()); ++s) {
            const int64_t begin = batch.starts[static_cast<size_t>(s)];
            const int64_t end = batch.starts[static_cast<size_t>(s + 1)];
            for (int64_t t = begin; t < end; t += std::max<int64_t>(1, (end - begin) / 5))
              for (int64_t h = 0; h < heads.q_heads; h += std::max<int64_t>(1, heads.q_heads / 7))
                expect_head(batch, q, s, t, h, out,
                            q.view().describe() + " over " + name(cache_dtype) + " " + target +
                                " token " + std::to_string(t) + " head " + std::to_string(h));
          }
        });
        if (HasFailure()) return;
      }
    }
  }
}

TEST_F(AttentionTest, OtherBlockSizes) {
  Random random(2);
  const HeadShape heads{4, 2, 32, 16};
  for (const int64_t block_size : {1, 7, 64, 200}) {
    Batch batch(random, {{150, 20}, {77, 1}}, heads, block_size);
    Host q(DType::f32, {batch.tokens(), 128});
    q.fill(random);
    Host out(DType::f32, {batch.tokens(), 128});
    paged_attention(exec_, q, batch.cache(), batch.layout(), heads, out);
    for (const int64_t t : {0, 19}) expect_head(batch, q, 0, t, 3, out, "block size");
    expect_head(batch, q, 1, 20, 0, out, "block size");
  }
}

// Very unequal scores: the running maximum must carry them.
TEST_F(AttentionTest, LargeScores) {
  Random random(3);
  const HeadShape heads{6, 1, 128, 64};
  Batch batch(random, {{500, 3}}, heads, 16);
  Host q(DType::f32, {3, 6 * 128});
  q.fill(random, 300);
  Host out(DType::f32, {3, 6 * 128});
  paged_attention(exec_, q, batch.cache(), batch.layout(), heads, out);
  for (int64_t i = 0; i < 3 * 6 * 128; ++i) ASSERT_TRUE(std::fabs(load(out, i)) < 5) << i;
}

void expect_the_same_alone(const Exec& exec_, DType cache_dtype) {
  Random random(4);
  const HeadShape heads{12, 2, 128, 64};
  Batch batch(random, {{230, 230}, {100, 1}}, heads, 16, cache_dtype);
  Host q(DType::f32, {231, 12 * 128});
  q.fill(random);
  Host all(DType::f32, {231, 12 * 128});
  paged_attention(exec_, q, batch.cache(), batch.layout(), heads, all);
  for_each_target([&](const char* target, bool has_fma) {
    if (!has_fma) return;
    for (const int threads : {1, 2, 3}) {
      ThreadPool pool(threads);
      const Exec exec{Device{}, &pool};
      // The same prompt in chunks: each chunk alone sees only its own context.
      for (const int64_t chunk : {1, 7, 64, 100}) {
        for (int64_t begin = 0; begin < 230; begin += chunk * (chunk == 1 ? 13 : 1)) {
          const int64_t count = std::min<int64_t>(chunk, 230 - begin);
          BatchLayout layout = batch.layout();
          std::vector<int32_t> starts = {0, static_cast<int32_t>(count)};
          std::vector<int32_t> lengths = {static_cast<int32_t>(begin + count)};
          layout.token_ids = layout.positions = layout.positions.rows(begin, count);
          layout.query_starts = Tensor(starts.data(), DType::i32, {2});
          layout.context_lens = Tensor(lengths.data(), DType::i32, {1});
          layout.block_tables = layout.block_tables.rows(0, 1);
          Host part(DType::f32, {count, 12 * 128});
          paged_attention(exec, q.view().rows(begin, count), batch.cache(), layout, heads, part);
          ASSERT_TRUE(same_bytes(part, all.view().rows(begin, count)))
              << target << " " << threads << " threads, chunk " << chunk << " at " << begin;
        }
      }
    }
  });
}

TEST_F(AttentionTest, ATokensResultDoesNotDependOnItsBatchThreadsOrInstructionSet) {
  expect_the_same_alone(exec_, DType::bf16);
}

TEST_F(AttentionTest, NorDoesItOverFp8) {
  expect_the_same_alone(exec_, DType::f8_e4m3);
}

// Rounding K and V to e4m3 (2.6 % of each number, root mean square) moves results by 3.7 %: as much
// by V as by the weights, whose scores have deviation 1 here.
TEST_F(AttentionTest, Fp8IsCloseToBf16) {
  const HeadShape heads{12, 2, 128, 64};
  Random random(6);
  Batch exact(random, {{300, 40}, {500, 1}}, heads, 16);
  Batch rounded = [&] {
    Random again(6);
    return Batch(again, {{300, 40}, {500, 1}}, heads, 16, DType::f8_e4m3);
  }();
  Host q(DType::f32, {41, 12 * 128}), a(DType::f32, {41, 12 * 128}), b(DType::f32, {41, 12 * 128});
  q.fill(random);
  paged_attention(exec_, q, exact.cache(), exact.layout(), heads, a);
  paged_attention(exec_, q, rounded.cache(), rounded.layout(), heads, b);
  double difference = 0, norm = 0;
  for (int64_t i = 0; i < 41 * 12 * 128; ++i) {
    difference += (load(a, i) - load(b, i)) * (load(a, i) - load(b, i));
    norm += load(a, i) * load(a, i);
  }
  const double off = std::sqrt(difference / norm);
  EXPECT_GT(off, 0.02) << "is it FP8 at all?";
  EXPECT_LT(off, 0.045);
}

// A later token's K and V, not finite, must not reach an earlier one.
void expect_causal(const Exec& exec_, DType cache_dtype) {
  Random random(5);
  const HeadShape heads{6, 1, 128, 64};
  Batch batch(random, {{40, 40}}, heads, 16, cache_dtype);
  Host q(DType::f32, {40, 6 * 128});
  q.fill(random);
  Host before(DType::f32, {40, 6 * 128}), after(DType::f32, {40, 6 * 128});
  paged_attention(exec_, q, batch.cache(), batch.layout(), heads, before);
  for (int64_t d = 0; d < 128; ++d) {
    store(batch.k, batch.cache_index(0, 30, 0) + d, std::nan(""));
    store(batch.v, batch.cache_index(0, 30, 0) + d, std::nan(""));
  }
  for_each_target([&](const char* target, bool has_fma) {
    paged_attention(exec_, q, batch.cache(), batch.layout(), heads, after);
    if (has_fma) {
      EXPECT_TRUE(same_bytes(before.view().rows(0, 30), after.view().rows(0, 30))) << target;
    }
    for (int64_t i = 0; i < 30 * 6 * 128; ++i) ASSERT_FALSE(std::isnan(load(after, i))) << target;
    EXPECT_TRUE(std::isnan(load(after, 30 * 6 * 128)));
  });
}

TEST_F(AttentionTest, IsCausalEvenIfALaterTokenIsNotFinite) {
  expect_causal(exec_, DType::bf16);
  expect_causal(exec_, DType::f8_e4m3);
}

}  // namespace
}  // namespace m2::ops
