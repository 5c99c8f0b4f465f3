// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Memory for what a call computes with.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <new>
#include <stdexcept>
#include <type_traits>

#include "base/lanes.h"

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#endif

namespace sparsekernels {

// Memory that a thread keeps from call to call, aligned to pages: fresh pages fault, which takes longer than many
// layers do.
class Workspace {
 public:
  static constexpr size_t kMostKept = size_t{64} << 20, kAlignment = 4096;
#if defined(__SANITIZE_ADDRESS__)
  static constexpr size_t kBehind = size_t{1} << 20;  // poisoned, whatever an earlier call needed
#else
  static constexpr size_t kBehind = 0;
#endif

  float* floats(size_t count) {
    const size_t needed = count * sizeof(float);
    if (needed + kBehind > size_) {
      const size_t bytes = (needed + kBehind + kAlignment - 1) / kAlignment * kAlignment;
      memory_.reset();
      size_ = 0;
      memory_.reset(static_cast<char*>(::operator new(bytes, std::align_val_t(kAlignment))));
      size_ = bytes;
      // Lanes without a use compute with what lies here: subnormal numbers would make them slow.
      std::memset(memory_.get(), 0, bytes);
    }
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(memory_.get(), needed);
    __asan_poison_memory_region(memory_.get() + needed, size_ - needed);
#endif
    return reinterpret_cast<float*>(memory_.get());
  }
  void trim() {
    if (size_ <= kMostKept) return;
    memory_.reset();
    size_ = 0;
  }

 private:
  struct Free {
    void operator()(char* memory) const { ::operator delete(memory, std::align_val_t(kAlignment)); }
  };
  std::unique_ptr<char, Free> memory_;
  size_t size_ = 0;
};

// Frees what is beyond a workspace's limit when a call or a thread's share of it ends, however it ends.
struct TrimWorkspace {
  Workspace& workspace;
  ~TrimWorkspace() { workspace.trim(); }
};

// Takes buffers of one allocation.
class WorkspaceLayout {
 public:
  template <class T>
  void add(T** to, int64_t count) {
    static_assert(
        std::is_trivial_v<T> && alignof(T) <= kVectorBytes && sizeof(T) % sizeof(float) == 0, "plain numbers");
    const size_t floats = static_cast<size_t>(count) * (sizeof(T) / sizeof(float));
    if (count_ == kMost) throw std::logic_error("WorkspaceLayout: more than kMost");
    buffers_[count_++] = {to, size_, floats};
    size_ += (floats + kLanes - 1) / kLanes * kLanes + kGap;
  }
  void allocate(Workspace& workspace) {
    float* const memory = workspace.floats(size_ + kLanes);
    for (int i = 0; i < count_; ++i) {
      float* const buffer = memory + buffers_[i].at;
      std::memcpy(buffers_[i].to, &buffer, sizeof buffer);
    }
#if defined(__SANITIZE_ADDRESS__)
    for (int i = 0; i < count_; ++i) {
      const size_t end = buffers_[i].at + buffers_[i].floats, next = i + 1 < count_ ? buffers_[i + 1].at : size_;
      __asan_poison_memory_region(memory + end, (next - end) * sizeof(float));
    }
#endif
  }

 private:
  struct Buffer {
    void* to;  // a pointer, of whatever type
    size_t at, floats;
  };
#if defined(__SANITIZE_ADDRESS__)
  static constexpr size_t kGap = 64;  // poisoned: an access is an error
#else
  static constexpr size_t kGap = 0;
#endif
  static constexpr int kMost = 12;
  Buffer buffers_[kMost];
  int count_ = 0;
  size_t size_ = 0;
};

}  // namespace sparsekernels
