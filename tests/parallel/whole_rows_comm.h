#pragma once

#include "parallel/comm.h"

namespace m2::parallel {

// A communicator whose ranks look after all rows each, whatever `group` would have them do.
class WholeRowsComm : public Comm {
 public:
  explicit WholeRowsComm(Comm& group) : group_(group) {}
  int64_t rank() const override { return group_.rank(); }
  int64_t size() const override { return group_.size(); }
  void all_reduce(const Exec& exec, Tensor x) override { group_.all_reduce(exec, x); }
  void all_reduce_norm(const Exec& exec, Tensor x, const ops::AddNorm& norm) override {
    group_.all_reduce_norm(exec, x, norm);
  }
  bool takes_experts(const Tensor& x, const ops::AddNorm& norm) const override {
    return group_.takes_experts(x, norm);
  }
  void all_reduce_experts_norm(const Exec& exec, Tensor x, const ops::UnsummedExperts& experts,
                               const ops::AddNorm& norm) override {
    group_.all_reduce_experts_norm(exec, x, experts, norm);
  }
  void all_reduce_qk_norm(const Exec& exec, const ops::QkNorm& work) override {
    group_.all_reduce_qk_norm(exec, work);
  }
  void all_gather(const Exec& exec, Tensor part, Rows rows, Tensor out) override {
    group_.all_gather(exec, part, rows, out);
  }
  void reduce_scatter(const Exec& exec, Tensor x, Rows rows, Tensor part) override {
    group_.reduce_scatter(exec, x, rows, part);
  }
  void all_to_all(const Exec& exec, Tensor send, Rows send_rows, Tensor recv,
                  Rows recv_rows) override {
    group_.all_to_all(exec, send, send_rows, recv, recv_rows);
  }
  void gather_columns(const Exec& exec, Tensor part, Rows columns, Tensor out,
                      int64_t root) override {
    group_.gather_columns(exec, part, columns, out, root);
  }
  void broadcast(const Exec& exec, Tensor x, int64_t root) override {
    group_.broadcast(exec, x, root);
  }
  void barrier(const Exec& exec) override { group_.barrier(exec); }
  Result<void> status() const override { return group_.status(); }
  void abort(const Error& why) override { group_.abort(why); }
  void set_deadline(Nanos deadline) override { group_.set_deadline(deadline); }

 private:
  Comm& group_;
};

}  // namespace m2::parallel
