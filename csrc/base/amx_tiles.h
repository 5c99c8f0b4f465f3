// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// The tile registers of AMX. GCC 12's own functions do not say all that they read: _tile_loadconfig 8 bytes of 64,
// _tile_loadd none, so that what was stored there before may be left out.
#pragma once

#include <cstdint>

namespace sparsekernels {
namespace {

// What the registers hold, as the processor reads it. They are in use from `load` to _tile_release().
struct alignas(64) TileConfig {
  uint8_t palette = 1, start_row = 0, reserved[14] = {};
  uint16_t row_bytes[16] = {};
  uint8_t rows[16] = {};

  void set(int tile, int tile_rows, int bytes) {
    rows[tile] = static_cast<uint8_t>(tile_rows);
    row_bytes[tile] = static_cast<uint16_t>(bytes);
  }
  void load() const { __asm__ volatile("ldtilecfg %0" : : "m"(*this)); }
};
static_assert(sizeof(TileConfig) == 64, "as the processor reads it");

// stride: in bytes, from row to row.
template <int kTile>
inline void load_tile(const void* from, int64_t stride) {
  __asm__ volatile("tileloadd (%0,%1,1), %%tmm%c2" : : "r"(from), "r"(stride), "i"(kTile) : "memory");
}
template <int kTile>
inline void store_tile(float* to, int64_t stride) {
  __asm__ volatile("tilestored %%tmm%c2, (%0,%1,1)" : : "r"(to), "r"(stride), "i"(kTile) : "memory");
}

}  // namespace
}  // namespace sparsekernels
