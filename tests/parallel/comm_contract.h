#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <functional>
#include <random>
#include <thread>
#include <vector>

#include "parallel/comm.h"
#include "tensor/buffer.h"

// What every body of Comm must do: each collective over dtypes, odd sizes and roots, compared with
// what one rank computes alone, sums in double.

namespace m2::parallel {

using Comms = std::vector<Comm*>;

// Runs body(comm) for each rank on a thread of its own.
inline void on_every_rank(const Comms& comms, const std::function<void(Comm&)>& body) {
  std::vector<std::thread> threads;
  for (Comm* comm : comms) threads.emplace_back([comm, &body] { body(*comm); });
  for (std::thread& thread : threads) thread.join();
}

inline const Exec& host() {
  static const Exec exec{};
  return exec;
}

// A number any rank can make again: of rank, place and round.
inline float number_at(int64_t rank, int64_t i, int64_t round) {
  std::minstd_rand random(static_cast<unsigned>(1 + rank * 7919 + i * 104729 + round * 15485863));
  random.discard(2);
  return static_cast<float>(random()) / 1e9f - 1.0f;
}

template <class T>
T from_float(float value) {
  if constexpr (std::is_same_v<T, BF16>)
    return to_bf16(value);
  else
    return static_cast<T>(std::is_integral_v<T> ? value * 50 : value);
}
inline double as_double(BF16 value) {
  return to_float(value);
}
template <class T>
double as_double(T value) {
  return static_cast<double>(value);
}

template <class T>
std::vector<T> numbers(int64_t rank, int64_t count, int64_t round) {
  std::vector<T> out(static_cast<size_t>(count));
  for (int64_t i = 0; i < count; ++i)
    out[static_cast<size_t>(i)] = from_float<T>(number_at(rank, i, round));
  return out;
}

template <class T>
Tensor view(std::vector<T>& values, int64_t rows, int64_t columns) {
  return Tensor(values.data(), dtype_of<T>(), {rows, columns});
}

// How a body may sum BF16: in FP32, rounded once, or in BF16, rounded at every rank.
enum class Bf16Sums { in_f32, in_bf16 };

// The sum over ranks in double, rounded as T; one bit of FP32 for each rank is allowed on the way.
template <class T>
void expect_sum(const std::vector<T>& got, int64_t first, int64_t ranks, int64_t round,
                Bf16Sums bf16_sums) {
  for (size_t i = 0; i < got.size(); ++i) {
    double sum = 0, magnitude = 0;
    for (int64_t r = 0; r < ranks; ++r) {
      const double value =
          as_double(from_float<T>(number_at(r, first + static_cast<int64_t>(i), round)));
      sum += value;
      magnitude += std::abs(value);
    }
    double rounding = std::is_same_v<T, BF16> ? std::abs(sum) / 256 : 0;
    if (std::is_same_v<T, BF16> && bf16_sums == Bf16Sums::in_bf16)
      rounding = magnitude * static_cast<double>(ranks) / 512;
    ASSERT_NEAR(as_double(got[i]), sum, magnitude * static_cast<double>(ranks) * 6e-8 + rounding);
  }
}

// Rows of each rank: uneven, some of them none.
inline std::vector<int64_t> uneven_rows(int64_t ranks, int64_t round) {
  std::vector<int64_t> rows;
  for (int64_t r = 0; r < ranks; ++r) rows.push_back((r * 5 + round * 3) % 7);
  return rows;
}
inline int64_t total(const std::vector<int64_t>& rows) {
  int64_t sum = 0;
  for (const int64_t n : rows) sum += n;
  return sum;
}

constexpr int64_t kCounts[] = {1, 2, 3, 63, 64, 65, 1000, 3072, 40001};

template <class T>
void check_sums(Comm& comm, Bf16Sums bf16_sums) {
  for (const int64_t count : kCounts) {
    std::vector<T> x = numbers<T>(comm.rank(), count, count);
    comm.all_reduce(host(), view(x, 1, count));
    expect_sum(x, 0, comm.size(), count, bf16_sums);
    // The same bytes everywhere: rank 0's, sent to all, are ours.
    std::vector<T> first = x;
    comm.broadcast(host(), view(first, 1, count), 0);
    ASSERT_EQ(std::memcmp(first.data(), x.data(), x.size() * sizeof(T)), 0);
  }
  for (int64_t round = 0; round < 3; ++round) {
    constexpr int64_t kColumns = 129;
    const std::vector<int64_t> rows = uneven_rows(comm.size(), round);
    std::vector<T> x = numbers<T>(comm.rank(), total(rows) * kColumns, round);
    const int64_t mine = rows[static_cast<size_t>(comm.rank())];
    std::vector<T> part(static_cast<size_t>(mine * kColumns));
    comm.reduce_scatter(host(), view(x, total(rows), kColumns), rows, view(part, mine, kColumns));
    int64_t before = 0;
    for (int64_t r = 0; r < comm.rank(); ++r) before += rows[static_cast<size_t>(r)];
    expect_sum(part, before * kColumns, comm.size(), round, bf16_sums);
  }
}

template <class T>
void check_moves(Comm& comm) {
  const int64_t size = comm.size(), rank = comm.rank();
  for (int64_t round = 0; round < 4; ++round) {
    const int64_t columns = round * 40 + 1;
    const std::vector<int64_t> rows = uneven_rows(size, round);
    const int64_t mine = rows[static_cast<size_t>(rank)];
    std::vector<T> expected;
    for (int64_t r = 0; r < size; ++r)
      for (const T v : numbers<T>(r, rows[static_cast<size_t>(r)] * columns, round))
        expected.push_back(v);
    const auto same = [](const std::vector<T>& a, const std::vector<T>& b) {
      return a.size() == b.size() &&
             (a.empty() || std::memcmp(a.data(), b.data(), a.size() * sizeof(T)) == 0);
    };

    std::vector<T> part = numbers<T>(rank, mine * columns, round);
    std::vector<T> all(static_cast<size_t>(total(rows) * columns));
    comm.all_gather(host(), view(part, mine, columns), rows, view(all, total(rows), columns));
    ASSERT_TRUE(same(all, expected));

    const int64_t root = round % size;
    std::vector<T> from_root = numbers<T>(rank, columns, round);
    comm.broadcast(host(), view(from_root, 1, columns), root);
    ASSERT_TRUE(same(from_root, numbers<T>(root, columns, round)));

    // Rank r sends (r + d) % 3 rows to rank d.
    std::vector<int64_t> to, from;
    std::vector<T> send, arrives;
    for (int64_t d = 0; d < size; ++d) {
      to.push_back((rank + d + round) % 3);
      from.push_back(to.back());
      for (const T v : numbers<T>(rank * 100 + d, to.back() * columns, round)) send.push_back(v);
      for (const T v : numbers<T>(d * 100 + rank, from.back() * columns, round))
        arrives.push_back(v);
    }
    std::vector<T> recv(arrives.size());
    comm.all_to_all(host(), view(send, total(to), columns), to, view(recv, total(from), columns),
                    from);
    ASSERT_TRUE(same(recv, arrives));

    // Columns of one matrix, rank r's r % 3 + 1 wide.
    constexpr int64_t kRows = 5;
    std::vector<int64_t> widths;
    for (int64_t r = 0; r < size; ++r) widths.push_back(r % 3 + 1);
    const int64_t width = total(widths);
    std::vector<T> matrix(static_cast<size_t>(rank == root ? kRows * width : 0));
    std::vector<T> block = numbers<T>(rank, kRows * (rank % 3 + 1), round);
    const Tensor out = rank == root ? view(matrix, kRows, width) : Tensor();
    comm.gather_columns(host(), view(block, kRows, rank % 3 + 1), widths, out, root);
    for (int64_t r = 0, at = 0; rank == root && r < size; at += r++ % 3 + 1) {
      const std::vector<T> whole = numbers<T>(r, kRows * (r % 3 + 1), round);
      for (int64_t i = 0; i < kRows; ++i)
        ASSERT_EQ(std::memcmp(&matrix[static_cast<size_t>(i * width + at)],
                              &whole[static_cast<size_t>(i * (r % 3 + 1))],
                              static_cast<size_t>(r % 3 + 1) * sizeof(T)),
                  0);
    }
  }
}

inline void check_contract(const Comms& comms, Bf16Sums bf16_sums = Bf16Sums::in_f32) {
  on_every_rank(comms, [&](Comm& comm) {
    check_sums<float>(comm, bf16_sums);
    check_moves<float>(comm);
    check_sums<BF16>(comm, bf16_sums);
    check_moves<BF16>(comm);
    check_moves<int32_t>(comm);
    check_moves<int64_t>(comm);
    check_moves<uint8_t>(comm);
    comm.barrier(host());
    ASSERT_TRUE(comm.status().ok());
  });
}

}  // namespace m2::parallel
