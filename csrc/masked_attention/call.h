// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// What masked attention of the queries that share keys and values is: pointers, sizes and strides. Knows no torch.
#pragma once

#include <cstdint>

#include "masked_matmul/call.h"

namespace sparsekernels {

// One matrix of queries, and what belongs to it. Rows of y, rest and dq lie one after another.
struct AttentionMember {
  const void* q = nullptr;
  const uint64_t* mask = nullptr;  // [M][words], as of MaskBits
  void* y = nullptr;               // [M, D], written by forward
  void* rest = nullptr;            // [M, D]: what rounding took from y; null where nobody asks
  float* statistics = nullptr;     // [M][2], written by forward: the largest score of a row, and the sum of exp(s - it)
  const void* gradient = nullptr;  // to y
  void* dq = nullptr;              // [M, E], written by backward
};

// y = softmax(scale * q k^T where the mask is) v for each member, in one dtype that is not float64; sums are of floats.
struct AttentionGroup {
  MaskedMatrix q, gradient;  // sizes and strides, of every member
  MaskedMatrix k, v;         // the same, and the data that all members share; v has as many rows as k
  int64_t mask_words = 0;    // from row to row
  const AttentionMember* members = nullptr;
  int64_t count = 0;
  void *dk = nullptr, *dv = nullptr;  // [N, E] and [N, D], written by backward, summed over the members
  float scale = 1;
  int64_t few = 0;  // elements of a tile of 8 x 32 up to which it is computed element by element
  DType dtype = DType::kFloat32;
};

// What one thread computes. Rows count through the members: each has padded(M, kAttentionRows) of them.
struct AttentionPart {
  int64_t row_begin = 0, row_end = 0;    // multiples of kAttentionRows
  int64_t tile_begin = 0, tile_end = 0;  // of 32 keys; all of them, unless these are for dk and dv alone
  bool queries = false, keys = false;    // of a backward pass: whether dq, and dk and dv, are computed
};

constexpr int64_t kAttentionRows = 32;
constexpr int64_t kKeys = 32;  // of a tile

// Few queries are forward passes of another order: row i of a group is row i / count of member i % count, so that those
// of one place, whose masks are mostly the same, lie side by side; and the keys are in parts. What a part comes to is
// kPartialHead + padded(D, kKeys) floats for each row: the largest score, the sum of exponentials, whether there is a
// key, and sums of values.
constexpr int64_t kFewQueries = 16;      // of a member, at most
constexpr int64_t kFewRows = 64;         // of a part, at most
constexpr int64_t kFewPartKeys = 1024;   // of a part; a multiple of 64
constexpr int64_t kPartialHead = kKeys;  // floats, of which three are used
struct FewPart {
  int64_t row_begin = 0, row_end = 0;
  int64_t key_begin = 0, key_end = 0;  // key_begin is a multiple of kFewPartKeys
  float* partial = nullptr;            // [rows][kPartialHead + padded(D, kKeys)], written
};

struct AttentionKernels {
  // Floats of the workspace of a part.
  int64_t (*workspace)(const AttentionGroup& group, bool backward);
  void (*forward)(const AttentionGroup& group, const AttentionPart& part, float* workspace);
  void (*backward)(const AttentionGroup& group, const AttentionPart& part, float* workspace);
  // Of few queries; the last dimension of k and of v is contiguous.
  int64_t (*few_workspace)(const AttentionGroup& group);
  void (*few)(const AttentionGroup& group, const FewPart& part, float* workspace);
  // Rows of y, rest and statistics from what `parts` parts came to, which lie `apart` floats apart; adds to the first.
  void (*merge)(
      const AttentionGroup& group, int64_t row_begin, int64_t row_end, float* partials, int64_t parts, int64_t apart);
};

}  // namespace sparsekernels
