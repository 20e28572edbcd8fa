"""The four products of a layer, for few sequences: q, k and v; the output; gate and up; down.

Each reads its matrix once, for all sequences of the step, and asks for it before it waits (`pieces`). No product is
split along K between programs: a program owns its rows of the result, so sums are made in one order and a step is the
same to the last bit whenever it is run. (Split, and added by atomics into the residual, was tried first and is not.)

Between kernels flow, in fp32 unless the weights are bf16 and it says so:

    h        (S, C)                the residual, fp32
    x        (S, C)                h · the next norm's weight, bf16 if the weights are. The norm's 1/rms is a number,
                                   and products are linear: it is multiplied in after the product
    squares  (S, PARTS)            of h, added up in as many parts as the kernel before has programs, fp32
    qkv      (S, Hq + 2 Hkv, D)    heads, before their norms and rotation, fp32
    act      (S, I)                silu(gate) · up, bf16 if the weights are
"""

from llmsys.hardware.tier import load_triton
from llmsys.models.few_kernels.pieces import load_rows, load_squares, multiply, reciprocal_rms, store_residual

triton, tl = load_triton()
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait  # noqa: E402


@triton.jit
def qkv_kernel(
    x_ptr, squares_ptr, w_ptr, y_ptr, eps, S: tl.constexpr, C: tl.constexpr, N: tl.constexpr, R: tl.constexpr,
    W: tl.constexpr, OWN: tl.constexpr, PARTS: tl.constexpr, BLOCK_PARTS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """y = w · norm(h): R rows of w (N, C) a program, grid (N / R,); y (S, N) fp32."""
    if PDL:
        gdc_launch_dependents()
    rows = tl.program_id(0) * R + tl.arange(0, R)
    there = rows < N
    pieces = load_rows(w_ptr, rows, there, C, W)
    if PDL:
        gdc_wait()
    squares, sums = (), ()
    for s in tl.static_range(S):
        squares = squares + (load_squares(squares_ptr + s * PARTS, PARTS, BLOCK_PARTS),)
        sums = sums + (multiply(pieces, x_ptr + s * C, there, C, R, W, OWN),)
    for s in tl.static_range(S):
        y = tl.sum(sums[s], axis=1) * reciprocal_rms(squares[s], C, eps)
        tl.store(y_ptr + s * N + rows, y, mask=there)


@triton.jit
def gate_up_kernel(
    x_ptr, squares_ptr, w_ptr, act_ptr, eps, S: tl.constexpr, C: tl.constexpr, I: tl.constexpr, R: tl.constexpr,
    W: tl.constexpr, OWN: tl.constexpr, PARTS: tl.constexpr, BLOCK_PARTS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """act = silu(gate) · up of norm(h): R rows of each half of w (2 I, C) a program, grid (I / R,)."""
    if PDL:
        gdc_launch_dependents()
    rows = tl.program_id(0) * R + tl.arange(0, R)
    there = rows < I
    gates = load_rows(w_ptr, rows, there, C, W)
    ups = load_rows(w_ptr, rows + I, there, C, W)
    if PDL:
        gdc_wait()
    squares, gate_sums, up_sums = (), (), ()
    for s in tl.static_range(S):
        squares = squares + (load_squares(squares_ptr + s * PARTS, PARTS, BLOCK_PARTS),)
        gate_sums = gate_sums + (multiply(gates, x_ptr + s * C, there, C, R, W, OWN),)
        up_sums = up_sums + (multiply(ups, x_ptr + s * C, there, C, R, W, OWN),)
    for s in tl.static_range(S):
        scale = reciprocal_rms(squares[s], C, eps)
        gate = tl.sum(gate_sums[s], axis=1) * scale
        act = gate / (1.0 + tl.exp(-gate)) * (tl.sum(up_sums[s], axis=1) * scale)
        tl.store(act_ptr + s * I + rows, act.to(act_ptr.dtype.element_ty), mask=there)


@triton.jit
def down_kernel(
    act_ptr, w_ptr, scale_ptr, h_ptr, x_ptr, squares_ptr, S: tl.constexpr, C: tl.constexpr, I: tl.constexpr,
    R: tl.constexpr, W: tl.constexpr, OWN: tl.constexpr, PARTS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """h += w · act, x and squares for the norm whose weight is `scale`: R rows of w (C, I), grid (PARTS = C / R,)."""
    if PDL:
        gdc_launch_dependents()
    part = tl.program_id(0)
    rows = part * R + tl.arange(0, R)
    there = rows < C
    pieces = load_rows(w_ptr, rows, there, I, W)
    scale = tl.load(scale_ptr + rows, mask=there, other=0.0).to(tl.float32)
    if PDL:
        gdc_wait()
    old, sums = (), ()
    for s in tl.static_range(S):
        old = old + (tl.load(h_ptr + s * C + rows, mask=there, other=0.0),)
        sums = sums + (multiply(pieces, act_ptr + s * I, there, I, R, W, OWN),)
    for s in tl.static_range(S):
        h = old[s] + tl.sum(sums[s], axis=1)
        store_residual(h, h_ptr, x_ptr, squares_ptr, scale, rows, there, part, s, C, PARTS)


@triton.jit
def output_kernel(
    o_ptr, lse_ptr, w_ptr, scale_ptr, h_ptr, x_ptr, squares_ptr, C: tl.constexpr, HQ: tl.constexpr, D: tl.constexpr,
    SPLITS: tl.constexpr, R: tl.constexpr, BLOCK_HQ: tl.constexpr, PARTS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """h += w · o, and x and squares of it, of one sequence: R rows of w (C, HQ · D), grid (PARTS = C / R,).

    Attention left o in parts, (SPLITS, HQ, D), each with its lse (SPLITS, HQ) to base 2. Every program puts them
    together for itself, which saves a kernel. Parts of several sequences would be more bytes than the weights: then
    `merge_kernel` puts them together, and `down_kernel` multiplies, as for any product that is added to h.
    """
    if PDL:
        gdc_launch_dependents()
    part = tl.program_id(0)
    rows = part * R + tl.arange(0, R)
    there = rows < C
    head = tl.arange(0, BLOCK_HQ)
    d = tl.arange(0, D)
    k = head[:, None] * D + d[None, :]  # (BLOCK_HQ, D)
    real = (head < HQ)[:, None] & (d < D)[None, :]
    w = tl.load(w_ptr + rows[:, None, None] * (HQ * D) + k[None], mask=there[:, None, None] & real[None], other=0.0)
    scale = tl.load(scale_ptr + rows, mask=there, other=0.0).to(tl.float32)
    if PDL:
        gdc_wait()
    h = tl.load(h_ptr + rows, mask=there, other=0.0)
    largest = tl.full((BLOCK_HQ,), -1e30, tl.float32)
    all_lse = ()
    for split in tl.static_range(SPLITS):
        all_lse = all_lse + (tl.load(lse_ptr + split * HQ + head, mask=head < HQ, other=0.0),)
        largest = tl.maximum(largest, all_lse[split])
    o = tl.zeros((BLOCK_HQ, D), tl.float32)
    total = tl.zeros((BLOCK_HQ,), tl.float32)
    for split in tl.static_range(SPLITS):
        share = tl.exp2(all_lse[split] - largest)
        total += share
        o += tl.load(o_ptr + split * (HQ * D) + k, mask=real, other=0.0).to(tl.float32) * share[:, None]
    o /= total[:, None]
    products = tl.reshape(w.to(tl.float32) * o[None], (R, BLOCK_HQ, D // 8, 8))
    h += tl.sum(tl.sum(tl.sum(products, axis=3), axis=2), axis=1)
    store_residual(h, h_ptr, x_ptr, squares_ptr, scale, rows, there, part, 0, C, PARTS)


@triton.jit
def merge_kernel(
    o_ptr, lse_ptr, merged_ptr, HQ: tl.constexpr, D: tl.constexpr, SPLITS: tl.constexpr, PDL: tl.constexpr
):  # fmt: skip
    """The parts of attention put together: (S, HQ, D). Grid: (HQ, S)."""
    if PDL:
        gdc_launch_dependents()
    head, s = tl.program_id(0), tl.program_id(1)
    d = tl.arange(0, D)
    row = (s * SPLITS + tl.arange(0, SPLITS)) * HQ + head
    if PDL:
        gdc_wait()
    lse = tl.load(lse_ptr + row)
    parts = tl.load(o_ptr + row[:, None] * D + d[None, :])
    share = tl.exp2(lse - tl.max(lse, axis=0))
    o = tl.sum(parts.to(tl.float32) * share[:, None], axis=0) / tl.sum(share, axis=0)
    tl.store(merged_ptr + (s * HQ + head) * D + d, o.to(merged_ptr.dtype.element_ty))
