"""The step's two ends: a token becomes numbers, and numbers become the logits of the next token."""

from llmsys.hardware.tier import load_triton
from llmsys.models.few_kernels.pieces import load_squares, reciprocal_rms

triton, tl = load_triton()
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait  # noqa: E402


@triton.jit
def embedding_kernel(
    tokens_ptr, positions_ptr, embedding_ptr, frequency_ptr, scale_ptr, h_ptr, x_ptr, squares_ptr, cos_ptr, sin_ptr,
    C: tl.constexpr, HALF: tl.constexpr, PARTS: tl.constexpr, BLOCK_C: tl.constexpr, BLOCK_HALF: tl.constexpr,
    BLOCK_PARTS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """h, x and squares (see `products`) of each sequence's token, and the cosines and sines of its position.

    Grid: (S,). The step's first kernel is launched when the step before it is done, as any kernel is: what it reads is
    what changes between steps. Frequencies (HALF,), cos and sin (S, HALF) fp32.
    """
    if PDL:
        gdc_launch_dependents()
    s = tl.program_id(0)
    token = tl.load(tokens_ptr + s).to(tl.int64)
    c = tl.arange(0, BLOCK_C)
    h = tl.load(embedding_ptr + token * C + c, mask=c < C, other=0.0).to(tl.float32)
    scale = tl.load(scale_ptr + c, mask=c < C, other=0.0).to(tl.float32)
    tl.store(h_ptr + s * C + c, h, mask=c < C)
    tl.store(x_ptr + s * C + c, (h * scale).to(x_ptr.dtype.element_ty), mask=c < C)
    part = tl.arange(0, BLOCK_PARTS)
    tl.store(squares_ptr + s * PARTS + part, tl.where(part == 0, tl.sum(h * h), 0.0), mask=part < PARTS)
    i = tl.arange(0, BLOCK_HALF)
    angle = tl.load(positions_ptr + s).to(tl.float32) * tl.load(frequency_ptr + i, mask=i < HALF, other=0.0)
    tl.store(cos_ptr + s * HALF + i, tl.cos(angle), mask=i < HALF)
    tl.store(sin_ptr + s * HALF + i, tl.sin(angle), mask=i < HALF)


@triton.jit
def head_kernel(
    x_ptr, squares_ptr, w_ptr, wanted_ptr, logits_ptr, eps, L: tl.constexpr, C: tl.constexpr, V: tl.constexpr,
    R: tl.constexpr, BLOCK_C: tl.constexpr, PARTS: tl.constexpr, BLOCK_PARTS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """logits (L, V) of the sequences that `wanted` (L,) names: w (V, C) · norm(h), the whole matrix read once.

    By as many programs as fit onto the GPU: tiles of R rows are dealt out in turn, and a program asks for the next of
    its tiles before it uses one.
    """
    if PDL:
        gdc_launch_dependents()
    TILES: tl.constexpr = (V + R - 1) // R
    r = tl.arange(0, R)
    c = tl.arange(0, BLOCK_C)
    first = tl.program_id(0)
    rows = first * R + r
    w = tl.load(
        w_ptr + rows[:, None].to(tl.int64) * C + c[None, :], mask=(rows < V)[:, None] & (c < C)[None, :], other=0.0
    )
    wanted = ()
    for i in tl.static_range(L):
        wanted = wanted + (tl.load(wanted_ptr + i),)
    if PDL:
        gdc_wait()
    scales = ()
    for i in tl.static_range(L):
        scales = scales + (reciprocal_rms(load_squares(squares_ptr + wanted[i] * PARTS, PARTS, BLOCK_PARTS), C, eps),)
    for tile in range(first, TILES, tl.num_programs(0)):
        rows = tile * R + r
        later = (tile + tl.num_programs(0)) * R + r
        there = (later < V)[:, None] & (c < C)[None, :]
        ahead = tl.load(w_ptr + later[:, None].to(tl.int64) * C + c[None, :], mask=there, other=0.0)
        for i in tl.static_range(L):
            x = tl.load(x_ptr + wanted[i] * C + c[None, :], mask=(c < C)[None, :], other=0.0)  # (1, BLOCK_C)
            y = tl.sum(w.to(tl.float32) * x.to(tl.float32), axis=1) * scales[i]
            tl.store(logits_ptr + i * V + rows, y.to(logits_ptr.dtype.element_ty), mask=rows < V)
        w = ahead
