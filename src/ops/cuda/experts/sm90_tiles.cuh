#pragma once

#include "ops/cuda/experts/lists.cuh"
#include "ops/cuda/tiles.cuh"

namespace m2::ops::cuda {

// The tensor maps of one call. Rows of all experts stand one after another.
struct ExpertsMaps {
  CUtensorMap x, w13, inner, w2;                    // boxes of 64 rows
  CUtensorMap all_x, w13_half, all_inner, w2_half;  // of 128; of 64 of w1 and the same 64 of w3
};

// Four matrices of 8 x 8 numbers of 16 bits, turned: lane 8 m + r has the address of row r of
// matrix m, which is column r of what the warp holds of it.
__device__ __forceinline__ void store_turned(uint32_t address, const uint32_t (&word)[4]) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile(
      "stmatrix.sync.aligned.m8n8.x4.trans.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(address),
      "r"(word[0]), "r"(word[1]), "r"(word[2]), "r"(word[3])
      : "memory");
#endif
}
// The larger of both halves.
__device__ __forceinline__ uint32_t larger_pair(uint32_t a, uint32_t b) {
  const __nv_bfloat162 pair = __hmax2(*reinterpret_cast<const __nv_bfloat162*>(&a),
                                      *reinterpret_cast<const __nv_bfloat162*>(&b));
  return *reinterpret_cast<const uint32_t*>(&pair);
}

// Each pair's token, quantised, in the order of `order`, so that an expert's tokens are
// consecutive. Bytes: P H read (from L2), P H written. Bound: bandwidth.
__global__ void __launch_bounds__(256) sm90_experts_quantise(ExpertsArgs args) {
  wait_for_previous();
  let_next_start();
  const int warps = quantise_warps(args.hidden);
  const int item = blockIdx.x * 8 + threadIdx.x / kWarp, position = item / warps;
  const bool one = args.x.rows == 1;
  if (position >= (one ? args.top : args.offsets[args.experts])) return;
  const int64_t token = one ? 0 : args.order[position] / args.top;
  quantise_stretches(static_cast<const __nv_bfloat16*>(args.x.data) + token * args.x.stride,
                     args.hidden, item % warps * kQuantiseAhead, args.powers,
                     args.x_f8 + static_cast<int64_t>(position) * args.hidden,
                     args.x_scales + static_cast<int64_t>(position) * (args.hidden / 128));
}

// Each token to the places of its pairs in the order of the experts, quantised (or, kGiven, as it
// comes quantised). A warp has a part of a token, which it reads and quantises once. Bytes: T H 2
// (or T H) read, P H written. Bound: bandwidth.
template <bool kGiven>
__global__ void __launch_bounds__(256) sm90_experts_spread(ExpertsArgs args) {
  wait_for_previous();
  let_next_start();
  const int lane = threadIdx.x % kWarp, stretches = args.hidden / 128;
  const int parts = quantise_warps(args.hidden);
  const int64_t item = blockIdx.x * int64_t{8} + threadIdx.x / kWarp, token = item / parts;
  if (token >= args.x.rows) return;
  const int first = static_cast<int>(item % parts) * kQuantiseAhead;
  uint32_t word[kQuantiseAhead];
  float scale[kQuantiseAhead];
#pragma unroll
  for (int i = 0; i < kQuantiseAhead; ++i) {
    if (first + i >= stretches) continue;
    const int64_t at = token * args.hidden + (first + i) * 128 + lane * 4;
    if constexpr (kGiven) {
      word[i] = *reinterpret_cast<const uint32_t*>(args.token_f8 + at);
      scale[i] = args.token_scales[token * stretches + first + i];
    } else {
      const auto* x = static_cast<const __nv_bfloat16*>(args.x.data) + token * args.x.stride;
      const uint2 pairs = *reinterpret_cast<const uint2*>(x + (first + i) * 128 + lane * 4);
      quantise_stretch(pairs, true, args.powers, reinterpret_cast<uint8_t*>(&word[i]), &scale[i]);
    }
  }
  for (int place = 0; place < args.top; ++place) {
    const int64_t position = args.position[token * args.top + place];
    if (position < 0) continue;
#pragma unroll
    for (int i = 0; i < kQuantiseAhead; ++i) {
      if (first + i >= stretches) continue;
      *reinterpret_cast<uint32_t*>(args.x_f8 + position * args.hidden + (first + i) * 128 +
                                   lane * 4) = word[i];
      if (lane == 0) args.x_scales[position * stretches + first + i] = scale[i];
    }
  }
}

