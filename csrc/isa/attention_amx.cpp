// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Masked attention in bfloat16 on the tiles of AMX, compiled with the flags that CMakeLists.txt gives to this file.
#define SPARSEKERNELS_AVX512
#include "masked_attention/cpu/backward_tiles.h"
#include "masked_attention/cpu/forward_tiles.h"

#include "masked_attention/amx.h"

namespace sparsekernels {
namespace {

int64_t workspace_of(const AttentionGroup& group, bool backward) {
  return backward ? attention::BackwardSide::floats(group) : attention::ForwardSide::floats(group);
}

void forward(const AttentionGroup& group, const AttentionPart& part, float* workspace) {
  attention::ForwardSide of(group, workspace);
  const int64_t rows = group.q.rows, height = padded(rows, kAttentionRows);
  attention::configure();
  for (int64_t at = part.row_begin; at < part.row_end; at += kAttentionRows) {
    attention::RowPlace places[kAttentionRows];
    const int count = at_most(rows - at % height, kAttentionRows);
    for (int r = 0; r < count; ++r) places[r] = {group.members + at / height, at % height + r};
    of.run(places, count, 0);
    of.store(places, count);
  }
  _tile_release();
}

void backward(const AttentionGroup& group, const AttentionPart& part, float* workspace) {
  constexpr int64_t kStep = attention::kHalves * kAttentionRows;
  attention::BackwardSide of(group, part, workspace);
  const int64_t rows = group.q.rows, height = padded(rows, kAttentionRows);
  attention::configure();
  for (int64_t at = part.row_begin; at < part.row_end;) {
    const int64_t row = at % height, end = at - row + height, last = end < part.row_end ? end : part.row_end;
    const int64_t step = last - at < kStep ? last - at : kStep;
    of.rows(group.members[at / height], row, at_most(rows - row, static_cast<int>(step)));
    at += step;
  }
  _tile_release();
  if (part.keys) of.finish();
}

// A group with the keys of a part alone.
AttentionGroup group_of(const AttentionGroup& group, int64_t begin, int64_t end) {
  AttentionGroup own = group;
  for (MaskedMatrix* one : {&own.k, &own.v}) {
    one->data = static_cast<const BFloat16*>(one->data) + begin * one->row_stride;
    one->rows = end - begin;
  }
  return own;
}

int64_t few_workspace_of(const AttentionGroup& group) {
  return attention::ForwardSide::floats(group_of(group, 0, group.k.rows < kFewPartKeys ? group.k.rows : kFewPartKeys));
}

void few(const AttentionGroup& group, const FewPart& part, float* workspace) {
  const AttentionGroup own = group_of(group, part.key_begin, part.key_end);
  attention::ForwardSide of(own, workspace);
  attention::configure();
  for (int64_t at = part.row_begin; at < part.row_end; at += kAttentionRows) {
    attention::RowPlace places[kAttentionRows];
    const int count = at_most(part.row_end - at, kAttentionRows);
    for (int r = 0; r < count; ++r) places[r] = attention::place_of(own, at + r);
    of.run(places, count, part.key_begin);
    of.store_partials(count, part.partial + (at - part.row_begin) * attention::partial_stride(own));
  }
  _tile_release();
}

}  // namespace

const AttentionKernels kAttentionAmx = {workspace_of,     forward, backward,
                                        few_workspace_of, few,     attention::merge_rows<BFloat16>};

}  // namespace sparsekernels
