// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// The entry of the three operations for calls with a plan, as a layer's are: derives from pattern and shapes what
// sparse_conv2d.cpp derives in each call, keeps it, and runs the same engines.
#include "sparse_conv2d/planned.h"

#include <algorithm>
#include <atomic>
#include <cstring>
#include <mutex>
#include <numeric>
#include <stdexcept>
#include <utility>
#include <vector>

#include "base/fork_safe_mutex.h"
#include "base/workspace.h"
#include "sparse_conv2d/jit/kernel_cache.h"
#include "sparse_conv2d/nonzeros.h"
#include "sparse_conv2d/prepared_call.h"

namespace sparsekernels {
namespace {

thread_local Workspace values_workspace;

// What a plan follows from, beside pattern and geometry.
struct CallShape {
  int64_t input_size[4], input_stride[4], output_size[4], output_stride[4], threads;
  DType dtype;
  bool has_residual, has_low, has_high;

  bool operator==(const CallShape& other) const {
    return std::equal(input_size, input_size + 4, other.input_size) &&
           std::equal(input_stride, input_stride + 4, other.input_stride) &&
           std::equal(output_size, output_size + 4, other.output_size) &&
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
  std::copy_n(output.size, 4, shape.output_size);
  std::copy_n(output.stride, 4, shape.output_stride);
  shape.threads = threads.count;
  shape.dtype = input.dtype;
  shape.has_residual = epilogue.residual != nullptr;
  shape.has_low = epilogue.low > -std::numeric_limits<float>::infinity();
  shape.has_high = epilogue.high < std::numeric_limits<float>::infinity();
  return shape;
}

// What is kept of the calls of one shape.
template <class Prepared>
struct KeptCall {
  CallShape shape;
  Prepared prepared;  // without its kernels, which are the cache's
  jit::KernelKey key = {};
  jit::KernelUser user;
  std::atomic<bool> is_refused{false};  // the system gave no executable memory for them: tiles serve from then on
};

struct KeptForward : KeptCall<PreparedForward> {
  // Of each value, in the order of the kernels, its place in the dense weight, or in values that have an order of their
  // own; made by the first call that has such.
  OwnedMadeOnce<std::vector<int32_t>> dense_order, value_order;
};

struct KeptWeightGradient : KeptCall<PreparedWeightGradient> {
  // Of values that have an order of their own: slots of kernels, and which nonzeros they are.
  OwnedMadeOnce<std::vector<int32_t>> value_slots, value_nonzeros;
};

std::shared_ptr<const jit::ForwardKernels> kernels_of(
    const jit::KernelKey& key, const PreparedForward& call, const SparsePattern& pattern, const Threads& threads) {
  return jit::cached_kernels(key, call.lattice, call.planned.plan, pattern, threads);
}

std::shared_ptr<const jit::WeightGradientKernels> kernels_of(
    const jit::KernelKey& key, const PreparedWeightGradient& call, const SparsePattern& pattern,
    const Threads& threads) {
  return jit::cached_weight_gradient_kernels(key, call.lattice, call.planned.plan, pattern, threads);
}

// Those that are in use, of one pattern: a server's batch sizes, say.
template <class Kept>
class Calls {
 public:
  using Prepared = decltype(Kept::prepared);

  // What is kept of a shape; and the call with its kernels, ready to run on these tensors. `prepare` makes it where
  // there is none.
  template <class Prepare>
  std::pair<std::shared_ptr<Kept>, Prepared> find_or_make(
      const CallShape& shape, const Activation& source, const Activation& dest, const SparsePattern& pattern,
      const Threads& threads, const Prepare& prepare) {
    std::shared_ptr<Kept> kept = find(shape);
    const bool is_new = kept == nullptr;
    Prepared call = is_new ? prepare() : kept->prepared;
    if (is_new) {
      kept = std::make_shared<Kept>();
      kept->shape = shape;
      kept->prepared = call;
      kept->prepared.planned.kernels = nullptr;
      if (call.engine == Engine::kJit) {
        kept->key = call.key;
        kept->user.use(kept->key);
      }
      keep(kept);
    } else if (call.engine == Engine::kJit) {
      if (!kept->is_refused) call.planned.kernels = kernels_of(kept->key, call, pattern, threads);
      if (call.planned.kernels == nullptr) {
        kept->is_refused = true;
        call.engine = Engine::kTiled;
      }
    }
    call.lattice.source.data = source.data;
    call.lattice.dest.data = dest.data;
    return {std::move(kept), std::move(call)};
  }

