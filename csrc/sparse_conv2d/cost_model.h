// Copyright 2026 The sparsekernels authors
// SPDX-License-Identifier: Apache-2.0

// The constants by which the planners choose: fits and thresholds that were measured, not derived. All of them are from
// a Xeon with AVX-512 and AMX, on 2 cores with 48 KB of L1 and 2 MB of L2 each, in float32, at 80 to 98% sparsity,
// unless one says otherwise. On another machine they choose well rather than best; results stay right. Times are
// nanoseconds on one core. docs/sparse_kernels.md derives what they weigh.
#pragma once

#include <cstdint>

namespace sparsekernels::cost {

// What the two engines and the network executor ask for.

// Nonzeros of a pattern that may be machine code. A bound, not a fit: the forward's code for them is 80 MB, and from
// 256 MB on the kernels of all patterns make room for each other (jit/kernel_cache.h).
constexpr int64_t kMostJitNonzeros = int64_t{1} << 23;

constexpr int64_t kItemsPerThread = 8;  // with this number for each thread, work is even enough

// Reading a vector of 16 floats into planes: from a tensor whose channels are neighbors, or from one whose columns are,
// and then for each stage (a power of two) of the images to interleave.
constexpr double kReadChannels = 5, kReadColumns = 2, kReadStage = 0.5;

// A transposition of fewer channels costs as much as one of 16.
constexpr int64_t kFewestTransposedChannels = 6;

// Elements of a tensor that is worth prefetching: a smaller one is in the last-level cache anyway.
constexpr int64_t kFewestPrefetchedElements = int64_t{1} << 20;

// Loops over the nonzeros that threads share: the fewest that are shared, and the grain. Estimates, of which no
// measurement is recorded. What they weigh was measured: a second thread was woken in 1.4 microseconds, and on an EPYC
// (Zen 4) a call was handed to one in 5.3 to 5.9.
namespace threads {

constexpr int64_t kFewestGathered = 1 << 16, kGatheredGrain = 4096;     // values gathered, indices compared
constexpr int64_t kFewestCollectedRanges = 16, kCollectedGrain = 1024;  // weight gradients: from sums to their places
constexpr int64_t kFewestPacked = 16384;                                // a pattern packed for tiles
constexpr int64_t kFewestLeaves = 5, kLeafElements = 1 << 15;           // indices hashed, whose leaves are the grain

}  // namespace threads

// What a call reads of its dense weight to see that it is zero outside of the pattern (outside.cpp): all of a weight of
// kWholeBytes, or where that is at most some 3% of the call; else a part, at least kPartBytes.
namespace guard {

constexpr int64_t kWholeBytes = 1 << 16, kPartBytes = 1 << 14;
constexpr double kBytesPerMultiplyAdd = 0.01;
constexpr int64_t kGrainBytes = 1 << 18;  // that a thread reads at a time

}  // namespace guard

// Forward and input gradient by JIT kernels (jit/forward_plan.cpp).
namespace forward {

// Of L2, for a micro-batch's planes, which stay there while all slices go by.
constexpr int64_t kPlanesPercentOfL2 = 45;
// The planes of a micro-batch's strips may exceed that by this factor, 1.8 times L2, before tiles do better.
constexpr int64_t kMostOverBudget = 4;
// Divisors of that budget: for results of a micro-batch that wait to be written; for the planes and results
// of a work item that has enough vectors.
constexpr int64_t kBudgetsOfResults = 2, kBudgetsOfItem = 3;
// Of L1, for the vectors that a panel of channels reads.
constexpr double kVectorsOfL1 = 0.55;
// Nonzeros of a kernel: ten bytes of code each, four of its value.
constexpr double kMostKernelNonzeros = 2600;

// A multiply-add; the load of its vector, times that of one across a border between two cache lines; what comes up
// from L2.
constexpr double kMultiplyAdd = 0.148, kLoad = 0.189, kUnalignedLoad = 1.9, kL2Load = 0.12;
// Loops over rows that are alike (jit/loop_kernel.h): the fewest rows that are worth it, where planes are interleaved
// and where they are planar, so that vectors lie across cache lines; a multiply-add; the load of a
// vector, in those of a weight; the planes' part of L2, in percent of what it is for code, which goes through L2 as
// well. The products of a sum that are added up before they are added to those of other panels: in longer chains they
// lose digits.
constexpr int64_t kFewestRowsAlike = 4, kFewestPlanarRowsAlike = 8;
constexpr double kLoopMultiplyAdd = 0.19, kLoopVectorLoad = 1.5;
constexpr int64_t kLoopPlanesPercent = 80;
// Source channels that are alike (jit/scatter_kernel.h): the fewest that are worth it; what a run takes beside its
// multiply-adds, those of its first vectors included; and how much of what the model says for them is true, where it
// says too little for the code of a pattern.
constexpr int64_t kFewestChannelsAlike = 8;
constexpr double kScatterRun = 21, kScatterHandicap = 0.91;
constexpr double kMostLoopProducts = 128;
// Products of a result with which loops that store directly prefetch its place: 128 channels at 16x16 take 0.92 of the
// time without it at 58 products, 1.08 at 230.
constexpr int64_t kFewestPrefetchingProducts = 80;
// Cache lines that a vector across a border touches more.
constexpr double kUnalignedLines = 0.9;
// Floats of a plane's row, at most, with which the rows above are still in L1.
constexpr int64_t kShortRow = 96;

// Writing a vector of results: from registers to the tensor; transposed to neighboring channels; else, and then for
// each stage of the images to separate.
constexpr double kWriteDirect = 1, kWriteChannels = 6, kWriteColumns = 3.3, kWriteStage = 0.55;

// Vectors of several interleaved images, at most: the planes of more are too large.
constexpr int64_t kMostInterleavedVectors = 64;
// Vectors of a work item that are worth loading the code for.
constexpr int64_t kEnoughItemVectors = 24;
// The fewest columns of strips across, and the fewest rows of strips down.
constexpr int64_t kFewestStripColumns = 64, kFewestStripRows = 4;
// Rows of the pattern in a thread's share.
constexpr int64_t kFewestSharedRows = 8;
// Tiles do better with fewer rows, or fewer products of a row in a panel, for which its sum comes and goes.
constexpr int64_t kFewestRows = 4;
constexpr double kFewestProducts = 2;

// From a call on one thread to one on several, on an EPYC (Zen 4) and two threads: 5,300 to 5,900.
constexpr double kSharing = 6000;

}  // namespace forward

// Weight gradient by JIT kernels (jit/weight_gradient_plan.cpp).
namespace weight_gradient {

// Of L2, for a micro-batch's planes and a slice's gradients; and how many times these may exceed that, 1.6 times L2.
constexpr int64_t kPlanesPercentOfL2 = 40;
constexpr int64_t kMostOverBudget = 4;

// Vectors of a run. More rows share a column's vector; more vectors share what adding up the lanes costs, some 1.5
// cycles a nonzero, where a vector that comes up from L2 costs two: hence the ratio.
constexpr double kFewestRunVectors = 4, kManyRunVectors = 8, kMostRunVectors = 16, kLaneSumToL2Load = 0.75;
// So far may slices exceed L1, rather than being one more.
constexpr double kSliceTolerance = 0.1;

// A multiply-add, and what a nonzero costs in each run whatever its length, where code and sums come from L2 and where
// they are streamed from beyond. Runs of more vectors gain nothing more.
constexpr double kMultiplyAdd = 0.24, kRun = 0.5, kStreamedRun = 1.5, kLongRunVectors = 8;
constexpr double kBytes = 16;  // of code and sums, a nonzero
// Of L2, what they may take before they are streamed from beyond.
constexpr double kStreamedOfL2 = 0.5;
// Bytes from the code that runs to the code that is prefetched. 1.5, 4 and 10 KB did as well.
constexpr int32_t kCodePrefetchDistance = 2048;

// Vectors of a strip. A channel is written to all of them, each in a page of its own: more pages than the L1 TLB has
// entries take several times as long.
constexpr int64_t kFewestStripVectors = 4, kMostStripVectors = 64, kStripVectors = 48;

// Tiles do better with fewer rows or columns; with a smaller share of lanes that are positions, the others being
// computed for nothing; on large images with so few products for each vector that is read.
constexpr int64_t kFewestRows = 12, kFewestColumns = 32, kLargeImageVectors = 24, kFewestProducts = 12;
constexpr double kFewestFullLanes = 0.75;

// Vectors of a run where register sets are tiles of a few rows, whose gradients stay in L1.
constexpr int64_t kTileRunVectors = 48;

// Rows that are alike as lanes: the fewest lanes that are used; the part of L2 for planes, in percent of what it is
// above; positions of a run, after which sums are added up in memory.
constexpr double kFewestUsedLanes = 0.6;
constexpr int64_t kRowsPlanesPercent = 150;
constexpr int64_t kMostRowRun = 256;

constexpr int64_t kMostChunks = 4;
constexpr int64_t kMostPartialFloats = int64_t{1} << 22;

}  // namespace weight_gradient

// The tiled engine (tiled/plan.cpp): load slots, of which a processor has two in a cycle.
namespace tiled {

// Of L1, for a tile's vectors of a panel of channels; of L2, for a work item's.
constexpr double kVectorsOfL1 = 0.8;
constexpr int64_t kVectorsPercentOfL2 = 60;

// A nonzero's own loads; a run's, for each of the tile's vectors and whatever their number. Forward: a fit to tiles of
// 2x4 to 6x4.
constexpr double kForwardNonzero = 2, kForwardRunVector = 4.5, kForwardRun = 12;
// Weight gradient: sums are added up, and 16 vectors transposed to one, for each nonzero.
constexpr double kWeightGradientNonzero = 9, kWeightGradientRunVector = 2, kWeightGradientRun = 24;
// What a row costs in a slice beside its nonzeros, in nonzeros: slices are to have even shares.
constexpr int64_t kRowNonzeros = 8;
// A vector of a panel that comes up from L2 into L1, once for all rows.
constexpr double kL2Load = 3;

constexpr int64_t kMostChunks = 4;
constexpr int64_t kMostPartialFloats = int64_t{1} << 22;

// A vector that is packed, in vectors that are computed; and how many more lanes neighboring pixels may leave empty,
// which are packed as they lie.
constexpr double kPacking = 0.1, kPixelTolerance = 1.05;

}  // namespace tiled

// The network executor (layer_chain/plan.cpp).
namespace chain {

// Of L2, for tensors: code, values and planes go through it as well.
constexpr int64_t kTensorsPercentOfL2 = 50;
// The reach of the L2 TLB: 2048 pages of 4 KB. Less than what a thread keeps from call to call (Workspace::kMostKept).
constexpr int64_t kMostBytes = int64_t{8} << 20;
// Half of what a nonzero has, value included: the rest is prefetched in time.
constexpr double kCodeBytes = 7;
// Images are interleaved so that this number of threads has work.
constexpr int64_t kThreads = 4;

}  // namespace chain

// Blocks in bfloat16 (block/planes.cpp), on AMX.
namespace block {

// Of L2, for the panels or planes of a work item: more of them touch more pages than the first level of the TLB has
// entries. Those that are multiplied where they are with one tap, and with more, whose strips share rows; those that
// are gathered, and the same where their weights fit into half of L2.
constexpr int64_t kFlatPercentOfL2 = 11, kPanelsPercentOfL2 = 18, kPlanesPercentOfL2 = 25;
constexpr int64_t kGatheredPercentOfL2 = 13, kFewGatheredPercentOfL2 = 7;
// A tile of positions whose rows are cache lines, one whose rows lie across two, and one that is packed: ratios.
constexpr double kTile = 1, kSplitTile = 1.3, kPackedTile = 0.2;
constexpr int64_t kItemsPerThread = 4;           // with this number for each thread, work is even enough
constexpr int64_t kFewestItemTiles = 8;          // micro-batches of an item that are worth the weights' way from L2
constexpr int64_t kFewestFilledBytes = 1 << 16;  // weights that threads share laying out
constexpr int64_t kInPlacePercent = 35;          // of activations, weights of one tap that are read where they are
constexpr int64_t kWeightsPercentOfL2 = 60;      // that stay there from item to item
// Cycles of a line: of weights, that is read from L3, not L2; of planes, that is packed.
constexpr double kLineFromL3 = 4, kPackedLine = 12;

// Blocks of at most so many rows are scattered; rows of one product of them, whose sums at two tiles fit into L1.
constexpr int64_t kMostScatteredRows = 3, kScatterRows = 256;

// Of the weight gradient (block/gradient_plan.cpp): cycles.
namespace gradient {

constexpr double kProduct = 17, kGathered = 26;            // of a tile and 32 positions, its operands in L1 and L2
constexpr double kMoved = 45, kMovedFromL3 = 400;          // a tile of sums to registers and back
constexpr double kPackedLines = 0.4, kPackedPairs = 0.25;  // an element
constexpr double kReadPlace = 0.5;                         // a place that is packed, to one that is multiplied
constexpr double kMovedLine = 0.2;                         // to one that is packed
constexpr double kItem = 20000;                            // a work item
constexpr double kL2Share = 0.6, kFewestL2Share = 0.25, kSumsShare = 0.55;  // for all, for a strip, for sums
constexpr int64_t kChunksAtOnce = 16;                                       // whose pairs stay in L1
constexpr int64_t kMostRegions = 24;                                        // each way
// Parts of the positions, with sums of their own: chunks of each, the fewest where there are two, and bytes of sums.
constexpr int64_t kPartChunks = 128, kFewestPartChunks = 32, kMostParts = 32, kMostPartBytes = 2 << 20;

}  // namespace gradient

}  // namespace block

}  // namespace sparsekernels::cost
