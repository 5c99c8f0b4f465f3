#include "program_cache.h"

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <random>
#include <unordered_map>

#include "assembler.h"

namespace sparsekernels {
namespace {

size_t most_bytes() {
  static const size_t bytes = [] {
    constexpr long kDefault = 256, kMost = 1 << 20;
    const char* const set = std::getenv("SPARSEKERNELS_CPU_PROGRAMS");
    char* end = nullptr;
    const long wanted = set == nullptr ? kDefault : std::strtol(set, &end, 10);
    const bool sound = set == nullptr || (end != set && *end == 0 && wanted >= 0);
    return static_cast<size_t>(sound ? std::min(wanted, kMost) : kDefault) << 20;
  }();
  return bytes;
}

struct Hash {
  uint64_t low, high;
  bool operator==(const Hash& other) const { return low == other.low && high == other.high; }
};

// Multiply and fold, with secrets that differ from process to process: two contents have the same 128 bits with a
// probability that need not be thought of, unless somebody who knows the secrets wants it.
class Hasher {
 public:
  Hasher() {
    uint64_t seed = 0x9e3779b97f4a7c15u;
    for (uint64_t& secret : secrets_) {
      try {
        std::random_device device;
        seed ^= static_cast<uint64_t>(device()) << 32 | device();
      } catch (const std::exception&) {  // no source of randomness: the same secrets in every process
      }
      seed = seed * 0x5851f42d4c957f2du + 0x14057b7ef767814fu;
      secret = (seed ^ seed >> 29) | 1;
    }
  }

  Hash of(const void* data, size_t bytes) const {
    const char* at = static_cast<const char*>(data);
    uint64_t state[kLanes];
    for (int i = 0; i < kLanes; ++i) state[i] = secrets_[i] ^ bytes;
    size_t rest = bytes;
    for (; rest >= kStripe; rest -= kStripe, at += kStripe)
      for (int i = 0; i < kLanes; ++i) state[i] = mix(state[i], at + i * 16, i);
    char last[kStripe] = {};
    if (rest > 0) std::memcpy(last, at, rest);
    for (int i = 0; i < kLanes; ++i) state[i] = mix(state[i], last + i * 16, i);
    return {
        fold(fold(state[0] ^ secrets_[8], state[1]) ^ secrets_[9], fold(state[2] ^ secrets_[10], state[3])),
        fold(fold(state[3] ^ secrets_[11], state[0]) ^ secrets_[12], fold(state[1] ^ secrets_[13], state[2]))};
  }

 private:
  static constexpr int kLanes = 4;
  static constexpr size_t kStripe = kLanes * 16;

  static uint64_t fold(uint64_t a, uint64_t b) {
#if defined(__SIZEOF_INT128__)
    __extension__ using Wide = unsigned __int128;
    const Wide product = static_cast<Wide>(a) * b;
    return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64) ^ a;
#else
    const uint64_t low = (a & 0xffffffffu) * (b & 0xffffffffu), high = (a >> 32) * (b >> 32);
    const uint64_t cross = (a >> 32) * (b & 0xffffffffu) + (low >> 32), other = (a & 0xffffffffu) * (b >> 32);
    return (a * b) ^ (high + (cross >> 32) + (other >> 32)) ^ a;
#endif
  }
  uint64_t mix(uint64_t state, const char* from, int lane) const {
    uint64_t words[2];
    std::memcpy(words, from, sizeof words);
    return fold(words[0] ^ secrets_[4 + lane], words[1] ^ state) + (state << 23 | state >> 41);
  }

  uint64_t secrets_[14];
};

const Hasher& hasher() {
  static const Hasher one;
  return one;
}

Hash hash_pattern(const SparsePattern& pattern, const std::vector<int64_t>& layout, const Threads& threads) {
  struct Array {
    const int32_t* data;
    int64_t count;
  };
  const Array arrays[3] = {
      {pattern.crow_indices, pattern.rows + 1},
      {pattern.col_indices, pattern.nonzeros},
      {pattern.permutation, pattern.permutation == nullptr ? 0 : pattern.nonzeros}};
  constexpr int64_t kPiece = 1 << 15;
  std::vector<Array> pieces;
  for (const Array& array : arrays)
    for (int64_t at = 0; at < array.count; at += kPiece)
      pieces.push_back({array.data + at, std::min(kPiece, array.count - at)});
  std::vector<Hash> hashes(pieces.size() + 1);
  const auto range = [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Array& piece = pieces[static_cast<size_t>(i)];
      hashes[static_cast<size_t>(i)] = hasher().of(piece.data, static_cast<size_t>(piece.count) * sizeof(int32_t));
    }
  };
  const int64_t count = static_cast<int64_t>(pieces.size());
  if (count <= 4) {
    range(0, count);
  } else {
    threads.run(count, range);
  }
  hashes.back() = hasher().of(layout.data(), layout.size() * sizeof(int64_t));
  return hasher().of(hashes.data(), hashes.size() * sizeof(Hash));
}

