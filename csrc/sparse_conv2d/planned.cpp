// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0
#include "sparse_conv2d/planned.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <mutex>
#include <vector>

#include "base/workspace.h"
#include "sparse_conv2d/jit/forward_driver.h"
#include "sparse_conv2d/jit/kernel_cache.h"
#include "sparse_conv2d/tiled/driver.h"

namespace sparsekernels {
namespace {

thread_local Workspace values_workspace;

// What a plan follows from, beside pattern and geometry.
struct CallShape {
  int64_t input_size[4], input_stride[4], output_stride[4], threads;
  DType dtype;
  bool has_residual, has_low, has_high;

  bool operator==(const CallShape& other) const {
    return std::equal(input_size, input_size + 4, other.input_size) &&
           std::equal(input_stride, input_stride + 4, other.input_stride) &&
           std::equal(output_stride, output_stride + 4, other.output_stride) && threads == other.threads &&
           dtype == other.dtype && has_residual == other.has_residual && has_low == other.has_low &&
           has_high == other.has_high;
  }
};

CallShape shape_of(
    const Activation& input, const Epilogue& epilogue, const Activation& output, const Threads& threads) {
  CallShape shape = {};
  std::copy_n(input.size, 4, shape.input_size);
  std::copy_n(input.stride, 4, shape.input_stride);
  std::copy_n(output.stride, 4, shape.output_stride);
  shape.threads = threads.count;
  shape.dtype = input.dtype;
  shape.has_residual = epilogue.residual != nullptr;
  shape.has_low = epilogue.low > -std::numeric_limits<float>::infinity();
  shape.has_high = epilogue.high < std::numeric_limits<float>::infinity();
  return shape;
}

// Of calls of one shape.
struct CallPlan {
  CallShape shape;
  Lattice lattice;              // without the places of its tensors
  jit::PlannedForward forward;  // without its kernels, which are the cache's
  jit::KernelKey key = {};
  // Of each value, in the order of the kernels, its place in the dense weight; made by the first call that has one.
  std::vector<int32_t> dense_order;
  std::once_flag has_dense_order;
};

// Shapes of one pattern that are in use at a time: a server's batch sizes, say.
constexpr size_t kMostPlans = 16;

}  // namespace

struct PlannedConv2d::State {
  ConvGeometry geometry;
  std::vector<int32_t> crow, col;
  SparsePattern pattern;  // of these two, without values
  int64_t columns;
  std::once_flag has_dense_places;
  std::vector<int32_t> dense_places;  // of each nonzero, in the dense weight
  std::mutex mutex;
  std::vector<std::shared_ptr<CallPlan>> plans;  // the one used last comes first

  const std::vector<int32_t>& places() {
    std::call_once(has_dense_places, [&] {
      dense_places.resize(col.size());
      for (int64_t row = 0; row < pattern.rows; ++row)
        for (int32_t k = crow[static_cast<size_t>(row)]; k < crow[static_cast<size_t>(row) + 1]; ++k)
          dense_places[static_cast<size_t>(k)] = static_cast<int32_t>(row * columns + col[static_cast<size_t>(k)]);
    });
    return dense_places;
  }

  std::shared_ptr<CallPlan> find(const CallShape& shape) {
    const std::lock_guard<std::mutex> lock(mutex);
    const auto found = std::find_if(plans.begin(), plans.end(), [&](const auto& plan) { return plan->shape == shape; });
    if (found == plans.end()) return nullptr;
    std::rotate(plans.begin(), found, found + 1);
    return plans.front();
  }

  void keep(const std::shared_ptr<CallPlan>& plan) {
    const std::lock_guard<std::mutex> lock(mutex);
    if (plans.size() == kMostPlans) plans.pop_back();
    plans.insert(plans.begin(), plan);
  }

