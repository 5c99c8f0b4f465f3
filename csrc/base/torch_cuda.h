// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// What the bindings of CUDA kernels share. Links torch's core alone, so that it builds where torch has no CUDA: torch's
// current stream is looked up when the first call needs it. Messages begin with the name of the operation.
#pragma once

#include <cuda_runtime_api.h>
#include <dlfcn.h>

#include <stdexcept>
#include <string>

#include "base/torch_glue.h"

namespace sparsekernels {

inline void require_success(cudaError_t error, const char* operation, const char* expected) {
  if (error == cudaSuccess) return;
  std::string message = operation;
  message += ": expected ";
  message += expected;
  message += ", got ";
  message += cudaGetErrorName(error);
  message += ": ";
  message += cudaGetErrorString(error);
  throw std::runtime_error(message);
}

inline cudaStream_t current_stream(int32_t device, const char* operation) {
  using Function = AOTITorchError (*)(int32_t, void**);
  static const Function get_current_stream = [operation] {
    constexpr const char* kName = "aoti_torch_get_current_cuda_stream";
    void* library = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY);
    void* symbol = library != nullptr ? dlsym(library, kName) : nullptr;
    if (symbol == nullptr) symbol = dlsym(RTLD_DEFAULT, kName);
    if (symbol == nullptr) {
      throw std::runtime_error(
          std::string(operation) + ": expected a torch that was built with CUDA, got one without the function " +
          kName);
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
  OnDevice(int32_t device, const char* operation) : device_(device) {
    require_success(cudaGetDevice(&previous_), operation, "a current CUDA device");
    if (device_ != previous_)
      require_success(cudaSetDevice(device_), operation, "the CUDA device of input to become current");
  }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;
  ~OnDevice() {
    if (device_ != previous_) cudaSetDevice(previous_);
  }

 private:
  int device_, previous_ = 0;
};

}  // namespace sparsekernels
