// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// How tensors are read and written, vector by vector.
#pragma once

namespace sparsekernels {

// Which 16 neighboring elements of a tensor are read or written at once.
enum class VectorOrder { kColumns, kChannels, kLanes, kScattered };

}  // namespace sparsekernels
