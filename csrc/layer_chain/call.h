// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// A network's layers as one call: a few images at a time go through all of them, on one thread, so that what one layer
// writes is still in L2 when the next one reads it. Knows no torch.
#pragma once

#include <memory>
#include <optional>
#include <variant>
#include <vector>

#include "base/fork_safe_mutex.h"
#include "max_pool2d/call.h"
#include "sparse_conv2d/call.h"

namespace sparsekernels {

// Tensor 0 is the chain's input, tensor i + 1 the result of layer i. All are [N, C, H, W] without gaps.
struct ChainConvolution {
  ConvGeometry geometry;
  int64_t padding_after[2] = {};
  SparsePattern pattern;
  int64_t input_channels = 0;
  Epilogue epilogue;            // its residual is not used: that is
  std::optional<int> residual;  // a tensor
};

struct ChainLayer {
  int source = 0;
  std::variant<ChainConvolution, MaxPool2d> operation;  // of a pooling: window, stride and padding

  const ChainConvolution* convolution() const { return std::get_if<ChainConvolution>(&operation); }
  const MaxPool2d* pooling() const { return std::get_if<MaxPool2d>(&operation); }
  std::optional<int> residual() const { return pooling() ? std::nullopt : convolution()->residual; }
  bool adds(int tensor) const { return residual() == tensor; }
};

struct PreparedChain;

class LayerChain {
 public:
  explicit LayerChain(DType dtype) : dtype_(dtype) {}
  LayerChain(const LayerChain&) = delete;
  LayerChain& operator=(const LayerChain&) = delete;
  ~LayerChain();

  DType dtype() const { return dtype_; }
  // The number of its result. Throws std::invalid_argument where source or residual is no tensor before it. What
  // `layer` points to has to outlive the chain.
  int add(const ChainLayer& layer);
  // Sizes of the last result, for an input of such sizes. Throws std::invalid_argument where a layer does not fit.
  void output_size(const int64_t (&input)[4], int64_t (&output)[4]) const;
  // An element has the same bits for any number of threads. `allocate(bytes)` gives memory until the call is over.
  void run(
      const Activation& input, const Activation& output, const Threads& threads,
      const std::function<void*(int64_t)>& allocate);

 private:
  std::shared_ptr<const PreparedChain> prepared(const int64_t (&input)[4], const Threads& threads);

  DType dtype_;
  std::vector<ChainLayer> layers_;
  ForkSafeMutex mutex_;
  std::vector<std::shared_ptr<const PreparedChain>> prepared_;  // of the last few input sizes
};

}  // namespace sparsekernels
