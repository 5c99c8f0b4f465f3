// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Objects that Python names by number: operators take and give numbers, not pointers. The caller that creates one frees
// it. Knows no torch.
#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <utility>

#include "base/fork_safe_mutex.h"

namespace sparsekernels {

template <class T>
class Numbered {
 public:
  // expected: what an error says of a number that is not there.
  explicit Numbered(const char* expected) : expected_(expected) {}

  int64_t add(std::shared_ptr<T> one) {
    const std::lock_guard<ForkSafeMutex> lock(mutex_);
    all_.emplace(++last_, std::move(one));
    return last_;
  }
  std::shared_ptr<T> find(int64_t number) {
    const std::lock_guard<ForkSafeMutex> lock(mutex_);
    const auto found = all_.find(number);
    if (found == all_.end()) throw std::invalid_argument(std::string(expected_) + ", got " + std::to_string(number));
    return found->second;
  }
  void free(int64_t number) {
    std::shared_ptr<T> last;  // destroyed after the lock is released
    const std::lock_guard<ForkSafeMutex> lock(mutex_);
    const auto found = all_.find(number);
    if (found == all_.end()) return;
    last = std::move(found->second);
    all_.erase(found);
  }

 private:
  const char* const expected_;
  ForkSafeMutex mutex_;
  std::unordered_map<int64_t, std::shared_ptr<T>> all_;
  int64_t last_ = 0;
};

}  // namespace sparsekernels
