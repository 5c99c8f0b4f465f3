// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// The part of CUDA's host interface that launchers use, on the emulated device. Launches run at once.
#pragma once

#include <cstring>
#include <map>

#include "device.h"

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorInvalidConfiguration = 9,
};
using cudaStream_t = struct EmulatedStream*;
inline const cudaStream_t cudaStreamPerThread = reinterpret_cast<cudaStream_t>(2);

enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrMaxSharedMemoryPerMultiprocessor = 81,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
struct cudaFuncAttributes {
  size_t sharedSizeBytes;
};
enum cudaStreamCaptureStatus { cudaStreamCaptureStatusNone = 0, cudaStreamCaptureStatusActive = 1 };
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
  void* attrs = nullptr;
  unsigned numAttrs = 0;
};

inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}

inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = emulated::device.multiprocessors;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerMultiprocessor:
      *value = emulated::device.shared_bytes + 1024;
      return cudaSuccess;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = emulated::device.shared_bytes;
      return cudaSuccess;
  }
  return cudaErrorInvalidValue;
}

template <typename Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute, int value) {
  if (value < 0 || value > emulated::device.shared_bytes) return cudaErrorInvalidValue;
  emulated::set_dynamic_limit(reinterpret_cast<const void*>(kernel), value);
  return cudaSuccess;
}

template <typename Kernel>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, Kernel* kernel) {
  attributes->sharedSizeBytes =
      static_cast<size_t>(emulated::static_shared_bytes(reinterpret_cast<const void*>(kernel)));
  return cudaSuccess;
}

// Streams from 1000 on are being captured.
inline cudaError_t cudaStreamIsCapturing(cudaStream_t stream, cudaStreamCaptureStatus* status) {
  *status = reinterpret_cast<uintptr_t>(stream) >= 1000 ? cudaStreamCaptureStatusActive : cudaStreamCaptureStatusNone;
  return cudaSuccess;
}

inline cudaError_t cudaMemsetAsync(void* address, int value, size_t bytes, cudaStream_t) {
  emulated::fill(address, value, bytes);
  return cudaSuccess;
}

template <typename T>
cudaError_t cudaGetSymbolAddress(void** address, T& symbol) {
  *address = &symbol;
  if (!emulated::has_memory(&symbol)) emulated::add_memory(&symbol, sizeof(T), "a __device__ variable", true);
  return cudaSuccess;
}

// The arguments are copied to the stack of every thread: from where the hooks know of no tensor.
template <typename Body>
__attribute__((no_sanitize_thread)) void emulated_body(const void* body) {
  (*static_cast<const Body*>(body))();
}

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(
    const cudaLaunchConfig_t* config, void (*kernel)(Parameters...), Arguments&&... arguments) {
  const auto body = [&]() __attribute__((no_sanitize_thread)) { kernel(arguments...); };
  return static_cast<cudaError_t>(emulated::run(
      reinterpret_cast<const void*>(kernel), config->gridDim, config->blockDim, config->dynamicSmemBytes,
      emulated_body<decltype(body)>, &body));
}
