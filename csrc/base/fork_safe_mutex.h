// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// What threads share, so that a fork in one of them leaves the child nothing that waits for another, which the child
// does not have: it would wait for ever.
#pragma once

#include <atomic>
#include <memory>
#include <utility>

namespace sparsekernels {

// A mutex that no fork finds locked by another thread: all are taken before a fork and released after it, in both
// processes. A few real ones serve all, so whoever holds one takes no other, runs no Python and frees nothing that
// might: what is dropped is moved out and destroyed afterwards.
class ForkSafeMutex {
 public:
  ForkSafeMutex() = default;
  ForkSafeMutex(const ForkSafeMutex&) = delete;
  ForkSafeMutex& operator=(const ForkSafeMutex&) = delete;

  void lock();
  void unlock();
};

// A value that is made when it is first asked for, without a lock: several threads may make it, and the first one done
// has made it for all. Unlike with std::once_flag, or a static variable that a function initializes, nobody waits for
// another thread. Never destroyed, so that a function may have one as its static variable: threads may outlive others.
template <class T>
class MadeOnce {
 public:
  constexpr MadeOnce() = default;
  MadeOnce(const MadeOnce&) = delete;
  MadeOnce& operator=(const MadeOnce&) = delete;

  template <class Make>
  const T& get(const Make& make) {
    const T* value = value_.load(std::memory_order_acquire);
    if (value != nullptr) return *value;
    std::unique_ptr<const T> made(new T(make()));
    if (!value_.compare_exchange_strong(value, made.get(), std::memory_order_acq_rel)) return *value;
    return *made.release();
  }

 protected:
  std::atomic<const T*> value_{nullptr};
};

// One that is destroyed with the object that it is in.
template <class T>
class OwnedMadeOnce : public MadeOnce<T> {
 public:
  ~OwnedMadeOnce() { delete this->value_.load(std::memory_order_relaxed); }
};

}  // namespace sparsekernels
