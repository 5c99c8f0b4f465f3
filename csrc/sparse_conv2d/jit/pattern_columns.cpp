// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0
#include "sparse_conv2d/jit/pattern_columns.h"

#include <algorithm>
#include <numeric>

namespace sparsekernels::jit {

int64_t rows_alike(const SparsePattern& pattern, int64_t group_rows) {
  const int32_t* const crow = pattern.crow_indices;
  int64_t alike = 0;  // that divides every place where a row differs from the one before
  for (int64_t row = 1; row < pattern.rows && alike != 1; ++row) {
    const int64_t within = row % group_rows, count = crow[row + 1] - crow[row];
    if (within == 0) continue;
    const int32_t* const columns = pattern.col_indices + crow[row];
    const bool same = count == crow[row] - crow[row - 1] && std::equal(columns, columns + count, columns - count);
    if (!same) alike = std::gcd(alike, within);
  }
  if (alike == 0) alike = group_rows;
  // Columns that occur twice, which nobody needs, are left to kernels that do not ask which they are.
  for (int64_t row = 0; row < pattern.rows && alike != 1; ++row) {
    if (row % group_rows % alike != 0) continue;
    for (int32_t k = crow[row] + 1; k < crow[row + 1]; ++k)
      if (pattern.col_indices[k] <= pattern.col_indices[k - 1]) return 1;
  }
  return alike;
}

int64_t channels_alike(const SparsePattern& pattern, int64_t channels, int64_t taps) {
  int64_t alike = 0;                                        // that divides every channel where a run of them ends
  std::vector<int64_t> next(static_cast<size_t>(taps), 0);  // channel of each tap after the row's last; 0: none
  std::vector<int64_t> seen;                                // taps of the row
  const auto ends = [&](int64_t channel) {
    if (channel != 0 && channel < channels) alike = std::gcd(alike, channel);
  };
  for (int64_t row = 0; row < pattern.rows && alike != 1; ++row) {
    int64_t before = -1;
    for (int64_t k = pattern.crow_indices[row]; k < pattern.crow_indices[row + 1] && alike != 1; ++k) {
      const int64_t column = pattern.col_indices[k], channel = column / taps;
      if (column <= before || channel >= channels) return 1;
      before = column;
      int64_t& at = next[static_cast<size_t>(column - channel * taps)];
      if (at != channel || at == 0) {
        if (at == 0) seen.push_back(column - channel * taps);
        ends(at);
        ends(channel);
      }
      at = channel + 1;
    }
    for (const int64_t tap : seen) {
      ends(next[static_cast<size_t>(tap)]);
      next[static_cast<size_t>(tap)] = 0;
    }
    seen.clear();
  }
  return alike == 0 ? channels : alike;
}

PatternTraits traits_of(const SparsePattern& pattern, int64_t group_rows) {
  return {pattern.nonzeros, rows_alike(pattern, group_rows)};
}

std::vector<Column> columns_of(const Lattice& lattice, const Layout& layout, int64_t panel_channels) {
  const int64_t taps = static_cast<int64_t>(lattice.taps.size()), residues = lattice.residues();
  const int64_t panels = divide_up(lattice.source_channels, panel_channels);
  const int64_t phase_columns = static_cast<int64_t>(layout.first_column.size());
  std::vector<Column> columns(static_cast<size_t>(lattice.source_channels * taps));
  std::vector<int32_t> of_panel_residue(static_cast<size_t>(panels * residues) + 1);
  for (size_t i = 0; i < columns.size(); ++i) {
    const int64_t channel = static_cast<int64_t>(i) / taps, panel = channel / panel_channels;
    const Tap& tap = lattice.taps[i % static_cast<size_t>(taps)];
    const TapColumns& place = layout.taps[i % static_cast<size_t>(taps)];
    const int64_t phase = tap.phase[0] * phase_columns + place.plane;
    // a tap that reaches nothing but padding reads the plane of zeros behind all channels
    const int64_t within = (tap.reaches ? channel : lattice.source_channels) - panel * panel_channels;
    int64_t floats = within * layout.channel_floats;
    if (tap.reaches)
      floats +=
          layout.spread(phase * layout.phase_floats + (tap.shift[0] * layout.pitch + place.shift) * layout.images);
    columns[i].mask = tap.reaches ? place.mask : 0;
    columns[i].displacement = static_cast<int32_t>(floats * 4);
    columns[i].panel_residue = static_cast<int32_t>(panel * residues + tap.residue);
    ++of_panel_residue[static_cast<size_t>(columns[i].panel_residue) + 1];
  }
  for (size_t panel_residue = 1; panel_residue < of_panel_residue.size(); ++panel_residue)
    of_panel_residue[panel_residue] += of_panel_residue[panel_residue - 1];
  for (Column& column : columns) column.rank = of_panel_residue[static_cast<size_t>(column.panel_residue)]++;
  return columns;
}

bool sort_nonzeros(
    const std::vector<Column>& columns, const SparsePattern& pattern, int64_t first_row, int64_t last_row,
    std::vector<Nonzero>& sorted) {
  const int32_t* const crow = pattern.crow_indices;
  const int64_t begin = crow[first_row], end = crow[last_row];
  std::vector<int32_t> places(columns.size() + 1);
  bool sound = true;
  for (int64_t row = first_row; row < last_row; ++row) {
    int64_t before = -1;
    for (int64_t k = crow[row]; k < crow[row + 1]; ++k) {
      const int64_t column = pattern.col_indices[k];
      if (column < before || column < 0 || column >= static_cast<int64_t>(columns.size())) return false;
      before = column;
      ++places[static_cast<size_t>(columns[static_cast<size_t>(column)].rank) + 1];
      if (pattern.permutation != nullptr)
        sound = sound && pattern.permutation[k] >= 0 && pattern.permutation[k] < pattern.nonzeros;
    }
  }
  if (!sound) return false;
  for (size_t i = 1; i < places.size(); ++i) places[i] += places[i - 1];
  sorted.resize(static_cast<size_t>(end - begin));
  for (int64_t row = first_row; row < last_row; ++row) {
    for (int64_t k = crow[row]; k < crow[row + 1]; ++k) {
      const int32_t column = pattern.col_indices[k];
      const int32_t source = pattern.permutation != nullptr ? pattern.permutation[k] : static_cast<int32_t>(k);
      const int32_t at = places[static_cast<size_t>(columns[static_cast<size_t>(column)].rank)]++;
      sorted[static_cast<size_t>(at)] = {column, static_cast<int32_t>(row - first_row), source};
    }
  }
  return true;
}

}  // namespace sparsekernels::jit
