#pragma once

#include "tensor/exec.h"
#include "tensor/tensor.h"

namespace m2::ops {

constexpr int64_t kMaxTopExperts = 32;
constexpr int64_t kMaxRoutedExperts = 4096;

// Bytes of Exec::workspace with which route() takes the fast forms, and sums alike, for that many
// tokens and any fewer.
int64_t route_workspace_bytes(Device device, int64_t tokens, int64_t hidden, int64_t experts);

// Chooses experts (model.md 6.8), FP32 end to end: s = sigmoid(x gate^T); the `top` largest of
// s + bias, ties to the lower id; weight = s / sum of the chosen s (divisor 1 if that sum is <= 0).
// Chosen experts are written in ascending order of id, so that summing them is one fixed order.
//   x        f32 | bf16 [T, H]
//   gate     f32 [E, H], bias f32 [E]
//   ids      i32 [T, top], weights f32 [T, top]; 1 <= top <= 32, top <= E <= 4096
//   slots    i32 [T] or empty: a token whose slot is negative pads the batch; its ids are -1 (no
//            rank's expert) and its weights 0
void route(const Exec& exec, Tensor x, Tensor gate, Tensor bias, Tensor ids, Tensor weights,
           Tensor slots = {});

// That these are what route() takes.
void check_route(const Tensor& x, const Tensor& gate, const Tensor& bias, const Tensor& ids,
                 const Tensor& weights, const Tensor& slots);

}  // namespace m2::ops