// Everything but the pattern that programs depend on.
std::vector<int64_t> layout_of(const Lattice& lattice, const BundlePlan& plan, const SparsePattern& pattern) {
  std::vector<int64_t> layout = {
      lattice.groups,
      lattice.source_channels,
      lattice.dest_channels,
      lattice.residues(),
      plan.images,
      plan.pitch,
      plan.phase_floats,
      plan.channel_floats,
      plan.line_floats,
      plan.block_channels,
      plan.slices,
      plan.slice_rows,
      plan.strip[0],
      plan.strip[1],
      pattern.rows,
      pattern.nonzeros,
      pattern.permutation != nullptr};
  layout.push_back(static_cast<int64_t>(plan.masks.size()));
  for (const MaskedShift& mask : plan.masks)
    for (const int64_t number : {mask.shift, mask.columns}) layout.push_back(number);
  layout.push_back(static_cast<int64_t>(plan.first_column.size()));
  for (size_t t = 0; t < lattice.taps.size(); ++t) {
    const Tap& tap = lattice.taps[t];
    const TapColumns& columns = plan.taps[t];
    for (const int64_t number :
         {tap.phase[0], tap.shift[0], tap.residue, static_cast<int64_t>(tap.reaches), columns.plane, columns.shift,
          static_cast<int64_t>(columns.mask)})
      layout.push_back(number);
  }
  return layout;
}

class Cache {
 public:
  std::shared_ptr<const Programs> find(const Hash& hash) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto found = entries_.find(hash);
    if (found == entries_.end()) return nullptr;
    found->second.used = ++clock_;
    return found->second.programs;
  }

  void insert(const Hash& hash, std::shared_ptr<const Programs> programs) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!entries_.emplace(hash, Entry{programs, ++clock_}).second) return;
    bytes_ += programs->bytes();
    while (bytes_ > most_bytes() && entries_.size() > 1) {
      auto oldest = entries_.begin();
      for (auto entry = entries_.begin(); entry != entries_.end(); ++entry)
        if (entry->second.used < oldest->second.used) oldest = entry;
      bytes_ -= oldest->second.programs->bytes();
      entries_.erase(oldest);
    }
  }

  int64_t bytes() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return static_cast<int64_t>(bytes_);
  }

 private:
  struct Entry {
    std::shared_ptr<const Programs> programs;
    uint64_t used;
  };
  struct First {
    size_t operator()(const Hash& hash) const { return static_cast<size_t>(hash.low); }
  };

  std::mutex mutex_;
  std::unordered_map<Hash, Entry, First> entries_;
  uint64_t clock_ = 0;
  size_t bytes_ = 0;
};

Cache& cache() {
  static Cache* const one = new Cache;  // never destroyed: threads may outlive static objects
  return *one;
}

}  // namespace

bool programs_allowed() {
  static const bool allowed = [] {
    if (most_bytes() == 0) return false;
    std::vector<Assembler> smallest(1);
    smallest[0].leave();
    return Executable::make(smallest) != nullptr;
  }();
  return allowed;
}

int64_t kept_program_bytes() {
  return cache().bytes();
}

std::shared_ptr<const Programs> cached_programs(
    const Lattice& lattice, const BundlePlan& plan, const SparsePattern& pattern, const Threads& threads) {
  const Hash hash = hash_pattern(pattern, layout_of(lattice, plan, pattern), threads);
  std::shared_ptr<const Programs> programs = cache().find(hash);
  if (programs != nullptr) return programs;
  programs = Programs::make(lattice, plan, pattern, threads);
  cache().insert(hash, programs);
  return programs;
}

}  // namespace sparsekernels
