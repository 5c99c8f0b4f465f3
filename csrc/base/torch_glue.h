// Between torch's stable ABI and the kernels: owns tensor handles, checks arguments, allocates outputs, and describes
// the rows of a call. Shared by bindings.cpp and bindings_cuda.cpp, the only files that know torch.
//
// The checks here are terse: they keep the kernels safe. The Python functions look at the arguments again when a call
// is refused, and say what is wrong in full.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cmath>
#include <cstdint>
#include <cstdlib>
#include <limits>
#include <optional>
#include <stdexcept>
#include <utility>
#include <vector>

#include "rms_norm/call.h"

namespace sparsekernels {

inline void require(bool condition, const char* message) {
  if (!condition) throw std::invalid_argument(message);
}

// Owns one AtenTensorHandle. torch::stable::Tensor does as well, through a shared_ptr whose control block is one more
// allocation a tensor; a small call feels that.
class Handle {
 public:
  Handle() = default;
  explicit Handle(AtenTensorHandle handle) : handle_(handle) {}
  Handle(Handle&& other) noexcept : handle_(std::exchange(other.handle_, nullptr)) {}
  Handle& operator=(Handle&& other) noexcept {
    std::swap(handle_, other.handle_);
    return *this;
  }
  Handle(const Handle&) = delete;
  Handle& operator=(const Handle&) = delete;
  ~Handle() {
    if (handle_ != nullptr) aoti_torch_delete_tensor_object(handle_);
  }

  explicit operator bool() const { return handle_ != nullptr; }
  AtenTensorHandle get() const { return handle_; }
  AtenTensorHandle release() { return std::exchange(handle_, nullptr); }

  int64_t dim() const {
    int64_t value;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dim(handle_, &value));
    return value;
  }
  const int64_t* sizes() const {
    int64_t* value;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_sizes(handle_, &value));
    return value;
  }
  const int64_t* strides() const {
    int64_t* value;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_strides(handle_, &value));
    return value;
  }
  int32_t dtype() const {
    int32_t value;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_dtype(handle_, &value));
    return value;
  }
  int32_t device_type() const {
    int32_t value;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(handle_, &value));
    return value;
  }
  int32_t device_index() const {
    int32_t value;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(handle_, &value));
    return value;
  }
  bool is_contiguous() const {
    bool value;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_is_contiguous(handle_, &value));
    return value;
  }
  void* data() const {
    void* value;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_data_ptr(handle_, &value));
    return value;
  }

  // Copies of the handle for torch's own operations, which take ownership of what they are given.
  torch::stable::Tensor shared() const {
    AtenTensorHandle copy;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_new_tensor_handle(handle_, &copy));
    return torch::stable::Tensor(copy);
  }
  static Handle from(const torch::stable::Tensor& tensor) {
    AtenTensorHandle copy;
    STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_new_tensor_handle(tensor.get(), &copy));
    return Handle(copy);
  }

 private:
  AtenTensorHandle handle_ = nullptr;
};

// Arguments of a boxed kernel, taken off the stack one after another.
class Arguments {
 public:
  explicit Arguments(StableIValue* stack) : stack_(stack) {}
  Handle tensor() { return Handle(torch::stable::detail::to<AtenTensorHandle>(*stack_++)); }
  Handle optional_tensor() {
    const auto value = torch::stable::detail::to<std::optional<AtenTensorHandle>>(*stack_++);
    return value ? Handle(*value) : Handle();
  }
  int64_t integer() { return torch::stable::detail::to<int64_t>(*stack_++); }
  double number() { return torch::stable::detail::to<double>(*stack_++); }
  std::optional<double> optional_number() { return torch::stable::detail::to<std::optional<double>>(*stack_++); }
  bool boolean() { return torch::stable::detail::to<bool>(*stack_++); }
  std::vector<int64_t> integers() { return torch::stable::detail::to<std::vector<int64_t>>(*stack_++); }

 private:
  StableIValue* stack_;
};

inline StableIValue to_stack(Handle&& tensor) {
  return torch::stable::detail::from(tensor.release());
}

inline DType dtype_of(const Handle& tensor) {
  static const int32_t codes[] = {
      aoti_torch_dtype_float32(), aoti_torch_dtype_bfloat16(), aoti_torch_dtype_float16(), aoti_torch_dtype_float64()};
  const int32_t code = tensor.dtype();
  for (int i = 0; i < 4; ++i)
    if (codes[i] == code) return static_cast<DType>(i);
  throw std::invalid_argument("dtype: accepted are float32, bfloat16, float16 and float64");
}

inline double eps_or_default(std::optional<double> eps, DType dtype) {
  if (!eps) {
    return dtype == DType::kFloat64 ? std::numeric_limits<double>::epsilon()
                                    : static_cast<double>(std::numeric_limits<float>::epsilon());
  }
  require(*eps >= 0, "eps: accepted is a number that is at least 0");  // false for NaN
  return *eps;
}

inline bool same_sizes(const Handle& a, const Handle& b) {
  const int64_t dim = a.dim();
  if (b.dim() != dim) return false;
  const int64_t *left = a.sizes(), *right = b.sizes();
  for (int64_t d = 0; d < dim; ++d)
    if (left[d] != right[d]) return false;
  return true;
}

