// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0
#include "base/fork_safe_mutex.h"

#include <cstdint>
#include <mutex>

#if __has_include(<pthread.h>)
#include <pthread.h>
#endif

namespace sparsekernels {
namespace {

constexpr size_t kMutexes = 64;
std::mutex mutexes[kMutexes];

std::mutex& mutex_of(const ForkSafeMutex* one) {
  constexpr uintptr_t kLineBytes = 64;  // objects are further apart than this, or share a mutex
  return mutexes[reinterpret_cast<uintptr_t>(one) / kLineBytes % kMutexes];
}

#if __has_include(<pthread.h>)
void take_all() {
  for (std::mutex& one : mutexes) one.lock();
}
void release_all() {
  for (std::mutex& one : mutexes) one.unlock();
}
// When the library is loaded, so before any thread holds one.
[[maybe_unused]] const int registered = pthread_atfork(take_all, release_all, release_all);
#endif

}  // namespace

void ForkSafeMutex::lock() {
  mutex_of(this).lock();
}
void ForkSafeMutex::unlock() {
  mutex_of(this).unlock();
}

}  // namespace sparsekernels
