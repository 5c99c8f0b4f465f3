// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Masked attention in bfloat16 on the tiles of AMX, compiled with the flags that CMakeLists.txt gives to this file.
#define SPARSEKERNELS_AVX512
#include "masked_attention/cpu/backward.h"
#include "masked_attention/cpu/forward_tiles.h"

#include "masked_attention/amx.h"

namespace sparsekernels {
namespace {

int64_t workspace_of(const AttentionGroup& group, bool backward) {
  return backward ? attention::Backward<BFloat16>::floats(group) : attention::ForwardSide::floats(group);
}

void forward(const AttentionGroup& group, const AttentionPart& part, float* workspace) {
  attention::ForwardSide of(group, workspace);
  const int64_t rows = group.q.rows, height = padded(rows, kAttentionRows);
  attention::configure();
  for (int64_t at = part.row_begin; at < part.row_end; at += kAttentionRows)
    of.rows(group.members[at / height], at % height, at_most(rows - at % height, kAttentionRows));
  _tile_release();
}

}  // namespace

const AttentionKernels kAttentionAmx = {workspace_of, forward, attention::backward_part<BFloat16>};

}  // namespace sparsekernels
