// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Masked attention on the CPU, as torch operators. The schemas are defined in Python
// (sparsekernels/ops/masked_attention/implementations.py).
#include <algorithm>
#include <cmath>
#include <map>
#include <utility>
#include <vector>

#include "base/batches.h"
#include "base/torch_glue.h"
#include "base/torch_threads.h"
#include "masked_attention/masked_attention.h"

namespace sparsekernels {
namespace {

MaskedMatrix sizes_of(const Handle& tensor) {
  const int64_t at = tensor.dim() - 2;
  MaskedMatrix matrix;
  matrix.rows = tensor.sizes()[at], matrix.cols = tensor.sizes()[at + 1];
  matrix.row_stride = tensor.strides()[at], matrix.col_stride = tensor.strides()[at + 1];
  return matrix;
}

void require_operand(const Handle& tensor, const Handle& q, const char* expected) {
  require(
      tensor.dtype() == q.dtype() && tensor.dim() >= 2 && tensor.device_type() == aoti_torch_device_type_cpu(),
      expected, tensor);
}

void require_few(const std::vector<int64_t>& sizes) {
  double elements = 1;
  for (const int64_t size : sizes) elements *= static_cast<double>(size);
  require(elements <= 2147483648.0, "masked_attention: expected at most 2^31 elements", sizes);
}

std::vector<int64_t> with(Batch batch, int64_t rows, int64_t cols) {
  batch.push_back(rows);
  batch.push_back(cols);
  return batch;
}

Handle empty_of(const std::vector<int64_t>& sizes, int32_t dtype, const Handle& on) {
  return empty(sizes.data(), static_cast<int64_t>(sizes.size()), dtype, on);
}

bool has_sizes(const Handle& tensor, const std::vector<int64_t>& sizes) {
  return std::vector<int64_t>(tensor.sizes(), tensor.sizes() + tensor.dim()) == sizes;
}

char* at(const Handle& tensor, int64_t offset, int64_t bytes) {
  return static_cast<char*>(tensor.data()) + offset * bytes;
}

// What both directions are given, checked.
struct Operands {
  Handle q, k, v, bits;
  Batch batch;
  AttentionBatch call;
  int64_t bytes = 0;  // of an element