 private:
  std::shared_ptr<Kept> find(const CallShape& shape) {
    const std::lock_guard<ForkSafeMutex> lock(mutex_);
    const auto found =
        std::find_if(calls_.begin(), calls_.end(), [&](const auto& call) { return call->shape == shape; });
    if (found == calls_.end()) return nullptr;
    std::rotate(calls_.begin(), found, found + 1);
    return calls_.front();
  }

  void keep(const std::shared_ptr<Kept>& call) {
    constexpr size_t kMost = 16;
    std::shared_ptr<Kept> last;  // destroyed after the lock is released
    const std::lock_guard<ForkSafeMutex> lock(mutex_);
    if (calls_.size() == kMost) {
      last.swap(calls_.back());
      calls_.pop_back();
    }
    calls_.insert(calls_.begin(), call);
  }

  ForkSafeMutex mutex_;
  std::vector<std::shared_ptr<Kept>> calls_;  // the one used last comes first
};

// Forwards, or input gradients: what says which.
struct Correlation {
  Lattice (*lattice)(const ConvGeometry& geometry, const Activation& source, const Activation& dest);
  Calls<KeptForward> calls;
};

}  // namespace

struct PlannedConv2d::State {
  struct Transposed {
    std::vector<int32_t> crow, col, permutation;
    SparsePattern pattern;  // of these three; moving the vectors moves no element
  };

  ConvGeometry geometry;
  std::vector<int32_t> crow, col;
  std::vector<int32_t> order;  // see PlannedConv2d; or empty
  SparsePattern pattern;       // of the first two, without values
  int64_t columns;
  OwnedMadeOnce<Transposed> transposed;
  OwnedMadeOnce<std::vector<int32_t>> dense_places;  // of each nonzero, in the dense weight
  Correlation forwards{forward_lattice, {}}, input_gradients{input_gradient_lattice, {}};
  Calls<KeptWeightGradient> weight_gradients;

  const std::vector<int32_t>& places() {
    return dense_places.get([&] {
      std::vector<int32_t> made(col.size());
      for (int64_t row = 0; row < pattern.rows; ++row)
        for (int32_t k = crow[static_cast<size_t>(row)]; k < crow[static_cast<size_t>(row) + 1]; ++k)
          made[static_cast<size_t>(k)] = static_cast<int32_t>(row * columns + col[static_cast<size_t>(k)]);
      return made;
    });
  }

  // As call.h has it for input gradients: nonzeros by input channels, in their order.
  const SparsePattern& transpose() {
    const auto make = [&] {
      Transposed made;
      const int64_t taps = geometry.kernel[0] * geometry.kernel[1], channels = columns / taps;
      const int64_t outputs = pattern.rows / geometry.groups;
      const auto each = [&](const auto& body) {
        for (int64_t row = 0; row < pattern.rows; ++row)
          for (int32_t k = crow[static_cast<size_t>(row)]; k < crow[static_cast<size_t>(row) + 1]; ++k) {
            const int64_t column = col[static_cast<size_t>(k)];
            body(
                k, static_cast<size_t>(row / outputs * channels + column / taps),
                static_cast<int32_t>(row % outputs * taps + column % taps));
          }
      };
      made.crow.assign(static_cast<size_t>(geometry.groups * channels) + 1, 0);
      each([&](int32_t, size_t row, int32_t) { ++made.crow[row + 1]; });
      for (size_t row = 1; row < made.crow.size(); ++row) made.crow[row] += made.crow[row - 1];
      std::vector<int32_t> next = made.crow;
      made.col.resize(col.size());
      made.permutation.resize(col.size());
      each([&](int32_t k, size_t row, int32_t column) {
        const size_t to = static_cast<size_t>(next[row]++);
        made.col[to] = column;
        made.permutation[to] = k;
      });
      made.pattern.rows = geometry.groups * channels;
      made.pattern.nonzeros = pattern.nonzeros;
      made.pattern.crow_indices = made.crow.data();
      made.pattern.col_indices = made.col.data();
      made.pattern.permutation = made.permutation.data();
      return made;
    };
    return transposed.get(make).pattern;
  }

