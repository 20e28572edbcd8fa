"""The four products of a layer, for few sequences: q, k and v; the output; gate and up; down.

Each reads its matrix once, for all sequences of the step, and asks for it before it waits (`pieces`). No product is
split along K between programs: a program owns its rows of the result, so sums are made in one order and a step is the
same to the last bit whenever it is run. (Split, and added by atomics into the residual, was tried first and is not.)

Between kernels flow, in fp32 unless the weights are bf16 and it says so:

    h        (S, C)                the residual, fp32
    x        (S, C)                h · the next norm's weight, bf16 if the weights are. The norm's 1/rms is a number,
                                   and products are linear: it is multiplied in after the product
    squares  (S, PARTS)            of h, added up in as many parts as the kernel before has programs, fp32
    qkv      (S, Hq + 2 Hkv, D)    heads, bf16 if the weights are; q and k rotated, and short of their norm's 1/rms
    act      (S, I)                silu(gate) · up, bf16 if the weights are
"""

from llmsys.hardware.tier import load_triton
from llmsys.models.few_kernels.pieces import load_rows, load_squares, multiply, reciprocal_rms, store_residual

triton, tl = load_triton()
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait  # noqa: E402


@triton.jit
def qkv_kernel(
    x_ptr, squares_ptr, w_ptr, q_scale_ptr, k_scale_ptr, cos_ptr, sin_ptr, qkv_ptr, head_squares_ptr, eps,
    S: tl.constexpr, C: tl.constexpr, HQ: tl.constexpr, HKV: tl.constexpr, D: tl.constexpr, R: tl.constexpr,
    W: tl.constexpr, NORM: tl.constexpr, PARTS: tl.constexpr, BLOCK_PARTS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """q, k and v of norm(h), q and k rotated: R rows of w ((HQ + 2 HKV) · D, C) a program, of one head.

    The rows are R / 2 pairs, i and i + D / 2, which turn together. The norm of a head of q and k is 1/rms of all its D
    elements, which no program has: here they are multiplied by its weights, which lie before the rotation, and their
    squares added up, a sum a program, head_squares (S, HQ + HKV, D / R). Who reads a head multiplies by 1/rms.
    cos and sin (S, D / 2) fp32. Grid: ((HQ + 2 HKV) · D / R,).
    """
    if PDL:
        gdc_launch_dependents()
    HALF: tl.constexpr = D // 2
    HEAD_PARTS: tl.constexpr = D // R
    head = tl.program_id(0) // HEAD_PARTS
    part = tl.program_id(0) % HEAD_PARTS
    i = part * (R // 2) + tl.arange(0, R // 2)
    firsts = load_rows(w_ptr, head * D + i, i < HALF, C, W)
    seconds = load_rows(w_ptr, head * D + HALF + i, i < HALF, C, W)
    if NORM:
        first_scale = tl.where(head < HQ, tl.load(q_scale_ptr + i), tl.load(k_scale_ptr + i)).to(tl.float32)
        second_scale = tl.where(head < HQ, tl.load(q_scale_ptr + HALF + i), tl.load(k_scale_ptr + HALF + i))
        second_scale = second_scale.to(tl.float32)
    if PDL:
        gdc_wait()
    squares, first_sums, second_sums, cosines, sines = (), (), (), (), ()
    for s in tl.static_range(S):
        squares = squares + (load_squares(squares_ptr + s * PARTS, PARTS, BLOCK_PARTS),)
        cosines = cosines + (tl.load(cos_ptr + s * HALF + i),)
        sines = sines + (tl.load(sin_ptr + s * HALF + i),)
        first_sums = first_sums + (multiply(firsts, x_ptr + s * C, i < HALF, C, R // 2, W),)
        second_sums = second_sums + (multiply(seconds, x_ptr + s * C, i < HALF, C, R // 2, W),)
    for s in tl.static_range(S):
        scale = reciprocal_rms(squares[s], C, eps)
        first = tl.sum(first_sums[s], axis=1) * scale
        second = tl.sum(second_sums[s], axis=1) * scale
        cos, sin = cosines[s], sines[s]
        if head < HQ + HKV:
            if NORM:
                total = tl.sum(first * first + second * second)
                tl.store(head_squares_ptr + (s * (HQ + HKV) + head) * HEAD_PARTS + part, total)
                first *= first_scale
                second *= second_scale
            turned = first * cos - second * sin
            second = second * cos + first * sin
            first = turned
        at = qkv_ptr + (s * (HQ + 2 * HKV) + head) * D + i
        tl.store(at, first.to(qkv_ptr.dtype.element_ty))
        tl.store(at + HALF, second.to(qkv_ptr.dtype.element_ty))


@triton.jit
def gate_up_kernel(
    x_ptr, squares_ptr, w_ptr, act_ptr, eps, S: tl.constexpr, C: tl.constexpr, I: tl.constexpr, R: tl.constexpr,
    W: tl.constexpr, PARTS: tl.constexpr, BLOCK_PARTS: tl.constexpr, PDL: tl.constexpr,
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
        gate_sums = gate_sums + (multiply(gates, x_ptr + s * C, there, C, R, W),)
        up_sums = up_sums + (multiply(ups, x_ptr + s * C, there, C, R, W),)
    for s in tl.static_range(S):
        scale = reciprocal_rms(squares[s], C, eps)
        gate = tl.sum(gate_sums[s], axis=1) * scale
        act = gate / (1.0 + tl.exp(-gate)) * (tl.sum(up_sums[s], axis=1) * scale)
        tl.store(act_ptr + s * I + rows, act.to(act_ptr.dtype.element_ty), mask=there)


@triton.jit
def down_kernel(
    act_ptr, w_ptr, scale_ptr, h_ptr, x_ptr, squares_ptr, S: tl.constexpr, C: tl.constexpr, I: tl.constexpr,
    R: tl.constexpr, W: tl.constexpr, PARTS: tl.constexpr, PDL: tl.constexpr,
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
        sums = sums + (multiply(pieces, act_ptr + s * I, there, I, R, W),)
    for s in tl.static_range(S):
        h = old[s] + tl.sum(sums[s], axis=1)
        store_residual(h, h_ptr, x_ptr, squares_ptr, scale, rows, there, part, s, C, PARTS)


@triton.jit
def output_kernel(
    o_ptr, lse_ptr, lengths_ptr, w_ptr, scale_ptr, h_ptr, x_ptr, squares_ptr, C: tl.constexpr, HQ: tl.constexpr,
    D: tl.constexpr, BLOCK_N: tl.constexpr, MAX_SPLITS: tl.constexpr, AT_ONCE: tl.constexpr, R: tl.constexpr,
    BLOCK_HQ: tl.constexpr, PARTS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """h += w · o, and x and squares of it, of one sequence: R rows of w (C, HQ · D), grid (PARTS = C / R,).

    Attention left o in parts, (MAX_SPLITS, HQ, D), each with its lse (MAX_SPLITS, HQ) to base 2; there are as many as
    the sequence has tiles of BLOCK_N keys. Every program puts them together for itself, AT_ONCE at a time: that is
    sooner done than a kernel more. (With more sequences it is not: `merge_kernel`, then `down_kernel` as for any
    product that is added to h.)
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
    count = count_parts(lengths_ptr, BLOCK_N, MAX_SPLITS)
    if PDL:
        gdc_wait()
    h = tl.load(h_ptr + rows, mask=there, other=0.0)
    o, m, l = put_together(o_ptr, lse_ptr, count, head, k, real, HQ, D, AT_ONCE, BLOCK_HQ)
    for start in range(AT_ONCE, count, AT_ONCE):
        later_o, later_m, later_l = put_together(
            o_ptr + start * (HQ * D), lse_ptr + start * HQ, count - start, head, k, real, HQ, D, AT_ONCE, BLOCK_HQ
        )
        larger = tl.maximum(m, later_m)
        a, b = tl.exp2(m - larger), tl.exp2(later_m - larger)
        l = l * a + later_l * b
        o = o * a[:, None] + later_o * b[:, None]
        m = larger
    o /= l[:, None]
    products = tl.reshape(w.to(tl.float32) * o[None], (R, BLOCK_HQ, D // 8, 8))
    h += tl.sum(tl.sum(tl.sum(products, axis=3), axis=2), axis=1)
    store_residual(h, h_ptr, x_ptr, squares_ptr, scale, rows, there, part, 0, C, PARTS)


@triton.jit
def merge_kernel(
    o_ptr, lse_ptr, lengths_ptr, merged_ptr, HQ: tl.constexpr, D: tl.constexpr, BLOCK_N: tl.constexpr,
    MAX_SPLITS: tl.constexpr, AT_ONCE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """The parts of attention put together: (S, HQ, D). Grid: (HQ, S)."""
    if PDL:
        gdc_launch_dependents()
    head, s = tl.program_id(0), tl.program_id(1)
    d = tl.arange(0, D)
    count = count_parts(lengths_ptr + s, BLOCK_N, MAX_SPLITS)
    o_ptr += s * (MAX_SPLITS * HQ * D) + head * D
    lse_ptr += s * (MAX_SPLITS * HQ) + head
    m = -1e30
    l = 0.0
    o = tl.zeros((D,), tl.float32)
    if PDL:
        gdc_wait()
    for start in range(0, count, AT_ONCE):
        i = start + tl.arange(0, AT_ONCE)
        lse = tl.load(lse_ptr + i * HQ, mask=i < count, other=-1e30)
        parts = tl.load(o_ptr + i[:, None] * (HQ * D) + d[None, :], mask=(i < count)[:, None], other=0.0)
        larger = tl.maximum(m, tl.max(lse, axis=0))
        share = tl.exp2(lse - larger)
        shrink = tl.exp2(m - larger)
        l = l * shrink + tl.sum(share, axis=0)
        o = o * shrink + tl.sum(parts.to(tl.float32) * share[:, None], axis=0)
        m = larger
    tl.store(merged_ptr + (s * HQ + head) * D + d, (o / l).to(merged_ptr.dtype.element_ty))


@triton.jit
def count_parts(length_ptr, BLOCK_N: tl.constexpr, MAX_SPLITS: tl.constexpr):
    """How many parts attention to a sequence has: its tiles, MAX_SPLITS at most, and one where there is no key."""
    return tl.minimum(tl.maximum((tl.load(length_ptr) + BLOCK_N - 1) // BLOCK_N, 1), MAX_SPLITS)


@triton.jit
def put_together(
    o_ptr, lse_ptr, count, head, k, real, HQ: tl.constexpr, D: tl.constexpr, AT_ONCE: tl.constexpr,
    BLOCK_HQ: tl.constexpr,
):  # fmt: skip
    """Of AT_ONCE parts, or the `count` that there are: Σ o · 2^(lse − m) (BLOCK_HQ, D), m, and Σ 2^(lse − m)."""
    all_lse = ()
    m = tl.full((BLOCK_HQ,), -1e30, tl.float32)
    for i in tl.static_range(AT_ONCE):
        lse = tl.load(lse_ptr + i * HQ + head, mask=(head < HQ) & (i < count), other=-1e30)
        all_lse = all_lse + (lse,)
        m = tl.maximum(m, lse)
    o = tl.zeros((BLOCK_HQ, D), tl.float32)
    l = tl.zeros((BLOCK_HQ,), tl.float32)
    for i in tl.static_range(AT_ONCE):
        share = tl.exp2(all_lse[i] - m)
        l += share
        of_part = tl.load(o_ptr + i * (HQ * D) + k, mask=real & (i < count), other=0.0)
        o += of_part.to(tl.float32) * share[:, None]
    return o, m, l
