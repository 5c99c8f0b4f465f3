// What the kernels make of an epilogue.
#pragma once

#include <cstdint>

namespace sparsekernels {

// What beside the bias there is to be done, as bits.
constexpr int kAddsResidual = 1, kHasLow = 2, kHasHigh = 4;

// Result = min(max(sum + bias[row] + residual, low), high), what is not there left out.
struct Ending {
  const float* bias;       // of every row, or null; behind kEndingHead floats that programs read, see lay_out_ending
  int64_t residual_bytes;  // from an element of the destination to that of the residual
  float low, high;
  int parts;  // of the bits above
};

// Before the first row's bias: 8 bytes of residual_bytes, low, high.
constexpr int64_t kEndingHead = 4;
constexpr int32_t kResidualAt = -16, kLowAt = -8, kHighAt = -4;  // in bytes, from the first row's bias

}  // namespace sparsekernels
