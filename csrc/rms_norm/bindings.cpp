// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// The CPU kernels as torch operators, through torch's stable ABI: one binary for every Python, and for every torch from
// 2.10 on. The schemas are defined in Python (sparsekernels/ops/*/implementations.py).
#include <algorithm>
#include <cstring>
#include <memory>
#include <new>

#include "isa/kernels.h"
#include "rms_norm/glue.h"

namespace sparsekernels {
namespace {

// Up to this number of elements one thread is faster than two: a second one costs 1.4 us to wake (2 cores of a
// Xeon with AMX), in which the first does some 16 elements a nanosecond.
constexpr int64_t kSerialElements = 16384;

struct FreeAligned {
  void operator()(void* memory) const { ::operator delete(memory, std::align_val_t(64)); }
};
using Buffer = std::unique_ptr<void, FreeAligned>;

Buffer buffer_of(int64_t elements, DType dtype) {
  const size_t size = dtype == DType::kFloat64 ? sizeof(double) : sizeof(float);
  return Buffer(::operator new(static_cast<size_t>(elements) * size, std::align_val_t(64)));
}

int64_t divide_up(int64_t a, int64_t b) {
  return (a + b - 1) / b;
}

int64_t arranged_length(int64_t cols) {
  return divide_up(cols, kArrangedMultiple) * kArrangedMultiple;
}

// A few rows read the weight as it is stored; many are worth one conversion, and 1 + weight is one always. Sets nothing
// for the first.
template <class Call>
Buffer arrange_weight(const RmsNormKernels& kernels, const Call& call) {
  const bool as_stored = call.weight != nullptr && call.weight_dtype == call.dtype && !call.unit_offset;
  if (as_stored && (call.dtype == DType::kFloat32 || call.dtype == DType::kFloat64 || call.space.rows < 8))
    return nullptr;
  Buffer arranged = buffer_of(arranged_length(call.space.cols), call.dtype);
  kernels.arrange_weight(call.weight, call.weight_dtype, call.unit_offset, call.space.cols, arranged.get());
  return arranged;
}

void launch_forward(const RmsNormForward& call, const Handle&) {
  const RmsNormKernels& kernels = cpu_kernels().rms_norm[static_cast<int>(call.dtype)];
  const Buffer arranged = arrange_weight(kernels, call);
  const auto run = [&](int64_t begin, int64_t end) { kernels.forward(call, arranged.get(), begin, end); };
  if (call.space.rows * call.space.cols <= kSerialElements) return run(0, call.space.rows);
  torch::stable::parallel_for(0, call.space.rows, divide_up(kSerialElements / 2, call.space.cols), run);
}

// Rows are cut into parts by the shape alone, so the weight gradient has the same bits for any number of threads.
void launch_backward(const RmsNormBackward& call, const Handle&) {
  constexpr int64_t kMostParts = 64, kLeastElements = 16384;
  const RmsNormKernels& kernels = cpu_kernels().rms_norm[static_cast<int>(call.dtype)];
  const int64_t rows = call.space.rows, cols = call.space.cols, stride = arranged_length(cols);
  const int64_t rows_a_part = std::max(divide_up(rows, kMostParts), divide_up(kLeastElements, cols));
  const int64_t parts = divide_up(rows, rows_a_part);
  const Buffer arranged = arrange_weight(kernels, call);
  const int64_t part_bytes =
      stride * static_cast<int64_t>(call.dtype == DType::kFloat64 ? sizeof(double) : sizeof(float));
  const Buffer partials = call.grad_weight == nullptr ? nullptr : buffer_of(parts * stride, call.dtype);

  const auto run = [&](int64_t begin, int64_t end) {
    for (int64_t part = begin; part < end; ++part) {
      char* partial = partials ? static_cast<char*>(partials.get()) + part * part_bytes : nullptr;
      if (partial != nullptr) std::memset(partial, 0, static_cast<size_t>(part_bytes));
      const int64_t first = part * rows_a_part;
      kernels.backward(call, arranged.get(), partial, first, std::min(rows, first + rows_a_part));
    }
  };
  const auto sum = [&](int64_t begin, int64_t end) {
    kernels.sum_partials(
        call.weight_dtype, partials.get(), parts, stride, begin * kArrangedMultiple,
        std::min(cols, end * kArrangedMultiple), call.grad_weight);
  };
  const bool serial = rows * cols <= kSerialElements;
  if (serial) {
    run(0, parts);
  } else {
    torch::stable::parallel_for(0, parts, 1, run);
  }
  if (call.grad_weight == nullptr) return;
  const int64_t pairs = stride / kArrangedMultiple;
  if (serial || parts * stride <= kSerialElements) return sum(0, pairs);
  torch::stable::parallel_for(0, pairs, divide_up(kSerialElements / kArrangedMultiple, parts), sum);
}

void rms_norm(StableIValue* stack, uint64_t count, uint64_t returned) {
  boxed_forward(stack, {count, returned}, false, launch_forward);
}
void add_rms_norm(StableIValue* stack, uint64_t count, uint64_t returned) {
  boxed_forward(stack, {count, returned}, true, launch_forward);
}
void rms_norm_backward(StableIValue* stack, uint64_t count, uint64_t returned) {
  boxed_backward(stack, {count, returned}, launch_backward);
}

}  // namespace
}  // namespace sparsekernels

STABLE_TORCH_LIBRARY_IMPL(sparsekernels, CPU, m) {
  m.impl("_rms_norm", &sparsekernels::rms_norm);
  m.impl("_add_rms_norm", &sparsekernels::add_rms_norm);
  m.impl("_rms_norm_backward", &sparsekernels::rms_norm_backward);
}
