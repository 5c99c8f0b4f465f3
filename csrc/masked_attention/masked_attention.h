// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// A batch of masked attention: its groups, and the threads that compute them. Knows no torch.
#pragma once

#include <vector>

#include "base/threads.h"
#include "masked_attention/call.h"

namespace sparsekernels {

// The groups of a batch, which all have the same sizes and strides, and a number of members that may differ.
struct AttentionBatch {
  AttentionGroup shape;  // what they have in common; its data are not used
  std::vector<AttentionGroup> groups;
  std::vector<std::vector<AttentionMember>> members;  // of each group
};

enum class AttentionPass { kInference, kTraining, kBackward };

void run_attention(AttentionBatch& batch, AttentionPass pass, const Threads& threads);

}  // namespace sparsekernels
