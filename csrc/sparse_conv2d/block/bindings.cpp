// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// The entry from torch: convolution by a weight in blocks, in bfloat16 on the CPU, as torch operators. The schemas are
// defined in Python (sparsekernels/ops/sparse_conv2d/blocks.py).
#include "sparse_conv2d/block/call.h"

#include "base/interface.h"
#include "sparse_conv2d/block/kernels.h"
#include "sparse_conv2d/glue.h"

namespace sparsekernels {
namespace {

constexpr int64_t kLargestBlock = 128;

// Kernels read and write neighboring channels.
bool has_neighboring_channels(const Handle& tensor) {
  return tensor.strides()[1] == 1 || tensor.sizes()[1] == 1;
}

Handle empty_channels_last(const Handle& like) {
  int64_t sizes[4];
  std::copy_n(like.sizes(), 4, sizes);
  return empty_activation(sizes, true, like);
}

// As it is, or a copy whose channels are neighbors.
Handle with_neighboring_channels(Handle tensor) {
  if (!tensor || has_neighboring_channels(tensor)) return tensor;
  Handle copy = empty_channels_last(tensor);
  torch::stable::Tensor to = copy.shared();
  torch::stable::copy_(to, tensor.shared());
  return copy;
}

Activation neighboring_channels_of(const Handle& tensor) {
  Activation activation = activation_of(tensor);
  activation.stride[1] = 1;
  return activation;
}

// A result that kernels write: it is the tensor, or is copied to it.
class Result {
 public:
  explicit Result(Handle tensor) : tensor_(std::move(tensor)) {
    if (!has_neighboring_channels(tensor_)) written_ = empty_channels_last(tensor_);
  }
  Activation activation() const { return neighboring_channels_of(written_ ? written_ : tensor_); }
  const Handle& written() const { return written_ ? written_ : tensor_; }
  StableIValue finish() {
    if (written_) {
      torch::stable::Tensor to = tensor_.shared();
      torch::stable::copy_(to, written_.shared());
    }
    return to_stack(std::move(tensor_));
  }