  // `own`: the pattern of what is run, without values.
  void run_forward(
      Correlation& operation, SparsePattern own, const PlannedWeight& weight, const Activation& source,
      const Epilogue& epilogue, const Activation& dest, const Threads& threads) {
    own.values = weight.data;
    own.dtype = weight.dtype;
    const PackedEpilogue packed = packed_epilogue(epilogue, own.rows, source.dtype, dest.data);
    const auto [kept, call] = operation.calls.find_or_make(
        shape_of(source, epilogue, dest, threads), source, dest, own, threads,
        [&] { return prepare_forward(operation.lattice(geometry, source, dest), own, packed.flags, threads); });
    if (!weight.dense && order.empty()) return run(call, own, packed, threads);
    const std::vector<int32_t>& given = weight.dense ? places() : order;
    if (call.engine == Engine::kTiled) {
      const TrimWorkspace trim{values_workspace};
      float* values;
      WorkspaceLayout own_layout;
      own_layout.add(&values, divide_up(own.nonzeros * element_size(weight.dtype), sizeof(float)));
      own_layout.allocate(values_workspace);
      gather_elements(given, weight.data, weight.dtype, threads, values);
      own.values = values;
      return run(call, own, packed, threads);
    }
    const std::vector<int32_t>& kernel_order = call.planned.kernels->order();
    const std::vector<int32_t>& given_order = (weight.dense ? kept->dense_order : kept->value_order).get([&] {
      std::vector<int32_t> made;
      made.reserve(given.size());
      for (const int32_t nonzero : kernel_order) made.push_back(given[static_cast<size_t>(nonzero)]);
      return made;
    });
    run(call, own, packed, threads, &given_order);
  }
};

PlannedConv2d::PlannedConv2d(
    const ConvGeometry& geometry, const SparsePattern& pattern, int64_t columns, const int32_t* order)
    : state_(new State) {
  check_indices(pattern, columns);
  if (order != nullptr) {
    state_->order.assign(order, order + pattern.nonzeros);
    std::vector<bool> seen(static_cast<size_t>(pattern.nonzeros));
    for (const int32_t place : state_->order) {
      if (place < 0 || place >= pattern.nonzeros || seen[static_cast<size_t>(place)])
        throw std::invalid_argument("sparse_conv2d: expected order to be a permutation of the nonzeros, got another");
      seen[static_cast<size_t>(place)] = true;
    }
  }
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
  parallel_for_nonzeros(own.nonzeros, threads, [&](int64_t begin, int64_t end) {
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

void PlannedConv2d::forward(
    const PlannedWeight& weight, const Activation& input, const Epilogue& epilogue, const Activation& output,
    const Threads& threads) {
  if (is_empty(output)) return;
  state_->run_forward(state_->forwards, state_->pattern, weight, input, epilogue, output, threads);
}

void PlannedConv2d::input_gradient(
    const PlannedWeight& weight, const Activation& grad_output, const Epilogue& epilogue, const Activation& grad_input,
    const Threads& threads) {
  if (is_empty(grad_input)) return;
  state_->run_forward(state_->input_gradients, state_->transpose(), weight, grad_output, epilogue, grad_input, threads);
}

void PlannedConv2d::weight_gradient(
    const Activation& grad_output, const Activation& input, void* grad_values, const Threads& threads) {
  const SparsePattern& pattern = state_->pattern;
  if (fills_empty_sums(pattern, grad_output, input, grad_values)) return;
  const auto [kept, call] = state_->weight_gradients.find_or_make(
      shape_of(input, {}, grad_output, threads), input, grad_output, pattern, threads,
      [&] { return prepare_weight_gradient(forward_lattice(state_->geometry, input, grad_output), pattern, threads); });
  const std::vector<int32_t>& order = state_->order;
  if (order.empty()) return run(call, pattern, grad_values, threads);
  const auto of_values = [&](const std::vector<int32_t>& of_nonzeros) {
    std::vector<int32_t> made(order.size());
    for (size_t k = 0; k < order.size(); ++k) made[static_cast<size_t>(order[k])] = of_nonzeros[k];
    return made;
  };
  if (call.engine == Engine::kJit)
    return run(call, pattern, grad_values, threads, &kept->value_slots.get([&] {
      return of_values(call.planned.kernels->slot_of());
    }));
  const std::vector<int32_t>& nonzeros = kept->value_nonzeros.get([&] {
    std::vector<int32_t> each(order.size());
    std::iota(each.begin(), each.end(), 0);
    return of_values(each);
  });
  const TrimWorkspace trim{values_workspace};
  float* sorted;
  WorkspaceLayout own_layout;
  own_layout.add(&sorted, divide_up(pattern.nonzeros * element_size(input.dtype), sizeof(float)));
  own_layout.allocate(values_workspace);
  run(call, pattern, sorted, threads);
  gather_elements(nonzeros, sorted, input.dtype, threads, grad_values);
}

}  // namespace sparsekernels
