// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// The elements of a dense weight that a pattern uses, by the bits of its mask: taken out, put back, and the others
// cleared, in one pass over the weight. A bit for an element, where `flat_indices` has eight bytes for each used one.
#pragma once

#include <cstdint>

#include "base/dtype.h"
#include "base/threads.h"

namespace sparsekernels {

struct DenseWeight {
  const void* data;
  DType dtype;
  int64_t elements;
};

// A mask as words of one allocation: a header, whose words belong to `Guard`; a bit for each element; and how many bits
// are set before every kBlock-th word, and in all.
class MaskWords {
 public:
  static constexpr int64_t kWord = 64, kBlock = 64, kHeader = 2;

  static int64_t words_of(int64_t elements) { return kHeader + bit_words(elements) + blocks(elements) + 1; }
  // mask: a byte for each element, 1 for those that are used. words: words_of(elements) of them.
  static void make(const uint8_t* mask, int64_t elements, int64_t* words);

  MaskWords(const int64_t* words, int64_t elements) : words_(words), elements_(elements) {}

  int64_t elements() const { return elements_; }
  const uint64_t* bits() const { return reinterpret_cast<const uint64_t*>(words_ + kHeader); }
  int64_t used() const { return before(blocks(elements_)); }
  // How many bits are set in the words before block `block`.
  int64_t before(int64_t block) const { return words_[kHeader + bit_words(elements_) + block]; }

 private:
  static int64_t bit_words(int64_t elements) { return (elements + kWord - 1) / kWord; }
  static int64_t blocks(int64_t elements) { return (bit_words(elements) + kBlock - 1) / kBlock; }

  const int64_t* words_;
  int64_t elements_;
};

// values: the used elements of `weight`, in their order. Returns how many of the others are not zero, or 0 where they
// are not to be counted.
int64_t take_elements(
    const DenseWeight& weight, const MaskWords& mask, bool counts_others, const Threads& threads, void* values);

// All elements: the used ones from `values`, the others zero.
void spread_elements(const void* values, DType dtype, const MaskWords& mask, const Threads& threads, void* elements);

// Sets elements that are not used to zero, where they are not.
void clear_others(const MaskWords& mask, DType dtype, const Threads& threads, void* elements);

}  // namespace sparsekernels