  void take(Arguments& arguments) {
    q = arguments.tensor(), k = arguments.tensor(), v = arguments.tensor(), bits = arguments.tensor();
  }
  void check(double scale) {
    AttentionGroup& shape = call.shape;
    shape.dtype = dtype_of(q, "masked_attention");
    require(shape.dtype != DType::kFloat64, "masked_attention: expected q of float32, bfloat16 or float16", q);
    require_operand(q, q, "masked_attention: expected q of at least 2 dimensions on cpu");
    require_operand(k, q, "masked_attention: expected k of at least 2 dimensions, of the dtype of q, on cpu");
    require_operand(v, q, "masked_attention: expected v of at least 2 dimensions, of the dtype of q, on cpu");
    shape.q = sizes_of(q), shape.k = sizes_of(k), shape.v = sizes_of(v);
    require(shape.k.cols == shape.q.cols, "masked_attention: expected k with as many columns as q", k);
    require(shape.v.rows == shape.k.rows, "masked_attention: expected v with as many rows as k", v);
    batch = broadcast_batch(broadcast_batch(batch_sizes(q), batch_sizes(k)), batch_sizes(v));
    require(broadcasts_to(batch_sizes(q), batch), "masked_attention: expected q with a batch that broadcasts", q);
    require(broadcasts_to(batch_sizes(k), batch), "masked_attention: expected k with a batch that broadcasts", k);
    require(broadcasts_to(batch_sizes(v), batch), "masked_attention: expected v with a batch that broadcasts", v);
    require_few(with(batch, shape.q.rows, shape.v.cols));
    require_few(with(batch, shape.q.rows, shape.q.cols));
    require_few({shape.q.rows, shape.k.rows});
    constexpr char kExpected[] = "masked_attention: expected bits of int64 [..., M, words] that broadcast";
    require(bits.dtype() == aoti_torch_dtype_int64() && bits.dim() >= 2, kExpected, bits);
    require(bits.device_type() == aoti_torch_device_type_cpu(), kExpected, bits);
    if (!bits.is_contiguous()) bits = contiguous(bits);
    const MaskedMatrix mask = sizes_of(bits);
    shape.mask_words = (shape.k.rows + 63) / 64;
    require(mask.rows == shape.q.rows && mask.cols == shape.mask_words, kExpected, bits);
    require(broadcasts_to(batch_sizes(bits), batch), kExpected, bits);
    require(
        !has_bits_behind(
            static_cast<const uint64_t*>(bits.data()), batch_count(batch_sizes(bits)) * mask.rows, mask.cols,
            shape.k.rows),
        "masked_attention: expected bits that are 0 behind the last key", bits);
    require(std::isfinite(scale), "masked_attention: expected scale to be finite", std::vector<int64_t>{});
    shape.scale = static_cast<float>(scale);
    bytes = element_size(shape.dtype);
  }
  // One member for each matrix of the batch, of the group that `keys` tells: equal numbers, the same keys and values.
  template <class Member>
  void group(const std::vector<std::pair<int64_t, int64_t>>& keys, Member member_of) {
    const Batch of_q = matrix_offsets(q, batch), of_k = matrix_offsets(k, batch), of_v = matrix_offsets(v, batch);
    const Batch of_bits = matrix_offsets(bits, batch);
    std::map<std::pair<int64_t, int64_t>, size_t> places;
    for (size_t i = 0; i < of_q.size(); ++i) {
      const auto [place, is_new] = places.emplace(keys[i], call.groups.size());
      if (is_new) {
        AttentionGroup one = call.shape;
        one.k.data = at(k, of_k[i], bytes);
        one.v.data = at(v, of_v[i], bytes);
        call.groups.push_back(one);
        call.members.emplace_back();
      }
      AttentionMember member;
      member.q = at(q, of_q[i], bytes);
      member.mask = static_cast<const uint64_t*>(bits.data()) + of_bits[i];
      member_of(member, call.groups[place->second], i);
      call.members[place->second].push_back(member);
    }
  }
};

void boxed_forward(StableIValue* stack, uint64_t count, uint64_t returned) {
  Arguments arguments(stack, {count, returned}, {6, 3});
  Operands operands;
  operands.take(arguments);
  const double scale = arguments.number();
  const bool training = arguments.boolean();
  operands.check(scale);
  const AttentionGroup& shape = operands.call.shape;
  const int64_t rows = shape.q.rows, cols = shape.v.cols;
  const std::vector<int64_t> sizes = with(operands.batch, rows, cols);
  Handle y = empty_of(sizes, operands.q.dtype(), operands.q);
  Handle statistics = empty_of(with(operands.batch, rows, 2), aoti_torch_dtype_float32(), operands.q);
  const bool keeps_rest = training && shape.dtype != DType::kFloat32;
  Handle rest = keeps_rest ? empty_of(sizes, operands.q.dtype(), operands.q) : empty_placeholder(operands.q);
  const int64_t matrices = batch_count(operands.batch);
  if (matrices > 0 && rows > 0) {
    const Batch of_k = matrix_offsets(operands.k, operands.batch), of_v = matrix_offsets(operands.v, operands.batch);
    std::vector<std::pair<int64_t, int64_t>> keys;
    for (size_t i = 0; i < of_k.size(); ++i) keys.emplace_back(of_k[i], of_v[i]);
    operands.group(keys, [&](AttentionMember& member, AttentionGroup&, size_t i) {
      const int64_t matrix = static_cast<int64_t>(i);
      member.y = at(y, matrix * rows * cols, operands.bytes);
      if (keeps_rest) member.rest = at(rest, matrix * rows * cols, operands.bytes);
      member.statistics = static_cast<float*>(statistics.data()) + matrix * rows * 2;
    });
    run_attention(operands.call, training ? AttentionPass::kTraining : AttentionPass::kInference, torch_threads());
  }
  stack[0] = to_stack(std::move(y));
  stack[1] = to_stack(std::move(statistics));
  stack[2] = to_stack(std::move(rest));
}

void boxed_backward(StableIValue* stack, uint64_t count, uint64_t returned) {
  Arguments arguments(stack, {count, returned}, {9, 3});
  const Handle gradient = arguments.tensor();
  Operands operands;
  operands.take(arguments);
  Handle y = arguments.tensor(), statistics = arguments.tensor(), rest = arguments.tensor();
  operands.check(arguments.number());
  AttentionGroup& shape = operands.call.shape;
  const Handle &q = operands.q, &k = operands.k, &v = operands.v;
  const int64_t rows = shape.q.rows, cols = shape.v.cols;
  const std::vector<int64_t> sizes = with(operands.batch, rows, cols);
  require(batch_sizes(q) == operands.batch, "masked_attention: expected q with the whole batch", q);
  require(batch_sizes(k) == batch_sizes(v), "masked_attention: expected v with the batch of k", v);
  require(
      gradient.dtype() == q.dtype() && has_sizes(gradient, sizes) &&
          gradient.device_type() == aoti_torch_device_type_cpu(),
      "masked_attention: expected gradient like the result", gradient);
  require(y.dtype() == q.dtype() && has_sizes(y, sizes), "masked_attention: expected y like the result", y);
  require(
      statistics.dtype() == aoti_torch_dtype_float32() && has_sizes(statistics, with(operands.batch, rows, 2)),
      "masked_attention: expected statistics of float32 [..., M, 2]", statistics);
  int64_t of_rest = 1;
  for (int64_t d = 0; d < rest.dim(); ++d) of_rest *= rest.sizes()[d];
  require(
      of_rest == 0 || (rest.dtype() == q.dtype() && has_sizes(rest, sizes)),
      "masked_attention: expected rest like the result or empty", rest);
  for (Handle* one : {&y, &statistics, &rest})
    if (!one->is_contiguous()) *one = contiguous(*one);
  shape.gradient = sizes_of(gradient);
  Handle dq = empty_output(q), dk = empty_output(k), dv = empty_output(v);
  const int64_t matrices = batch_count(operands.batch);
  if (matrices == 0) {
    for (const Handle* one : {&dk, &dv}) {
      torch::stable::Tensor shared = one->shared();
      torch::stable::fill_(shared, 0.0);
    }
  } else {
    const Batch of_gradient = matrix_offsets(gradient, operands.batch);
    const Batch of_dk = matrix_offsets(dk, operands.batch), of_dv = matrix_offsets(dv, operands.batch);
    // which of the matrices of k each belongs to, whether or not these lie in the same place
    std::vector<std::pair<int64_t, int64_t>> keys;
    const std::vector<int64_t> of_sizes = batch_sizes(k);
    Batch places = {0};
    for (size_t d = 0; d < operands.batch.size(); ++d) {
      const size_t missing = operands.batch.size() - of_sizes.size();
      const int64_t own = d >= missing ? of_sizes[d - missing] : 1;
      Batch inner;
      for (const int64_t place : places)
        for (int64_t i = 0; i < operands.batch[d]; ++i) inner.push_back(place * own + (own == 1 ? 0 : i));
      places = std::move(inner);
    }
    for (const int64_t place : places) keys.emplace_back(place, place);
    operands.group(keys, [&](AttentionMember& member, AttentionGroup& group, size_t i) {
      const int64_t matrix = static_cast<int64_t>(i);
      member.gradient = at(gradient, of_gradient[i], operands.bytes);
      member.y = at(y, matrix * rows * cols, operands.bytes);
      if (of_rest != 0) member.rest = at(rest, matrix * rows * cols, operands.bytes);
      member.statistics = static_cast<float*>(statistics.data()) + matrix * rows * 2;
      member.dq = at(dq, matrix * rows * shape.q.cols, operands.bytes);
      group.dk = at(dk, of_dk[i], operands.bytes);
      group.dv = at(dv, of_dv[i], operands.bytes);
    });
    run_attention(operands.call, AttentionPass::kBackward, torch_threads());
  }
  stack[0] = to_stack(std::move(dq));
  stack[1] = to_stack(std::move(dk));
  stack[2] = to_stack(std::move(dv));
}

}  // namespace
}  // namespace sparsekernels

STABLE_TORCH_LIBRARY_IMPL(sparsekernels, CPU, m) {
  m.impl("_masked_attention", &sparsekernels::boxed_forward);
  m.impl("_masked_attention_backward", &sparsekernels::boxed_backward);
}
