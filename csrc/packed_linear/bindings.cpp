// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Packed weights as torch operators. Python defines the schemas (sparsekernels/ops/packed_linear/implementations.py).
#include "base/torch_glue.h"
#include "base/torch_threads.h"
#include "packed_linear/packed_linear.h"

namespace sparsekernels {
namespace {

bool is_plain(const Handle& tensor, int32_t dtype, int64_t dim) {
  return tensor.dtype() == dtype && tensor.dim() == dim && tensor.is_contiguous() &&
         tensor.device_type() == aoti_torch_device_type_cpu();
}

// The weight of a call, of so many columns.
PackedLinear call_of(const Handle& words, const Handle& crow_indices, const Handle& values, int64_t columns) {
  PackedLinear call;
  call.dtype = dtype_of(values, "packed_linear");
  require(call.dtype != DType::kFloat64, "packed_linear: expected values of float32, bfloat16 or float16", values);
  constexpr int64_t kMostColumns = int64_t{1} << 40;
  require(columns >= 1 && columns < kMostColumns, "packed_linear: expected at least one column", columns);
  call.columns = columns;
  call.row_words = packed_row_words(columns);
  require(
      is_plain(words, aoti_torch_dtype_int64(), 2) && words.sizes()[1] == call.row_words,
      "packed_linear: expected contiguous words of int64 [out, 2 * ceil(in / 128)] on the CPU", words);
  call.outputs = words.sizes()[0];
  require(
      is_plain(crow_indices, aoti_torch_dtype_int32(), 1) && crow_indices.sizes()[0] == call.outputs + 1,
      "packed_linear: expected contiguous crow_indices of int32 [out + 1] on the CPU", crow_indices);
  require(
      is_plain(values, values.dtype(), 1) && values.sizes()[0] >= kPackedSlack,
      "packed_linear: expected contiguous values on the CPU with 64 more behind the last row's", values);
  call.count = values.sizes()[0];
  call.words = static_cast<const uint64_t*>(words.data());
  call.crow_indices = static_cast<const int32_t*>(crow_indices.data());
  call.values = values.data();
  return call;
}

// _packed_linear(Tensor input, Tensor words, Tensor crow_indices, Tensor values, Tensor? bias) -> Tensor
void boxed_packed_linear(StableIValue* stack, uint64_t count, uint64_t returned) {
  Arguments arguments(stack, {count, returned}, {5, 1});
  Handle input = arguments.tensor();
  const Handle words = arguments.tensor(), crow_indices = arguments.tensor(), values = arguments.tensor();
  Handle bias = arguments.optional_tensor();
  require(
      input.dim() > 0 && input.dtype() == values.dtype() && input.device_type() == aoti_torch_device_type_cpu(),
      "packed_linear: expected input of at least one dimension on the CPU, of the dtype of the weight", input);
  std::vector<int64_t> sizes(input.sizes(), input.sizes() + input.dim());
  PackedLinear call = call_of(words, crow_indices, values, sizes.back());
  call.rows = 1;
  for (size_t d = 0; d + 1 < sizes.size(); ++d) call.rows *= sizes[d];
  require(call.rows <= kMostPackedRows, "packed_linear: expected input of at most 16 rows", call.rows);
  if (bias) {
    require(
        bias.dtype() == input.dtype() && bias.dim() == 1 && bias.sizes()[0] == call.outputs &&
            bias.device_type() == aoti_torch_device_type_cpu(),
        "packed_linear: expected bias [out] on the CPU, of the dtype of input", bias);
    if (!bias.is_contiguous()) bias = contiguous(bias);
    call.bias = bias.data();
  }
  sizes.back() = call.outputs;
  Handle output = empty(sizes.data(), input.dim(), input.dtype(), input);
  if (!input.is_contiguous()) input = contiguous(input);
  call.input = input.data();
  call.output = output.data();
  packed_linear(call, torch_threads());
  stack[0] = to_stack(std::move(output));
}

// _unpacked_rows(Tensor words, Tensor crow_indices, Tensor values, int columns, int begin, int end) -> Tensor
void boxed_unpacked_rows(StableIValue* stack, uint64_t count, uint64_t returned) {
  Arguments arguments(stack, {count, returned}, {6, 1});
  const Handle words = arguments.tensor(), crow_indices = arguments.tensor(), values = arguments.tensor();
  const int64_t columns = arguments.integer();
  const PackedLinear call = call_of(words, crow_indices, values, columns);
  const std::vector<int64_t> range = {arguments.integer(), arguments.integer()};
  require(
      0 <= range[0] && range[0] <= range[1] && range[1] <= call.outputs,
      "packed_linear: expected a range of rows that the weight has", range);
  const int64_t sizes[] = {range[1] - range[0], columns};
  Handle rows = empty(sizes, 2, values.dtype(), values);
  if (sizes[0] > 0) unpack_rows(call, range[0], range[1], torch_threads(), rows.data());
  stack[0] = to_stack(std::move(rows));
}

}  // namespace
}  // namespace sparsekernels

STABLE_TORCH_LIBRARY_IMPL(sparsekernels, CPU, m) {
  m.impl("_packed_linear", &sparsekernels::boxed_packed_linear);
  m.impl("_unpacked_rows", &sparsekernels::boxed_unpacked_rows);
}
