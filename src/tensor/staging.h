#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "tensor/stream.h"

namespace m2 {

// One host thread's way into device memory: a ring of pinned pieces, each filled by the host while
// the one before is copied. Where the host may write device memory itself, pieces are not needed.
class Staging {
 public:
  // Pieces hold up to piece_bytes.
  Staging(Device device, int64_t piece_bytes) : exec_{device, nullptr, nullptr}, stream_(device) {
    exec_.stream = stream_.handle();
    use_device(device);
    for (Piece& piece : pieces_) {
      piece.memory = HostBuffer(device, piece_bytes);
      piece.sent = Event(device);
    }
  }
  ~Staging() { synchronize(exec_); }
  Staging(const Staging&) = delete;
  Staging& operator=(const Staging&) = delete;

  // Memory for the next piece; waits until what it held before has been copied.
  Result<std::byte*> take() {
    M2_TRY_VOID(pieces_[next_].sent.wait());
    return pieces_[next_].memory.data();
  }
  // Copies the piece's first bytes to device memory; the call does not wait.
  void send(void* to, int64_t bytes) {
    Piece& piece = pieces_[next_];
    M2_CHECK(bytes <= piece.memory.bytes());
    copy_to_device(exec_, to, piece.memory.data(), bytes);
    piece.sent.record(exec_);
    next_ = (next_ + 1) % pieces_.size();
  }
  // Returns when everything sent has arrived.
  Result<void> finish() {
    for (const Piece& piece : pieces_) M2_TRY_VOID(piece.sent.wait());
    return {};
  }

 private:
  struct Piece {
    HostBuffer memory;
    Event sent;
  };
  Exec exec_;
  Stream stream_;
  std::array<Piece, 2> pieces_;
  size_t next_ = 0;
};

}  // namespace m2
