// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// The gradients of RMSNorm at a vector of a row: what its sums take, and what comes of them.
#pragma once

#include "rms_norm/cuda/rows.cuh"

namespace sparsekernels::cuda {

// What the sums of one row become.
template <typename A>
struct RowFactors {
  A reciprocal_rms;  // r
  A projection;      // mean(a x) r^2
};

// sums: of x^2 and of a x. r^2 is not r * r: in a short row both terms of grad_input nearly cancel, and what is left
// would show the rounding of r twice.
template <typename A>
__device__ RowFactors<A> row_factors(A squares, A products, const RowConstants<A>& constants) {
  const A mean_square = multiply_add(squares, constants.per_col, constants.eps);
  return {reciprocal_sqrt(mean_square), products * constants.per_col / mean_square};
}

template <typename T, typename W>
__device__ void add_products(
    Compute<T>& squares, Compute<T>& products, const Vector<T>& input, const Vector<T>& grad_output, const W& weight,
    bool unit_offset) {
  Compute<T> x[kWidth<T>], g[kWidth<T>], w[kWidth<T>];
  unpack(input, x);
  unpack(grad_output, g);
  unpack_weight(weight, unit_offset, w);
#pragma unroll
  for (int j = 0; j < kWidth<T>; ++j) {
    squares = multiply_add(x[j], x[j], squares);
    products = multiply_add(w[j] * g[j], x[j], products);
  }
}

// grad_input = r (a - x projection) + grad_sum; adds g r x to grad_weight.
template <typename T, typename W>
__device__ Vector<T> gradients(
    const Vector<T>& input, const Vector<T>& grad_output, const W& weight, const Vector<T>& grad_sum,
    const RowFactors<Compute<T>>& row, bool unit_offset, Compute<T> (&grad_weight)[kWidth<T>]) {
  Compute<T> x[kWidth<T>], g[kWidth<T>], w[kWidth<T>], grad_input[kWidth<T>];
  unpack(input, x);
  unpack(grad_output, g);
  unpack_weight(weight, unit_offset, w);
  unpack(grad_sum, grad_input);
#pragma unroll
  for (int j = 0; j < kWidth<T>; ++j) {
    grad_weight[j] = multiply_add(g[j], x[j] * row.reciprocal_rms, grad_weight[j]);
    const Compute<T> rest = multiply_add(-x[j], row.projection, w[j] * g[j]);
    grad_input[j] = multiply_add(row.reciprocal_rms, rest, grad_input[j]);
  }
  return pack<T>(grad_input);
}

}  // namespace sparsekernels::cuda
