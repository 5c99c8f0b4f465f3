// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// A pattern's nonzeros as kernels take them: sorted by columns, and where a column's vectors lie in the planes.
#pragma once

#include <vector>

#include "sparse_conv2d/jit/layout.h"

namespace sparsekernels::jit {

// What plans need to know of a pattern.
struct PatternTraits {
  int64_t nonzeros;
  int64_t rows_alike = 1;
  int64_t channels_alike = 1;
};

// The largest r such that, columns ascending, rows [0, r), [r, 2 r) and so on of each group of `group_rows` rows have
// the same columns each; the last of a group may be fewer. All of a group's where they all do. crow_indices are
// checked.
int64_t rows_alike(const SparsePattern& pattern, int64_t group_rows);
PatternTraits traits_of(const SparsePattern& pattern, int64_t group_rows);

// The same of columns: the largest r such that source channels [0, r), [r, 2 r) and so on of a group, at each tap,
// occur in the same rows. All of a group's where they all do. 1 where columns do not ascend.
int64_t channels_alike(const SparsePattern& pattern, int64_t channels, int64_t taps);

// Where in the planes the operand of a column of the pattern is, and its rank in the order of processing.
struct Column {
  int32_t displacement;   // in bytes, from its panel's first vector
  int32_t panel_residue;  // panel * residues + residue
  int32_t rank;           // columns of a panel and residue follow each other
  int32_t mask;           // number, or 0
};

// With panels of `panel_channels` channels.
std::vector<Column> columns_of(const Lattice& lattice, const Layout& layout, int64_t panel_channels);

struct Nonzero {
  int32_t column, row, source;  // row of the slice; place in the pattern's values
};

// The nonzeros of a slice, sorted by the rank of their columns. False where an index is out of its range.
bool sort_nonzeros(
    const std::vector<Column>& columns, const SparsePattern& pattern, int64_t first_row, int64_t last_row,
    std::vector<Nonzero>& sorted);

}  // namespace sparsekernels::jit
