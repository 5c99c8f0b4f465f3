// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0
#include "sparse_conv2d/tiled/pack_pattern.h"

#include <algorithm>
#include <atomic>
#include <stdexcept>

#include "isa/kernels.h"
#include "sparse_conv2d/cost_model.h"

namespace sparsekernels::tiled {

Slices::Slices(const SparsePattern& pattern, int64_t groups, int64_t items, int64_t least, const Threads& threads)
    : count(least) {
  const int64_t rows = pattern.rows / groups;
  while (items * count < cost::kItemsPerThread * threads.count && items * count % threads.count != 0 && count < rows)
    ++count;
  for (int64_t group = 0; group < groups; ++group) {
    const int32_t* crow = pattern.crow_indices + group * rows;
    // a row costs something even where it has no nonzeros
    const auto weight = [&](int64_t row) { return crow[row] - crow[0] + row * cost::tiled::kRowNonzeros; };
    int64_t row = 0;
    for (int64_t slice = 0; slice <= count; ++slice) {
      while (row < rows && weight(row) * count < weight(rows) * slice) ++row;
      begin.push_back(slice == count ? rows : row);
    }
  }
}

PatternPacking::PatternPacking(
    const Lattice& lattice, const Plan& plan, const SparsePattern& pattern, const Slices& slices, bool wants_values)
    : lattice_(lattice),
      plan_(plan),
      pattern_(pattern),
      slices_(slices),
      taps_(static_cast<int64_t>(lattice.taps.size())),
      residues_(lattice.residues()),
      rows_(lattice.dest_channels),
      panel_residues_(plan.panels * lattice.residues()),
      wants_values_(wants_values) {}

void PatternPacking::reserve(WorkspaceLayout& layout) {
  layout.add(&table_, lattice_.source_channels * taps_);
  if (residues_ > 1) layout.add(&residue_of_, lattice_.source_channels * taps_);
  layout.add(&begin_, (plan_.panels + 1) * pattern_.rows);
  layout.add(&counts_, panel_residues_ * pattern_.rows);
  layout.add(&runs_, panel_residues_ * pattern_.rows);
  layout.add(&offsets_, pattern_.nonzeros);
  if (!wants_values_) return;
  layout.add(&values_, pattern_.nonzeros);
  if (pattern_.dtype != DType::kFloat32) layout.add(&wide_, pattern_.nonzeros);
}

// body(i) for all i in [0, count) gives whether what it read is sound; so does this.
template <class Body>
bool PatternPacking::in_parallel(const Threads& threads, int64_t count, Body body) const {
  std::atomic<bool> sound{true};
  const auto range = [&](int64_t begin, int64_t end) {
    bool good = true;
    for (int64_t i = begin; i < end; ++i) good = body(i) && good;
    if (!good) sound = false;
  };
  if (pattern_.nonzeros < cost::threads::kFewestPacked) {
    range(0, count);
  } else {
    threads.run(count, range);
  }
  return sound;
}

void PatternPacking::run(const Threads& threads) {
  if (wide_ != nullptr) cpu_kernels().widen(pattern_.values, pattern_.nonzeros, pattern_.dtype, wide_);
  in_order_ = wide_ != nullptr ? wide_ : static_cast<const float*>(pattern_.values);
  fill_table();
  if (!in_parallel(threads, pattern_.rows, [&](int64_t row) { return bound_panels(row); }))
    throw std::invalid_argument("sparse_conv2d: expected col_indices that ascend within their range, got others");
  place_panel_residues();
  const int64_t per_group = slices_.count * plan_.panels;
  const bool sound = in_parallel(threads, lattice_.groups * per_group, [&](int64_t i) {
    return fill_panel(i / per_group, i / plan_.panels % slices_.count, i % plan_.panels);
  });
  if (!sound) throw std::invalid_argument("sparse_conv2d: expected permutation of indices of values, got others");
}

void PatternPacking::fill_table() {
  const int64_t phase_columns = static_cast<int64_t>(lattice_.phases[1].size());
  for (int64_t c = 0; c < lattice_.source_channels; ++c) {
    const int64_t channel = c % plan_.panel_channels * plan_.channel_vectors;
    for (int64_t t = 0; t < taps_; ++t) {
      const Tap& tap = lattice_.taps[static_cast<size_t>(t)];
      const int64_t phase = tap.phase[0] * phase_columns + tap.phase[1];
      const int64_t vector = channel + phase * plan_.phase_vectors + tap.shift[0] * plan_.plane_columns + tap.shift[1];
      // a tap that reaches nothing but padding reads the plane of zeros behind the panel's channels
      const int64_t zeros = plan_.panel_channels * plan_.channel_vectors;
      table_[c * taps_ + t] = static_cast<int32_t>((tap.reaches ? vector : zeros) * kLanes);
      if (residues_ > 1) residue_of_[c * taps_ + t] = static_cast<int32_t>(tap.residue);
    }
  }
}

// Where each panel begins in a row, and how many nonzeros of it belong to each residue.
bool PatternPacking::bound_panels(int64_t row) {
  const int32_t* const columns = pattern_.col_indices;
  const int64_t end = pattern_.crow_indices[row + 1], first = pattern_.crow_indices[row];
  const uint32_t limit = static_cast<uint32_t>(lattice_.source_channels * taps_);
  bool sound = true;
  for (int64_t k = first; k < end; ++k) sound &= static_cast<uint32_t>(columns[k]) < limit;
  for (int64_t k = first + 1; k < end; ++k) sound &= columns[k - 1] <= columns[k];
  if (!sound) return false;

  int64_t k = first;
  for (int64_t panel = 0; panel < plan_.panels; ++panel) {
    const int32_t stop =
        static_cast<int32_t>(std::min<int64_t>(lattice_.source_channels, (panel + 1) * plan_.panel_channels) * taps_);
    const int64_t begin = k;
    begin_[panel * pattern_.rows + row] = static_cast<int32_t>(k);
    // Columns ascend, so those of the panel are counted, some at a time, without a branch for each.
    constexpr int64_t kCounted = 16;
    int64_t counted = kCounted;
    while (counted == kCounted && k + kCounted <= end) {
      int32_t below = 0;
      for (int i = 0; i < kCounted; ++i) below += columns[k + i] < stop;
      counted = below;
      k += counted;
    }
    if (counted == kCounted)
      while (k < end && columns[k] < stop) ++k;
    if (residues_ == 1) {
      counts_[panel * pattern_.rows + row] = static_cast<int32_t>(k - begin);
      continue;
    }
    int32_t* const counts = counts_ + panel * residues_ * pattern_.rows + row;
    for (int64_t r = 0; r < residues_; ++r) counts[r * pattern_.rows] = 0;
    for (int64_t n = begin; n < k; ++n) ++counts[residue_of_[columns[n]] * pattern_.rows];
  }
  begin_[plan_.panels * pattern_.rows + row] = static_cast<int32_t>(k);
  return k == end;
}

void PatternPacking::place_panel_residues() {
  starts_.clear();
  for (int64_t group = 0; group < lattice_.groups; ++group) {
    for (int64_t slice = 0; slice < slices_.count; ++slice) {
      const int64_t first = group * rows_ + slices_.first(group, slice),
                    last = group * rows_ + slices_.last(group, slice);
      int64_t at = pattern_.crow_indices[first];
      for (int64_t panel_residue = 0; panel_residue < panel_residues_; ++panel_residue) {
        starts_.push_back(at);
        const int32_t* const counts = counts_ + panel_residue * pattern_.rows;
        for (int64_t row = first; row < last; ++row) at += counts[row];
      }
    }
  }
}

// The values of nonzeros [begin, end), to `to`.
bool PatternPacking::copy_values(int64_t begin, int64_t end, int64_t to) {
  if (pattern_.permutation == nullptr) {
    for (int64_t k = begin; k < end; ++k) values_[to + k - begin] = in_order_[k];
    return true;
  }
  const uint32_t limit = static_cast<uint32_t>(pattern_.nonzeros);
  bool sound = true;
  for (int64_t k = begin; k < end; ++k) {
    const uint32_t from = static_cast<uint32_t>(pattern_.permutation[k]);
    sound &= from < limit;
    values_[to + k - begin] = in_order_[from < limit ? from : 0];
  }
  return sound;
}

// The runs of one residue, shortest first, and where each begins. Turns the residue's counts into places to fill.
void PatternPacking::sort_runs(int64_t group, int64_t slice, int64_t panel_residue) {
  const int64_t base = group * rows_ + slices_.first(group, slice);
  const int64_t count = slices_.last(group, slice) - slices_.first(group, slice);
  int32_t* const counts = counts_ + panel_residue * pattern_.rows + base;
  Run* const runs = runs_ + base * panel_residues_ + panel_residue * count;

  constexpr int32_t kLongest = 63;
  int32_t at[kLongest + 2] = {};
  for (int64_t row = 0; row < count; ++row) ++at[std::min(counts[row], kLongest) + 1];
  for (int32_t n = 1; n <= kLongest; ++n) at[n] += at[n - 1];
  for (int64_t row = 0; row < count; ++row) runs[at[std::min(counts[row], kLongest)]++].row = static_cast<int32_t>(row);

  int32_t to = static_cast<int32_t>(
      starts_[static_cast<size_t>((group * slices_.count + slice) * panel_residues_ + panel_residue)]);
  for (Run* run = runs; run < runs + count; ++run) {
    run->begin = to;
    to += counts[run->row];
    run->end = to;
    counts[run->row] = run->begin;
  }
}

bool PatternPacking::fill_panel(int64_t group, int64_t slice, int64_t panel) {
  for (int64_t residue = 0; residue < residues_; ++residue) sort_runs(group, slice, panel * residues_ + residue);
  bool sound = true;
  for (int64_t row = group * rows_ + slices_.first(group, slice); row < group * rows_ + slices_.last(group, slice);
       ++row) {
    const int64_t begin = begin_[panel * pattern_.rows + row], end = begin_[(panel + 1) * pattern_.rows + row];
    int32_t* const places = counts_ + panel * residues_ * pattern_.rows + row;
    if (residues_ == 1) {
      const int64_t to = *places;
      for (int64_t k = begin; k < end; ++k) offsets_[to + k - begin] = table_[pattern_.col_indices[k]];
      if (values_ != nullptr) sound = copy_values(begin, end, to) && sound;
      continue;
    }
    for (int64_t k = begin; k < end; ++k) {
      const int32_t column = pattern_.col_indices[k];
      const int64_t to = places[residue_of_[column] * pattern_.rows]++;
      offsets_[to] = table_[column];
      if (values_ != nullptr) sound = copy_values(k, k + 1, to) && sound;
    }
  }
  return sound;
}

}  // namespace sparsekernels::tiled
