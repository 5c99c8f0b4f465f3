// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// A convolution whose pattern is known before its calls: what follows from pattern and shapes is found in the first
// call of these shapes, and kept. Knows no torch.
#pragma once

#include <memory>

#include "sparse_conv2d/call.h"

namespace sparsekernels {

// The weight of one call.
struct PlannedWeight {
  const void* data = nullptr;
  DType dtype = DType::kFloat32;
  bool dense = false;  // [rows][columns] with its zeros, of which the pattern's elements are read; else the nonzeros
};

class PlannedConv2d {
 public:
  // `columns`: of the weight as a matrix, input channels of a group x taps. `order`, where there is one, is a
  // permutation: nonzero k of the pattern is value order[k] of what calls are given, and of the gradient that they
  // return. Indices are copied. Throws std::invalid_argument unless they are ascending, and within their range.
  PlannedConv2d(
      const ConvGeometry& geometry, const SparsePattern& pattern, int64_t columns, const int32_t* order = nullptr);
  ~PlannedConv2d();

  // Whether the indices are still those that it was made of.
  bool is_of(const SparsePattern& pattern, const Threads& threads) const;

  int64_t rows() const;
  int64_t columns() const;
  int64_t nonzeros() const;

  // As sparse_conv2d and its gradients, with the same bits. May be called by several threads at a time. The epilogue of
  // an input gradient is for layers that multiply by the transposed weight.
  void forward(
      const PlannedWeight& weight, const Activation& input, const Epilogue& epilogue, const Activation& output,
      const Threads& threads);
  void input_gradient(
      const PlannedWeight& weight, const Activation& grad_output, const Epilogue& epilogue,
      const Activation& grad_input, const Threads& threads);
  void weight_gradient(
      const Activation& grad_output, const Activation& input, void* grad_values, const Threads& threads);

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace sparsekernels
