#include "load/slices.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <mutex>
#include <optional>
#include <tuple>
#include <vector>

#include "base/thread_pool.h"
#include "tensor/staging.h"

namespace m2::load {
namespace {

constexpr int64_t kPieceBytes = 4 << 20;  // of one read, or of one after another
// Bytes between the wanted parts of two rows that are read along rather than skipped: a call costs
// about as much as copying so many.
constexpr int64_t kReadAlong = 512;

int64_t columns_of(const Tensor& tensor) {
  return tensor.size(0) == 0 ? 0 : tensor.elements() / tensor.size(0);
}

int64_t stored_columns(const TensorInfo& info) {
  return info.shape.size() < 2 ? 1 : info.shape[1];
}

// Rows [first, first + count) of a slice: one read.
struct Piece {
  const Slice* slice;
  int64_t first;
  int64_t count;
};

void append_pieces(const Slice& slice, std::vector<Piece>& pieces) {
  const int64_t rows = slice.to.size(0);
  const int64_t row_bytes = stored_columns(*slice.from) * size_of(*slice.from->dtype);
  const int64_t step = std::max<int64_t>(1, kPieceBytes / std::max<int64_t>(1, row_bytes));
  for (int64_t first = 0; first < rows; first += step)
    pieces.push_back({&slice, first, std::min(step, rows - first)});
}

void check_slice(const Slice& slice) {
  const TensorInfo& from = *slice.from;
  M2_CHECK(from.dtype && (from.shape.size() == 1 || from.shape.size() == 2), "{}", from.describe());
  M2_CHECK(slice.to.dense() && slice.first_row >= 0 && slice.first_column >= 0 &&
               slice.first_row + slice.to.size(0) <= from.shape[0] &&
               slice.first_column + columns_of(slice.to) <= stored_columns(from),
           "slice {} at [{}, {}] of {}", slice.to.describe(), slice.first_row, slice.first_column,
           from.describe());
  const bool widens =
      slice.to.dtype() == DType::f32 && (*from.dtype == DType::bf16 || *from.dtype == DType::f16);
  M2_CHECK(slice.to.dtype() == *from.dtype || widens, "{} read as {}", from.describe(),
           slice.to.describe());
}

template <class From>
void widen(const std::byte* from, std::byte* to, int64_t count) {
  auto* out = reinterpret_cast<float*>(to);
  for (int64_t i = 0; i < count; ++i) {
    From value;
    std::memcpy(&value, from + i * static_cast<int64_t>(sizeof(From)), sizeof(From));
    out[i] = to_float(value);
  }
}

void copy_elements(DType from_dtype, const std::byte* from, DType to_dtype, std::byte* to,
                   int64_t count) {
  if (from_dtype == to_dtype) {
    std::memcpy(to, from, static_cast<size_t>(count * size_of(to_dtype)));
  } else if (from_dtype == DType::bf16) {
    widen<BF16>(from, to, count);
  } else {
    widen<F16>(from, to, count);
  }
}

// Whether any of the bytes is one of e4m3's two NaN codes, 0x7f and 0xff. Eight at a time.
bool has_nan_code(const std::byte* bytes, int64_t count) {
  constexpr uint64_t kLow = 0x7f7f7f7f7f7f7f7fu, kOnes = 0x0101010101010101u;
  uint64_t found = 0;
  int64_t i = 0;
  for (; i + 8 <= count; i += 8) {
    uint64_t word;
    std::memcpy(&word, bytes + i, 8);
    // Low seven bits all set: adding one carries into the eighth.
    found |= (word & kLow) + kOnes;
  }
  for (; i < count; ++i)
    if ((std::to_integer<int>(bytes[i]) & 0x7f) == 0x7f) return true;
  return (found & ~kLow) != 0;
}

// Reads pieces one after another; one per thread.
class PieceReader {
 public:
  PieceReader(const Checkpoint& checkpoint, Device device) : checkpoint_(checkpoint) {
    if (!host_addressable(device)) staging_.emplace(device, kMostSentBytes);
  }

  Result<void> read(const Piece& piece) {
    const Tensor to = piece.slice->to.rows(piece.first, piece.count);
    const int64_t bytes = to.elements() * size_of(to.dtype());
    if (bytes == 0) return {};
    if (!staging_) {
      auto* place = static_cast<std::byte*>(to.data());
      M2_TRY_VOID(read_to_host(piece, to, place));
      return check(piece, to, place);
    }
    if (bytes > kMostSentBytes) return read_large(piece, to, bytes);
    M2_TRY(std::byte* const place, staging_->take());
    M2_TRY_VOID(read_to_host(piece, to, place));
    M2_TRY_VOID(check(piece, to, place));
    staging_->send(to.data(), bytes);
    return {};
  }

  // Returns when all that was read is in its place.
  Result<void> finish() { return staging_ ? staging_->finish() : Result<void>(); }

 private:
  // Pieces of single rows may be larger than what is sent at once, widened ones twice as large.
  static constexpr int64_t kMostSentBytes = 2 * kPieceBytes;

  Result<void> read_large(const Piece& piece, const Tensor& to, int64_t bytes) {
    packed_.resize(static_cast<size_t>(bytes));
    M2_TRY_VOID(read_to_host(piece, to, packed_.data()));
    M2_TRY_VOID(check(piece, to, packed_.data()));
    for (int64_t done = 0; done < bytes; done += kMostSentBytes) {
      const int64_t some = std::min(kMostSentBytes, bytes - done);
      M2_TRY(std::byte* const place, staging_->take());
      std::memcpy(place, packed_.data() + done, static_cast<size_t>(some));
      staging_->send(static_cast<std::byte*>(to.data()) + done, some);
    }
    return {};
  }

