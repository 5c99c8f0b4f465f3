// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

#include "masked_attention/masked_attention.h"

#include <algorithm>
#include <atomic>

#include "base/amx.h"
#include "base/parts.h"
#include "isa/kernels.h"
#include "masked_attention/amx.h"

namespace sparsekernels {
namespace {

thread_local Workspace call_workspace;

constexpr int64_t kLeastRows = 256;  // of a part: each packs the keys that it needs
// Of a member, from its first row on, what tiles of AMX compute together in a backward pass. No part divides them: what
// dq comes to would depend on the number of parts.
constexpr int64_t kPairedRows = 2 * kAttentionRows;

// Elements of a tile of 8 x 32, or of 32 x 32 by AMX, up to which single ones cost less
// (docs/decisions.md#attention-elements). The same forward and backward, where it is nearly the same: so scores are
// summed in one order, and the largest of a row is what it was.
int64_t few_of(const AttentionGroup& group, bool by_amx) {
  const double depth = static_cast<double>(group.q.cols + group.v.cols), element = depth / 16 * 1.6 + 15;
  return static_cast<int64_t>((8 * depth + (by_amx ? 900 : 200)) / element);
}

// Whether tiles of AMX compute it.
bool has_amx([[maybe_unused]] const AttentionGroup& group) {
#if defined(SPARSEKERNELS_AMX)
  return group.dtype == DType::kBFloat16 && cpu_kernels().has_jit && may_use_amx();
#else
  return false;
#endif
}

struct Work {
  size_t group;
  AttentionPart part;
};

// Parts of rows of each group, as many in all as `wanted`, as far as they have kLeastRows.
void add_row_parts(std::vector<Work>& work, const AttentionBatch& batch, int64_t wanted, bool queries) {
  const int64_t height = padded(batch.shape.q.rows, kAttentionRows), tiles = padded(batch.shape.k.rows, kKeys) / kKeys;
  for (size_t g = 0; g < batch.groups.size(); ++g) {
    const int64_t rows = height * batch.groups[g].count;
    const int64_t most = std::max<int64_t>(1, rows / kLeastRows);
    const int64_t groups = static_cast<int64_t>(batch.groups.size());
    const int64_t parts = std::clamp<int64_t>((wanted + groups - 1) / groups, 1, most);
    const int64_t step = padded((rows + parts - 1) / parts, kPairedRows);
    for (int64_t row = 0; row < rows;) {
      int64_t end = std::min(rows, row + step);
      if (end < rows) end -= end % height % kPairedRows;
      work.push_back({g, {row, end, 0, tiles, queries, false}});
      row = end;
    }
  }
}

std::vector<Work> work_of(const AttentionBatch& batch, bool backward, int64_t threads) {
  std::vector<Work> work;
  const int64_t height = padded(batch.shape.q.rows, kAttentionRows), tiles = padded(batch.shape.k.rows, kKeys) / kKeys;
  const int64_t groups = static_cast<int64_t>(batch.groups.size()), wanted = threads == 1 ? 1 : 4 * threads;
  if (!backward) {
    add_row_parts(work, batch, wanted, false);
    return work;
  }
  if (groups % threads == 0 || groups >= 4 * threads) {
    for (size_t g = 0; g < batch.groups.size(); ++g)
      work.push_back({g, {0, height * batch.groups[g].count, 0, tiles, true, true}});
    return work;
  }
  // dq by rows, dk and dv by keys: 7 products in the place of 5, with the same bits
  add_row_parts(work, batch, wanted, true);
  for (size_t g = 0; g < batch.groups.size(); ++g) {
    const int64_t parts = std::clamp<int64_t>((wanted + groups - 1) / groups, 1, std::max<int64_t>(1, tiles));
    const int64_t step = std::max<int64_t>(1, (tiles + parts - 1) / parts);
    for (int64_t tile = 0; tile < tiles; tile += step)
      work.push_back({g, {0, height * batch.groups[g].count, tile, std::min(tiles, tile + step), false, true}});
  }
  return work;
}

// Whether keys are read where they lie, by sizes and strides. Only for inference: a backward pass sums scores in the
// order of tiles, and weights are as exact as its scores are those of the maxima and sums that it is given
// (docs/decisions.md#attention-few).
bool is_few(const AttentionGroup& shape) {
  return shape.q.rows <= kFewQueries && shape.k.col_stride == 1 && shape.v.col_stride == 1;
}

constexpr int64_t kFewVectorRows = 8;  // up to which tiles of AMX gain nothing, in bfloat16

// Parts of rows and of keys. Whoever is the last to finish a part of rows merges what was found, in the order of keys.
void run_few(const AttentionBatch& batch, const Threads& threads) {
  struct Rows {
    size_t group;
    int64_t begin, end, at;  // and where its partial results are, in floats
  };
  const AttentionGroup& shape = batch.shape;
  const int64_t parts = std::max<int64_t>(1, (shape.k.rows + kFewPartKeys - 1) / kFewPartKeys);
  const int64_t stride = kPartialHead + padded(shape.v.cols, kKeys);
  std::vector<Rows> blocks;
  int64_t floats = 0;
  for (size_t g = 0; g < batch.groups.size(); ++g) {
    const int64_t rows = shape.q.rows * batch.groups[g].count;
    for (int64_t row = 0; row < rows; row += kFewRows) {
      blocks.push_back({g, row, std::min(rows, row + kFewRows), floats});
      floats += (blocks.back().end - row) * stride * parts;
    }
  }
  const auto kernels_of = [&](const AttentionGroup& group) -> const AttentionKernels& {
#if defined(SPARSEKERNELS_AMX)
    if (group.count * shape.q.rows > kFewVectorRows && has_amx(shape)) return kAttentionAmx;
#endif
    static_cast<void>(group);
    return cpu_kernels().attention;
  };
  int64_t own_floats = cpu_kernels().attention.few_workspace(shape);
#if defined(SPARSEKERNELS_AMX)
  if (has_amx(shape)) own_floats = std::max(own_floats, kAttentionAmx.few_workspace(shape));
#endif
  const TrimWorkspace trim{call_workspace};
  float* const partials = call_workspace.floats(static_cast<size_t>(floats));
  std::vector<std::atomic<int64_t>> left(blocks.size());
  for (std::atomic<int64_t>& one : left) one = parts;
  const int64_t count = static_cast<int64_t>(blocks.size()) * parts;
  run_parts(threads, count, own_floats, [&](int64_t i, float* workspace) {
    const size_t at = static_cast<size_t>(i / parts);
    const Rows& block = blocks[at];
    const AttentionGroup& group = batch.groups[block.group];
    const int64_t apart = (block.end - block.begin) * stride, key = i % parts * kFewPartKeys;
    FewPart part;
    part.row_begin = block.begin, part.row_end = block.end;
    part.key_begin = key, part.key_end = std::min(shape.k.rows, key + kFewPartKeys);
    part.partial = partials + block.at + i % parts * apart;
    const AttentionKernels& kernels = kernels_of(group);
    kernels.few(group, part, workspace);
    if (--left[at] == 0) kernels.merge(group, block.begin, block.end, partials + block.at, parts, apart);
  });
}

}  // namespace

void run_attention(AttentionBatch& batch, AttentionPass pass, const Threads& threads) {
  const bool backward = pass == AttentionPass::kBackward;
  const bool by_amx = has_amx(batch.shape);
#if defined(SPARSEKERNELS_AMX)
  const AttentionKernels& kernels = by_amx ? kAttentionAmx : cpu_kernels().attention;
#else
  const AttentionKernels& kernels = cpu_kernels().attention;
#endif
  batch.shape.few = few_of(batch.shape, by_amx);
  for (size_t g = 0; g < batch.groups.size(); ++g) {
    AttentionGroup& group = batch.groups[g];
    group.few = batch.shape.few;
    group.members = batch.members[g].data();
    group.count = static_cast<int64_t>(batch.members[g].size());
  }
  if (pass == AttentionPass::kInference && is_few(batch.shape)) return run_few(batch, threads);
  const std::vector<Work> work = work_of(batch, backward, threads.count);
  const int64_t count = static_cast<int64_t>(work.size());
  const int64_t floats = kernels.workspace(batch.shape, backward);
  run_parts(threads, count, floats, [&](int64_t i, float* workspace) {
    const Work& one = work[static_cast<size_t>(i)];
    (backward ? kernels.backward : kernels.forward)(batch.groups[one.group], one.part, workspace);
  });
}

}  // namespace sparsekernels
