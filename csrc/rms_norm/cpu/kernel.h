// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// RMSNorm over a range of rows, forward and backward. Written once over vec.h, compiled for each instruction set by the
// files in isa/. How it works, and what it costs: docs/rms_norm.md.
//
// The order of every sum depends on the length of a row and on the row's place in the tensor alone, never on how the
// rows are shared among threads.
#pragma once

#include "base/vec.h"
#include "isa/kernels.h"
#include "rms_norm/call.h"
#include "rms_norm/cpu/rows.h"

namespace sparsekernels {
namespace {

inline float square_root(float value) {
  return __builtin_sqrtf(value);
}
inline double square_root(double value) {
  return __builtin_sqrt(value);
}

template <class T, class U>
constexpr bool kSameType = false;
template <class T>
constexpr bool kSameType<T, T> = true;

// The weight of a call in accumulator precision, its lanes arranged as VecPair<T> arranges them, so that a pair of it
// is two plain vector loads; 1 + weight where unit_offset. Ones where there is no weight; finite behind the end.
template <class T, class W>
void arrange(const void* weight, bool unit_offset, int64_t cols, typename Accumulator<T>::type* out) {
  using Acc = typename Accumulator<T>::type;
  const W* from = static_cast<const W*>(weight);
  const int64_t pairs = (cols + kPairLanes - 1) / kPairLanes;
  int64_t pair = 0;
  if constexpr (kSameType<T, W>) {
    for (; from != nullptr && (pair + 1) * kPairLanes <= cols; ++pair) {
      const VecPair<T> as_stored = VecPair<T>::load(from + pair * kPairLanes);
      const Vec<Acc> one = Vec<Acc>::broadcast(1);
      (unit_offset ? as_stored.a + one : as_stored.a).store(out + pair * kPairLanes);
      (unit_offset ? as_stored.b + one : as_stored.b).store(out + pair * kPairLanes + kLanes);
    }
  }
  for (; pair < pairs; ++pair) {
    for (int i = 0; i < kPairLanes; ++i) {
      const int64_t j = pair * kPairLanes + i;
      Acc value = j >= cols ? Acc(0) : from == nullptr ? Acc(1) : static_cast<Acc>(widen(from[j]));
      if (unit_offset) value += Acc(1);
      out[pair * kPairLanes + VecPair<T>::lane_of(i)] = value == value ? value : static_cast<Acc>(__builtin_nanf(""));
    }
  }
}

template <class T>
void arrange_weight(const void* weight, DType dtype, bool unit_offset, int64_t cols, void* arranged) {
  auto* out = static_cast<typename Accumulator<T>::type*>(arranged);
  switch (dtype) {
    case DType::kFloat32:
      return arrange<T, float>(weight, unit_offset, cols, out);
    case DType::kBFloat16:
      return arrange<T, BFloat16>(weight, unit_offset, cols, out);
    case DType::kFloat16:
      return arrange<T, Float16>(weight, unit_offset, cols, out);
    case DType::kFloat64:
      return arrange<T, double>(weight, unit_offset, cols, out);
  }
}

// Where a kernel reads the weight: as it is in memory, of the input's own dtype, or arranged by arrange_weight.
template <class T>
struct WeightAsStored {
  const T* from;
  VecPair<T> pair(int64_t j) const { return VecPair<T>::load(from + j); }
  VecPair<T> some(int64_t j, int count) const { return VecPair<T>::load_some(from + j, count); }
};
template <class T>
struct WeightArranged {
  using Acc = typename Accumulator<T>::type;
  const Acc* from;
  VecPair<T> pair(int64_t j) const { return {Vec<Acc>::load(from + j), Vec<Acc>::load(from + j + kLanes)}; }
  VecPair<T> some(int64_t j, int) const { return pair(j); }
};

// The sum of squares of a row, in four chains so that additions do not wait for one another.
template <class T>
typename Accumulator<T>::type sum_of_squares(const T* x, int64_t cols) {
  using Acc = typename Accumulator<T>::type;
  Vec<Acc> s0 = Vec<Acc>::zero(), s1 = s0, s2 = s0, s3 = s0;
  int64_t j = 0;
  for (; j + 2 * kPairLanes <= cols; j += 2 * kPairLanes) {
    const VecPair<T> first = VecPair<T>::load(x + j), second = VecPair<T>::load(x + j + kPairLanes);
    s0 = fma(first.a, first.a, s0);
    s1 = fma(first.b, first.b, s1);
    s2 = fma(second.a, second.a, s2);
    s3 = fma(second.b, second.b, s3);
  }
  if (j + kPairLanes <= cols) {
    const VecPair<T> first = VecPair<T>::load(x + j);
    s0 = fma(first.a, first.a, s0);
    s1 = fma(first.b, first.b, s1);
    j += kPairLanes;
  }
  if (j < cols) {
    const VecPair<T> first = VecPair<T>::load_some(x + j, static_cast<int>(cols - j));
    s2 = fma(first.a, first.a, s2);
    s3 = fma(first.b, first.b, s3);
  }
  return sum((s0 + s1) + (s2 + s3));
}

// total = x + residual, rounded to T.
template <class T>
void add_rows(const T* x, const T* residual, T* total, int64_t cols) {
  for_each_pair(
      cols,
      [&](int64_t j) {
        const VecPair<T> p = VecPair<T>::load(x + j), q = VecPair<T>::load(residual + j);
        VecPair<T>{p.a + q.a, p.b + q.b}.store(total + j);
      },
      [&](int64_t j, int count) {
        const VecPair<T> p = VecPair<T>::load_some(x + j, count), q = VecPair<T>::load_some(residual + j, count);
        VecPair<T>{p.a + q.a, p.b + q.b}.store_some(total + j, count);
      });
}

// What is left of a pair that is stored as T and read again.
template <class T>
VecPair<T> rounded_to(VecPair<T> pair) {
  T elements[kPairLanes];
  pair.store(elements);
  return VecPair<T>::load(elements);
}

// y = x * r * weight for one row, while the row behind it is prefetched where kPrefetch says so. kCastBefore: x * r is
// rounded to T.
template <class T, bool kPrefetch, bool kCastBefore, class Weight>
void scale_row(
    const T* x, T* y, typename Accumulator<T>::type reciprocal, Weight weight, int64_t cols,
    PrefetchDistance distance) {
  using Acc = typename Accumulator<T>::type;
  const Vec<Acc> r = Vec<Acc>::broadcast(reciprocal);
  const auto scaled = [&](VecPair<T> p, VecPair<T> w) -> VecPair<T> {
    if constexpr (kCastBefore) {
      p = rounded_to<T>({p.a * r, p.b * r});
      return {p.a * w.a, p.b * w.b};
    } else {
      return {p.a * r * w.a, p.b * r * w.b};
    }
  };
  for_each_pair(
      cols,
      [&](int64_t j) {
        if constexpr (kPrefetch) {
          prefetch_pair(x + j + distance.read);
          prefetch_pair(y + j + distance.written);
        }
        scaled(VecPair<T>::load(x + j), weight.pair(j)).store(y + j);
      },
      [&](int64_t j, int count) {
        scaled(VecPair<T>::load_some(x + j, count), weight.some(j, count)).store_some(y + j, count);
      });
}

// Rows go in batches: first the sums of squares of all, then all the square roots and divisions at once (16 of them
// cost what one does), then all the products. Results do not depend on the batches, as both are exactly rounded.
template <class T, bool kCastBefore, bool kPrefetch, bool kAdd, class Weight>
void forward_rows(const RmsNormForward& call, Weight weight, int64_t begin, int64_t end) {
  using Acc = typename Accumulator<T>::type;
  constexpr int kMostRows = 16;
  constexpr int64_t kBatchElements =
      4096 / static_cast<int64_t>(sizeof(T));  // of a batch: what is read twice stays in L1
  const int64_t cols = call.space.cols;
  const int64_t batch =
      cols * kMostRows <= kBatchElements ? kMostRows : (cols < kBatchElements ? kBatchElements / cols : 1);
  const PrefetchDistance distance = {
      prefetch_distance<T>(call.space, call.input), prefetch_distance<T>(call.space, call.output)};
  constexpr int kTensors = kAdd ? 4 : 2;
  const RowTensor* const tensors[] = {&call.input, &call.output, &call.residual, &call.sum};
  RowIterator<kTensors> iterator(call.space, tensors, begin);
  for (int64_t row = begin; row < end; row += batch) {
    const int rows = static_cast<int>(end - row < batch ? end - row : batch);
    const T* x[kMostRows];
    T* y[kMostRows];
    Acc reciprocals[kMostRows] = {};
    for (int i = 0; i < rows; ++i, iterator.next()) {
      x[i] = row_of<T>(call.input, iterator.offset(0));
      y[i] = mutable_row_of<T>(call.output, iterator.offset(1));
      if constexpr (kAdd) {
        T* total = mutable_row_of<T>(call.sum, iterator.offset(3));
        add_rows(x[i], row_of<T>(call.residual, iterator.offset(2)), total, cols);
        x[i] = total;
      }
      reciprocals[i] = sum_of_squares(x[i], cols);
    }
    for (Acc& value : reciprocals)
      value = Acc(1) / square_root(value / static_cast<Acc>(cols) + static_cast<Acc>(call.eps));
    for (int i = 0; i < rows; ++i)
      scale_row<T, kPrefetch, kCastBefore>(x[i], y[i], reciprocals[i], weight, cols, distance);
  }
}

template <class T, bool kCastBefore, class Weight>
void forward_rows(const RmsNormForward& call, Weight weight, int64_t begin, int64_t end) {
  const bool add = call.residual.data != nullptr;
  if (out_of_cache<T>(call.space)) {
    add ? forward_rows<T, kCastBefore, true, true>(call, weight, begin, end)
        : forward_rows<T, kCastBefore, true, false>(call, weight, begin, end);
  } else {
    add ? forward_rows<T, kCastBefore, false, true>(call, weight, begin, end)
        : forward_rows<T, kCastBefore, false, false>(call, weight, begin, end);
  }
}

template <class T, class Weight>
void forward_rows(const RmsNormForward& call, Weight weight, int64_t begin, int64_t end) {
  if constexpr (!kSameType<T, typename Accumulator<T>::type>) {
    if (call.cast_before) return forward_rows<T, true>(call, weight, begin, end);
  }
  forward_rows<T, false>(call, weight, begin, end);
}

template <class T>
void forward(const RmsNormForward& call, const void* arranged, int64_t begin, int64_t end) {
  using Acc = typename Accumulator<T>::type;
  if (arranged != nullptr) {
    forward_rows<T>(call, WeightArranged<T>{static_cast<const Acc*>(arranged)}, begin, end);
  } else {
    forward_rows<T>(call, WeightAsStored<T>{static_cast<const T*>(call.weight)}, begin, end);
  }
}

// As PrefetchDistance, for what a backward reads. The place of its result is prefetched in the first pass over the same
// row: a row ahead would be one tensor too many for L1 (measured: a quarter slower in bfloat16).
struct BackwardPrefetchDistance {
  int64_t grad_output, input;
};

// One row of the backward. partial is this range's part of the weight gradient, arranged as VecPair<T>, or null.
template <class T, bool kPrefetch, class Weight>
void backward_row(
    const T* dy, const T* x, const T* extra, T* dx, typename Accumulator<T>::type* partial, Weight weight, int64_t cols,
    double eps, BackwardPrefetchDistance distance) {
  using Acc = typename Accumulator<T>::type;
  Vec<Acc> xx0 = Vec<Acc>::zero(), xx1 = xx0, ax0 = xx0, ax1 = xx0;
  const auto reduce = [&](VecPair<T> p, VecPair<T> g, VecPair<T> w) {
    xx0 = fma(p.a, p.a, xx0);
    xx1 = fma(p.b, p.b, xx1);
    ax0 = fma(w.a * g.a, p.a, ax0);
    ax1 = fma(w.b * g.b, p.b, ax1);
  };
  for_each_pair(
      cols,
      [&](int64_t j) {
        if constexpr (kPrefetch) {
          if (dx != nullptr) prefetch_pair(dx + j);
        }
        reduce(VecPair<T>::load(x + j), VecPair<T>::load(dy + j), weight.pair(j));
      },
      [&](int64_t j, int count) {
        reduce(VecPair<T>::load_some(x + j, count), VecPair<T>::load_some(dy + j, count), weight.some(j, count));
      });
  const Acc n = static_cast<Acc>(cols);
  const Acc r = Acc(1) / square_root(sum(xx0 + xx1) / n + static_cast<Acc>(eps));
  const Acc c = sum(ax0 + ax1) / n;
  const Vec<Acc> scale = Vec<Acc>::broadcast(r), along = Vec<Acc>::broadcast(-r * r * r * c);

  const auto gradients = [&](int64_t j, VecPair<T> p, VecPair<T> g, VecPair<T> w) -> VecPair<T> {
    const Vec<Acc> ga = g.a * scale, gb = g.b * scale;
    if (partial != nullptr) {
      fma(ga, p.a, Vec<Acc>::load(partial + j)).store(partial + j);
      fma(gb, p.b, Vec<Acc>::load(partial + j + kLanes)).store(partial + j + kLanes);
    }
    return {fma(along, p.a, ga * w.a), fma(along, p.b, gb * w.b)};
  };
  for_each_pair(
      cols,
      [&](int64_t j) {
        if constexpr (kPrefetch) {
          prefetch_pair(x + j + distance.input);
          prefetch_pair(dy + j + distance.grad_output);
        }
        VecPair<T> d = gradients(j, VecPair<T>::load(x + j), VecPair<T>::load(dy + j), weight.pair(j));
        if (extra != nullptr) {
          const VecPair<T> e = VecPair<T>::load(extra + j);
          d = {d.a + e.a, d.b + e.b};
        }
        if (dx != nullptr) d.store(dx + j);
      },
      [&](int64_t j, int count) {
        VecPair<T> d = gradients(
            j, VecPair<T>::load_some(x + j, count), VecPair<T>::load_some(dy + j, count), weight.some(j, count));
        if (extra != nullptr) {
          const VecPair<T> e = VecPair<T>::load_some(extra + j, count);
          d = {d.a + e.a, d.b + e.b};
        }
        if (dx != nullptr) d.store_some(dx + j, count);
      });
}

template <class T, bool kPrefetch, class Weight>
void backward_rows(const RmsNormBackward& call, Weight weight, void* partial, int64_t begin, int64_t end) {
  using Acc = typename Accumulator<T>::type;
  const BackwardPrefetchDistance distance = {
      prefetch_distance<T>(call.space, call.grad_output), prefetch_distance<T>(call.space, call.input)};
  const RowTensor* const tensors[] = {&call.grad_output, &call.input, &call.grad_sum, &call.grad_input};
  RowIterator<4> iterator(call.space, tensors, begin);
  for (int64_t row = begin; row < end; ++row, iterator.next()) {
    backward_row<T, kPrefetch>(
        row_of<T>(call.grad_output, iterator.offset(0)), row_of<T>(call.input, iterator.offset(1)),
        call.grad_sum.data == nullptr ? nullptr : row_of<T>(call.grad_sum, iterator.offset(2)),
        call.grad_input.data == nullptr ? nullptr : mutable_row_of<T>(call.grad_input, iterator.offset(3)),
        static_cast<Acc*>(partial), weight, call.space.cols, call.eps, distance);
  }
}

template <class T, class Weight>
void backward_rows(const RmsNormBackward& call, Weight weight, void* partial, int64_t begin, int64_t end) {
  if (out_of_cache<T>(call.space)) {
    backward_rows<T, true>(call, weight, partial, begin, end);
  } else {
    backward_rows<T, false>(call, weight, partial, begin, end);
  }
}

template <class T>
void backward(const RmsNormBackward& call, const void* arranged, void* partial, int64_t begin, int64_t end) {
  using Acc = typename Accumulator<T>::type;
  if (arranged != nullptr) {
    backward_rows<T>(call, WeightArranged<T>{static_cast<const Acc*>(arranged)}, partial, begin, end);
  } else {
    backward_rows<T>(call, WeightAsStored<T>{static_cast<const T*>(call.weight)}, partial, begin, end);
  }
}

// Whether pairs of T and W keep the same element in the same lane, in accumulators of the same type.
template <class T, class W>
constexpr bool kSameArrangement = VecPair<T>::lane_of(1) == VecPair<W>::lane_of(1) &&
                                  sizeof(typename Accumulator<T>::type) == sizeof(typename Accumulator<W>::type);

// grad_weight[begin, end) = the sum of `parts` partial gradients, `stride` elements apart, in their order.
template <class T, class W>
void sum_parts(const void* partials, int64_t parts, int64_t stride, int64_t begin, int64_t end, void* grad_weight) {
  using Acc = typename Accumulator<T>::type;
  const Acc* from = static_cast<const Acc*>(partials);
  W* to = static_cast<W*>(grad_weight);
  for (int64_t j = begin / kPairLanes * kPairLanes; j < end; j += kPairLanes) {
    Vec<Acc> a = Vec<Acc>::zero(), b = a;
    for (int64_t part = 0; part < parts; ++part) {
      a = a + Vec<Acc>::load(from + part * stride + j);
      b = b + Vec<Acc>::load(from + part * stride + j + kLanes);
    }
    if constexpr (kSameArrangement<T, W>) {
      if (j + kPairLanes <= end) {
        VecPair<W>{a, b}.store(to + j);
        continue;
      }
    }
    Acc lanes[kPairLanes];
    a.store(lanes);
    b.store(lanes + kLanes);
    for (int i = 0; i < kPairLanes && j + i < end; ++i) {
      W value;
      if constexpr (sizeof(W) == 8) {
        value = static_cast<W>(lanes[VecPair<T>::lane_of(i)]);
      } else {
        narrow(static_cast<float>(lanes[VecPair<T>::lane_of(i)]), value);
      }
      to[j + i] = value;
    }
  }
}

template <class T>
void sum_partials(
    DType weight_dtype, const void* partials, int64_t parts, int64_t stride, int64_t begin, int64_t end, void* out) {
  switch (weight_dtype) {
    case DType::kFloat32:
      return sum_parts<T, float>(partials, parts, stride, begin, end, out);
    case DType::kBFloat16:
      return sum_parts<T, BFloat16>(partials, parts, stride, begin, end, out);
    case DType::kFloat16:
      return sum_parts<T, Float16>(partials, parts, stride, begin, end, out);
    case DType::kFloat64:
      return sum_parts<T, double>(partials, parts, stride, begin, end, out);
  }
}

template <class T>
constexpr RmsNormKernels rms_norm_kernels_of() {
  return {&arrange_weight<T>, &forward<T>, &backward<T>, &sum_partials<T>};
}

}  // namespace
}  // namespace sparsekernels
