// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// What Python names by a plan's number. A part of bindings.cpp.
#pragma once

#include <memory>
#include <mutex>
#include <utility>

#include "base/fork_safe_mutex.h"
#include "sparse_conv2d/glue.h"
#include "sparse_conv2d/planned.h"

namespace sparsekernels {
namespace {

// A plan and the tensors that it was made of. These are not to be written to; if their content changes, the plan is
// rebuilt.
class OwnedPlan {
 public:
  OwnedPlan(Handle crow, Handle col, Handle order, const Geometry& geometry, int64_t columns)
      : crow_(std::move(crow)),
        col_(std::move(col)),
        order_(std::move(order)),
        geometry_(geometry),
        columns_(columns),
        plan_(make()) {}

  const Geometry& geometry() const { return geometry_; }
  std::shared_ptr<PlannedConv2d> current() {
    std::shared_ptr<PlannedConv2d> plan;
    {
      const std::lock_guard<ForkSafeMutex> lock(mutex_);
      plan = plan_;
    }
    if (plan->is_of(pattern_of(crow_, col_, geometry_), torch_threads())) return plan;
    plan = make();
    std::shared_ptr<PlannedConv2d> last = plan;  // destroyed after the lock is released
    const std::lock_guard<ForkSafeMutex> lock(mutex_);
    plan_.swap(last);
    return plan;
  }

 private:
  std::shared_ptr<PlannedConv2d> make() const {
    const SparsePattern pattern = pattern_of(crow_, col_, geometry_);
    const int32_t* const order = order_ ? indices(order_, pattern.nonzeros) : nullptr;
    return std::make_shared<PlannedConv2d>(geometry_.conv, pattern, columns_, order);
  }

  Handle crow_, col_, order_;
  Geometry geometry_;
  int64_t columns_;
  ForkSafeMutex mutex_;
  std::shared_ptr<PlannedConv2d> plan_;
};

}  // namespace
}  // namespace sparsekernels
