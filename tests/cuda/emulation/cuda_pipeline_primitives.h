// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// CUDA's copies from global to shared memory that a thread does not wait for, for the emulated device: they arrive when
// their thread waits, and until then nothing may look at where they go.
#pragma once

#include "cuda_runtime.h"

inline void __pipeline_memcpy_async(void* to, const void* from, size_t bytes, size_t zeros = 0) {
  emulated::copy_async(to, from, bytes, zeros);
}
inline void __pipeline_commit() {
  emulated::commit_copies();
}
inline void __pipeline_wait_prior(unsigned but_last) {
  emulated::wait_for_copies(but_last);
}
