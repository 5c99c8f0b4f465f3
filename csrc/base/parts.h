// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Parts of a call that take unlike times: whoever is done with one takes the next.
#pragma once

#include <algorithm>
#include <atomic>

#include "base/threads.h"
#include "base/workspace.h"

namespace sparsekernels {

inline Workspace& part_workspace() {
  thread_local Workspace workspace;
  return workspace;
}

// Calls body(part, floats of its own) for the parts [0, count), each thread with room for so many `floats`.
template <class Body>
void run_parts(const Threads& threads, int64_t count, int64_t floats, const Body& body) {
  std::atomic<int64_t> next{0};
  threads.run(std::min(threads.count, count), [&](int64_t begin, int64_t end) {
    const TrimWorkspace trim{part_workspace()};
    WorkspaceLayout own;
    float* workspace = nullptr;
    own.add(&workspace, floats);
    own.allocate(part_workspace());
    for (; begin < end; ++begin)
      for (int64_t part = next++; part < count; part = next++) body(part, workspace);
  });
}

}  // namespace sparsekernels
