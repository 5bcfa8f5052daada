// Compiled, never run: what parallel/nccl_api.h says of NCCL against NCCL's own header.
#include <nccl.h>

#include <type_traits>

#include "parallel/nccl_api.h"

namespace m2::parallel {
namespace {

// Passed alike: pointers for pointers, else values of the same size.
template <class Theirs, class Ours>
constexpr bool kAlike =
    sizeof(Theirs) == sizeof(Ours) && std::is_pointer_v<Theirs> == std::is_pointer_v<Ours>;

template <class Result, class... Theirs, class OurResult, class... Ours>
constexpr bool same(Result (*)(Theirs...), OurResult (*Nccl::*)(Ours...)) {
  if constexpr (sizeof...(Theirs) == sizeof...(Ours))
    return kAlike<Result, OurResult> && (kAlike<Theirs, Ours> && ...);
  return false;
}

static_assert(same(ncclGetErrorString, &Nccl::error_string));
static_assert(same(ncclGetUniqueId, &Nccl::get_unique_id));
static_assert(same(ncclCommInitRank, &Nccl::init_rank));
static_assert(same(ncclCommAbort, &Nccl::abort));
static_assert(same(ncclCommGetAsyncError, &Nccl::async_error));
static_assert(same(ncclAllReduce, &Nccl::all_reduce));
static_assert(same(ncclBroadcast, &Nccl::broadcast));
static_assert(same(ncclReduce, &Nccl::reduce));
static_assert(same(ncclSend, &Nccl::send));
static_assert(same(ncclRecv, &Nccl::receive));
static_assert(same(ncclGroupStart, &Nccl::group_start));
static_assert(same(ncclGroupEnd, &Nccl::group_end));
static_assert(!same(ncclSend, &Nccl::reduce) && !same(ncclGroupEnd, &Nccl::abort));

static_assert(ncclSuccess == Nccl::kSuccess && ncclInProgress == Nccl::kInProgress);
static_assert(ncclSum == Nccl::kSum);
static_assert(ncclInt8 == int{Nccl::kInt8} && ncclUint8 == int{Nccl::kUint8});
static_assert(ncclInt32 == int{Nccl::kInt32} && ncclInt64 == int{Nccl::kInt64});
static_assert(ncclFloat16 == int{Nccl::kFloat16} && ncclFloat32 == int{Nccl::kFloat32});
static_assert(ncclBfloat16 == int{Nccl::kBfloat16});

}  // namespace
}  // namespace m2::parallel