// Which tile is what: expert after expert, and within one strip after strip of its weights' rows,
// which all of its tokens take at about the same time. A strip is what the two blocks of a cluster
// take of rows when they share up to 128 tokens; of 129 to 256 tokens each block has some, and both
// go through the strip's two parts, sharing weights. The last strip may have one part.
struct ExpertsOrder {
  static constexpr int kHalves = 2;
  const ExpertsArgs& args;
  int units;       // halves that the matrix of an expert has
  int expert = 0;  // place in the list where the last tile was

  __device__ __forceinline__ int parts() const { return (units + kHalves - 1) / kHalves; }
  __device__ __forceinline__ int strips() const { return (parts() + 1) / 2; }
  // Of a cluster, for so many pairs and rests (tile_counts()).
  __device__ __forceinline__ int cluster_tiles(int counts) const {
    return (counts & ((1 << kRestsBit) - 1)) * parts() + (counts >> kRestsBit) * strips();
  }
  __device__ __forceinline__ int tiles() const { return 2 * cluster_tiles(args.groups[1]); }
  __device__ __forceinline__ int4 entry(int i) const {
    return *reinterpret_cast<const int4*>(args.groups + 4 + 4 * i);
  }
  // By a whole warp. The place but for the rows.
  __device__ __forceinline__ TilePlace find(int tile) {
    // Tiles come in ascending order, so the expert only moves on.
    const int lane = threadIdx.x % kWarp, experts = args.groups[0], rank = tile % 2;
    while (true) {
      const int i = expert + 1 + lane;
      const bool reached = i < experts && cluster_tiles(entry(i).w) <= tile / 2;
      const int passed = __popc(__ballot_sync(~0u, reached));
      expert += passed;
      if (passed < kWarp) break;
    }
    const int4 found = entry(expert);  // the expert, its first token and tokens, tiles before it
    const int pairs = tile_pairs(found.z), of_strip = 2 * pairs + tile_rests(found.z);
    const int within = tile / 2 - cluster_tiles(found.w), strip = within / of_strip;
    const int part = within - strip * of_strip;
    const int wide = min(2, parts() - 2 * strip);  // parts of the strip
    TilePlace place;
    place.matrix = found.x;
    int done = pairs * 2 * kTileTokens;
    if (part < wide * pairs) {
      done = (part / wide * 2 + rank) * kTileTokens;
      place.share = TileShare::weights;
      place.unit = (strip * 2 + part % wide) * kHalves;
    } else {
      place.share = TileShare::tokens;
      place.unit = (strip * 2 + rank) * kHalves;
    }
    place.token = found.y + done;
    place.tokens = min(kTileTokens, found.z - done);
    place.halves = max(0, min(kHalves, units - place.unit));
    return place;
  }
};

// inner = silu(w1 x) * (w3 x), quantised again for every 128 (or 64) of its columns. A half is 64
// rows of w1 and the same 64 of w3, so that gate and up meet in one thread.
// kGather: tokens as they are, not spread.
template <bool kGather>
struct ExpertsUpTiles : PlainTiles {
  static constexpr bool kGathers = kGather;
  static constexpr bool kQueued = true, kTurnsFew = true;
  ExpertsOrder order;
  const ExpertsArgs& args;
  const CUtensorMap *tokens, *all_tokens;
  const CUtensorMap *weights, *whole_half;
  int* next;
  int tiles = 0, columns = 0;

