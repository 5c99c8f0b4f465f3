// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// The kernels of masked attention, by dtype. Compiled once per instruction set.
#pragma once

#include "masked_attention/cpu/backward.h"

namespace sparsekernels {
namespace {

int64_t attention_workspace(const AttentionGroup& group, bool backward) {
  return backward ? attention::Backward<float>::floats(group) : attention::Forward<float>::floats(group);
}

void attention_forward(const AttentionGroup& group, const AttentionPart& part, float* workspace) {
  if (group.dtype == DType::kBFloat16) return attention::forward_part<BFloat16>(group, part, workspace);
  if (group.dtype == DType::kFloat16) return attention::forward_part<Float16>(group, part, workspace);
  attention::forward_part<float>(group, part, workspace);
}

void attention_backward(const AttentionGroup& group, const AttentionPart& part, float* workspace) {
  if (group.dtype == DType::kBFloat16) return attention::backward_part<BFloat16>(group, part, workspace);
  if (group.dtype == DType::kFloat16) return attention::backward_part<Float16>(group, part, workspace);
  attention::backward_part<float>(group, part, workspace);
}

constexpr AttentionKernels attention_kernels() {
  return {attention_workspace, attention_forward, attention_backward};
}

}  // namespace
}  // namespace sparsekernels
