#include "chain_layout.h"

#include <algorithm>

namespace sparsekernels {
namespace {

// Whether programs store a layer's result line by line, wherever lines lie.
bool stores_lines(const ChainLayerPlan& layer) {
  const BundlePlan& plan = layer.plan;
  return layer.by_programs && plan.direct && (plan.strips[0] == 1 || plan.strip[0] * plan.pitch % 16 == 0);
}

// The lines of all channels between each other, where nothing else is wanted: what is stored for a line of positions is
// in one place, and not on as many pages as there are channels.
ChainLayout lines_layout(const ChainTensor& tensor) {
  const int64_t line = (tensor.size[0] | 1) * 16;
  return {16, line, divide_up(tensor.size[1] * tensor.size[2], 16) * line, 0, 0, 0, 0, false};
}

// Whether a layer reads its source from such a layout.
bool can_read(const ChainLayer& layer, const ChainLayerPlan& plan, const ChainLayout& layout) {
  return layout.line == 16 || (!layer.pools && (plan.wanted == layout || plan.gathers));
}

}  // namespace

ChainLayout plain_layout(const int64_t (&size)[3]) {
  const int64_t positions = size[1] * size[2];
  return {positions, 16, size[0] * positions, 0, 0, 0, 0, true};
}

ChainLayout planes_as_layout(const Lattice& lattice, const BundlePlan& plan, const ChainTensor& source) {
  const ChainLayout plain = plain_layout(source.size);
  const int64_t positions = source.size[1] * source.size[2];
  if (lattice.groups != 1 || lattice.some_reach_nothing || plan.images != 1 || plan.phases != 1) return plain;
  if (positions < 16 || source.size[0] < 2) return plain;  // which might be described in another way
  if (lattice.is_flat() && lattice.size[0] == 1 && lattice.size[1] == positions && plan.line_floats != 16)
    return {16, plan.line_floats, divide_up(positions, 16) * plan.line_floats, 0, 0, 0, plan.back_floats, false};
  const int64_t above = -lattice.origin[0], rows = lattice.size[0] + lattice.most_shift[0];
  const bool is_copy = plan.line_floats == 16 && plan.strips[0] == 1 && plan.strips[1] == 1 &&
                       plan.pitch == source.size[2] && plan.first_column[0] == 0 && lattice.source_step[0] == 1 &&
                       lattice.source_step[1] == 1 && above >= 0 && rows >= above + source.size[1];
  if (!is_copy) return plain;
  return {
      plan.channel_floats,
      16,
      plan.bundle_floats,
      plan.front_floats + above * plan.pitch,
      plan.front_floats,
      (rows - above - source.size[1]) * plan.pitch + plan.behind_floats,
      plan.front_floats + plan.back_floats,
      false};
}

// A tensor lies as a reader wants it, if whoever makes it can store it so and all others can read it. A residual may
// lie in any way where programs add it; other layers find it where they store the sum.
void choose_layouts(
    const std::vector<ChainLayer>& layers, const std::vector<ChainLayerPlan>& plans,
    std::vector<ChainTensor>& tensors) {
  const size_t count = layers.size();
  for (size_t tensor = 1; tensor <= count; ++tensor) {
    ChainTensor& one = tensors[tensor];
    if (!layers[tensor - 1].pools && !stores_lines(plans[tensor - 1])) continue;
    std::vector<size_t> readers;
    bool may_move = true;
    for (size_t i = tensor; i < count; ++i) {
      if (layers[i].source == static_cast<int>(tensor)) readers.push_back(i);
      if (!layers[i].pools && layers[i].residual == static_cast<int>(tensor))
        may_move = may_move && plans[i].by_programs && plans[i].plan.direct;
    }
    if (!may_move) continue;
    std::vector<ChainLayout> wanted;
    for (const size_t i : readers) wanted.push_back(plans[i].wanted);
    if (readers.empty() && one.size[0] > 1) wanted.push_back(lines_layout(one));
    for (const ChainLayout& layout : wanted) {
      if (layout.is_plain ||
          !std::all_of(readers.begin(), readers.end(), [&](size_t i) { return can_read(layers[i], plans[i], layout); }))
        continue;
      one.layout = layout;
      break;
    }
  }
}

}  // namespace sparsekernels
