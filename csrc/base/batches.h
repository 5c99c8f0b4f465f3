// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Tensors as batches of matrices that broadcast, for bindings.
#pragma once

#include <utility>
#include <vector>

#include "base/torch_glue.h"

namespace sparsekernels {

using Batch = std::vector<int64_t>;

// Of a tensor of at least two dimensions, without the last two.
inline Batch batch_sizes(const Handle& tensor) {
  return Batch(tensor.sizes(), tensor.sizes() + tensor.dim() - 2);
}

inline int64_t batch_count(const Batch& batch) {
  int64_t count = 1;
  for (const int64_t size : batch) count *= size;
  return count;
}

// The batch with one more that broadcasts with it; where that does not fit, sizes of the former are kept.
inline Batch broadcast_batch(Batch batch, const Batch& with) {
  if (with.size() > batch.size()) batch.insert(batch.begin(), with.size() - batch.size(), 1);
  for (size_t d = 0; d < with.size(); ++d) {
    int64_t& size = batch[batch.size() - 1 - d];
    if (size == 1) size = with[with.size() - 1 - d];
  }
  return batch;
}

inline bool broadcasts_to(const Batch& batch, const Batch& to) {
  if (batch.size() > to.size()) return false;
  for (size_t d = 0; d < batch.size(); ++d) {
    const int64_t size = batch[batch.size() - 1 - d];
    if (size != 1 && size != to[to.size() - 1 - d]) return false;
  }
  return true;
}

// Where each matrix of a batch begins in a tensor that broadcasts to it, in elements.
inline Batch matrix_offsets(const Handle& tensor, const Batch& batch) {
  Batch offsets = {0};
  const int64_t missing = static_cast<int64_t>(batch.size()) - (tensor.dim() - 2);
  for (int64_t d = 0; d < static_cast<int64_t>(batch.size()); ++d) {
    const bool there = d >= missing && tensor.sizes()[d - missing] != 1;
    const int64_t stride = there ? tensor.strides()[d - missing] : 0, size = batch[static_cast<size_t>(d)];
    Batch inner;
    inner.reserve(offsets.size() * static_cast<size_t>(size));
    for (const int64_t offset : offsets)
      for (int64_t i = 0; i < size; ++i) inner.push_back(offset + i * stride);
    offsets = std::move(inner);
  }
  return offsets;
}

}  // namespace sparsekernels
