// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0
#include "sparse_conv2d/prepared_call.h"

#include <cstring>
#include <utility>

#include "sparse_conv2d/tiled/driver.h"

namespace sparsekernels {

PreparedForward prepare_forward(
    Lattice lattice, const SparsePattern& pattern, int epilogue_flags, const Threads& threads,
    std::optional<int64_t> images, std::optional<int64_t> residual_channel, int64_t dest_images) {
  merge_positions(lattice);
  PreparedForward call = {.lattice = std::move(lattice)};
  if (!may_use_jit(pattern)) return call;
  jit::ForwardPlan& plan = call.planned.plan;
  jit::PatternTraits traits = jit::traits_of(pattern, call.lattice.dest_channels);
  if (!images && dest_images == 1)  // results go by way of vectors
    traits.channels_alike =
        jit::channels_alike(pattern, call.lattice.source_channels, static_cast<int64_t>(call.lattice.taps.size()));
  plan = jit::make_forward_plan(
      call.lattice, traits, epilogue_flags, threads.count, images, jit::kMostImages, dest_images);
  if (residual_channel) plan.residual_channel = *residual_channel;
  call.engine = forward_engine(call.lattice, pattern, plan);
  if (call.engine == Engine::kJit) {
    call.key = jit::key_of(call.lattice, plan, pattern, threads);
    call.planned.kernels = jit::cached_kernels(call.key, call.lattice, plan, pattern, threads);
    if (call.planned.kernels == nullptr) call.engine = Engine::kTiled;
  }
  return call;
}

PreparedWeightGradient prepare_weight_gradient(Lattice lattice, const SparsePattern& pattern, const Threads& threads) {
  merge_positions(lattice);
  PreparedWeightGradient call = {.lattice = std::move(lattice)};
  if (!may_use_jit(pattern)) return call;
  jit::WeightGradientPlan& plan = call.planned.plan;
  plan =
      jit::make_weight_gradient_plan(call.lattice, jit::traits_of(pattern, call.lattice.dest_channels), threads.count);
  call.engine = weight_gradient_engine(call.lattice, pattern, plan);
  if (call.engine == Engine::kJit) {
    call.key = jit::key_of(call.lattice, plan, pattern, threads);
    call.planned.kernels = jit::cached_weight_gradient_kernels(call.key, call.lattice, plan, pattern, threads);
    if (call.planned.kernels == nullptr) call.engine = Engine::kTiled;
  }
  return call;
}

void run(
    const PreparedForward& call, const SparsePattern& pattern, const PackedEpilogue& packed, const Threads& threads,
    const std::vector<int32_t>* order) {
  if (call.engine == Engine::kTiled) return tiled::forward(call.lattice, pattern, packed, threads);
  const std::vector<int32_t>& places = order == nullptr ? call.planned.kernels->order() : *order;
  jit::forward(call.lattice, call.planned, pattern, places, packed, threads);
}

void run(
    const PreparedWeightGradient& call, const SparsePattern& pattern, void* grad_values, const Threads& threads,
    const std::vector<int32_t>* slots) {
  if (call.engine == Engine::kTiled) return tiled::weight_gradient(call.lattice, pattern, grad_values, threads);
  const std::vector<int32_t>& places = slots == nullptr ? call.planned.kernels->slot_of() : *slots;
  jit::weight_gradient(call.lattice, call.planned, pattern, places, grad_values, threads);
}

bool fills_empty_sums(
    const SparsePattern& pattern, const Activation& grad_output, const Activation& input, void* grad_values) {
  if (pattern.nonzeros == 0) return true;
  if (!is_empty(grad_output) && !is_empty(input)) return false;
  std::memset(grad_values, 0, static_cast<size_t>(pattern.nonzeros) * element_size(input.dtype));
  return true;
}

}  // namespace sparsekernels
