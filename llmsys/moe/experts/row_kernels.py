"""The kernels that move rows, and the gated SiLU between the two products. Sums are in fp32.

To gather rows for experts and to add them up for tokens are each other's transpose: the gradient of one is the other.
Rows from starts[E] on belong to nobody: they are neither written nor read.
"""

from llmsys.hardware.tier import load_triton

triton, tl = load_triton()


@triton.jit
def gather_rows_kernel(
    x_ptr, order_ptr, weights_ptr, rows_ptr, starts_ptr, x_stride, rows_stride, C, E, TOP: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """rows[r] = x[order[r] // TOP], times weights[order[r]] where there are any: BLOCK elements of row program_id(0).

    Grid: (R, ⌈C / BLOCK⌉). x (N, C), rows (R, C), their C adjacent; order (R,), starts (E + 1,) int32; weights (R,)
    fp32, or None.
    """
    r = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    if r < tl.load(starts_ptr + E):
        assignment = tl.load(order_ptr + r)
        token = (assignment // TOP).to(tl.int64)
        x = tl.load(x_ptr + token * x_stride + c, mask=c < C, other=0.0)
        if weights_ptr is not None:
            x = x.to(tl.float32) * tl.load(weights_ptr + assignment)
        tl.store(rows_ptr + r * rows_stride + c, x.to(rows_ptr.dtype.element_ty), mask=c < C)


@triton.jit
def combine_rows_kernel(
    rows_ptr, row_of_ptr, weights_ptr, out_ptr, rows_stride, out_stride, C, TOP: tl.constexpr, BLOCK: tl.constexpr
):
    """out[n] = Σ_j weights[n, j] · rows[row_of[n, j]], j in order: BLOCK elements of token program_id(0).

    Grid: (N, ⌈C / BLOCK⌉). rows (R, C), out (N, C), their C adjacent; row_of (N, TOP) int32, −1 for none; weights
    (N, TOP) fp32, or None for ones.
    """
    n = tl.program_id(0).to(tl.int64)
    c = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    out = tl.zeros((BLOCK,), tl.float32)
    for j in range(TOP):
        row = tl.load(row_of_ptr + n * TOP + j).to(tl.int64)
        x = tl.load(rows_ptr + row * rows_stride + c, mask=(c < C) & (row >= 0), other=0.0).to(tl.float32)
        if weights_ptr is not None:
            x *= tl.load(weights_ptr + n * TOP + j)
        out += x
    tl.store(out_ptr + n * out_stride + c, out.to(out_ptr.dtype.element_ty), mask=c < C)


@triton.jit
def weights_gradient_kernel(
    dout_ptr, rows_ptr, row_of_ptr, dweights_ptr, dout_stride, rows_stride, C, TOP: tl.constexpr, BLOCK: tl.constexpr
):
    """dweights[n, j] = Σ_c dout[n, c] · rows[row_of[n, j], c], and 0 for no row: assignment program_id(0).

    Grid: (N · TOP,). dout (N, C), rows (R, C), their C adjacent; dweights (N, TOP) fp32.
    """
    assignment = tl.program_id(0).to(tl.int64)
    row = tl.load(row_of_ptr + assignment).to(tl.int64)
    total = tl.zeros((BLOCK,), tl.float32)
    for start in range(0, C, BLOCK):
        c = start + tl.arange(0, BLOCK)
        there = (c < C) & (row >= 0)
        dout = tl.load(dout_ptr + assignment // TOP * dout_stride + c, mask=there, other=0.0).to(tl.float32)
        total += dout * tl.load(rows_ptr + row * rows_stride + c, mask=there, other=0.0).to(tl.float32)
    tl.store(dweights_ptr + assignment, tl.sum(total, axis=0))


@triton.jit
def gated_silu_kernel(gate_up_ptr, out_ptr, starts_ptr, I, E, BLOCK: tl.constexpr):
    """out = silu(gate) · up, silu(g) = g / (1 + e^−g): BLOCK elements of row program_id(0).

    Grid: (R, ⌈I / BLOCK⌉). gate_up (R, 2 I), the gate first; out (R, I); both contiguous.
    """
    r = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    if r < tl.load(starts_ptr + E):
        at = gate_up_ptr + r * 2 * I + i
        gate = tl.load(at, mask=i < I, other=0.0).to(tl.float32)
        up = tl.load(at + I, mask=i < I, other=0.0).to(tl.float32)
        tl.store(out_ptr + r * I + i, (gate * tl.sigmoid(gate) * up).to(out_ptr.dtype.element_ty), mask=i < I)


@triton.jit
def gated_silu_gradient_kernel(dout_ptr, gate_up_ptr, dgate_up_ptr, starts_ptr, I, E, BLOCK: tl.constexpr):
    """With σ = 1 / (1 + e^−gate): dgate = dout · up · σ (1 + gate (1 − σ)), dup = dout · gate · σ.

    Grid and shapes as `gated_silu_kernel`'s; dgate_up as gate_up.
    """
    r = tl.program_id(0).to(tl.int64)
    i = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    if r < tl.load(starts_ptr + E):
        at = r * 2 * I + i
        gate = tl.load(gate_up_ptr + at, mask=i < I, other=0.0).to(tl.float32)
        up = tl.load(gate_up_ptr + at + I, mask=i < I, other=0.0).to(tl.float32)
        dout = tl.load(dout_ptr + r * I + i, mask=i < I, other=0.0).to(tl.float32)
        sigma = tl.sigmoid(gate)
        dgate = dout * up * sigma * (1 + gate * (1 - sigma))
        tl.store(dgate_up_ptr + at, dgate.to(dgate_up_ptr.dtype.element_ty), mask=i < I)
        tl.store(dgate_up_ptr + at + I, (dout * gate * sigma).to(dgate_up_ptr.dtype.element_ty), mask=i < I)
