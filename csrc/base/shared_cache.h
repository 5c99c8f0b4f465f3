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

// In bytes. Up to `kept` every value is kept; from there up to `used`, only values that are requested again. `recent`,
// beside those, is for the values that were requested once, the last ones: a second request finds them; and for those
// whose owners are gone.
struct CacheLimits {
  size_t kept, used, recent = 0;
};

class SharedCache {
 public:
  explicit SharedCache(CacheLimits limits) : limits_(limits) {}

  // Beyond the first limit, values are kept when they are asked for a second time, and what was not used between the
  // two makes room. Where more patterns are in rotation than there is room for, all are used in between: none evicts
  // the one that is needed next. A large value may need the room of very many small ones, whose destruction would take
  // longer than the call: each request drops some of them, and the value is a recent one meanwhile.
  std::shared_ptr<const void> find(const Hash128& hash) {
    std::list<Entry> dropped;  // destroyed after the lock is released
    const std::lock_guard<ForkSafeMutex> lock(mutex_);
    ++clock_;
    const auto place = places_.find(hash);
    if (place == places_.end()) return nullptr;
    const std::list<Entry>::iterator found = place->second;
    std::list<Entry>& from = found->is_recent ? recent_ : entries_;
    constexpr size_t kMostDropped = 128;
    if (found->is_recent && make_room(found->bytes, found->used, kMostDropped, dropped)) {
      found->is_recent = false;
      recent_bytes_ -= found->bytes;
      bytes_ += found->bytes;
    }
    std::list<Entry>& to = found->is_recent ? recent_ : entries_;
    found->used = clock_;
    found->is_left = false;
    to.splice(to.begin(), from, found);
    return found->value;
  }

  // Drops all that make room at once: its caller has made the value, which takes longer.
  void insert(const Hash128& hash, std::shared_ptr<const void> value, size_t bytes) {
    std::list<Entry> dropped;
    Asked forgotten;
    std::list<Entry> added;
    added.push_back({hash, std::move(value), bytes, 0, false});
    const std::lock_guard<ForkSafeMutex> lock(mutex_);
    if (!places_.emplace(hash, added.begin()).second) return;
    Entry& entry = added.front();
    entry.used = clock_;
    const auto asked = asked_.find(hash);
    const bool is_kept = bytes_ + bytes <= limits_.kept ||
                         (asked != asked_.end() && make_room(bytes, asked->second, entries_.size(), dropped));
    if (asked != asked_.end()) asked_.erase(asked);
    entry.is_recent = !is_kept;
    std::list<Entry>& to = is_kept ? entries_ : recent_;
    (is_kept ? bytes_ : recent_bytes_) += bytes;
    to.splice(to.begin(), added);
    if (!is_kept) drop_old(bytes, dropped, forgotten);
  }

  // What is known by a hash has an owner until that disowns it: a pattern in use, say. It may have several, and be
  // inserted later, or never. What nobody owns any longer is a recent value, and so the first to be dropped; what
  // nobody ever owned is kept as the limits say.
  void own(const Hash128& hash) {
    const std::lock_guard<ForkSafeMutex> lock(mutex_);
    ++owners_[hash];
  }

  void disown(const Hash128& hash) {
    std::list<Entry> dropped;  // destroyed after the lock is released
    Asked forgotten;
    const std::lock_guard<ForkSafeMutex> lock(mutex_);
    const auto owners = owners_.find(hash);
    if (owners == owners_.end() || --owners->second > 0) return;
    owners_.erase(owners);
    const auto place = places_.find(hash);
    if (place == places_.end() || place->second->is_recent) return;
    const std::list<Entry>::iterator found = place->second;
    found->is_recent = found->is_left = true;
    bytes_ -= found->bytes;
    recent_bytes_ += found->bytes;
    recent_.splice(recent_.begin(), entries_, found);
    drop_old(found->bytes, dropped, forgotten);
  }

  size_t bytes() {
    const std::lock_guard<ForkSafeMutex> lock(mutex_);
    return bytes_ + recent_bytes_;
  }

 private:
  struct Entry {
    Hash128 hash;
    std::shared_ptr<const void> value;
    size_t bytes;
    uint64_t used;
    bool is_recent;        // which of the two lists has it
    bool is_left = false;  // by its last owner, and not requested since: that it was requested need not be remembered
  };
  struct First {
    size_t operator()(const Hash128& hash) const { return static_cast<size_t>(hash.low); }
  };
  using Asked = std::unordered_map<Hash128, uint64_t, First>;

  void drop(std::list<Entry>& from, std::list<Entry>::iterator entry, std::list<Entry>& dropped) {
    places_.erase(entry->hash);
    dropped.splice(dropped.begin(), from, entry);
  }

  // Drops recent values, the oldest first, down to their limit; one of more `bytes` that came first drives out nothing.
  void drop_old(size_t bytes, std::list<Entry>& dropped, Asked& forgotten) {
    const bool is_too_large = bytes > limits_.recent;
    while (recent_bytes_ > limits_.recent) {
      const auto last = is_too_large ? recent_.begin() : std::prev(recent_.end());
      constexpr size_t kMostAsked = 1 << 14;
      if (asked_.size() == kMostAsked) asked_.swap(forgotten);
      if (!last->is_left) asked_[last->hash] = last->used;
      recent_bytes_ -= last->bytes;
      drop(recent_, last, dropped);
    }
  }

  // Whether there is room for these bytes among what is kept, without the first `most` that were not used after
  // `since`.
  bool make_room(size_t bytes, uint64_t since, size_t most, std::list<Entry>& dropped) {
    if (bytes > limits_.used) return false;
    for (; bytes_ + bytes > limits_.kept && !entries_.empty() && entries_.back().used <= since; --most) {
      if (most == 0) return false;
      bytes_ -= entries_.back().bytes;
      drop(entries_, std::prev(entries_.end()), dropped);
    }
    return bytes_ + bytes <= limits_.used;
  }

  const CacheLimits limits_;
  ForkSafeMutex mutex_;
  std::list<Entry> entries_, recent_;  // the one used last comes first
  std::unordered_map<Hash128, std::list<Entry>::iterator, First> places_;
  Asked asked_;                                        // and not kept: when that was
  std::unordered_map<Hash128, size_t, First> owners_;  // how many
  uint64_t clock_ = 0;
  size_t bytes_ = 0, recent_bytes_ = 0;
};

}  // namespace sparsekernels
