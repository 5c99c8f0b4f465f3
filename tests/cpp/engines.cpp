// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// Which engine a shape gets, on both sides of each threshold of engine.cpp, on the machine of documented_machine.cpp.
// Neighboring rows differ in what their threshold is about and in nothing else.
#include "sparse_conv2d/engine.h"

#include <string>

#include "check.h"
#include "geometries.h"

namespace sparsekernels {
namespace tests {
namespace {

constexpr Engine kJit = Engine::kJit, kTiled = Engine::kTiled;

struct Shape {
  const char* what;
  int64_t batch, channels, outputs, height, width, kernel, nonzeros;
  Engine forward, weight_gradient;
};

constexpr Shape kShapes[] = {
    {"3 rows", 64, 64, 3, 14, 14, 3, 170, kTiled, kTiled},
    {"4 rows", 64, 64, 4, 14, 14, 3, 170, kJit, kTiled},
    {"11 rows", 64, 64, 11, 14, 14, 3, 640, kJit, kTiled},
    {"12 rows", 64, 64, 12, 14, 14, 3, 640, kJit, kJit},
    {"31 columns", 16, 31, 64, 16, 16, 1, 200, kJit, kTiled},
    {"32 columns", 16, 32, 64, 16, 16, 1, 200, kJit, kJit},
    {"27 columns of 9 taps", 16, 3, 64, 16, 16, 3, 200, kJit, kTiled},
    {"36 columns of 9 taps", 16, 4, 64, 16, 16, 3, 200, kJit, kJit},
    {"2^23 nonzeros", 64, 1024, 1024, 14, 14, 3, int64_t{1} << 23, kJit, kJit},
    {"2^23 + 1 nonzeros", 64, 1024, 1024, 14, 14, 3, (int64_t{1} << 23) + 1, kTiled, kTiled},
    {"planes and gradients below 4 rooms", 1, 1024, 64, 190, 190, 3, 58982, kJit, kJit},
    {"planes and gradients above", 1, 1024, 64, 200, 200, 3, 58982, kJit, kTiled},
    {"planes below 4 rooms", 1, 1024, 64, 220, 220, 3, 58982, kJit, kTiled},
    {"planes above 4 rooms", 1, 1024, 64, 230, 230, 3, 58982, kTiled, kTiled},
    {"2 products of a row in a panel", 64, 512, 512, 14, 14, 3, 8192, kJit, kJit},
    {"fewer than that", 64, 512, 512, 14, 14, 3, 8191, kTiled, kJit},
    {"one panel, whatever a row has", 64, 64, 512, 14, 14, 3, 511, kJit, kJit},
    {"a quarter of the lanes idle", 1, 64, 64, 1, 24, 3, 2000, kJit, kJit},
    {"more than that", 1, 64, 64, 1, 23, 3, 2000, kJit, kTiled},
    {"one vector, most lanes idle", 1, 64, 64, 1, 3, 3, 2000, kJit, kJit},
    {"a flat image of 24 vectors", 1, 256, 256, 16, 24, 1, 6143, kJit, kJit},
    {"a flat image of 25 vectors", 1, 256, 256, 16, 25, 1, 6143, kJit, kTiled},
    {"a large flat image, 12 products of a vector", 16, 256, 256, 56, 56, 1, 6144, kJit, kJit},
    {"a large flat image, fewer products", 16, 256, 256, 56, 56, 1, 6143, kJit, kTiled},
    {"a large image that is not flat", 16, 256, 256, 56, 56, 3, 6143, kJit, kJit},
    {"7 columns of taps", 16, 64, 64, 14, 14, 7, 20000, kJit, kJit},
    {"9 columns of taps: no plan", 16, 64, 64, 14, 14, 9, 20000, kJit, kTiled},
};

Lattice lattice_of(const Shape& shape) {
  ConvGeometry geometry;
  for (int d = 0; d < 2; ++d) {
    geometry.kernel[d] = shape.kernel;
    geometry.padding[d] = shape.kernel / 2;
  }
  Lattice lattice = forward_lattice(
      geometry, activation(shape.batch, shape.channels, shape.height, shape.width, false),
      activation(shape.batch, shape.outputs, shape.height, shape.width, false));
  merge_positions(lattice);
  return lattice;
}

std::string name_of(const Shape& shape, const char* operation, Engine engine) {
  return std::string(shape.what) + ", " + operation + ": " + (engine == kJit ? "kJit" : "kTiled");
}

}  // namespace

void test_engines() {
  for (const Shape& shape : kShapes) {
    const Lattice lattice = lattice_of(shape);
    SparsePattern pattern;
    pattern.nonzeros = shape.nonzeros;
    for (const int64_t threads : {1, 4}) {
      const Engine forward =
          forward_engine(lattice, pattern, jit::make_forward_plan(lattice, {shape.nonzeros}, 0, threads));
      CHECK_EQUAL(name_of(shape, "forward", forward), name_of(shape, "forward", shape.forward));
      const Engine weight_gradient =
          weight_gradient_engine(lattice, pattern, jit::make_weight_gradient_plan(lattice, {shape.nonzeros}, threads));
      CHECK_EQUAL(
          name_of(shape, "weight gradient", weight_gradient), name_of(shape, "weight gradient", shape.weight_gradient));
    }
  }
}

}  // namespace tests
}  // namespace sparsekernels