  std::shared_ptr<CallPlan> make(
      const CallShape& shape, const Activation& input, const Activation& output, int epilogue_flags,
      const Threads& threads) {
    const auto plan = std::make_shared<CallPlan>();
    plan->shape = shape;
    plan->lattice = forward_lattice(geometry, input, output);
    merge_positions(plan->lattice);
    plan->forward = jit::plan_forward(plan->lattice, pattern, epilogue_flags, threads);
    if (plan->forward.engine == Engine::kJit)
      plan->key = jit::key_of(plan->lattice, plan->forward.plan, pattern, threads);
    return plan;
  }
};

PlannedConv2d::PlannedConv2d(const ConvGeometry& geometry, const SparsePattern& pattern, int64_t columns)
    : state_(new State) {
  check_indices(pattern, columns);
  state_->geometry = geometry;
  state_->columns = columns;
  state_->crow.assign(pattern.crow_indices, pattern.crow_indices + pattern.rows + 1);
  state_->col.assign(pattern.col_indices, pattern.col_indices + pattern.nonzeros);
  state_->pattern.rows = pattern.rows;
  state_->pattern.nonzeros = pattern.nonzeros;
  state_->pattern.crow_indices = state_->crow.data();
  state_->pattern.col_indices = state_->col.data();
}

PlannedConv2d::~PlannedConv2d() = default;

bool PlannedConv2d::is_of(const SparsePattern& pattern, const Threads& threads) const {
  const SparsePattern& own = state_->pattern;
  if (pattern.rows != own.rows || pattern.nonzeros != own.nonzeros) return false;
  if (std::memcmp(pattern.crow_indices, own.crow_indices, static_cast<size_t>(own.rows + 1) * sizeof(int32_t)) != 0)
    return false;
  std::atomic<bool> same{true};
  jit::for_pieces(own.nonzeros, threads, [&](int64_t begin, int64_t end) {
    const size_t bytes = static_cast<size_t>(end - begin) * sizeof(int32_t);
    if (std::memcmp(pattern.col_indices + begin, own.col_indices + begin, bytes) != 0) same = false;
  });
  return same;
}

int64_t PlannedConv2d::rows() const {
  return state_->pattern.rows;
}

int64_t PlannedConv2d::columns() const {
  return state_->columns;
}

int64_t PlannedConv2d::nonzeros() const {
  return state_->pattern.nonzeros;
}

void PlannedConv2d::run(
    const PlannedWeight& weight, const Activation& input, const Epilogue& epilogue, const Activation& output,
    const Threads& threads) {
  if (is_empty(output)) return;
  State& state = *state_;
  SparsePattern pattern = state.pattern;
  pattern.values = weight.data;
  pattern.dtype = weight.dtype;
  const PackedEpilogue packed = packed_epilogue(epilogue, pattern.rows, input.dtype, output.data);
  const CallShape shape = shape_of(input, epilogue, output, threads);
  std::shared_ptr<CallPlan> plan = state.find(shape);
  std::shared_ptr<const jit::ForwardKernels> kernels;
  if (plan == nullptr) {
    plan = state.make(shape, input, output, packed.flags, threads);
    kernels = std::move(plan->forward.kernels);
    state.keep(plan);
  } else if (plan->forward.engine == Engine::kJit) {
    kernels = jit::cached_kernels(plan->key, plan->lattice, plan->forward.plan, pattern, threads);
  }
  Lattice lattice = plan->lattice;
  lattice.source.data = input.data;
  lattice.dest.data = output.data;
  if (plan->forward.engine == Engine::kTiled) {
    if (!weight.dense) return tiled::forward(lattice, pattern, packed, threads);
    const TrimWorkspace trim{values_workspace};
    float* values;
    WorkspaceLayout own;
    own.add(&values, divide_up(pattern.nonzeros * element_size(weight.dtype), sizeof(float)));
    own.allocate(values_workspace);
    jit::gather_elements(state.places(), weight.data, weight.dtype, threads, values);
    pattern.values = values;
    return tiled::forward(lattice, pattern, packed, threads);
  }
  jit::PlannedForward planned = plan->forward;
  planned.kernels = kernels;
  if (!weight.dense) return jit::forward(lattice, planned, pattern, kernels->order(), packed, threads);
  std::call_once(plan->has_dense_order, [&] {
    const std::vector<int32_t>& places = state.places();
    plan->dense_order.reserve(places.size());
    for (const int32_t nonzero : kernels->order()) plan->dense_order.push_back(places[static_cast<size_t>(nonzero)]);
  });
  jit::forward(lattice, planned, pattern, plan->dense_order, packed, threads);
}

}  // namespace sparsekernels
