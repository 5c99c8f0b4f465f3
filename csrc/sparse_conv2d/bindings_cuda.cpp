// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// The CUDA kernel of fine-grained linear layers for few rows as a torch operator, through torch's stable ABI.
#include "base/torch_cuda.h"
#include "sparse_conv2d/cuda/bitmap_linear.h"

namespace sparsekernels {
namespace {

constexpr const char* kOperation = "_bitmap_linear";

bool is_beside(const Handle& tensor, const Handle& input) {
  return tensor.device_type() == input.device_type() && tensor.device_index() == input.device_index() &&
         tensor.is_contiguous();
}

// _bitmap_linear(Tensor input, Tensor words, Tensor crow_indices, Tensor values, Tensor? bias) -> Tensor
void bitmap_linear(StableIValue* stack, uint64_t count, uint64_t returned) {
  Arguments arguments(stack, {count, returned}, {5, 1});
  Handle input = arguments.tensor();
  const Handle words = arguments.tensor();
  const Handle crow_indices = arguments.tensor();
  const Handle values = arguments.tensor();
  const Handle bias = arguments.optional_tensor();

  BitmapLinear call;
  call.dtype = dtype_of(input, kOperation);
  require(call.dtype != DType::kFloat64, "_bitmap_linear: expected input of float32, bfloat16 or float16", input);
  require(input.dim() > 0, "_bitmap_linear: expected input of at least one dimension", input);
  std::vector<int64_t> sizes(input.sizes(), input.sizes() + input.dim());
  call.in = sizes.back();
  call.rows = 1;
  for (int64_t d = 0; d + 1 < input.dim(); ++d) call.rows *= sizes[static_cast<size_t>(d)];
  require(call.in > 0, "_bitmap_linear: expected input of at least one column", input);
  require(call.rows <= cuda::kMaxBitmapRows, "_bitmap_linear: expected input of at most 16 rows", call.rows);

  require(
      words.dtype() == aoti_torch_dtype_int64() && words.dim() == 2 && is_beside(words, input) &&
          words.sizes()[1] == (call.in + 127) / 128 * 2,
      "_bitmap_linear: expected contiguous words of int64 [out, 2 * ceil(in / 128)] on the device of input", words);
  call.out = words.sizes()[0];
  require(
      crow_indices.dtype() == aoti_torch_dtype_int32() && crow_indices.dim() == 1 && is_beside(crow_indices, input) &&
          crow_indices.sizes()[0] == call.out + 1,
      "_bitmap_linear: expected contiguous crow_indices of int32 [out + 1] on the device of input", crow_indices);
  require(
      values.dtype() == input.dtype() && values.dim() == 1 && is_beside(values, input),
      "_bitmap_linear: expected contiguous values of one dimension, of the dtype and on the device of input", values);
  call.nnz = values.sizes()[0];
  if (bias) {
    require(
        bias.dtype() == input.dtype() && bias.dim() == 1 && is_beside(bias, input) && bias.sizes()[0] == call.out,
        "_bitmap_linear: expected contiguous bias [out], of the dtype and on the device of input", bias);
    call.bias = bias.data();
  }
  call.words = static_cast<const uint64_t*>(words.data());
  require(
      reinterpret_cast<uintptr_t>(call.words) % 16 == 0, "_bitmap_linear: expected words aligned to 16 bytes", words);
  call.crow_indices = static_cast<const int32_t*>(crow_indices.data());
  call.values = values.data();

  sizes.back() = call.out;
  Handle output = empty(sizes.data(), input.dim(), input.dtype(), input);
  if (!input.is_contiguous()) input = contiguous(input);
  call.input = input.data();
  call.output = output.data();
  const int32_t device = input.device_index();
  const OnDevice guard(device, kOperation);
  require_success(
      cuda::bitmap_linear(call, current_stream(device, kOperation)), kOperation, "the product to be launched");
  stack[0] = to_stack(std::move(output));
}

}  // namespace
}  // namespace sparsekernels

STABLE_TORCH_LIBRARY_IMPL(sparsekernels, CUDA, m) {
  m.impl("_bitmap_linear", &sparsekernels::bitmap_linear);
}
