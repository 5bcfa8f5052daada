#pragma once

#include <memory>
#include <span>

#include "base/clock.h"
#include "base/result.h"
#include "ops/decode_peers.h"
#include "ops/experts.h"
#include "ops/qk_norm_rope.h"
#include "tensor/exec.h"
#include "tensor/tensor.h"

namespace m2::parallel {

// Rows that each rank of a group brings or takes, in the order of ranks.
using Rows = std::span<const int64_t>;

// Rows of a norm that are wanted in the activations' dtype: on every rank all of them, or only
// those that it looks after itself.
enum class NormedRows : uint8_t { all, own };

// The collectives of a group of ranks. Every rank of the group makes the same calls in the same
// order, each from a thread of its own. Sums are FP32 in ascending order of rank and rounded once,
// so all ranks hold the same bytes, whichever body carries them.
//
// A collective that fails (a peer is gone, or does not answer within the deadline) returns at once,
// with its output undefined, and so does every later one; status() says why. A step is thus run to
// its end and judged once.
//
// Tensors are dense but where said otherwise, in the memory of exec.device. Any dtype but for sums.
class Comm {
 public:
  virtual ~Comm() = default;
  virtual int64_t rank() const = 0;
  virtual int64_t size() const = 0;

  // x = sum over ranks.   x f32 | bf16, the same shape on every rank
  virtual void all_reduce(const Exec& exec, Tensor x) = 0;

  // The sum on its way into a norm: norm.residual += sum over ranks of x, norm.out = its norm. x is
  // the communicator's to change. The bytes are those of all_reduce and ops::add_rms_norm, which is
  // what this does where nothing else is faster.   x f32 | bf16 [T, H]
  virtual void all_reduce_norm(const Exec& exec, Tensor x, const ops::AddNorm& norm);

  // Whether all_reduce_experts_norm() takes what experts() of x's shape have left: a matter of
  // shapes, the same on every rank until one has given up waiting. At first never.
  virtual bool takes_experts(const Tensor& x, const ops::AddNorm& norm) const;

  // all_reduce_norm() of x as it would be if `experts`, of which there are some, had been summed
  // into it: to the same bytes. Precondition: takes_experts(). x is room.
  virtual void all_reduce_experts_norm(const Exec& exec, Tensor x,
                                       const ops::UnsummedExperts& experts,
                                       const ops::AddNorm& norm);

  // Tells the ranks where x lies, of whose rows row_owners() may be asked then, and which has room
  // for as many more rows as there are ranks. Every rank calls this at the same time.
  virtual void introduce(const Tensor& x);

  // Of many rows each rank can look after a share alone: the residual's, their norms, and what is
  // made of those. Who looks after which rows of x, and where in the owner's x this rank's numbers
  // of them go; none if every rank looks after all. A matter of x's shape, so the same throughout a
  // step. What was in x before is done with once all ranks have come out of norm_own_rows() of it.
  virtual ops::RowOwners row_owners(const Tensor& x) const;

  // all_reduce_norm(), of numbers that all ranks have brought to where row_owners(x) says, if it
  // does: then with the residual of own rows alone, of which no other rank has to know. Every rank
  // gets all rows of norm.quantised, and of norm.out those that it `wanted`; to others anything may
  // happen.
  virtual void norm_own_rows(const Exec& exec, Tensor x, const ops::AddNorm& norm,
                             NormedRows wanted);

  // What every rank has made of its own rows of x, in the same rows of each tensor, comes to all.
  //   tensors [T, ...]
  virtual void gather_own_rows(const Exec& exec, const Tensor& x, std::span<const Tensor> tensors);

  // The norm of q and k over the heads of all ranks, rotation, and the store of k and v. work.sums
  // is room to work in. The bytes are those of ops::qk_sum_squares, all_reduce of its sums and
  // ops::qk_norm_rope_store, which is what this does where nothing else is faster.
  virtual void all_reduce_qk_norm(const Exec& exec, const ops::QkNorm& work);

  // Where ops::decode_layer() may sum over these ranks by itself; at first nowhere. On all ranks or
  // on none.
  virtual ops::DecodePeers decode_peers() const;

  // out = the ranks' parts one after another along axis 0.
  //   part [rows[rank], ...], out [sum of rows, ...]; part may be its own place in out
  virtual void all_gather(const Exec& exec, Tensor part, Rows rows, Tensor out) = 0;

  // part = this rank's rows of the sum over ranks.   x f32 | bf16 [sum of rows, ...]
  virtual void reduce_scatter(const Exec& exec, Tensor x, Rows rows, Tensor part) = 0;

  // Sends send_rows[r] rows to each rank r and receives recv_rows[r] from it, both in rank order.
  //   send [sum of send_rows, ...], recv [sum of recv_rows, ...]; they do not overlap
  virtual void all_to_all(const Exec& exec, Tensor send, Rows send_rows, Tensor recv,
                          Rows recv_rows) = 0;

  // On `root`, out = the ranks' parts side by side; elsewhere out is not looked at.
  //   part [n, columns[rank]], out [n, sum of columns]
  virtual void gather_columns(const Exec& exec, Tensor part, Rows columns, Tensor out,
                              int64_t root) = 0;

  // x = the root's x.
  virtual void broadcast(const Exec& exec, Tensor x, int64_t root) = 0;

  // Returns once every rank has called it.
  virtual void barrier(const Exec& exec) = 0;

  // The first failure. Any thread.
  virtual Result<void> status() const = 0;

  // Fails this group from now on, for waiting ranks too. Any thread.
  virtual void abort(const Error& why) = 0;

  // How long a collective waits for ranks of other processes; 0: for good. At first for good.
  virtual void set_deadline(Nanos deadline) = 0;
};

// The groups that one rank belongs to.
struct Groups {
  Comm& tensor;             // the ranks of its engine
  Comm* engines = nullptr;  // all ranks of all engines that share experts; null: one engine
};

// The group of one: nothing travels.
std::unique_ptr<Comm> make_single_comm();

}  // namespace m2::parallel
