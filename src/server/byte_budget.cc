#include "server/byte_budget.h"

#include <algorithm>

namespace m2::server {

bool ByteBudget::take(size_t bytes) {
  size_t used = used_.load();
  do {
    if (bytes > max_bytes_ - std::min(used, max_bytes_)) return false;
  } while (!used_.compare_exchange_weak(used, used + bytes));
  return true;
}

bool HeldBytes::resize(size_t bytes) {
  if (bytes > bytes_ && !budget_->take(bytes - bytes_)) return false;
  if (bytes < bytes_) budget_->give_back(bytes_ - bytes);
  bytes_ = bytes;
  return true;
}

}  // namespace m2::server