  __device__ __forceinline__ TilePlace place(int tile) {
    TilePlace place = order.find(tile);
    place.upper_row = place.matrix * 2 * args.inner + place.unit * 64;
    place.lower_row = place.upper_row + args.inner;
    return place;
  }
  __device__ __forceinline__ void copy_half(uint32_t to, const TilePlace& place, int half,
                                            int column, uint64_t* done) const {
    tensor_copy_3d(to, whole_half, column, (place.unit + half) * 64, 2 * place.matrix, done);
  }
  __device__ __forceinline__ void copy_half_to_all(uint32_t to, const TilePlace& place, int half,
                                                   int column, uint64_t* done) const {
    tensor_copy_3d_to_all(to, whole_half, column, (place.unit + half) * 64, 2 * place.matrix, done,
                          3);
  }
  __device__ __forceinline__ int token_row(const TilePlace& place, int i) const {
    return args.order[place.token + min(i, place.tokens - 1)] / args.top;
  }
  __device__ __forceinline__ const uint8_t* token_bytes() const { return args.token_f8; }
  __device__ __forceinline__ int stretches() const { return args.hidden / 128; }
  __device__ __forceinline__ int weight_scale(int stretch) const { return stretch; }
  __device__ __forceinline__ const float* token_scales(const TilePlace& place, int i) const {
    if (kGather) return args.token_scales + token_row(place, i) * (args.hidden / 128);
    return args.x_scales +
           static_cast<int64_t>(place.token + min(i, place.tokens - 1)) * (args.hidden / 128);
  }
  __device__ __forceinline__ const float* weight_scales(const TilePlace& place, int half,
                                                        bool lower) const {
    const int column = min((place.unit + half) * 64, args.inner - 1);
    const int block = (args.first_inner + column) / 128 - args.scale_row;
    return (lower ? args.w3_scale : args.w1_scale) +
           (static_cast<int64_t>(place.matrix) * args.inner_blocks + block) * args.hidden_blocks;
  }
  template <int kHalves>
  __device__ __forceinline__ void store(const TilePlace& place, int first, int halves, int row,
                                        const float (&total)[kHalves][64], int turn, int) const {
    const int lane = threadIdx.x % kWarp, t = lane % 4;
    const int columns = args.inner_stretch, unit = place.unit + first;
    uint8_t* memory = tile_warp_memory();
    __syncwarp();
    uint32_t value[kHalves][2][8];  // two bf16, as in total
    float most[kHalves][2];
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
      if (half >= halves) continue;
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        most[half][r] = 0.0f;
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          const int at = 4 * j + 2 * r;
          const __nv_bfloat162 pair =
              __floats2bfloat162_rn(quick_silu(total[half][at]) * total[half][at + 32],
                                    quick_silu(total[half][at + 1]) * total[half][at + 33]);
          const uint32_t bits = *reinterpret_cast<const uint32_t*>(&pair);
          value[half][r][j] = bits;
          most[half][r] = fmaxf(most[half][r], fmaxf(fabsf(__uint_as_float(bits << 16)),
                                                     fabsf(__uint_as_float(bits & 0xffff0000u))));
        }
        most[half][r] = fmaxf(most[half][r], __shfl_xor_sync(~0u, most[half][r], 1));
        most[half][r] = fmaxf(most[half][r], __shfl_xor_sync(~0u, most[half][r], 2));
      }
    }
    if (columns == 128) {
      if (kHalves == 2 && halves == 2) {
#pragma unroll
        for (int r = 0; r < 2; ++r)
          most[0][r] = most[kHalves - 1][r] = fmaxf(most[0][r], most[kHalves - 1][r]);
      } else if (halves == 1) {
        // The other warpgroup has the other 64 columns.
        auto* here = reinterpret_cast<float*>(memory + 2048) + turn % 2 * 16;
        if (t == 0) here[lane / 4] = most[0][0], here[lane / 4 + 8] = most[0][1];
        asm volatile("bar.sync 4, 256;" ::: "memory");
        const float* there = here + (threadIdx.x < 128 ? 4 : -4) * (kTileWarpBytes / 4);
        most[0][0] = fmaxf(most[0][0], there[lane / 4]);
        most[0][1] = fmaxf(most[0][1], there[lane / 4 + 8]);
      }
    }
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
      if (half >= halves) continue;
      const int column = (unit + half) * 64;
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const float scale = f8_scale(most[half][r], args.powers), inverse = 1.0f / scale;
        const int mine = lane / 4 + r * 8;
#pragma unroll
        for (int j = 0; j < 8; ++j) {
          const uint32_t bits = value[half][r][j];
          const __nv_fp8x2_e4m3 pair(float2{__uint_as_float(bits << 16) * inverse,
                                            __uint_as_float(bits & 0xffff0000u) * inverse});
          *reinterpret_cast<uint16_t*>(memory + half * 1024 + mine * 64 +
                                       ((j / 2) ^ (mine / 2 & 3)) * 16 + j % 2 * 8 + 2 * t) =
              pair.__x;
        }
        if (t == 0 && row + r * 8 < place.tokens && column % columns == 0)
          args.inner_scales[static_cast<int64_t>(place.token + row + r * 8) *
                                (args.inner / columns) +
                            column / columns] = scale;
      }
    }
    __syncwarp();
