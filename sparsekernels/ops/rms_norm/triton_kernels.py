# Copyright 2026 The sparsekernels authors
# SPDX-License-Identifier: Apache-2.0
"""The Triton kernels of RMSNorm. `triton.py` launches them, `triton_config.py` gives their tiles, `reference.py` says
what they compute.

More than 400 lines: both passes have a kernel for rows in registers and one for longer rows, with long signatures.

Common to all. A tensor is a pointer and one stride for each leading dimension (a tuple, in elements); the elements of a
row are contiguous. Rows are numbered over the leading dimensions with the last one fastest, in INDEX arithmetic;
`inner_sizes` holds the sizes of all leading dimensions but the first. The launcher promises that VEC divides cols and
every stride of an output, INPUT_VEC every stride of an input, so that accesses are 16 bytes wide also where a row
length is no multiple of 16 elements. A tensor that a call does not have is None, and what would be done with it is not
compiled. Arithmetic is in ACC: float32, or float64 where the input is. CAST_BEFORE rounds to the dtype of the input
before the weight is multiplied by; UNIT_OFFSET multiplies by 1 + weight.

The order in which a row is summed is that of BLOCK_COLS columns on num_warps warps, whatever the number of rows.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .._triton_numbers import narrow, widen


@triton.jit
def _offset(row, col, inner_sizes, strides, VEC: tl.constexpr):
    """Where elements lie, counted in elements. row: [BLOCK_ROWS, 1], col: [1, BLOCK_COLS]."""
    offset = tl.zeros_like(row).to(tl.int64)
    for dim in tl.static_range(len(inner_sizes), 0, -1):
        offset += (row % inner_sizes[dim - 1]).to(tl.int64) * strides[dim]
        row = row // inner_sizes[dim - 1]
    offset += row.to(tl.int64) * strides[0]
    return tl.multiple_of(offset + col, (1, VEC))


@triton.jit
def _scale(w, ACC: tl.constexpr, UNIT_OFFSET: tl.constexpr):
    """Elements of a weight as they are multiplied by."""
    w = widen(w, ACC)
    return 1 + w if UNIT_OFFSET else w


@triton.jit
def _square_of_rms(sum_of_squares, cols, eps):
    # tl.full rather than eps.to(): in Triton's interpreter eps is a Python float.
    return sum_of_squares / cols + tl.full((), eps, sum_of_squares.dtype)


_FORWARD_RUNTIME = ("rows", "cols", "inner_sizes", "input_strides", "residual_strides", "output_strides")


@triton.jit(do_not_specialize=_FORWARD_RUNTIME)
def forward_tile(
    input,
    residual,
    weight,
    output,
    total,
    rows,
    cols,
    eps: tl.float64,
    inner_sizes,
    input_strides,
    residual_strides,
    output_strides,
    INDEX: tl.constexpr,
    VEC: tl.constexpr,
    INPUT_VEC: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
    CAST_BEFORE: tl.constexpr,
    UNIT_OFFSET: tl.constexpr,
):
    """BLOCK_ROWS whole rows a program, in registers. `total` has the strides of `output`."""
    DTYPE: tl.constexpr = input.dtype.element_ty
    ACC: tl.constexpr = tl.float64 if input.dtype.element_ty == tl.float64 else tl.float32
    cols = cols // VEC * VEC
    row = tl.program_id(0).to(INDEX) * BLOCK_ROWS + tl.arange(0, BLOCK_ROWS)[:, None]
    col = tl.arange(0, BLOCK_COLS)[None, :]
    mask = (row < rows) & (col < cols)
    output_offset = _offset(row, col, inner_sizes, output_strides, VEC)

    x = tl.load(input + _offset(row, col, inner_sizes, input_strides, INPUT_VEC), mask=mask, other=0.0)
    if weight is not None:
        # Loaded before the reduction, so that there is one wait for memory, and as a tile of the input's shape, which
        # gets the input's layout: a tile of one row would be handed out through shared memory.
        w = tl.load(weight + (tl.zeros_like(row) + col), mask=mask, other=0.0, eviction_policy="evict_last")
    if residual is not None:
        residual_offset = _offset(row, col, inner_sizes, residual_strides, INPUT_VEC)
        s = tl.load(residual + residual_offset, mask=mask, other=0.0)
        x = narrow(widen(x, ACC) + widen(s, ACC), DTYPE)
        tl.store(total + output_offset, x, mask=mask)
    x = widen(x, ACC)
    y = x * tl.rsqrt(_square_of_rms(tl.sum(x * x, axis=1, keep_dims=True), cols, eps))
    if CAST_BEFORE:
        y = widen(narrow(y, DTYPE), ACC)
    if weight is not None:
        y *= _scale(w, ACC, UNIT_OFFSET)
    tl.store(output + output_offset, narrow(y, DTYPE), mask=mask)


@triton.jit(do_not_specialize=_FORWARD_RUNTIME)
def forward_loop(
    input,
    residual,
    weight,
    output,
    total,
    rows,
    cols,
    eps: tl.float64,
    inner_sizes,
    input_strides,
    residual_strides,
    output_strides,
    INDEX: tl.constexpr,
    VEC: tl.constexpr,
    INPUT_VEC: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
    CAST_BEFORE: tl.constexpr,
    UNIT_OFFSET: tl.constexpr,
):
    """One row a program (BLOCK_ROWS is 1), in blocks of columns: read once to sum the squares, once more to write.

    The second pass runs backwards, so that it begins with what is still in the cache.
    """
    DTYPE: tl.constexpr = input.dtype.element_ty
    ACC: tl.constexpr = tl.float64 if input.dtype.element_ty == tl.float64 else tl.float32
    cols = cols.to(INDEX) // VEC * VEC
    row = tl.program_id(0).to(INDEX) + tl.arange(0, BLOCK_ROWS)[:, None]
    lane = tl.arange(0, BLOCK_COLS)[None, :]

    squares = tl.zeros((BLOCK_ROWS, BLOCK_COLS), ACC)
    for start in range(0, cols, BLOCK_COLS):
        col = start + lane
        mask = col < cols
        input_offset = _offset(row, col, inner_sizes, input_strides, INPUT_VEC)
        x = tl.load(input + input_offset, mask=mask, other=0.0, eviction_policy="evict_last")
        if residual is not None:
            residual_offset = _offset(row, col, inner_sizes, residual_strides, INPUT_VEC)
            s = tl.load(residual + residual_offset, mask=mask, other=0.0)
            x = narrow(widen(x, ACC) + widen(s, ACC), DTYPE)
            tl.store(total + _offset(row, col, inner_sizes, output_strides, VEC), x, mask=mask)
        x = widen(x, ACC)
        squares += x * x
    r = tl.rsqrt(_square_of_rms(tl.sum(squares, axis=1, keep_dims=True), cols, eps))

    if residual is not None:
        tl.debug_barrier()  # a thread may read back from `total` what another one wrote
    last = (cols - 1) // BLOCK_COLS * BLOCK_COLS
    for done in range(0, cols, BLOCK_COLS):
        col = last - done + lane
        mask = col < cols
        output_offset = _offset(row, col, inner_sizes, output_strides, VEC)
        if residual is not None:
            source = total + output_offset
        else:
            source = input + _offset(row, col, inner_sizes, input_strides, INPUT_VEC)
        y = widen(tl.load(source, mask=mask, other=0.0, eviction_policy="evict_first"), ACC) * r
        if CAST_BEFORE:
            y = widen(narrow(y, DTYPE), ACC)
        if weight is not None:
            w = tl.load(weight + col, mask=mask, other=0.0, eviction_policy="evict_last")
            y *= _scale(w, ACC, UNIT_OFFSET)
        tl.store(output + output_offset, narrow(y, DTYPE), mask=mask)


@triton.jit
def _sum_partials(partials, first, count, destination, cols, CHUNK: tl.constexpr, CHUNK_COLS: tl.constexpr):
    """destination = the sum of `count` rows of `partials` from row `first` on, CHUNK rows at a time, in order."""
    member = tl.arange(0, CHUNK)[:, None]
    for start in range(0, cols, CHUNK_COLS):
        col = start + tl.arange(0, CHUNK_COLS)[None, :]
        total = tl.zeros((1, CHUNK_COLS), partials.dtype.element_ty)
        for done in range(0, count, CHUNK):
            mask = (done + member < count) & (col < cols)
            offset = (first + done + member).to(tl.int64) * cols + col
            # .cg reads from L2, which is where other programs' stores are to be seen.
            total += tl.sum(
                tl.load(partials + offset, mask=mask, other=0.0, cache_modifier=".cg"), axis=0, keep_dims=True
            )
        tl.store(destination + col, narrow(total, destination.dtype.element_ty), mask=col < cols)


@triton.jit
def _reduce_partials(grad_weight, partials, counters, cols, GROUP: tl.constexpr, CHUNK_COLS: tl.constexpr):
    """The end of every program of a backward: grad_weight = the sum of all programs' rows of `partials`.

    Programs form groups of GROUP. The last of a group to arrive sums the group's rows into one further row, the last
    of the groups to arrive sums those rows. Who is last differs from run to run; what is added to what, and in which
    order, does not. Two levels, because a single program would read the rows of all the others for longer than the
    rest of the kernel takes.

    `counters`, one for the groups and then one for each group, are zero before and after. Each barrier puts the stores
    of a program's threads before its increment, which releases them; who increments last has acquired the others'.
    """
    program = tl.program_id(0)
    programs = tl.num_programs(0)
    group = program // GROUP
    groups = tl.cdiv(programs, GROUP)
    members = tl.minimum(GROUP, programs - group * GROUP)
    tl.debug_barrier()
    if tl.atomic_add(counters + 1 + group, 1, sem="acq_rel") == members - 1:
        tl.store(counters + 1 + group, 0)
        group_sum = partials + (programs + group).to(tl.int64) * cols
        _sum_partials(partials, group * GROUP, members, group_sum, cols, GROUP, CHUNK_COLS)
        tl.debug_barrier()
        if tl.atomic_add(counters, 1, sem="acq_rel") == groups - 1:
            tl.store(counters, 0)
            _sum_partials(partials, programs, groups, grad_weight, cols, GROUP, CHUNK_COLS)


_BACKWARD_RUNTIME = (
    "rows",
    "cols",
    "inner_sizes",
    "grad_output_strides",
    "input_strides",
    "grad_sum_strides",
    "grad_input_strides",
)


@triton.jit(do_not_specialize=_BACKWARD_RUNTIME)
def backward_tile(
    grad_output,
    input,
    weight,
    grad_sum,
    grad_input,
    grad_weight,
    partials,
    counters,
    rows,
    cols,
    eps: tl.float64,
    inner_sizes,
    grad_output_strides,
    input_strides,
    grad_sum_strides,
    grad_input_strides,
    INDEX: tl.constexpr,
    VEC: tl.constexpr,
    INPUT_VEC: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
    GROUP: tl.constexpr,
    CHUNK_COLS: tl.constexpr,
    UNIT_OFFSET: tl.constexpr,
):
    """Each program takes every num_programs-th tile of BLOCK_ROWS whole rows, and sums their part of grad_weight.

    The next tile is fetched while one is computed.
    """
    DTYPE: tl.constexpr = input.dtype.element_ty
    ACC: tl.constexpr = tl.float64 if input.dtype.element_ty == tl.float64 else tl.float32
    cols = cols // VEC * VEC
    first = tl.program_id(0).to(INDEX) * BLOCK_ROWS
    step = tl.num_programs(0).to(INDEX) * BLOCK_ROWS
    row = first + tl.arange(0, BLOCK_ROWS)[:, None]
    col = tl.arange(0, BLOCK_COLS)[None, :]
    mask = (row < rows) & (col < cols)

    x = tl.load(input + _offset(row, col, inner_sizes, input_strides, INPUT_VEC), mask=mask, other=0.0)
    g = tl.load(grad_output + _offset(row, col, inner_sizes, grad_output_strides, INPUT_VEC), mask=mask, other=0.0)
    if grad_weight is not None:
        dw = tl.zeros((BLOCK_ROWS, BLOCK_COLS), ACC)

    for _ in range(first, rows, step):
        if grad_sum is not None:
            grad_sum_offset = _offset(row, col, inner_sizes, grad_sum_strides, INPUT_VEC)
            s = tl.load(grad_sum + grad_sum_offset, mask=mask, other=0.0)
        next_row = row + step
        next_mask = (next_row < rows) & (col < cols)
        input_offset = _offset(next_row, col, inner_sizes, input_strides, INPUT_VEC)
        grad_output_offset = _offset(next_row, col, inner_sizes, grad_output_strides, INPUT_VEC)
        next_x = tl.load(input + input_offset, mask=next_mask, other=0.0)
        next_g = tl.load(grad_output + grad_output_offset, mask=next_mask, other=0.0)

        x, g = widen(x, ACC), widen(g, ACC)
        d = _square_of_rms(tl.sum(x * x, axis=1, keep_dims=True), cols, eps)
        r = tl.rsqrt(d)
        if grad_weight is not None:
            # A row past the end has r = 1/sqrt(eps), and eps may be 0.
            dw += tl.where(row < rows, g * (x * r), 0.0)
        if grad_input is not None:
            a = g
            if weight is not None:
                # From the L1 cache every time: held in registers, it would cost the prefetch its place.
                w = tl.load(weight + (tl.zeros_like(row) + col), mask=mask, other=0.0, eviction_policy="evict_last")
                a *= _scale(w, ACC, UNIT_OFFSET)
            c = tl.sum(a * x, axis=1, keep_dims=True) / cols
            dx = r * (a - x * (c / d))
            if grad_sum is not None:
                dx += widen(s, ACC)
            tl.store(grad_input + _offset(row, col, inner_sizes, grad_input_strides, VEC), narrow(dx, DTYPE), mask=mask)
        row, mask, x, g = next_row, next_mask, next_x, next_g

    if grad_weight is not None:
        own = partials + tl.program_id(0).to(tl.int64) * cols
        tl.store(own + col, tl.sum(dw, axis=0, keep_dims=True), mask=col < cols)
        _reduce_partials(grad_weight, partials, counters, cols, GROUP, CHUNK_COLS)


@triton.jit(do_not_specialize=_BACKWARD_RUNTIME)
def backward_loop(
    grad_output,
    input,
    weight,
    grad_sum,
    grad_input,
    grad_weight,
    partials,
    counters,
    rows,
    cols,
    eps: tl.float64,
    inner_sizes,
    grad_output_strides,
    input_strides,
    grad_sum_strides,
    grad_input_strides,
    INDEX: tl.constexpr,
    VEC: tl.constexpr,
    INPUT_VEC: tl.constexpr,
    BLOCK_ROWS: tl.constexpr,
    BLOCK_COLS: tl.constexpr,
    GROUP: tl.constexpr,
    CHUNK_COLS: tl.constexpr,
    UNIT_OFFSET: tl.constexpr,
):
    """Each program takes every num_programs-th row (BLOCK_ROWS is 1), in blocks of columns: reads it once for the two
    sums, once more, backwards, to write. Its part of grad_weight grows in its row of `partials`.
    """
    DTYPE: tl.constexpr = input.dtype.element_ty
    ACC: tl.constexpr = tl.float64 if input.dtype.element_ty == tl.float64 else tl.float32
    cols = cols.to(INDEX) // VEC * VEC
    last = (cols - 1) // BLOCK_COLS * BLOCK_COLS
    lane = tl.arange(0, BLOCK_COLS)[None, :]
    program = tl.program_id(0).to(INDEX)

    for number in range(program, rows, tl.num_programs(0).to(INDEX)):
        row = number + tl.arange(0, BLOCK_ROWS)[:, None]
        squares = tl.zeros((BLOCK_ROWS, BLOCK_COLS), ACC)
        products = tl.zeros((BLOCK_ROWS, BLOCK_COLS), ACC)
        for start in range(0, cols, BLOCK_COLS):
            col = start + lane
            mask = col < cols
            input_offset = _offset(row, col, inner_sizes, input_strides, INPUT_VEC)
            x = widen(tl.load(input + input_offset, mask=mask, other=0.0, eviction_policy="evict_last"), ACC)
            squares += x * x
            if grad_input is not None:
                g_offset = _offset(row, col, inner_sizes, grad_output_strides, INPUT_VEC)
                a = widen(tl.load(grad_output + g_offset, mask=mask, other=0.0, eviction_policy="evict_last"), ACC)
                if weight is not None:
                    w = tl.load(weight + col, mask=mask, other=0.0, eviction_policy="evict_last")
                    a *= _scale(w, ACC, UNIT_OFFSET)
                products += a * x
        d = _square_of_rms(tl.sum(squares, axis=1, keep_dims=True), cols, eps)
        r = tl.rsqrt(d)
        c = tl.sum(products, axis=1, keep_dims=True) / cols

        for done in range(0, cols, BLOCK_COLS):
            col = last - done + lane
            mask = col < cols
            x_offset = _offset(row, col, inner_sizes, input_strides, INPUT_VEC)
            g_offset = _offset(row, col, inner_sizes, grad_output_strides, INPUT_VEC)
            x = widen(tl.load(input + x_offset, mask=mask, other=0.0, eviction_policy="evict_first"), ACC)
            g = widen(tl.load(grad_output + g_offset, mask=mask, other=0.0, eviction_policy="evict_first"), ACC)
            if grad_weight is not None:
                own = partials + program.to(tl.int64) * cols + col
                so_far = tl.load(own, mask=mask & (row != program), other=0.0)
                tl.store(own, so_far + g * (x * r), mask=mask)
            if grad_input is not None:
                a = g
                if weight is not None:
                    w = tl.load(weight + col, mask=mask, other=0.0, eviction_policy="evict_last")
                    a *= _scale(w, ACC, UNIT_OFFSET)
                dx = r * (a - x * (c / d))
                if grad_sum is not None:
                    s_offset = _offset(row, col, inner_sizes, grad_sum_strides, INPUT_VEC)
                    dx += widen(tl.load(grad_sum + s_offset, mask=mask, other=0.0), ACC)
                dx_offset = _offset(row, col, inner_sizes, grad_input_strides, VEC)
                tl.store(grad_input + dx_offset, narrow(dx, DTYPE), mask=mask)
        if grad_weight is not None:
            tl.debug_barrier()  # a thread may read back from `partials` what another one wrote

    if grad_weight is not None:
        _reduce_partials(grad_weight, partials, counters, cols, GROUP, CHUNK_COLS)
