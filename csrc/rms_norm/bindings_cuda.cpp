// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// The CUDA kernels as torch operators, through torch's stable ABI, as bindings.cpp has the CPU ones.
#include "base/interface.h"
#include "base/torch_cuda.h"
#include "rms_norm/cuda/launch.h"
#include "rms_norm/glue.h"

namespace sparsekernels {
namespace {

constexpr const char* kOperation = "rms_norm";

void launch_forward(const RmsNormForward& call, const Handle& input) {
  const int32_t device = input.device_index();
  const OnDevice guard(device, kOperation);
  require_success(
      cuda::rms_norm_forward(call, current_stream(device, kOperation)), kOperation, "the forward pass to be launched");
}

// The workspace goes back to torch's allocator as soon as the kernel is launched; torch hands it out again only to work
// that follows on the same stream.
void launch_backward(RmsNormBackward call, const Handle& input) {
  const int32_t device = input.device_index();
  const OnDevice guard(device, kOperation);
  const int64_t floats = static_cast<int64_t>(cuda::rms_norm_workspace_bytes(call) / sizeof(float));
  const Handle workspace = floats > 0 ? empty(&floats, 1, aoti_torch_dtype_float32(), input) : Handle();
  if (workspace) call.workspace = workspace.data();
  require_success(
      cuda::rms_norm_backward(call, current_stream(device, kOperation)), kOperation,
      "the backward pass to be launched");
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
