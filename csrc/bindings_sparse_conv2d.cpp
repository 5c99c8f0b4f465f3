// The fine-grained sparse convolution on the CPU as torch operators. Linear layers are its 1x1 case. The schemas are
// defined in Python (sparsekernels/ops/sparse_conv2d/operators.py).
#include <algorithm>

#include "cpu/fma_rate.h"
#include "cpu/sparse/program_cache.h"
#include "sparse_conv2d.h"
#include "sparse_glue.h"

namespace sparsekernels {
namespace {

Activation activation_of(const Handle& tensor) {
  Activation result;
  result.data = tensor.data();
  result.dtype = dtype_of(tensor);
  const int64_t *sizes = tensor.sizes(), *strides = tensor.strides();
  for (int d = 0; d < 4; ++d) {
    result.size[d] = sizes[d];
    result.stride[d] = strides[d];
    require(sizes[d] < int64_t{1} << 30, "input: accepted are sizes below 2^30");
  }
  return result;
}

void check_activation(const Handle& tensor, const Geometry& geometry) {
  require(tensor.dim() == 4, "input: accepted are 4 dimensions");
  require(dtype_of(tensor) != DType::kFloat64, "input: accepted are float32, bfloat16 and float16");
  require(tensor.device_type() == aoti_torch_device_type_cpu(), "input: accepted is the CPU");
  const int64_t channels = tensor.sizes()[1], groups = geometry.conv.groups;
  require(channels > 0 && channels % groups == 0, "input: accepted are channels, at least one, that divide by groups");
  require(
      channels / groups <= std::numeric_limits<int32_t>::max() / geometry.taps(),
      "input: accepted are fewer than 2^31 weights for an output channel");
}

// Uninitialised; contiguous or channels last.
Handle empty_activation(const int64_t (&sizes)[4], bool channels_last, const Handle& like) {
  if (!channels_last) return empty(sizes, 4, like.dtype(), like);
  int64_t strides[4];
  const int order[4] = {1, 3, 2, 0};
  int64_t stride = 1;
  for (const int d : order) {
    strides[d] = stride;
    stride *= std::max<int64_t>(sizes[d], 1);
  }
  AtenTensorHandle result;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(4, sizes, strides, like.dtype(), like.device_type(), like.device_index(), &result));
  return poisoned(Handle(result));
}

// As torch decides for its convolutions: contiguous first, which a tensor with one channel or one pixel is as well.
bool is_channels_last(const Handle& tensor) {
  if (tensor.is_contiguous()) return false;
  const int64_t *sizes = tensor.sizes(), *strides = tensor.strides();
  const int order[4] = {1, 3, 2, 0};
  int64_t expected = 1;
  for (const int d : order) {
    if (sizes[d] != 1 && strides[d] != expected) return false;
    expected *= sizes[d];
  }
  return true;
}

// Whether the tensor has the sizes of `other`, and its strides where these matter.
bool lies_as(const Handle& tensor, const Activation& other) {
  const int64_t *sizes = tensor.sizes(), *strides = tensor.strides();
  bool same = true;
  for (int d = 0; d < 4; ++d) same = same && sizes[d] == other.size[d];
  for (int d = 0; d < 4; ++d) same = same && (sizes[d] < 2 || strides[d] == other.stride[d]);
  return same;
}

void boxed_sparse_conv2d(StableIValue* stack, uint64_t, uint64_t) {
  Arguments arguments(stack);
  const Handle input = arguments.tensor();
  const Handle values = contiguous_vector(arguments.tensor());
  Handle bias = arguments.optional_tensor();
  const Handle crow = arguments.tensor(), col = arguments.tensor();
  const Geometry geometry(arguments.integers());
  const Handle residual = arguments.optional_tensor();
  const std::optional<double> low = arguments.optional_number(), high = arguments.optional_number();

  check_activation(input, geometry);
  SparsePattern pattern = pattern_of(crow, col, geometry);
  check_like(values, input, pattern.nonzeros, "values: accepted is one for each index, in dtype and place of input");
  pattern.values = values.data();
  pattern.dtype = dtype_of(values);
  if (bias) {
    bias = contiguous_vector(std::move(bias));
    check_like(bias, input, pattern.rows, "bias: accepted is one for each output channel, in dtype and place of input");
  }
  const Activation source = activation_of(input);
  int64_t sizes[4] = {source.size[0], pattern.rows, 0, 0};
  for (int d = 0; d < 2; ++d) {
    sizes[2 + d] = geometry.output_size(d, source.size[2 + d]);
    require(sizes[2 + d] > 0, "input: accepted is one that the kernel fits into");
  }
  Handle output = empty_activation(sizes, is_channels_last(input), input);
  const Activation dest = activation_of(output);
  Epilogue epilogue;
  if (bias) epilogue.bias = bias.data();
  if (residual) {
    require(
        residual.dim() == 4 && residual.dtype() == input.dtype() && residual.device_type() == input.device_type() &&
            lies_as(residual, dest),
        "residual: accepted is a tensor like the output");
    epilogue.residual = residual.data();
  }
  if (low) epilogue.low = static_cast<float>(*low);
  if (high) epilogue.high = static_cast<float>(*high);
  require(epilogue.low <= epilogue.high, "low, high: accepted are numbers, the first at most the second");
  sparse_conv2d(geometry.conv, pattern, source, epilogue, dest, torch_threads());
  stack[0] = to_stack(std::move(output));
}

void boxed_input_gradient(StableIValue* stack, uint64_t, uint64_t) {
  Arguments arguments(stack);
  const Handle grad_output = arguments.tensor();
  const Handle values = contiguous_vector(arguments.tensor());
  const Handle crow = arguments.tensor(), col = arguments.tensor(), permutation = arguments.tensor();
  const Geometry geometry(arguments.integers());
  const int64_t height = arguments.integer(), width = arguments.integer();
  const bool channels_last = arguments.boolean();

  check_activation(grad_output, geometry);
  SparsePattern pattern = pattern_of(crow, col, geometry);
  pattern.permutation = indices(permutation, pattern.nonzeros);
  check_like(
      values, grad_output, pattern.nonzeros,
      "values: accepted is one for each index, in dtype and place of grad_output");
  pattern.values = values.data();
  pattern.dtype = dtype_of(values);
  const Activation source = activation_of(grad_output);
  const int64_t input_size[2] = {height, width};
  for (int d = 0; d < 2; ++d) {
    require(
        geometry.output_size(d, input_size[d]) == source.size[2 + d],
        "grad_output: accepted is the size that the convolution gives");
  }
  const int64_t sizes[4] = {source.size[0], pattern.rows, height, width};
  Handle grad_input = empty_activation(sizes, channels_last, grad_output);
  sparse_conv2d_input_gradient(geometry.conv, pattern, source, activation_of(grad_input), torch_threads());
  stack[0] = to_stack(std::move(grad_input));
}

void boxed_weight_gradient(StableIValue* stack, uint64_t, uint64_t) {
  Arguments arguments(stack);
  const Handle grad_output = arguments.tensor(), input = arguments.tensor();
  const Handle crow = arguments.tensor(), col = arguments.tensor();
  const Geometry geometry(arguments.integers());

  check_activation(grad_output, geometry);
  check_activation(input, geometry);
  require(grad_output.dtype() == input.dtype(), "grad_output: accepted is the dtype of input");
  const SparsePattern pattern = pattern_of(crow, col, geometry);
  const Activation source = activation_of(input), grads = activation_of(grad_output);
  require(
      grads.size[1] == pattern.rows && grads.size[0] == source.size[0], "grad_output: does not fit input and indices");
  for (int d = 0; d < 2; ++d) {
    require(
        geometry.output_size(d, source.size[2 + d]) == grads.size[2 + d],
        "grad_output: accepted is the size that the convolution gives");
  }
  Handle grad_values = empty(&pattern.nonzeros, 1, input.dtype(), input);
  sparse_conv2d_weight_gradient(geometry.conv, pattern, grads, source, grad_values.data(), torch_threads());
  stack[0] = to_stack(std::move(grad_values));
}

void boxed_fma_rate(StableIValue* stack, uint64_t, uint64_t) {
  stack[0] = torch::stable::detail::from(fma_from_l1_gflops(torch_threads()));
}

void boxed_kept_programs(StableIValue* stack, uint64_t, uint64_t) {
  stack[0] = torch::stable::detail::from(programs_allowed() ? kept_program_bytes() : int64_t{-1});
}

void boxed_most_programs(StableIValue* stack, uint64_t, uint64_t) {
  stack[0] = torch::stable::detail::from(most_program_bytes());
}

}  // namespace
}  // namespace sparsekernels

STABLE_TORCH_LIBRARY_IMPL(sparsekernels, CPU, m) {
  m.impl("_sparse_conv2d", &sparsekernels::boxed_sparse_conv2d);
  m.impl("_sparse_conv2d_input_gradient", &sparsekernels::boxed_input_gradient);
  m.impl("_sparse_conv2d_weight_gradient", &sparsekernels::boxed_weight_gradient);
}

STABLE_TORCH_LIBRARY_FRAGMENT(sparsekernels, m) {
  m.def("_fma_from_l1_gflops() -> float");
  m.def("_kept_program_bytes() -> int");  // -1: programs are not to be had
  m.def("_most_program_bytes() -> int");
}

STABLE_TORCH_LIBRARY_IMPL(sparsekernels, CompositeExplicitAutograd, m) {
  m.impl("_fma_from_l1_gflops", &sparsekernels::boxed_fma_rate);
  m.impl("_kept_program_bytes", &sparsekernels::boxed_kept_programs);
  m.impl("_most_program_bytes", &sparsekernels::boxed_most_programs);
}
