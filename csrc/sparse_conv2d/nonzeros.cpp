// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0
#include "sparse_conv2d/nonzeros.h"

#include <algorithm>

#include "sparse_conv2d/lattice.h"

namespace sparsekernels {

void for_pieces(int64_t count, const Threads& threads, const ParallelBody& body) {
  constexpr int64_t kSerial = 1 << 16, kPiece = 4096;
  if (count < kSerial) return body(0, count);
  threads.run(divide_up(count, kPiece), [&](int64_t begin, int64_t end) {
    body(begin * kPiece, std::min(count, end * kPiece));
  });
}

void gather_elements(
    const std::vector<int32_t>& order, const void* from, DType dtype, const Threads& threads, void* to) {
  for_pieces(static_cast<int64_t>(order.size()), threads, [&](int64_t begin, int64_t end) {
    if (dtype == DType::kFloat32) return gather(order, from, begin, end, static_cast<float*>(to));
    gather(order, from, begin, end, static_cast<uint16_t*>(to));
  });
}

}  // namespace sparsekernels