#pragma unroll
    for (int half = 0; half < kHalves; ++half) {
      if (half >= halves) continue;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const int from = i * 8 + lane / 4, token = row - lane / 4 + from;
        const uint4 bytes = *reinterpret_cast<const uint4*>(memory + half * 1024 + from * 64 +
                                                            (t ^ (from / 2 & 3)) * 16);
        if (token < place.tokens)
          *reinterpret_cast<uint4*>(args.inner_f8 +
                                    static_cast<int64_t>(place.token + token) * args.inner +
                                    (unit + half) * 64 + t * 16) = bytes;
      }
    }
  }
  // The warp has 16 columns of all tokens.
  __device__ __forceinline__ void store_few(const TilePlace& place, int group,
                                            const float (&total)[2][16], int turn, int) const {
    const int lane = threadIdx.x % kWarp, t = lane % 4, warp = threadIdx.x / kWarp;
    const int columns = args.inner_stretch, column = (place.unit + group) * 64;
    const bool joined = columns == 128;
    uint8_t* memory = tile_warp_memory();
    uint32_t value[4][2], most[4];  // two tokens each, of rows g and g + 8
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const int at = 4 * j + 2 * r;
        value[j][r] = pack_bf16(quick_silu(total[0][at]) * total[1][at],
                                quick_silu(total[0][at + 1]) * total[1][at + 1]);
      }
      most[j] = larger_pair(value[j][0] & 0x7fff7fffu, value[j][1] & 0x7fff7fffu);
#pragma unroll
      for (int offset = 16; offset >= 4; offset /= 2)
        most[j] = larger_pair(most[j], __shfl_xor_sync(~0u, most[j], offset));
    }
    // The other warps have other columns of the same tokens.
    const int largest_at = 2048 + 128 + turn % 2 * (2 * kTileFew);
    if (lane < 4)
#pragma unroll
      for (int j = 0; j < 4; ++j)
        *reinterpret_cast<uint32_t*>(memory + largest_at + (4 * j + t) * 4) = most[j];
    if (joined)
      asm volatile("bar.sync 4, 256;" ::: "memory");
    else
      asm volatile("bar.sync %0, 128;" ::"r"(5 + group) : "memory");
    const uint8_t* all = memory - warp * kTileWarpBytes + largest_at;
    uint32_t word[4];
#pragma unroll
    for (int j = 0; j < 4; ++j) {
#pragma unroll
      for (int w = 0; w < 8; ++w)
        if (joined || w / 4 == group)
          most[j] = larger_pair(most[j], *reinterpret_cast<const uint32_t*>(
                                             all + w * kTileWarpBytes + (4 * j + t) * 4));
      word[j] = 0;
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const auto number = [&](uint32_t two) {
          return __uint_as_float(i ? two & 0xffff0000u : two << 16);
        };
        const int token = 8 * j + 2 * t + i;
        const float scale = f8_scale(number(most[j]), args.powers), inverse = 1.0f / scale;
        if (token < place.tokens && lane < 4 && warp % 4 == 0 && column % columns == 0)
          args.inner_scales[static_cast<int64_t>(place.token + token) * (args.inner / columns) +
                            column / columns] = scale;
        const __nv_fp8x2_e4m3 pair(
            float2{number(value[j][0]) * inverse, number(value[j][1]) * inverse});
        word[j] |= static_cast<uint32_t>(pair.__x) << (16 * i);
      }
    }
    __syncwarp();
    store_turned(shared_address(memory) + lane * 16, word);
    __syncwarp();
    if (lane >= place.tokens) return;
    const uint4 mixed = *reinterpret_cast<const uint4*>(memory + lane * 16);
    // Rows g and g + 8 stand side by side.
    const uint4 bytes = {
        __byte_perm(mixed.x, mixed.y, 0x6420), __byte_perm(mixed.z, mixed.w, 0x6420),
        __byte_perm(mixed.x, mixed.y, 0x7531), __byte_perm(mixed.z, mixed.w, 0x7531)};
    *reinterpret_cast<uint4*>(args.inner_f8 +
                              static_cast<int64_t>(place.token + lane) * args.inner + column +
                              warp % 4 * 16) = bytes;
  }
};

// result = w2 inner, as bf16, at its pair's place.
struct ExpertsDownTiles : WholeHalves {
  static constexpr bool kQueued = true, kTurnsFew = true;
  ExpertsOrder order;
  const ExpertsArgs& args;
  const CUtensorMap *tokens, *all_tokens, *weights;
  int* next;
  int tiles = 0, columns = 0;

