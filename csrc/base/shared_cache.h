// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Keeps values of any type by 128 bits that stand for what they are made of, up to a size in all. May be used by
// several threads at once: none waits while another frees what was dropped.
#pragma once

#include <cstddef>
#include <cstdint>
#include <iterator>
#include <list>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <utility>

#include "base/fork_safe_mutex.h"
#include "base/hash128.h"

namespace sparsekernels {

// In bytes. Up to `kept` every value is kept; from there up to `used`, only values that are requested again.
struct CacheLimits {
  size_t kept, used;
};

class SharedCache {
 public:
  explicit SharedCache(CacheLimits limits) : limits_(limits) {}

  std::shared_ptr<const void> find(const Hash128& hash) {
    const std::lock_guard<ForkSafeMutex> lock(mutex_);
    ++clock_;
    const auto found = places_.find(hash);
    if (found == places_.end()) return nullptr;
    found->second->used = clock_;
    entries_.splice(entries_.begin(), entries_, found->second);
    return found->second->value;
  }

  // Beyond the first limit, values are kept when they are asked for a second time, and what was not used between the
  // two makes room. Where more patterns are in rotation than there is room for, all are used in between: none evicts
  // the one that is needed next.
  void insert(const Hash128& hash, std::shared_ptr<const void> value, size_t bytes) {
    std::list<Entry> dropped;  // destroyed after the lock is released
    Asked forgotten;
    std::list<Entry> added;
    added.push_back({hash, std::move(value), bytes, 0});
    const std::lock_guard<ForkSafeMutex> lock(mutex_);
    if (bytes_ + bytes > limits_.kept) {
      const auto asked = asked_.find(hash);
      if (asked == asked_.end()) {
        constexpr size_t kMostAsked = 1 << 14;
        if (asked_.size() == kMostAsked) asked_.swap(forgotten);
        asked_.emplace(hash, clock_);
        return;
      }
      while (bytes_ + bytes > limits_.kept && !entries_.empty() && entries_.back().used <= asked->second) {
        places_.erase(entries_.back().hash);
        bytes_ -= entries_.back().bytes;
        dropped.splice(dropped.begin(), entries_, std::prev(entries_.end()));
      }
      asked->second = clock_;
      if (bytes_ + bytes > limits_.used) return;
      asked_.erase(asked);
    }
    if (!places_.emplace(hash, added.begin()).second) return;
    added.front().used = clock_;
    entries_.splice(entries_.begin(), added);
    bytes_ += bytes;
  }

  size_t bytes() {
    const std::lock_guard<ForkSafeMutex> lock(mutex_);
    return bytes_;
  }

 private:
  struct Entry {
    Hash128 hash;
    std::shared_ptr<const void> value;
    size_t bytes;
    uint64_t used;
  };
  struct First {
    size_t operator()(const Hash128& hash) const { return static_cast<size_t>(hash.low); }
  };
  using Asked = std::unordered_map<Hash128, uint64_t, First>;

  const CacheLimits limits_;
  ForkSafeMutex mutex_;
  std::list<Entry> entries_;  // the one used last comes first
  std::unordered_map<Hash128, std::list<Entry>::iterator, First> places_;
  Asked asked_;  // and not kept: when that was
  uint64_t clock_ = 0;
  size_t bytes_ = 0;
};

}  // namespace sparsekernels
