// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// A linear layer of a few rows by a weight that is stored as bits and nonzeros, and nothing else: the call, without
// torch, and what is compiled once per instruction set.
#pragma once

#include <cstdint>

#include "base/dtype.h"

namespace sparsekernels {

// output[m, o] = bias[o] + sum over k, where bit k of row o is set, of w[o, k] * input[m, k]
//
// All contiguous. A row of `words` has `row_words` of them: bit k % 64 of word k / 64 says whether w[o, k] is stored;
// those from `columns` on are 0. Row o has the values from crow_indices[o] on, one for each bit, columns ascending;
// behind those of the last row there are kPackedSlack more, which are read and not used. Where bits and crow_indices
// disagree, nothing outside of values is read, and the result means nothing.
struct PackedLinear {
  const void* input = nullptr;  // rows x columns
  const uint64_t* words = nullptr;
  const int32_t* crow_indices = nullptr;  // outputs + 1
  const void* values = nullptr;           // `count`, slack included
  const void* bias = nullptr;             // outputs, or none
  void* output = nullptr;                 // rows x outputs
  int64_t rows = 0, columns = 0, outputs = 0, row_words = 0, count = 0;
  DType dtype = DType::kFloat32;  // of input, values, bias and output; not float64

  int64_t padded_columns() const { return row_words * 64; }
  // The first value of a row; what follows it for a word of 64 columns is there.
  int64_t first_value(int64_t output) const;
};

constexpr int64_t kPackedSlack = 64;
constexpr int64_t kMostPackedRows = 16;

// Words of a row: a row begins at a multiple of 16 bytes.
constexpr int64_t packed_row_words(int64_t columns) {
  return (columns + 127) / 128 * 2;
}

inline int64_t PackedLinear::first_value(int64_t output) const {
  const int64_t at = crow_indices[output], last = count - kPackedSlack;
  return at < 0 ? 0 : at > last ? last : at;
}

// For one dtype.
struct PackedLinearKernels {
  int64_t group;  // outputs that are computed together: ranges begin at its multiples
  // Floats that `arrange` writes: the input in the order in which `run` reads it.
  int64_t (*arranged_floats)(const PackedLinear& call);
  void (*arrange)(const PackedLinear& call, float* arranged);
  // Outputs [begin, end). The order of a sum depends on nothing but the number of rows.
  void (*run)(const PackedLinear& call, const float* arranged, int64_t begin, int64_t end);
  // Rows [begin, end) of the weight with its zeros, `columns` elements each; to: the first of them.
  void (*unpack)(const PackedLinear& call, int64_t begin, int64_t end, void* to);
};

#if defined(SPARSEKERNELS_VBMI2)
extern const PackedLinearKernels kPackedVbmi2[3];  // by DType
#endif
#if defined(SPARSEKERNELS_AMX)
extern const PackedLinearKernels kPackedAmx;  // bfloat16
#endif

}  // namespace sparsekernels
