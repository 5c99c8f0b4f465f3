#include "sparse_conv2d/jit/kernel_cache.h"

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <mutex>
#include <random>
#include <stdexcept>
#include <string>
#include <unordered_map>

#if defined(__unix__) || defined(__APPLE__)
#include <unistd.h>
#endif

#include "base/jit/assembler.h"
#include "isa/kernels.h"
#include "sparse_conv2d/epilogue.h"

namespace sparsekernels {
namespace {

// Everything is kept up to the first limit; what is in use up to the second.
struct Limits {
  size_t kept, used;
};

Limits read_limits() {
  constexpr size_t kMegabyte = size_t{1} << 20, kKept = 256 * kMegabyte;
  const char* const set = std::getenv("SPARSEKERNELS_CPU_PROGRAMS");
  if (set != nullptr && *set != 0) {
    char* end = nullptr;
    errno = 0;
    const long long megabytes = std::strtoll(set, &end, 10);
    constexpr long long kMost = 1 << 24;
    if (end == set || *end != 0 || errno != 0 || megabytes < 0 || megabytes > kMost) {
      throw std::invalid_argument(
          std::string("SPARSEKERNELS_CPU_PROGRAMS is '") + set +
          "', expected a whole number of megabytes such as 1024, or 0 for no kernels");
    }
    const size_t most = static_cast<size_t>(megabytes) * kMegabyte;
    return {std::min(most, kKept), most};
  }
  size_t memory = 0;
#if defined(_SC_PHYS_PAGES) && defined(_SC_PAGESIZE)
  const long pages = sysconf(_SC_PHYS_PAGES), page = sysconf(_SC_PAGESIZE);
  if (pages > 0 && page > 0) memory = static_cast<size_t>(pages) * static_cast<size_t>(page);
#endif
  // a container's share, where there is such a limit
  std::ifstream group("/sys/fs/cgroup/memory.max");
  size_t share = 0;
  if (group >> share && share > 0) memory = std::min(memory, share);
  constexpr size_t kMost = 4096 * kMegabyte;
  return {kKept, std::min(kMost, std::max(kKept, memory / 8))};
}

const Limits& limits() {
  static const Limits read = read_limits();
  return read;
}

using Hash = KernelKey;

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

Hash hash_pattern(const SparsePattern& pattern, const std::vector<int64_t>& contents, const Threads& threads) {
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
  hashes.back() = hasher().of(contents.data(), contents.size() * sizeof(int64_t));
  return hasher().of(hashes.data(), hashes.size() * sizeof(Hash));
}

// Everything but the pattern that kernels depend on: of the lattice and its layout, then of a kind of kernels.
enum class Kind { kSums, kWeightGradients };
std::vector<int64_t> contents_of(
    Kind kind, const Lattice& lattice, const JitLayout& layout, const SparsePattern& pattern) {
  std::vector<int64_t> contents = {
      static_cast<int64_t>(kind),
      lattice.groups,
      lattice.source_channels,
      lattice.dest_channels,
      lattice.residues(),
      layout.images,
      layout.pitch,
      layout.phase_floats,
      layout.channel_floats,
      layout.line_floats,
      layout.strip[0],
      layout.strip[1],
      pattern.rows,
      pattern.nonzeros,
      pattern.permutation != nullptr};
  contents.push_back(static_cast<int64_t>(layout.masks.size()));
  for (const MaskedShift& mask : layout.masks)
    for (const int64_t number : {mask.shift, mask.columns}) contents.push_back(number);
  contents.push_back(static_cast<int64_t>(layout.first_column.size()));
  for (size_t t = 0; t < lattice.taps.size(); ++t) {
    const Tap& tap = lattice.taps[t];
    const TapColumns& columns = layout.taps[t];
    for (const int64_t number :
         {tap.phase[0], tap.shift[0], tap.residue, static_cast<int64_t>(tap.reaches), columns.plane, columns.shift,
          static_cast<int64_t>(columns.mask)})
      contents.push_back(number);
  }
  return contents;
}

class Cache {
 public:
  std::shared_ptr<const void> find(const Hash& hash) {
    const std::lock_guard<std::mutex> lock(mutex_);
    ++clock_;
    const auto found = entries_.find(hash);
    if (found == entries_.end()) return nullptr;
    found->second.used = clock_;
    return found->second.kernels;
  }

