// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Between torch's stable ABI and the kernels: owns tensor handles, takes arguments off the stack, allocates outputs.
// Only this file, each operation's glue.h and its bindings know torch; and sparse_conv2d/owned_plan.h, a part of these.
//
// The checks here keep the kernels safe. The Python functions look at the arguments again when a call is refused, and
// explain it to users.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <array>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <limits>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "base/dtype.h"
#include "base/fork_safe_mutex.h"

namespace sparsekernels {

// Owns one AtenTensorHandle. torch::stable::Tensor does as well, through a shared_ptr whose control block is one more
// allocation a tensor, which is measurable in a small call.
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

// What was given, for error messages.
inline std::string text_of(int64_t number) {
  return std::to_string(number);
}

inline std::string text_of(double number) {
  char text[32];
  std::snprintf(text, sizeof text, "%g", number);
  return text;
}

inline std::string text_of(const int64_t* numbers, size_t count) {
  std::string text = "[";
  for (size_t i = 0; i < count; ++i) {
    if (i > 0) text += ", ";
    text += std::to_string(numbers[i]);
  }
  return text += "]";
}

inline std::string text_of(const std::vector<int64_t>& numbers) {
  return text_of(numbers.data(), numbers.size());
}

inline std::string text_of(const Handle& tensor) {
  if (!tensor) return "None";
  struct Name {
    int32_t code;
    const char* name;
  };
  const Name dtypes[] = {{aoti_torch_dtype_float32(), "float32"}, {aoti_torch_dtype_bfloat16(), "bfloat16"},
                         {aoti_torch_dtype_float16(), "float16"}, {aoti_torch_dtype_float64(), "float64"},
                         {aoti_torch_dtype_int16(), "int16"},     {aoti_torch_dtype_int32(), "int32"},
                         {aoti_torch_dtype_int64(), "int64"}};
  std::string text = "another dtype";
  for (const Name& one : dtypes)
    if (one.code == tensor.dtype()) text = one.name;
  text += ' ' + text_of(tensor.sizes(), static_cast<size_t>(tensor.dim()));
  if (!tensor.is_contiguous()) text += " with strides " + text_of(tensor.strides(), static_cast<size_t>(tensor.dim()));
  if (tensor.device_type() == aoti_torch_device_type_cpu()) return text + " on cpu";
  if (tensor.device_type() != aoti_torch_device_type_cuda()) return text + " on another device";
  return text + " on cuda:" + std::to_string(tensor.device_index());
}

// Throws std::invalid_argument where the condition does not hold: what was expected, then what was given.
template <class Given>
void require(bool condition, const char* expected, const Given& given) {
  if (!condition) throw std::invalid_argument(std::string(expected) + ", got " + text_of(given));
}

// How many arguments a boxed kernel finds on the stack, and how many results it leaves there.
struct StackCounts {
  uint64_t arguments, results;
};

// Arguments of a boxed kernel, taken off the stack one after another.
class Arguments {
 public:
  // The operators are declared in Python: a library of another version would read and write past the stack.
  Arguments(StableIValue* stack, StackCounts given, StackCounts expected) : stack_(stack) {
    if (given.arguments == expected.arguments && given.results == expected.results) return;
    const auto words = [](StackCounts counts) {
      std::string text = std::to_string(counts.arguments);
      text += " arguments and ";
      text += std::to_string(counts.results);
      text += " results";
      return text;
    };
    std::string message = "sparsekernels: expected ";
    message += words(expected);
    message += ", got ";
    message += words(given);
    message += ": the compiled kernels are of another version than the Python code; build them again";
    throw std::invalid_argument(message);
  }
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
  std::vector<torch::stable::Tensor> tensors() {
    return torch::stable::detail::to<std::vector<torch::stable::Tensor>>(*stack_++);
  }

 private:
  StableIValue* stack_;
};

inline StableIValue to_stack(Handle&& tensor) {
  return torch::stable::detail::from(tensor.release());
}

// Throws std::invalid_argument in the name of `operation` where kernels do not take such a tensor.
inline DType dtype_of(const Handle& tensor, const char* operation) {
  static MadeOnce<std::array<int32_t, 4>> made;
  const std::array<int32_t, 4>& codes = made.get([] {
    return std::array<int32_t, 4>{
        aoti_torch_dtype_float32(), aoti_torch_dtype_bfloat16(), aoti_torch_dtype_float16(),
        aoti_torch_dtype_float64()};
  });
  const int32_t code = tensor.dtype();
  for (int i = 0; i < 4; ++i)
    if (codes[static_cast<size_t>(i)] == code) return static_cast<DType>(i);
  throw std::invalid_argument(
      std::string(operation) + ": expected tensors of float32, bfloat16, float16 or float64, got " + text_of(tensor));
}

inline bool same_sizes(const Handle& a, const Handle& b) {
  const int64_t dim = a.dim();
  if (b.dim() != dim) return false;
  const int64_t *left = a.sizes(), *right = b.sizes();
  for (int64_t d = 0; d < dim; ++d)
    if (left[d] != right[d]) return false;
  return true;
}

inline void require_like(const Handle& tensor, const Handle& input, const char* expected) {
  require(
      same_sizes(tensor, input) && tensor.dtype() == input.dtype() && tensor.device_type() == input.device_type() &&
          tensor.device_index() == input.device_index(),
      expected, tensor);
}

inline Handle contiguous(const Handle& tensor) {
  return Handle::from(torch::stable::contiguous(tensor.shared()));
}

// With SPARSEKERNELS_POISON=1 in the environment at the first call, results start as NaN, bits as some pattern. The
// tests set it: what a kernel does not write shows.
inline Handle poisoned(Handle tensor) {
  static MadeOnce<bool> poison;
  const bool poisons = poison.get([] {
    const char* value = std::getenv("SPARSEKERNELS_POISON");
    return value != nullptr && value[0] == '1';
  });
  if (poisons) {
    torch::stable::Tensor shared = tensor.shared();
    const int32_t dtype = tensor.dtype();
    const bool bits =
        dtype == aoti_torch_dtype_int16() || dtype == aoti_torch_dtype_int32() || dtype == aoti_torch_dtype_int64();
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

// Uninitialized; contiguous or channels last.
inline Handle empty_activation(const int64_t (&sizes)[4], bool channels_last, const Handle& like) {
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

// An uninitialized result: contiguous, as torch's own.
inline Handle empty_output(const Handle& input) {
  return empty(input.sizes(), input.dim(), input.dtype(), input);
}

inline Handle empty_placeholder(const Handle& like) {
  const int64_t none = 0;
  return empty(&none, 1, like.dtype(), like);
}

}  // namespace sparsekernels
