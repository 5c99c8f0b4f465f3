#include "sparse_conv2d/epilogue.h"

#include <algorithm>
#include <cstring>

#include "base/workspace.h"
#include "isa/kernels.h"

namespace sparsekernels {

Ending lay_out_ending(const Epilogue& epilogue, int64_t rows, DType dtype, const void* dest, float* floats) {
  Ending ending = {};
  ending.bias = floats + kEndingHead;
  ending.low = epilogue.low;
  ending.high = epilogue.high;
  if (epilogue.low > -std::numeric_limits<float>::infinity()) ending.parts |= kHasLow;
  if (epilogue.high < std::numeric_limits<float>::infinity()) ending.parts |= kHasHigh;
  if (epilogue.residual != nullptr) {
    ending.parts |= kAddsResidual;
    ending.residual_bytes = distance(epilogue.residual, dest);
  }
  static_assert(kEndingHead * sizeof(float) == sizeof(int64_t) + 2 * sizeof(float), "what programs read");
  std::memcpy(floats, &ending.residual_bytes, sizeof(int64_t));
  floats[2] = ending.low;
  floats[3] = ending.high;
  if (epilogue.bias != nullptr) {
    cpu_kernels().widen(epilogue.bias, rows, dtype, floats + kEndingHead);
  } else {
    std::fill_n(floats + kEndingHead, rows, 0.0f);
  }
  return ending;
}

Ending call_ending(const Epilogue& epilogue, int64_t rows, DType dtype, const void* dest) {
  thread_local Arena arena;
  float* floats;
  Pieces own;
  own.add(&floats, kEndingHead + rows);
  own.allocate(arena);
  return lay_out_ending(epilogue, rows, dtype, dest, floats);
}

}  // namespace sparsekernels