 private:
  Handle tensor_, written_;
};

struct WeightSize {
  int64_t rows, channels;  // channels of a group
};

block::BlockPattern blocks_of(
    const Handle& crow, const Handle& col, const std::vector<int64_t>& block, const Geometry& geometry,
    const WeightSize& size) {
  block::BlockPattern pattern;
  require(
      block.size() == 2 && block[0] >= 1 && block[1] >= 1 && block[0] <= kLargestBlock && block[1] <= kLargestBlock,
      "sparse_conv2d: expected block of rows and columns from 1 to 128", block);
  pattern.block[0] = block[0];
  pattern.block[1] = block[1];
  pattern.rows = size.rows;
  pattern.channels = size.channels;
  pattern.taps = geometry.taps();
  pattern.blocks = length(col);
  require(
      size.rows > 0 && size.channels > 0 && size.rows % geometry.conv.groups == 0 &&
          size.channels <= std::numeric_limits<int32_t>::max() / size.rows / pattern.taps,
      "sparse_conv2d: expected a weight whose rows groups divide, of less than 2^31 elements; rows", size.rows);
  pattern.crow_indices = indices(crow, pattern.block_rows() + 1);
  pattern.col_indices = indices(col, pattern.blocks);
  require(
      block::is_supported(pattern, geometry.conv.groups),
      "sparse_conv2d: expected block of rows that divide the outputs of a group", block);
  block::check_blocks(pattern);
  return pattern;
}

// Reads the weight: the values of the blocks, in one dimension, or the dense weight [out, in/groups, kh, kw].
void set_weight(const Handle& weight, const Geometry& geometry, block::BlockPattern& pattern) {
  require(
      weight.dtype() == aoti_torch_dtype_bfloat16() && weight.device_type() == aoti_torch_device_type_cpu(),
      "sparse_conv2d: expected weight of bfloat16 on the CPU", weight);
  if (weight.dim() == 1) {
    require(
        weight.is_contiguous() && weight.sizes()[0] == block::elements_of(pattern),
        "sparse_conv2d: expected values of one element for each of the blocks'", weight);
    pattern.values = static_cast<const uint16_t*>(weight.data());
    return;
  }
  const int64_t expected[4] = {pattern.rows, pattern.channels, geometry.conv.kernel[0], geometry.conv.kernel[1]};
  require(
      weight.dim() == 4 && std::equal(expected, expected + 4, weight.sizes()),
      "sparse_conv2d: expected weight of the values of the blocks, in 1 dimension, or of all elements", weight);
  require_memory(weight);
  const int64_t* const strides = weight.strides();
  pattern.dense = static_cast<const uint16_t*>(weight.data());
  pattern.dense_strides[0] = strides[0];
  pattern.dense_strides[1] = strides[1];
  pattern.dense_strides[2] = expected[3] == 1 ? strides[2] : strides[3];
}

// Taps are one dimension of a dense weight.
Handle with_joined_taps(Handle weight) {
  if (weight.dim() == 1) return contiguous_vector(std::move(weight));
  const int64_t *sizes = weight.sizes(), *strides = weight.strides();
  bool joined = weight.dim() != 4 || sizes[2] == 1 || sizes[3] == 1 || strides[2] == sizes[3] * strides[3];
  int64_t farthest = 0;  // places are of 32 bits
  for (int64_t d = 0; d < weight.dim(); ++d) farthest += (sizes[d] - 1) * strides[d];
  joined = joined && farthest < std::numeric_limits<int32_t>::max();
  return joined ? std::move(weight) : contiguous(weight);
}

void check_bfloat16(const Handle& tensor, const Geometry& geometry) {
  check_activation(tensor, geometry);
  require(tensor.dtype() == aoti_torch_dtype_bfloat16(), "sparse_conv2d: expected tensors of bfloat16", tensor);
}

// With `in_place` the result takes the residual's memory.
void run_block_conv2d(StableIValue* stack, uint64_t count, uint64_t returned, bool in_place) {
  Arguments arguments(stack, {count, returned}, {11, in_place ? uint64_t{0} : uint64_t{1}});
  const Handle given = arguments.tensor();
  const Handle weight = with_joined_taps(arguments.tensor());
  Handle given_bias = arguments.optional_tensor();
  const Handle crow = arguments.tensor(), col = arguments.tensor();
  const std::vector<int64_t> block = arguments.integers();
  const int64_t rows = arguments.integer();
  const Geometry geometry(arguments.integers());
  Handle given_residual = in_place ? arguments.tensor() : arguments.optional_tensor();
  const std::optional<double> low = arguments.optional_number(), high = arguments.optional_number();

  check_bfloat16(given, geometry);
  const int64_t channels = given.sizes()[1] / geometry.conv.groups;
  block::BlockPattern pattern = blocks_of(crow, col, block, geometry, {rows, channels});
  set_weight(weight, geometry, pattern);
  const Handle bias = checked_bias(std::move(given_bias), given, rows);
  if (in_place) {
    const Sizes sizes = output_sizes(given, activation_of(given), geometry, rows);
    require(
        given_residual.dtype() == given.dtype() && given_residual.device_type() == given.device_type() &&
            given_residual.dim() == 4 && std::equal(sizes.of, sizes.of + 4, given_residual.sizes()) &&
            is_channels_last(given_residual) && has_neighboring_channels(given_residual),
        "sparse_conv2d: expected residual of the shape and dtype of the output, in channels_last", given_residual);
  }
  Result result(
      in_place ? Handle::from(given_residual.shared()) : empty_output(given, activation_of(given), geometry, rows));
  const Handle input = with_neighboring_channels(Handle::from(given.shared()));
  Handle residual;
  if (given_residual) {
    require(
        same_sizes(given_residual, result.written()), "sparse_conv2d: expected residual of the shape of the output",
        given_residual);
    residual = with_neighboring_channels(std::move(given_residual));
  }
  const Activation dest = result.activation();
  block::conv2d(
      geometry.conv, pattern, neighboring_channels_of(input), epilogue_of(given, bias, residual, low, high, dest), dest,
      torch_threads());
  if (!in_place) stack[0] = result.finish();
}

void boxed_block_conv2d(StableIValue* stack, uint64_t count, uint64_t returned) {
  run_block_conv2d(stack, count, returned, false);
}

void boxed_block_conv2d_in_place(StableIValue* stack, uint64_t count, uint64_t returned) {
  run_block_conv2d(stack, count, returned, true);
}

void boxed_block_input_gradient(StableIValue* stack, uint64_t count, uint64_t returned) {
  Arguments arguments(stack, {count, returned}, {10, 1});
  const Handle given = arguments.tensor();
  const Handle weight = with_joined_taps(arguments.tensor());
  const Handle crow = arguments.tensor(), col = arguments.tensor();
  const std::vector<int64_t> block = arguments.integers();
  const Geometry geometry(arguments.integers());
  const int64_t channels = arguments.integer(), height = arguments.integer(), width = arguments.integer();
  const bool channels_last = arguments.boolean();

  check_bfloat16(given, geometry);
  const int64_t rows = given.sizes()[1];
  require(
      channels > 0 && channels % geometry.conv.groups == 0, "sparse_conv2d: expected channels that groups divide",
      channels);
  block::BlockPattern pattern = blocks_of(crow, col, block, geometry, {rows, channels / geometry.conv.groups});
  set_weight(weight, geometry, pattern);
  const int64_t input_size[2] = {height, width};
  check_grad_output(given, geometry, rows, input_size);
  const int64_t sizes[4] = {given.sizes()[0], channels, height, width};
  Result result(empty_activation(sizes, channels_last, given));
  const Handle grad_output = with_neighboring_channels(Handle::from(given.shared()));
  block::input_gradient(
      geometry.conv, pattern, neighboring_channels_of(grad_output), result.activation(), torch_threads());
  stack[0] = result.finish();
}

void boxed_block_weight_gradient(StableIValue* stack, uint64_t count, uint64_t returned) {
  Arguments arguments(stack, {count, returned}, {7, 1});
  const Handle given = arguments.tensor(), given_input = arguments.tensor();
  const Handle crow = arguments.tensor(), col = arguments.tensor();
  const std::vector<int64_t> block = arguments.integers();
  const Geometry geometry(arguments.integers());
  const int64_t elements = arguments.integer();

  check_bfloat16(given_input, geometry);
  check_bfloat16(given, geometry);
  const int64_t rows = given.sizes()[1], channels = given_input.sizes()[1] / geometry.conv.groups;
  const block::BlockPattern pattern = blocks_of(crow, col, block, geometry, {rows, channels});
  const int64_t input_size[2] = {given_input.sizes()[2], given_input.sizes()[3]};
  check_grad_output(given, geometry, rows, input_size);
  require(
      given.sizes()[0] == given_input.sizes()[0], "sparse_conv2d: expected grad_output of the batch of input", given);
  const Handle grad_output = with_neighboring_channels(Handle::from(given.shared()));
  const Handle input = with_neighboring_channels(Handle::from(given_input.shared()));
  require(
      elements == block::elements_of(pattern), "sparse_conv2d: expected as many values as the blocks have elements",
      elements);
  Handle grad_values = empty(&elements, 1, given.dtype(), given);
  block::weight_gradient(
      geometry.conv, pattern, neighboring_channels_of(grad_output), neighboring_channels_of(input),
      static_cast<uint16_t*>(grad_values.data()), torch_threads());
  stack[0] = to_stack(std::move(grad_values));
}

}  // namespace
}  // namespace sparsekernels

STABLE_TORCH_LIBRARY_IMPL(sparsekernels, CPU, m) {
  m.impl("_block_conv2d", &sparsekernels::boxed_block_conv2d);
  m.impl("_block_conv2d_", &sparsekernels::boxed_block_conv2d_in_place);
  m.impl("_block_conv2d_input_gradient", &sparsekernels::boxed_block_input_gradient);
  m.impl("_block_conv2d_weight_gradient", &sparsekernels::boxed_block_weight_gradient);
}

extern "C" {

// The kernels for blocks in bfloat16: "amx", "avx512_bf16" or "portable".
SPARSEKERNELS_EXPORT const char* sparsekernels_cpu_block_kernels() {
  return sparsekernels::block::kernels_name();
}

// Why these are not "amx"; null where they are.
SPARSEKERNELS_EXPORT const char* sparsekernels_cpu_amx_reason() {
  return sparsekernels::block::amx_reason();
}
}