  // The kernels do not look for NaN codes in weights, and no honest checkpoint has any.
  Result<void> check(const Piece& piece, const Tensor& to, const std::byte* bytes) const {
    if (to.dtype() != DType::f8_e4m3 || !has_nan_code(bytes, to.elements())) return {};
    const TensorInfo& from = *piece.slice->from;
    const int64_t first = piece.slice->first_row + piece.first;
    return fail(Code::corrupt, "{}: tensor {} has NaN codes (0x7f or 0xff) in rows {} to {}",
                checkpoint_.file_of(from).path(), from.name, first, first + piece.count - 1);
  }

  // `shape` says the piece's shape and dtype; `out` is where its elements go, densely.
  Result<void> read_to_host(const Piece& piece, const Tensor& shape, std::byte* out) {
    const Slice& slice = *piece.slice;
    const DType dtype = *slice.from->dtype;
    const int64_t columns = columns_of(shape);
    const int64_t row_bytes = stored_columns(*slice.from) * size_of(dtype);
    const auto offset = static_cast<uint64_t>((slice.first_row + piece.first) * row_bytes +
                                              slice.first_column * size_of(dtype));
    const int64_t span = (piece.count - 1) * row_bytes + columns * size_of(dtype);
    const bool whole_rows = columns == stored_columns(*slice.from);
    if (whole_rows && dtype == shape.dtype())
      return checkpoint_.read(*slice.from, offset, {out, static_cast<size_t>(span)});

    const int64_t wanted = columns * size_of(dtype);
    if (row_bytes - wanted >= kReadAlong) return read_rows(piece, shape, offset, out);

    staged_.resize(static_cast<size_t>(span));
    M2_TRY_VOID(checkpoint_.read(*slice.from, offset, staged_));
    const int64_t out_row_bytes = columns * size_of(shape.dtype());
    for (int64_t row = 0; row < piece.count; ++row)
      copy_elements(dtype, staged_.data() + row * row_bytes, shape.dtype(),
                    out + row * out_row_bytes, columns);
    return {};
  }

  // Each row's own bytes alone.
  Result<void> read_rows(const Piece& piece, const Tensor& shape, uint64_t offset, std::byte* out) {
    const TensorInfo& from = *piece.slice->from;
    const DType dtype = *from.dtype;
    const int64_t columns = columns_of(shape);
    const auto row_bytes = static_cast<uint64_t>(stored_columns(from) * size_of(dtype));
    const int64_t out_row_bytes = columns * size_of(shape.dtype());
    staged_.resize(static_cast<size_t>(columns * size_of(dtype)));
    for (int64_t row = 0; row < piece.count; ++row, offset += row_bytes, out += out_row_bytes) {
      const bool in_place = dtype == shape.dtype();
      const std::span<std::byte> to = in_place ? std::span(out, staged_.size()) : staged_;
      M2_TRY_VOID(checkpoint_.read(from, offset, to));
      if (!in_place) copy_elements(dtype, to.data(), shape.dtype(), out, columns);
    }
    return {};
  }

  const Checkpoint& checkpoint_;
  std::optional<Staging> staging_;
  std::vector<std::byte> staged_, packed_;
};

// The pieces of all slices in the order in which they lie on the disk.
std::vector<Piece> plan_pieces(std::span<const Slice> slices) {
  std::vector<const Slice*> order;
  order.reserve(slices.size());
  for (const Slice& slice : slices) {
    check_slice(slice);
    order.push_back(&slice);
  }
  std::sort(order.begin(), order.end(), [](const Slice* a, const Slice* b) {
    return std::tie(a->from->file, a->from->begin, a->first_row) <
           std::tie(b->from->file, b->from->begin, b->first_row);
  });
  std::vector<Piece> pieces;
  for (const Slice* slice : order) append_pieces(*slice, pieces);
  return pieces;
}

// The first error of several threads.
class FirstError {
 public:
  void set(Error error) {
    const std::scoped_lock lock(mutex_);
    if (!error_) error_ = std::move(error);
    failed_.store(true, std::memory_order_release);
  }
  bool failed() const { return failed_.load(std::memory_order_acquire); }
  Result<void> result() {
    if (error_) return std::move(*error_);
    return {};
  }

 private:
  std::atomic<bool> failed_{false};
  std::mutex mutex_;
  std::optional<Error> error_;
};

}  // namespace

Result<void> read_slices(const Checkpoint& checkpoint, std::span<const Slice> slices,
                         const ReadOptions& options) {
  const std::vector<Piece> pieces = plan_pieces(slices);
  const auto bytes_of = [](const Tensor& tensor) {
    return tensor.elements() * size_of(tensor.dtype());
  };
  int64_t total = 0;
  for (const Slice& slice : slices) total += bytes_of(slice.to);

  ThreadPool pool(options.threads > 0 ? options.threads : std::clamp(usable_cpus(), 2, 16));
  std::atomic<size_t> next{0};
  std::atomic<int64_t> done{0};
  FirstError error;
  pool.run([&](int thread) {
    PieceReader reader(checkpoint, options.device);
    for (size_t i = next++; i < pieces.size() && !error.failed(); i = next++) {
      const Piece& piece = pieces[i];
      auto result = reader.read(piece);
      if (!result.ok()) return error.set(std::move(result).error());
      done += bytes_of(piece.slice->to.rows(piece.first, piece.count));
      if (thread == 0 && options.progress) options.progress(done, total);
    }
    if (auto result = reader.finish(); !result.ok()) error.set(std::move(result).error());
  });
  M2_TRY_VOID(error.result());
  if (options.progress) options.progress(total, total);
  return {};
}

}  // namespace m2::load