  // Beyond the first limit, kernels are kept when they are asked for a second time, and what was not used between the
  // two makes room. Of patterns that take turns, more than there is room for, all are used in between: none drives out
  // the one that is needed next.
  void insert(const Hash& hash, std::shared_ptr<const void> kernels, size_t bytes) {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (bytes_ + bytes > limits().kept) {
      const auto asked = asked_.find(hash);
      if (asked == asked_.end()) {
        constexpr size_t kMostAsked = 1 << 14;
        if (asked_.size() == kMostAsked) asked_.clear();
        asked_.emplace(hash, clock_);
        return;
      }
      while (bytes_ + bytes > limits().kept && !entries_.empty()) {
        auto oldest = entries_.begin();
        for (auto entry = entries_.begin(); entry != entries_.end(); ++entry)
          if (entry->second.used < oldest->second.used) oldest = entry;
        if (oldest->second.used > asked->second) break;
        bytes_ -= oldest->second.bytes;
        entries_.erase(oldest);
      }
      asked->second = clock_;
      if (bytes_ + bytes > limits().used) return;
      asked_.erase(asked);
    }
    if (entries_.emplace(hash, Entry{std::move(kernels), bytes, clock_}).second) bytes_ += bytes;
  }

  int64_t bytes() {
    const std::lock_guard<std::mutex> lock(mutex_);
    return static_cast<int64_t>(bytes_);
  }

 private:
  struct Entry {
    std::shared_ptr<const void> kernels;
    size_t bytes;
    uint64_t used;
  };
  struct First {
    size_t operator()(const Hash& hash) const { return static_cast<size_t>(hash.low); }
  };

  std::mutex mutex_;
  std::unordered_map<Hash, Entry, First> entries_;
  std::unordered_map<Hash, uint64_t, First> asked_;  // and not kept: when that was
  uint64_t clock_ = 0;
  size_t bytes_ = 0;
};

Cache& cache() {
  static Cache* const one = new Cache;  // never destroyed: threads may outlive static objects
  return *one;
}

template <class Kept, class Plan>
std::shared_ptr<const Kept> cached(
    const KernelKey& key, const Lattice& lattice, const Plan& plan, const SparsePattern& pattern,
    const Threads& threads) {
  if (const std::shared_ptr<const void> found = cache().find(key)) return std::static_pointer_cast<const Kept>(found);
  std::shared_ptr<const Kept> kernels = Kept::make(lattice, plan, pattern, threads);
  cache().insert(key, kernels, kernels->bytes());
  return kernels;
}

}  // namespace

bool jit_allowed() {
  static const bool allowed = [] {
    if (limits().used == 0) return false;
    std::vector<Assembler> smallest(1);
    smallest[0].ret();
    return Executable::make(smallest) != nullptr;
  }();
  return allowed;
}

bool may_use_jit(const SparsePattern& pattern) {
  constexpr int64_t kMostNonzeros = 1 << 23;
  return cpu_kernels().jit_pack[0].read != nullptr && jit_allowed() && pattern.nonzeros <= kMostNonzeros;
}

int64_t most_kernel_bytes() {
  return static_cast<int64_t>(limits().used);
}

int64_t kept_kernel_bytes() {
  return cache().bytes();
}

KernelKey key_of(const Lattice& lattice, const JitPlan& plan, const SparsePattern& pattern, const Threads& threads) {
  std::vector<int64_t> contents = contents_of(Kind::kSums, lattice, plan, pattern);
  const int64_t row_floats = plan.direct ? lattice.dest.stride[1] : -1;
  const int64_t residual_floats = plan.epilogue_flags & kAddsResidual ? plan.residual_channel : -1;
  for (const int64_t number :
       {plan.block_channels, plan.slices, plan.slice_rows, row_floats, int64_t{plan.epilogue_flags}, residual_floats})
    contents.push_back(number);
  return hash_pattern(pattern, contents, threads);
}

KernelKey key_of(const Lattice& lattice, const WeightPlan& plan, const SparsePattern& pattern, const Threads& threads) {
  std::vector<int64_t> contents = contents_of(Kind::kWeightGradients, lattice, plan, pattern);
  for (const int64_t number : {lattice.size[0], plan.slice_rows, plan.grad_channel_floats, plan.grad_line_floats})
    contents.push_back(number);
  return hash_pattern(pattern, contents, threads);
}

std::shared_ptr<const ForwardKernels> cached_kernels(
    const KernelKey& key, const Lattice& lattice, const JitPlan& plan, const SparsePattern& pattern,
    const Threads& threads) {
  return cached<ForwardKernels>(key, lattice, plan, pattern, threads);
}

std::shared_ptr<const WeightKernels> cached_weight_kernels(
    const KernelKey& key, const Lattice& lattice, const WeightPlan& plan, const SparsePattern& pattern,
    const Threads& threads) {
  return cached<WeightKernels>(key, lattice, plan, pattern, threads);
}

}  // namespace sparsekernels
