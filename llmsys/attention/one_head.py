"""Stage 4's first form: FlashAttention's forward pass for one head, with nothing in it but the algorithm.

Lesson 03's loop over tiles, as a Triton kernel. A program has one tile of queries. What the lesson loads from HBM
explicitly is a pointer here, what it keeps in SRAM is a variable of the program:

    q          (BLOCK_M, D)          loaded once
    m, l, o    (BLOCK_M,), (BLOCK_M,), (BLOCK_M, D)    the running maximum, denominator and output, in fp32
    k, v       (BLOCK_N, D)          the tile that is passing

    S = q kᵀ · scale · log2(e)       the hardware computes 2^x, so m and P are in base two
    m' = max(m, rowmax S)            P = 2^(S − m')
    l' = l · 2^(m − m') + rowsum P   o' = o · 2^(m − m') + P v

and o / l is stored once, at the end (https://arxiv.org/abs/2307.08691, section 3.1.1).

`llmsys.attention.flash.kernels` is the same walk over the keys with what a model needs: batches and heads, groups of
query heads that share keys, heads of any size, the log-sum-exp, and a second loop, so that tiles far from the diagonal
need no mask.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from llmsys.attention.contract import within_reach
from llmsys.hardware.tier import interpreting, load_triton, triton_device

triton, tl = load_triton()

LOG2_E = 1 / math.log(2)
HEAD_SIZES = (16, 32, 64, 128, 256)  # tl.arange wants powers of two, and tl.dot at least 16


@triton.jit
def one_head_kernel(
    q_ptr, k_ptr, v_ptr, o_ptr, q_stride, k_stride, v_stride, o_stride, Tq, Tk, scale_log2,
    D: tl.constexpr, CAUSAL: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """o[rows] = softmax(q[rows] kᵀ · scale) v for the BLOCK_M rows of this program.

    Grid: (ceil(Tq / BLOCK_M),). q (Tq, D), k (Tk, D), v (Tk, D), o (Tq, D); a stride is the number of elements from
    one token to the next, and the D elements of a token are adjacent. scale_log2 = scale · log2(e). Elements are
    counted in 32 bits: `attend_one_head` sees to it that they suffice.
    """
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)  # (BLOCK_M,)
    d = tl.arange(0, D)
    q = tl.load(q_ptr + rows[:, None] * q_stride + d[None, :], mask=rows[:, None] < Tq, other=0.0)  # (BLOCK_M, D)
    m = tl.full((BLOCK_M,), float("-inf"), tl.float32)
    l = tl.zeros((BLOCK_M,), tl.float32)
    o = tl.zeros((BLOCK_M, D), tl.float32)

    stop = Tk
    if CAUSAL:  # bottom-right: row i sees the keys up to i + Tk − Tq
        stop = tl.minimum(tl.program_id(0) * BLOCK_M + BLOCK_M + Tk - Tq, Tk)
    for start in range(0, stop, BLOCK_N):
        keys = start + tl.arange(0, BLOCK_N)  # (BLOCK_N,)
        k = tl.load(k_ptr + keys[:, None] * k_stride + d[None, :], mask=keys[:, None] < Tk, other=0.0)  # (BLOCK_N, D)
        s = tl.dot(q, tl.trans(k), input_precision="ieee") * scale_log2  # (BLOCK_M, BLOCK_N)
        seen = keys[None, :] < Tk  # a key that does not exist has s = 0, and 2^0 is not 0
        if CAUSAL:
            seen = seen & (keys[None, :] <= rows[:, None] + Tk - Tq)
        s = tl.where(seen, s, float("-inf"))
        m_new = tl.maximum(m, tl.max(s, axis=1))
        shift = tl.where(m_new == float("-inf"), 0.0, m_new)  # a row without a key so far: −∞ − (−∞) would be NaN
        p = tl.exp2(s - shift[:, None])
        shrink = tl.exp2(m - shift)
        l = l * shrink + tl.sum(p, axis=1)
        v = tl.load(v_ptr + keys[:, None] * v_stride + d[None, :], mask=keys[:, None] < Tk, other=0.0)  # (BLOCK_N, D)
        o = tl.dot(p.to(v.dtype), v, o * shrink[:, None], input_precision="ieee")
        m = m_new

    o = o / tl.where(l > 0, l, 1.0)[:, None]  # a row without any key: 0 / 1
    tl.store(o_ptr + rows[:, None] * o_stride + d[None, :], o.to(o_ptr.dtype.element_ty), mask=rows[:, None] < Tq)


def attend_one_head(
    q: Float[Tensor, "Tq D"],
    k: Float[Tensor, "Tk D"],
    v: Float[Tensor, "Tk D"],
    *,
    causal: bool = False,
    scale: float | None = None,
    block_m: int = 16,
    block_n: int = 16,
    kernel=None,
) -> Float[Tensor, "Tq D"]:
    """Attention of one head: o (Tq, D), by `one_head_kernel`.

    Parameters
    ----------
    q, k, v
        float32 or float16, or bfloat16 where the kernel is compiled; D a power of two from 16 to 256; on the device
        that Triton runs on. Tokens may lie at any distance from each other; a token's elements must be adjacent. Where
        the last token begins 2^31 elements behind the first, or later, a copy is made.
    causal
        Aligned bottom-right: the last query sees all keys. A row that sees none gives 0.
    block_m, block_n
        Queries and keys in a tile, powers of two from 16.
    kernel
        A kernel with the arguments of `one_head_kernel`, in its place.

    Raises
    ------
    ValueError
        Wrong shapes, dtype, device or tiles; the message says what was expected.
    """
    _check(q, k, v, block_m, block_n)
    q, k, v = (within_reach(name, x, "flash") for name, x in (("q", q), ("k", k), ("v", v)))
    Tq, D = q.shape
    Tk = k.shape[0]
    scale = D**-0.5 if scale is None else scale
    o = torch.empty_like(q, memory_format=torch.contiguous_format)
    if Tq:
        grid = (-(-Tq // block_m),)
        with torch.cuda.device_of(q):
            (kernel or one_head_kernel)[grid](
                q, k, v, o, q.stride(0), k.stride(0), v.stride(0), o.stride(0), Tq, Tk, scale * LOG2_E,
                D=D, CAUSAL=causal, BLOCK_M=block_m, BLOCK_N=block_n,
            )  # fmt: skip
    return o


def _check(q: Tensor, k: Tensor, v: Tensor, block_m: int, block_n: int) -> None:
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.dim() != 2:
            raise ValueError(f"{name} must have shape (T, D), one head alone, got {tuple(x.shape)}")
        if x.numel() >= 2**31:
            raise ValueError(f"{name} must have fewer than 2^31 elements here, got {tuple(x.shape)}; use stage flash")
        if x.dtype != q.dtype or x.device != q.device:
            raise ValueError(f"{name} must be {q.dtype} on {q.device} as q is, got {x.dtype} on {x.device}")
        if x.shape[1] != q.shape[1]:
            raise ValueError(f"{name} must have heads of {q.shape[1]} as q has, got {x.shape[1]}")
        if x.numel() and x.stride(1) != 1:
            raise ValueError(f"{name} must have adjacent elements in a token, got strides {x.stride()}; contiguous()")
    if k.shape[0] != v.shape[0]:
        raise ValueError(f"v must have as many tokens as k, {k.shape[0]}, got {v.shape[0]}")
    if q.shape[1] not in HEAD_SIZES:
        raise ValueError(
            f"q must have heads of {', '.join(map(str, HEAD_SIZES))} here, got {q.shape[1]}; use stage flash"
        )
    if q.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"q must be float32, float16 or bfloat16, got {q.dtype}")
    if q.dtype == torch.bfloat16 and interpreting():
        raise ValueError("q must be float32 or float16 in Triton's interpreter, it gets bfloat16 wrong; q.float()")
    if q.device.type != triton_device().type:
        raise ValueError(f"q must be on {triton_device().type!r}, where Triton runs in this process, got {q.device}")
    for name, block in (("block_m", block_m), ("block_n", block_n)):
        if block < 16 or block & (block - 1):
            raise ValueError(f"{name} must be a power of two from 16, which tl.dot wants, got {block}")
