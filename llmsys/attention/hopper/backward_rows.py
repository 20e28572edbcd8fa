"""Before and after the hopper backward kernel: what is done once for each row of queries.

`llmsys.attention.flash.backward_kernels` says what delta is, and why a row that sees no key gets lse = +∞. Here lse and
delta are stored as the copy engine will fetch them: side by side for each tile of queries, and in whole tiles, in which
a row beyond the end has lse = +∞, too. The same program writes zeros to its rows of dQ's sum in fp32. When the
backward kernel has added to it, `hopper_finish_kernel` multiplies the sum with the scale and rounds it.
"""

from llmsys.hardware.tier import load_triton

triton, tl = load_triton()


@triton.jit
def hopper_rows_kernel(
    o_ptr, do_ptr, lse_ptr, dlse_ptr, rows_ptr, dq_ptr,
    o_stride_b, o_stride_h, o_stride_t,
    do_stride_b, do_stride_h, do_stride_t,
    Hq, Tq,
    D: tl.constexpr, BLOCK_M: tl.constexpr,
):  # fmt: skip
    """lse in base two and delta − dlse of a tile of queries, and zeros for its dQ.

    Grid: (tiles, B · Hq). o and do (B, Hq, Tq, D); lse and dlse (B, Hq, Tq) fp32, dlse may be None; rows
    (B, Hq, tiles, 2, BLOCK_M) and dq (B, Hq, Tq, D) fp32, all but o and do contiguous.
    """
    b = (tl.program_id(1) // Hq).to(tl.int64)
    h = (tl.program_id(1) % Hq).to(tl.int64)
    lanes = tl.arange(0, BLOCK_M)
    t = tl.program_id(0) * BLOCK_M + lanes  # (BLOCK_M,)
    columns = tl.arange(0, D)[None, :]
    inside = (t < Tq)[:, None]
    o_at = o_ptr + b * o_stride_b + h * o_stride_h + t.to(tl.int64)[:, None] * o_stride_t + columns
    do_at = do_ptr + b * do_stride_b + h * do_stride_h + t.to(tl.int64)[:, None] * do_stride_t + columns
    o = tl.load(o_at, mask=inside, other=0.0).to(tl.float32)  # (BLOCK_M, D)
    do = tl.load(do_at, mask=inside, other=0.0).to(tl.float32)
    delta = tl.sum(o * do, axis=1)
    row = tl.program_id(1).to(tl.int64) * Tq + t
    if dlse_ptr is not None:
        delta -= tl.load(dlse_ptr + row, mask=t < Tq, other=0.0)
    lse = tl.load(lse_ptr + row, mask=t < Tq, other=float("-inf"))
    lse_log2 = tl.where(lse == float("-inf"), float("inf"), lse * 1.4426950408889634)
    tile = tl.program_id(1).to(tl.int64) * tl.num_programs(0) + tl.program_id(0)
    rows_at = rows_ptr + tile * (2 * BLOCK_M) + lanes
    tl.store(rows_at, lse_log2)
    tl.store(rows_at + BLOCK_M, delta)
    tl.store(dq_ptr + row[:, None] * D + columns, tl.zeros([BLOCK_M, D], tl.float32), mask=inside)


@triton.jit
def hopper_finish_kernel(sum_ptr, dq_ptr, scale, N, BLOCK: tl.constexpr):
    """dq = scale · sum, of N numbers in all. Grid: (ceil(N / BLOCK),)."""
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    dq = tl.load(sum_ptr + at, mask=at < N) * scale
    tl.store(dq_ptr + at, dq.to(dq_ptr.dtype.element_ty), mask=at < N)