inline void require_like(const Handle& tensor, const Handle& input, const char* message) {
  require(
      same_sizes(tensor, input) && tensor.dtype() == input.dtype() && tensor.device_type() == input.device_type() &&
          tensor.device_index() == input.device_index(),
      message);
}

// Checks input, the normalised dimensions and weight against one another; returns the number of leading dimensions.
inline int64_t check_shapes(const Handle& input, int64_t dims, int64_t size, const Handle& weight) {
  const int64_t leading = input.dim() - dims;
  require(dims > 0 && leading >= 0, "normalized_shape: accepted are the trailing sizes of input");
  const int64_t* sizes = input.sizes() + leading;
  int64_t product = 1;
  for (int64_t d = 0; d < dims; ++d) product *= sizes[d];
  require(product == size, "normalized_shape: accepted are the trailing sizes of input");
  if (weight) {
    require(weight.dim() == dims, "weight: accepted is the shape normalized_shape");
    const int64_t* weight_sizes = weight.sizes();
    for (int64_t d = 0; d < dims; ++d)
      require(weight_sizes[d] == sizes[d], "weight: accepted is the shape normalized_shape");
    require(
        weight.device_type() == input.device_type() && weight.device_index() == input.device_index(),
        "weight: accepted is the device of input");
  }
  return leading;
}

// Whether the dimensions from `leading` on lie side by side in memory.
inline bool rows_are_contiguous(const Handle& tensor, int64_t leading) {
  const int64_t *sizes = tensor.sizes(), *strides = tensor.strides();
  int64_t expected = 1;
  for (int64_t d = tensor.dim() - 1; d >= leading; --d) {
    if (sizes[d] != 1 && strides[d] != expected) return false;
    expected *= sizes[d];
  }
  return true;
}

inline Handle contiguous(const Handle& tensor) {
  return Handle::from(torch::stable::contiguous(tensor.shared()));
}

// The tensor itself where its rows are contiguous, else a contiguous copy.
inline Handle with_contiguous_rows(Handle tensor, int64_t leading) {
  return rows_are_contiguous(tensor, leading) ? std::move(tensor) : contiguous(tensor);
}

// With SPARSEKERNELS_POISON=1 in the environment when the library is loaded, results start as NaN, bits as some
// pattern. The tests set it: what a kernel does not write shows.
inline Handle poisoned(Handle tensor) {
  static const bool poison = [] {
    const char* value = std::getenv("SPARSEKERNELS_POISON");
    return value != nullptr && value[0] == '1';
  }();
  if (poison) {
    torch::stable::Tensor shared = tensor.shared();
    const bool bits = tensor.dtype() == aoti_torch_dtype_int16() || tensor.dtype() == aoti_torch_dtype_int32();
    torch::stable::fill_(shared, bits ? 0x5a5a : std::numeric_limits<double>::quiet_NaN());
  }
  return tensor;
}

inline Handle empty(const int64_t* sizes, int64_t dim, int32_t dtype, const Handle& on) {
  std::vector<int64_t> strides(static_cast<size_t>(dim));
  int64_t stride = 1;
  for (int64_t d = dim - 1; d >= 0; --d) {
    strides[static_cast<size_t>(d)] = stride;
    stride *= sizes[d] > 1 ? sizes[d] : 1;
  }
  AtenTensorHandle result;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_empty_strided(dim, sizes, strides.data(), dtype, on.device_type(), on.device_index(), &result));
  return poisoned(Handle(result));
}

// An uninitialised result: contiguous, as torch's own.
inline Handle empty_output(const Handle& input) {
  return empty(input.sizes(), input.dim(), input.dtype(), input);
}

inline Handle empty_placeholder(const Handle& like) {
  const int64_t none = 0;
  return empty(&none, 1, like.dtype(), like);
}

// Describes the rows that the given tensors share; missing tensors are allowed. Returns false where they need more
// than kMaxLeadingDims strides.
template <int kTensors>
bool describe_rows(
    const Handle& shape_of, int64_t leading, const Handle* const (&handles)[kTensors],
    RowTensor* const (&rows)[kTensors], RowSpace& space) {
  const int64_t *sizes = shape_of.sizes(), dim = shape_of.dim();
  const int64_t* strides[kTensors];
  for (int t = 0; t < kTensors; ++t) {
    strides[t] = *handles[t] ? handles[t]->strides() : nullptr;
    rows[t]->data = *handles[t] ? handles[t]->data() : nullptr;
  }
  space = RowSpace();
  space.rows = space.cols = 1;
  for (int64_t d = leading; d < dim; ++d) space.cols *= sizes[d];
  for (int64_t d = 0; d < leading; ++d) space.rows *= sizes[d];
  for (int64_t d = 0; d < leading; ++d) {
    if (sizes[d] == 1) continue;
    bool merges = space.ndim > 0;
    for (int t = 0; t < kTensors && merges; ++t)
      merges = strides[t] == nullptr || rows[t]->strides[space.ndim - 1] == strides[t][d] * sizes[d];
    if (!merges && space.ndim == kMaxLeadingDims) return false;
    const int at = merges ? space.ndim - 1 : space.ndim++;
    space.sizes[at] = merges ? space.sizes[at] * sizes[d] : sizes[d];
    for (int t = 0; t < kTensors; ++t) rows[t]->strides[at] = strides[t] == nullptr ? 0 : strides[t][d];
  }
  if (space.ndim == 0) {
    space.ndim = 1;
    space.sizes[0] = 1;
    for (int t = 0; t < kTensors; ++t) rows[t]->strides[0] = 0;
  }
  return true;
}

