// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// The kernels of masked attention, by dtype. Compiled once per instruction set.
#pragma once

#include "masked_attention/cpu/backward.h"
#include "masked_attention/cpu/few_queries.h"

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

void attention_few(const AttentionGroup& group, const FewPart& part, float* workspace) {
  if (group.dtype == DType::kBFloat16) return attention::few_part<BFloat16>(group, part, workspace);
  if (group.dtype == DType::kFloat16) return attention::few_part<Float16>(group, part, workspace);
  attention::few_part<float>(group, part, workspace);
}

void attention_merge(
    const AttentionGroup& group, int64_t row_begin, int64_t row_end, float* partials, int64_t parts, int64_t apart) {
  if (group.dtype == DType::kBFloat16)
    return attention::merge_rows<BFloat16>(group, row_begin, row_end, partials, parts, apart);
  if (group.dtype == DType::kFloat16)
    return attention::merge_rows<Float16>(group, row_begin, row_end, partials, parts, apart);
  attention::merge_rows<float>(group, row_begin, row_end, partials, parts, apart);
}

constexpr AttentionKernels attention_kernels() {
  return {attention_workspace,   attention_forward, attention_backward,
          attention::few_floats, attention_few,     attention_merge};
}

}  // namespace
}  // namespace sparsekernels
