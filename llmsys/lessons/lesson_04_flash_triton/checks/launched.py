"""What the checks of lesson 04 have in common: kernels as ordinary functions, launched by the library's own launchers,
and the inputs that they are given.

While it is watched, a program takes Triton's interpreter about 20 ms, and each further step of its loop 10. So a
kernel's shapes are as small as the property allows: tiles of 16, and one or two of them.
"""

import math
import warnings
from contextlib import contextmanager

import torch
from torch import Tensor

from llmsys.attention.flash.forward import TileConfig, flash_attention
from llmsys.course.checking.answer import Answer
from llmsys.hardware.tier import triton_device
from llmsys.lessons.common import PoisonedResults, StridedResults, exact, multiples, with_gaps

ONE_HEAD = "llmsys.attention.one_head:one_head_kernel"
FLASH = "llmsys.attention.flash.kernels:flash_forward_kernel"
LIBRARY = (ONE_HEAD, FLASH, "llmsys.attention.flash.kernels:_absorb", "triton.language.standard:softmax")
TYPES = "Write down the type of each operand of tl.dot: of q and k, and of P and v. A product takes two of one type."
IN_HALF = "That is what tensor cores do. float32 is left to units that are many times slower."
BEYOND = "a row that exists sees no key beyond the last one"
LOADED_Q = "tl.load(q_ptr + rows[:, None] * q_stride + d[None, :], mask=rows[:, None] < Tq"  # as the solutions do it
LOADED_K = "tl.load(k_ptr + keys[:, None] * k_stride + d[None, :], mask=keys[:, None] < Tk"
CAUSALLY = "keys[None, :] <= {}[:, None] + Tk - Tq"
LONGER = "a loop that goes on for longer than it need meets hidden keys only, and work is not counted here"


def one_head(kernel):
    """A one-head kernel as an ordinary function, wherever Triton runs. `gaps` are the elements between the tokens of q,
    k and v that are nobody's, and `o_gap` those between o's: NaN."""
    from llmsys.attention.one_head import attend_one_head  # loads Triton, which is there if a kernel is

    def attend(
        q: Tensor, k: Tensor, v: Tensor, *, gaps: tuple[int, int, int] = (0, 0, 0), o_gap: int = 0, **options
    ) -> Tensor:
        spaced = (with_gaps(x.to(triton_device()), gap) for x, gap in zip((q, k, v), gaps, strict=True))
        poisoned = PoisonedResults(kernel, slice(3, 4))
        if o_gap:
            poisoned = StridedResults(poisoned, 3, slice(7, 8), lambda o: with_gaps(o, o_gap))
        with without_numpys_warnings():
            return attend_one_head(*spaced, kernel=poisoned, **options).to(q.device)

    return attend


def grouped(kernel):
    """A kernel with flash's arguments as a function that gives (o, lse), or the one that `only` names. `tokens_first`
    has the tensors lie in memory as (B, T, H, D), which is how a model makes them, each in the rows of a matrix that is
    wider by another number of columns, and o with them."""

    def attend(q, k, v, *, block_m: int = 16, block_n: int = 16, tokens_first: bool = False, only: str = "", **options):
        given = [x.to(triton_device()) for x in (q, k, v)]
        if tokens_first:
            given = [within_rows(x, gap) for x, gap in zip(given, (8, 16, 24), strict=True)]
        tiles = TileConfig(block_m, block_n, num_warps=4, num_stages=1)
        poisoned = PoisonedResults(kernel, slice(3, 5))
        if tokens_first:
            poisoned = StridedResults(poisoned, 3, slice(14, 17), lambda o: within_rows(o, 40))
        with without_numpys_warnings():
            o, lse = flash_attention(*given, return_lse=True, tiles=tiles, kernel=poisoned, **options)
        o, lse = o.to(q.device), lse.to(q.device)
        return {"o": o, "lse": lse}[only] if only else (o, lse)

    return attend


@contextmanager
def without_numpys_warnings():
    """The interpreter computes with NumPy, which warns of NaN and of the logarithm of 0. No GPU does, and to a learner
    it would look like a part of the diagnosis."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=RuntimeWarning, module="triton")
        yield


def within_rows(x: Tensor, gap: int) -> Tensor:
    """The same (B, H, T, D) as columns of a matrix (B, T, H·D + gap). The columns beyond are nobody's: NaN."""
    B, H, T, D = x.shape
    view = x.new_full((B, T, H * D + gap), float("nan"))[:, :, : H * D].unflatten(2, (H, D)).transpose(1, 2)
    return view.copy_(x)


def exact_head(q: Tensor, k: Tensor, v: Tensor, **options) -> Tensor:
    """One head's o as expected: `exact`, for q, k and v of shape (T, D)."""
    return exact(*(x[None, None] for x in (q, k, v)), **options)[0][0, 0]


def draw(answer: Answer, Tq: int, Tk: int, D: int = 16, scale: float = 1.0) -> tuple[Tensor, Tensor, Tensor]:
    return answer.randn(Tq, D, scale=scale), answer.randn(Tk, D), answer.randn(Tk, D)


def below_zero(answer: Answer, Tq: int, Tk: int, D: int, size: float) -> tuple[Tensor, Tensor, Tensor]:
    """Every score is negative, about −size·D·0.6 before the scale, and exact in fp32."""
    q, k, v = draw(answer, Tq, Tk, D)
    step = 2.0 ** math.floor(math.log2(size / 64))
    return -multiples(q.abs() * size, step), k.abs().round(), v


def fading(answer: Answer, keys: int) -> tuple[Tensor, Tensor, Tensor]:
    """Sixteen keys that weigh 1, and many that weigh e^-8.8 each: a running sum in half precision has a step of 1/64
    from 16 on, and takes in nothing of a tile of them, though they are a hundredth of o together. In float16, for tiles
    of 16 keys: q (16, 16), k, v (keys, 16)."""
    q, k, v = draw(answer, 16, keys)
    first = (torch.arange(keys) < 16)[:, None]
    q, k, v = q / 64, torch.where(first, 0.0, k), torch.where(first, 1.0, 3.0) + v.abs() / 8
    q[:, 0], k[:, 0] = 4.0, torch.where(first[:, 0], 0.0, -8.8)
    return q.half(), k.half(), v.half()


def far_from_zero(answer: Answer) -> tuple[Tensor, Tensor, Tensor]:
    """Scores near 100, where a number in half precision has a step of 1/16. In float16."""
    q, k, v = draw(answer, 16, 48)
    q[:, 0], k[:, 0] = 20.0, 20.0
    return q.half(), k.half(), v.half()
