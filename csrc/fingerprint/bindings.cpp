// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Fingerprints of tensors on the CPU as torch operators: what is kept has a number; the caller that creates it frees
// it. The schemas are defined in Python (sparsekernels/ops/fingerprint/implementations.py).
#include <memory>
#include <mutex>
#include <utility>

#include "base/fork_safe_mutex.h"
#include "base/numbered.h"
#include "base/torch_glue.h"
#include "base/torch_threads.h"
#include "fingerprint/fingerprint.h"
#include "isa/kernels.h"

namespace sparsekernels {
namespace {

// Whether the storage reaches as far as sizes and strides do: it may be resized beneath its tensor.
bool has_memory(const Handle& tensor) {
  int64_t last = 0, offset = 0, bytes = 0;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_offset(tensor.get(), &offset));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(tensor.get(), &bytes));
  for (int64_t d = 0; d < tensor.dim(); ++d) {
    if (tensor.sizes()[d] == 0) return true;
    last += (tensor.sizes()[d] - 1) * tensor.strides()[d];
  }
  const auto element = static_cast<int64_t>(aoti_torch_dtype_element_size(tensor.dtype()));
  return tensor.data() != nullptr && (offset + last + 1) * element <= bytes;
}

class Fingerprint {
 public:
  explicit Fingerprint(std::vector<Handle> tensors) : tensors_(std::move(tensors)) {}

  uint64_t value(bool content) {
    std::vector<uint64_t> places;
    places.reserve(12 * tensors_.size());
    for (const Handle& tensor : tensors_) {
      const int64_t dim = tensor.dim(), *size = tensor.sizes(), *stride = tensor.strides();
      places.push_back(reinterpret_cast<uint64_t>(tensor.data()));
      places.push_back(static_cast<uint64_t>(tensor.dtype()) << 32 | static_cast<uint32_t>(tensor.device_type()));
      int64_t bytes = 0;
      STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_storage_size(tensor.get(), &bytes));
      places.push_back(static_cast<uint64_t>(bytes));
      places.push_back(static_cast<uint64_t>(dim) << 32 | static_cast<uint32_t>(tensor.device_index()));
      for (int64_t d = 0; d < dim; ++d) {
        places.push_back(static_cast<uint64_t>(size[d]));
        places.push_back(static_cast<uint64_t>(stride[d]));
      }
    }
    const auto bytes = static_cast<int64_t>(places.size() * sizeof(uint64_t));
    const uint64_t place = cpu_kernels().hash64(places.data(), bytes, 0);
    return content ? place ^ content_hash(*runs_at(place), torch_threads()) : place;
  }

 private:
  std::shared_ptr<const std::vector<MemoryRun>> runs_at(uint64_t place) {
    {
      const std::lock_guard<ForkSafeMutex> lock(mutex_);
      if (runs_ != nullptr && place == place_) return runs_;
    }
    auto runs = std::make_shared<std::vector<MemoryRun>>();
    for (const Handle& tensor : tensors_) {
      if (tensor.device_type() != aoti_torch_device_type_cpu()) continue;
      require(has_memory(tensor), "fingerprint: expected tensors whose memory is there", tensor);
      const auto bytes = static_cast<int64_t>(aoti_torch_dtype_element_size(tensor.dtype()));
      append_runs({tensor.data(), bytes, tensor.dim(), tensor.sizes(), tensor.strides()}, *runs);
    }
    std::shared_ptr<const std::vector<MemoryRun>> kept = runs, previous;  // destroyed after the lock is released
    const std::lock_guard<ForkSafeMutex> lock(mutex_);
    previous = std::exchange(runs_, kept);
    place_ = place;
    return kept;
  }

  const std::vector<Handle> tensors_;
  ForkSafeMutex mutex_;
  uint64_t place_ = 0;
  std::shared_ptr<const std::vector<MemoryRun>> runs_;
};

// Never destroyed: tensors may outlive static objects.
Numbered<Fingerprint>* const all_fingerprints =
    new Numbered<Fingerprint>("fingerprint: expected the number of one made and not freed");

Numbered<Fingerprint>& fingerprints() {
  return *all_fingerprints;
}

void boxed_make(StableIValue* stack, uint64_t count, uint64_t returned) {
  Arguments arguments(stack, {count, returned}, {1, 1});
  std::vector<Handle> tensors;
  for (const torch::stable::Tensor& one : arguments.tensors()) tensors.push_back(Handle::from(one));
  stack[0] = torch::stable::detail::from(fingerprints().add(std::make_shared<Fingerprint>(std::move(tensors))));
}

void boxed_value(StableIValue* stack, uint64_t count, uint64_t returned) {
  Arguments arguments(stack, {count, returned}, {2, 1});
  const std::shared_ptr<Fingerprint> one = fingerprints().find(arguments.integer());
  stack[0] = torch::stable::detail::from(static_cast<int64_t>(one->value(arguments.boolean())));
}

void boxed_free(StableIValue* stack, uint64_t count, uint64_t returned) {
  Arguments arguments(stack, {count, returned}, {1, 0});
  fingerprints().free(arguments.integer());
}

}  // namespace
}  // namespace sparsekernels

STABLE_TORCH_LIBRARY_IMPL(sparsekernels, CPU, m) {
  m.impl("_make_fingerprint", &sparsekernels::boxed_make);
}

STABLE_TORCH_LIBRARY_IMPL(sparsekernels, CompositeExplicitAutograd, m) {
  m.impl("_fingerprint", &sparsekernels::boxed_value);
  m.impl("_free_fingerprint", &sparsekernels::boxed_free);
}
