#include "parallel/counted_comm.h"

namespace m2::parallel {
namespace {

class CountedComm : public Comm {
 public:
  CountedComm(std::unique_ptr<Comm> inner, Progress& progress)
      : inner_(std::move(inner)), progress_(progress) {}

  int64_t rank() const override { return inner_->rank(); }
  int64_t size() const override { return inner_->size(); }
  void all_reduce(const Exec& exec, Tensor x) override {
    progress_.begin("all_reduce");
    inner_->all_reduce(exec, x);
  }
  void all_reduce_norm(const Exec& exec, Tensor x, const ops::AddNorm& norm) override {
    progress_.begin("all_reduce_norm");
    inner_->all_reduce_norm(exec, x, norm);
  }
  bool takes_experts(const Tensor& x, const ops::AddNorm& norm) const override {
    return inner_->takes_experts(x, norm);
  }
  void all_reduce_experts_norm(const Exec& exec, Tensor x, const ops::UnsummedExperts& experts,
                               const ops::AddNorm& norm) override {
    progress_.begin("all_reduce_experts_norm");
    inner_->all_reduce_experts_norm(exec, x, experts, norm);
  }
  void introduce(const Tensor& x) override { inner_->introduce(x); }
  ops::RowOwners row_owners(const Tensor& x) const override { return inner_->row_owners(x); }
  ops::DecodePeers decode_peers() const override { return inner_->decode_peers(); }
  void norm_own_rows(const Exec& exec, Tensor x, const ops::AddNorm& norm,
                     NormedRows wanted) override {
    progress_.begin("norm_own_rows");
    inner_->norm_own_rows(exec, x, norm, wanted);
  }
  void gather_own_rows(const Exec& exec, const Tensor& x,
                       std::span<const Tensor> tensors) override {
    progress_.begin("gather_own_rows");
    inner_->gather_own_rows(exec, x, tensors);
  }
  void all_reduce_qk_norm(const Exec& exec, const ops::QkNorm& work) override {
    progress_.begin("all_reduce_qk_norm");
    inner_->all_reduce_qk_norm(exec, work);
  }
  void all_gather(const Exec& exec, Tensor part, Rows rows, Tensor out) override {
    progress_.begin("all_gather");
    inner_->all_gather(exec, part, rows, out);
  }
  void reduce_scatter(const Exec& exec, Tensor x, Rows rows, Tensor part) override {
    progress_.begin("reduce_scatter");
    inner_->reduce_scatter(exec, x, rows, part);
  }
  void all_to_all(const Exec& exec, Tensor send, Rows send_rows, Tensor recv,
                  Rows recv_rows) override {
    progress_.begin("all_to_all");
    inner_->all_to_all(exec, send, send_rows, recv, recv_rows);
  }
  void gather_columns(const Exec& exec, Tensor part, Rows columns, Tensor out,
                      int64_t root) override {
    progress_.begin("gather_columns");
    inner_->gather_columns(exec, part, columns, out, root);
  }
  void broadcast(const Exec& exec, Tensor x, int64_t root) override {
    progress_.begin("broadcast");
    inner_->broadcast(exec, x, root);
  }
  void barrier(const Exec& exec) override {
    progress_.begin("barrier");
    inner_->barrier(exec);
  }
  Result<void> status() const override { return inner_->status(); }
  void abort(const Error& why) override { inner_->abort(why); }
  void set_deadline(Nanos deadline) override { inner_->set_deadline(deadline); }

 private:
  const std::unique_ptr<Comm> inner_;
  Progress& progress_;
};

}  // namespace

std::unique_ptr<Comm> count_collectives(std::unique_ptr<Comm> inner, Progress& progress) {
  return std::make_unique<CountedComm>(std::move(inner), progress);
}

}  // namespace m2::parallel
