// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Keeps values of any type by 128 bits that stand for what they are made of, up to a size in all. May be used by
// several threads at once.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <mutex>
#include <unordered_map>
#include <utility>

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
    const std::lock_guard<std::mutex> lock(mutex_);
    ++clock_;
    const auto found = entries_.find(hash);
    if (found == entries_.end()) return nullptr;
    found->second.used = clock_;
    return found->second.value;
  }

  // Beyond the first limit, values are kept when they are asked for a second time, and what was not used between the
  // two makes room. Where more patterns are in rotation than there is room for, all are used in between: none evicts
  // the one that is needed next.
  void insert(const Hash128& hash, std::shared_ptr<const void> value, size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (bytes_ + bytes > limits_.kept) {
      const auto asked = asked_.find(hash);
      if (asked == asked_.end()) {
        constexpr size_t kMostAsked = 1 << 14;
        if (asked_.size() == kMostAsked) asked_.clear();
        asked_.emplace(hash, clock_);
        return;
      }
      while (bytes_ + bytes > limits_.kept && !entries_.empty()) {
        auto oldest = entries_.begin();
        for (auto entry = entries_.begin(); entry != entries_.end(); ++entry)
          if (entry->second.used < oldest->second.used) oldest = entry;
        if (oldest->second.used > asked->second) break;
        bytes_ -= oldest->second.bytes;
        entries_.erase(oldest);
      }
      asked->second = clock_;
      if (bytes_ + bytes > limits_.used) return;
      asked_.erase(asked);
    }
    if (entries_.emplace(hash, Entry{std::move(value), bytes, clock_}).second) bytes_ += bytes;
  }

  size_t bytes() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return bytes_;
  }

 private:
  struct Entry {
    std::shared_ptr<const void> value;
    size_t bytes;
    uint64_t used;
  };
  struct First {
    size_t operator()(const Hash128& hash) const { return static_cast<size_t>(hash.low); }
  };

  const CacheLimits limits_;
  std::mutex mutex_;
  std::unordered_map<Hash128, Entry, First> entries_;
  std::unordered_map<Hash128, uint64_t, First> asked_;  // and not kept: when that was
  uint64_t clock_ = 0;
  size_t bytes_ = 0;
};

}  // namespace sparsekernels
