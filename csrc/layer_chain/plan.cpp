// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0
#include "layer_chain/plan.h"

#include <algorithm>
#include <limits>

#include "base/caches.h"
#include "sparse_conv2d/cost_model.h"
#include "sparse_conv2d/lattice.h"

namespace sparsekernels {
namespace {

int64_t tensors_budget() {
  return caches().l2_lines * kLineBytes * cost::chain::kTensorsPercentOfL2 / 100;
}

// The tensors of a segment that have a place in a thread's own memory: results of all of its layers but the last.
class Places {
 public:
  Places(const std::vector<ChainLayer>& layers, const std::vector<ChainTensor>& tensors, int first, int last)
      : places_(static_cast<size_t>(last - first)) {
    struct Allocation {
      int64_t begin, end;
      int tensor;
    };
    std::vector<Allocation> used;  // ascending
    const auto drop = [&](const auto& is_free) {
      used.erase(std::remove_if(used.begin(), used.end(), is_free), used.end());
    };
    for (int i = first; i + 1 < last; ++i) {
      const ChainLayout& layout = tensors[static_cast<size_t>(i) + 1].layout;
      const int64_t count = divide_up(layout.image + layout.around, kLanes * layout.images) * kLanes;
      drop([&](const Allocation& allocation) { return tensors[static_cast<size_t>(allocation.tensor)].last_use < i; });
      // A residual that is not read again gives its place to the sum: element by element it is read before it is
      // written.
      const auto dying = std::find_if(used.begin(), used.end(), [&](const Allocation& allocation) {
        const ChainTensor& tensor = tensors[static_cast<size_t>(allocation.tensor)];
        const ChainLayer& layer = layers[static_cast<size_t>(i)];
        return layer.adds(allocation.tensor) && tensor.layout == layout && tensor.last_use == i &&
               layer.source != allocation.tensor;
      });
      if (dying != used.end()) {
        places_[static_cast<size_t>(i - first)] = dying->begin;
        dying->tensor = i + 1;
        continue;
      }
      int64_t at = 0;
      auto before = used.begin();
      for (; before != used.end() && before->begin - at < count; ++before) at = before->end;
      places_[static_cast<size_t>(i - first)] = at;
      used.insert(before, {.begin = at, .end = at + count, .tensor = i + 1});
      elements_ = std::max(elements_, at + count);
    }
  }

  int64_t elements() const { return elements_; }
  const std::vector<int64_t>& all() const { return places_; }

 private:
  std::vector<int64_t> places_;
  int64_t elements_ = 0;
};

// Bytes that come from beyond L2, on one thread: what tells cuts and numbers of images apart.
struct Traffic {
  const std::vector<ChainLayer>& layers;
  const std::vector<ChainTensor>& tensors;
  int64_t element, batch, threads;

  double bytes_of(int tensor) const {
    return static_cast<double>(tensors[static_cast<size_t>(tensor)].elements() * element);
  }

  double of(int first, int last, int64_t images) const {
    const double each = static_cast<double>(images), budget = static_cast<double>(tensors_budget());
    // Of each tensor, what went through the cache before it was last touched.
    std::vector<double> touched(static_cast<size_t>(last - first) + 1);
    std::vector<bool> left(touched.size());
    double through = 0, code = 0, moved = 0;
    const auto read = [&](int tensor) {
      const size_t at = static_cast<size_t>(tensor - first);
      if (tensor == first) {
        moved += 2 * bytes_of(tensor);  // read and copied
      } else if (through - touched[at] > budget) {
        moved += (left[at] ? 1 : 3) * bytes_of(tensor);  // written back, and its place fetched before that
        left[at] = true;
      }
      touched[at] = through;
    };
    for (int i = first; i < last; ++i) {
      const ChainLayer& layer = layers[static_cast<size_t>(i)];
      const ChainConvolution* const convolution = layer.convolution();
      const double own = convolution ? cost::chain::kCodeBytes * static_cast<double>(convolution->pattern.nonzeros) : 0;
      code += own;
      through += own + each * (bytes_of(layer.source) + bytes_of(i + 1));
      read(layer.source);
      if (layer.residual()) read(*layer.residual());
      touched[static_cast<size_t>(i + 1 - first)] = through;
    }
    moved += 2 * bytes_of(last);
    const int64_t turns = divide_up(divide_up(batch, images), threads);
    return static_cast<double>(turns) * (code + each * moved);
  }
};

}  // namespace

std::vector<ChainSegment> plan_chain(
    const std::vector<ChainLayer>& layers, const std::vector<ChainLayerPlan>& plans,
    const std::vector<ChainTensor>& tensors, DType dtype, int64_t batch, int64_t threads) {
  const int count = static_cast<int>(layers.size());
  const Traffic traffic = {
      .layers = layers, .tensors = tensors, .element = element_size(dtype), .batch = batch, .threads = threads};
  // Numbers of layers after which only the last one's result is still needed.
  std::vector<int> cuts;
  int latest = 0;  // that reads one of the tensors so far
  for (int i = 0; i <= count; ++i) {
    if (i == 0 || i == count || latest < i) cuts.push_back(i);
    if (i < count) latest = std::max(latest, tensors[static_cast<size_t>(i)].last_use);
  }
  struct Best {
    double cost = std::numeric_limits<double>::infinity();
    size_t from = 0;
    ChainSegment segment = {};
  };
  std::vector<Best> best(cuts.size());
  best[0].cost = 0;
  for (size_t to = 1; to < cuts.size(); ++to) {
    for (size_t from = 0; from < to; ++from) {
      const int first = cuts[from], last = cuts[to];
      const Places places(layers, tensors, first, last);
      int64_t microbatch = 1;
      for (int i = first; i < last; ++i) microbatch = std::max(microbatch, plans[static_cast<size_t>(i)].plan.images);
      int64_t images = 0;
      for (int64_t turns = 1; images != microbatch; ++turns) {  // of each thread
        const int64_t before = images;
        images = divide_up(divide_up(batch, threads * turns), microbatch) * microbatch;
        if (images == before) continue;
        if (images > microbatch && places.elements() * images * element_size(dtype) > cost::chain::kMostBytes) continue;
        const double cost = best[from].cost + traffic.of(first, last, images);
        if (cost >= best[to].cost) continue;
        best[to] = {
            .cost = cost,
            .from = from,
            .segment = {
                .first = first, .last = last, .images = images, .places = places.all(), .elements = places.elements()}};
      }
    }
  }
  std::vector<ChainSegment> segments;
  for (size_t at = cuts.size() - 1; at > 0; at = best[at].from) segments.push_back(best[at].segment);
  std::reverse(segments.begin(), segments.end());
  return segments;
}

}  // namespace sparsekernels