  __device__ __forceinline__ TilePlace place(int tile) {
    TilePlace place = order.find(tile);
    place.upper_row = place.matrix * args.hidden + place.unit * 128;
    place.lower_row = place.upper_row + 64;
    return place;
  }
  __device__ __forceinline__ int stretches() const { return args.inner / args.inner_stretch; }
  __device__ __forceinline__ int weight_scale(int stretch) const {
    return (args.first_inner + stretch * args.inner_stretch) / 128 - args.scale_row;
  }
  __device__ __forceinline__ const float* token_scales(const TilePlace& place, int i) const {
    return args.inner_scales +
           static_cast<int64_t>(place.token + min(i, place.tokens - 1)) * stretches();
  }
  __device__ __forceinline__ const float* weight_scales(const TilePlace& place, int half,
                                                        bool) const {
    return args.w2_scale + (static_cast<int64_t>(place.matrix) * args.hidden_blocks +
                            min(place.unit + half, args.hidden_blocks - 1)) *
                               args.inner_blocks;
  }
  // Which pair the tile's i-th token is: asked for before the products, and there after them.
  __device__ __forceinline__ int ahead(const TilePlace& place, int i) const {
    return args.order[place.token + min(i, place.tokens - 1)];
  }
  template <int kHalves>
  __device__ __forceinline__ void store(const TilePlace& place, int first, int halves, int row,
                                        const float (&total)[kHalves][64], int, int pair) const {
    const int lane = threadIdx.x % kWarp, from = row - lane / 4;
    __nv_bfloat16* to[4];
    bool there[4];
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int mine = 4 * i + lane / 8;
      there[i] = from + mine < place.tokens;
      to[i] = reinterpret_cast<__nv_bfloat16*>(args.results) + (place.unit + first) * 128 +
              int64_t{__shfl_sync(~0u, pair, mine)} * args.hidden;
    }
#pragma unroll
    for (int half = 0; half < kHalves; ++half)
      if (half < halves)
        store_rows(total[half], [&](int i, int chunk, const uint4& eight) {
          store_if(there[i], to[i] + half * 128 + chunk * 8, eight);
        });
  }
  // The warp has 16 columns of each piece of all tokens.
  __device__ __forceinline__ void store_few(const TilePlace& place, int group,
                                            const float (&total)[2][16], int, int pair) const {
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp, chunk = lane % 4;
    uint8_t* memory = tile_warp_memory();
    const uint32_t at = shared_address(memory) + lane % 8 * 64 + ((lane / 8) ^ (lane % 8 / 2)) * 16;
    auto* results = reinterpret_cast<__nv_bfloat16*>(args.results) + (place.unit + group) * 128 +
                    chunk / 2 * 64 + warp % 4 * 16 + chunk % 2 * 8;
    __syncwarp();
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const uint32_t word[4] = {pack_bf16(total[0][4 * j], total[0][4 * j + 1]),
                                pack_bf16(total[0][4 * j + 2], total[0][4 * j + 3]),
                                pack_bf16(total[1][4 * j], total[1][4 * j + 1]),
                                pack_bf16(total[1][4 * j + 2], total[1][4 * j + 3])};
      store_turned(at + j * 512, word);
    }
    __syncwarp();
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int token = 8 * j + lane / 4;
      const int64_t to = __shfl_sync(~0u, pair, token);
      if (token >= place.tokens) continue;
      *reinterpret_cast<uint4*>(results + to * args.hidden) = *reinterpret_cast<const uint4*>(
          memory + j * 512 + lane / 4 * 64 + (chunk ^ (lane / 4 / 2)) * 16);
    }
  }
};

// Bytes: 3 I H weights an expert, read once if its tiles run together; FLOPs: 6 I H a pair on the
// FP8 tensor cores. Bound: memory below about 350 pairs an expert, tensor cores above.
template <bool kUp, int kStretches, bool kGather = false>
__global__ void __launch_bounds__(kTileThreads, 1)
    sm90_experts_tiles(const __grid_constant__ ExpertsArgs args,
                       const __grid_constant__ ExpertsMaps maps) {
  wait_for_previous();
  let_next_start();
  const ExpertsOrder order{args, kUp ? args.inner / 64 : (args.hidden + 127) / 128};
  if constexpr (kUp) {
    ExpertsUpTiles<kGather> work{{},          order,     args,           &maps.x,
                                 &maps.all_x, &maps.w13, &maps.w13_half, args.groups + 2};
    work.columns = args.hidden;
    work.tiles = order.tiles();
    run_tiles<ExpertsOrder::kHalves, kStretches, TileShare::either>(work);
  } else {
    ExpertsDownTiles work{{{}, &maps.w2_half}, order,    args,           &maps.inner,
                          &maps.all_inner,     &maps.w2, args.groups + 3};
    work.columns = args.inner;
    work.tiles = order.tiles();
    run_tiles<ExpertsOrder::kHalves, kStretches, TileShare::either>(work);
  }
}

}  // namespace m2::ops::cuda