// describe_rows, on contiguous copies of the first `inputs` tensors where they need more strides than a kernel takes.
// The other tensors are results, which are contiguous.
template <int kTensors>
void describe_or_copy_rows(
    int64_t leading, int inputs, Handle* const (&handles)[kTensors], RowTensor* const (&rows)[kTensors],
    RowSpace& space) {
  const Handle* views[kTensors];
  for (int t = 0; t < kTensors; ++t) views[t] = handles[t];
  if (describe_rows<kTensors>(*handles[0], leading, views, rows, space)) return;
  for (int t = 0; t < inputs; ++t)
    if (*handles[t]) *handles[t] = contiguous(*handles[t]);
  describe_rows<kTensors>(*handles[0], leading, views, rows, space);
}

// The operators. A launcher is given a call that is checked, described and allocated, and never an empty one.

template <class Launch>
void boxed_forward(StableIValue* stack, bool add, Launch launch) {
  Arguments arguments(stack);
  Handle input = arguments.tensor();
  Handle residual = add ? arguments.tensor() : Handle();
  const int64_t dims = arguments.integer(), size = arguments.integer();
  Handle weight = arguments.optional_tensor();
  const std::optional<double> eps = arguments.optional_number();

  RmsNormForward call;
  call.dtype = dtype_of(input);
  call.eps = eps_or_default(eps, call.dtype);
  const int64_t leading = check_shapes(input, dims, size, weight);
  if (add) require_like(residual, input, "residual: accepted are shape, dtype and device of input");
  if (weight) {
    call.weight_dtype = dtype_of(weight);
    if (!weight.is_contiguous()) weight = contiguous(weight);
    call.weight = weight.data();
  }
  Handle output = empty_output(input);
  Handle sum = add ? empty_output(input) : Handle();
  input = with_contiguous_rows(std::move(input), leading);
  if (add) residual = with_contiguous_rows(std::move(residual), leading);
  describe_or_copy_rows<4>(
      leading, 2, {&input, &residual, &output, &sum}, {&call.input, &call.residual, &call.output, &call.sum},
      call.space);
  if (call.space.rows > 0 && call.space.cols > 0) launch(call, input);
  stack[0] = to_stack(std::move(output));
  if (add) stack[1] = to_stack(std::move(sum));
}

// launch(call, input) must write all of grad_weight, also for no rows, where it is asked for.
template <class Launch>
void boxed_backward(StableIValue* stack, Launch launch) {
  Arguments arguments(stack);
  Handle grad_output = arguments.tensor();
  Handle input = arguments.tensor();
  const int64_t dims = arguments.integer(), size = arguments.integer();
  Handle weight = arguments.optional_tensor();
  const std::optional<double> eps = arguments.optional_number();
  Handle grad_sum = arguments.optional_tensor();
  const bool need_input = arguments.boolean();
  const bool need_weight = arguments.boolean();

  RmsNormBackward call;
  call.dtype = dtype_of(input);
  call.eps = eps_or_default(eps, call.dtype);
  const int64_t leading = check_shapes(input, dims, size, weight);
  require_like(grad_output, input, "grad_output: accepted are shape, dtype and device of input");
  if (grad_sum) require_like(grad_sum, input, "grad_sum: accepted are shape, dtype and device of input");
  require(!need_weight || weight, "need_weight: there is no weight");
  if (weight) {
    call.weight_dtype = dtype_of(weight);
    if (!weight.is_contiguous()) weight = contiguous(weight);
    call.weight = weight.data();
  }
  Handle grad_input = need_input ? empty_output(input) : Handle();
  Handle grad_weight = need_weight ? empty(weight.sizes(), weight.dim(), weight.dtype(), weight) : Handle();
  if (need_weight) call.grad_weight = grad_weight.data();
  input = with_contiguous_rows(std::move(input), leading);
  grad_output = with_contiguous_rows(std::move(grad_output), leading);
  if (grad_sum) grad_sum = with_contiguous_rows(std::move(grad_sum), leading);
  describe_or_copy_rows<4>(
      leading, 3, {&grad_output, &input, &grad_sum, &grad_input},
      {&call.grad_output, &call.input, &call.grad_sum, &call.grad_input}, call.space);
  if (call.space.cols > 0 && (call.space.rows > 0 || need_weight)) launch(call, input);
  stack[0] = to_stack(need_input ? std::move(grad_input) : empty_placeholder(input));
  stack[1] = to_stack(need_weight ? std::move(grad_weight) : empty_placeholder(weight ? weight : input));
}

}  // namespace sparsekernels
