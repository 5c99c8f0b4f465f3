// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// The CUDA kernels as torch operators, through torch's stable ABI, as bindings.cpp has the CPU ones. Links torch's core
// alone, so that it builds where torch has no CUDA: torch's current stream is looked up when the first call needs it.
#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <stdexcept>
#include <string>

#include "base/interface.h"
#include "rms_norm/cuda/launch.h"
#include "rms_norm/glue.h"

namespace sparsekernels {
namespace {

void require_success(cudaError_t error, const char* expected) {
  if (error == cudaSuccess) return;
  throw std::runtime_error(
      std::string(expected) + ", got " + cudaGetErrorName(error) + ": " + cudaGetErrorString(error));
}

cudaStream_t current_stream(int32_t device) {
  using Function = AOTITorchError (*)(int32_t, void**);
  static const Function get_current_stream = [] {
    constexpr const char* kName = "aoti_torch_get_current_cuda_stream";
    void* library = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY);
    void* symbol = library != nullptr ? dlsym(library, kName) : nullptr;
    if (symbol == nullptr) symbol = dlsym(RTLD_DEFAULT, kName);
    if (symbol == nullptr) {
      throw std::runtime_error(
          std::string("rms_norm: expected a torch that was built with CUDA, got one without the function ") + kName);
    }
    return reinterpret_cast<Function>(symbol);
  }();
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(get_current_stream(device, &stream));
  return static_cast<cudaStream_t>(stream);
}

// Makes a device current while it lives.
class OnDevice {
 public:
  explicit OnDevice(int32_t device) : device_(device) {
    require_success(cudaGetDevice(&previous_), "rms_norm: expected a current CUDA device");
    if (device_ != previous_)
      require_success(cudaSetDevice(device_), "rms_norm: expected the CUDA device of input to become current");
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;
  ~OnDevice() {
    if (device_ != previous_) cudaSetDevice(previous_);
  }

 private:
  int device_, previous_ = 0;
};

void launch_forward(const RmsNormForward& call, const Handle& input) {
  const int32_t device = input.device_index();
  const OnDevice guard(device);
  require_success(
      cuda::rms_norm_forward(call, current_stream(device)), "rms_norm: expected the forward pass to be launched");
}

// The workspace goes back to torch's allocator as soon as the kernel is launched; torch hands it out again only to work
// that follows on the same stream.
void launch_backward(RmsNormBackward call, const Handle& input) {
  const int32_t device = input.device_index();
  const OnDevice guard(device);
  const int64_t floats = static_cast<int64_t>(cuda::rms_norm_workspace_bytes(call) / sizeof(float));
  const Handle workspace = floats > 0 ? empty(&floats, 1, aoti_torch_dtype_float32(), input) : Handle();
  if (workspace) call.workspace = workspace.data();
  require_success(
      cuda::rms_norm_backward(call, current_stream(device)), "rms_norm: expected the backward pass to be launched");
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

STABLE_TORCH_LIBRARY_IMPL(sparsekernels, CUDA, m) {
  m.impl("_rms_norm", &sparsekernels::rms_norm);
  m.impl("_add_rms_norm", &sparsekernels::add_rms_norm);
  m.impl("_rms_norm_backward", &sparsekernels::rms_norm_backward);
}

extern "C" SPARSEKERNELS_EXPORT const char* sparsekernels_cuda_interface() {
  return sparsekernels::kInterface;
}
