"""What several lessons' checks share: exact results, inputs whose scores are exact, matrix products counted, and memory
that is poisoned, so that a stray load or a store that never came shows as NaN.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from llmsys.attention.naive import naive_attention
from llmsys.hardware.arithmetic import count
from llmsys.hardware.dispatch import Observer


def exact(q: Tensor, k: Tensor, v: Tensor, **options) -> tuple[Tensor, Tensor]:
    """(o, lse) of attention as expected, computed in float64 and rounded once; shapes and options as in
    `llmsys.attention.contract`."""
    o, lse = naive_attention(q.double(), k.double(), v.double(), return_lse=True, **options)
    return o.to(q.dtype), lse.float()


STAGES = {  # the modules of each stage of the library, in the order of the course
    "naive": ("naive",),
    "online": ("online",),
    "tiled": ("tiled",),
    "flash": ("sdpa", "auto", "one_head", "flash*"),
    "backward": ("backward",),
    "hopper": ("hopper*",),
}


def later_stages(stage: str) -> tuple[str, ...]:
    """Every function of the library's stages after that one, as an exercise forbids them."""
    later = list(STAGES)[list(STAGES).index(stage) + 1 :]
    return tuple(f"llmsys.attention.{module}:*" for each in later for module in STAGES[each])


def multiples(x: Tensor, step: float) -> Tensor:
    """x, rounded to multiples of `step`.

    A score near 10,000 is rounded by up to 5·10⁻⁴ in fp32. Where two of them are close together, that moves their
    weights by as much, and a right answer differs from the exact one. Queries and keys of few bits have scores that
    need no rounding (for a head size of 4, 16 or 64 the scale is exact, too), and the scores are equal or far apart.
    """
    return (x / step).round() * step


class PoisonedResults:
    """A Triton kernel whose results are NaN before it runs. `results` are their places among its arguments."""

    def __init__(self, kernel: object, results: slice):
        self.kernel, self.results = kernel, results

    def __getitem__(self, grid) -> Callable[..., None]:
        def launch(*args, **options) -> None:
            for x in args[self.results]:
                x.fill_(float("nan"))
            self.kernel[grid](*args, **options)

        return launch


class StridedResults:
    """A Triton kernel that is given another tensor for one of its results, and that tensor's strides.

    kernel    what is launched
    result    the result's place among the arguments
    strides   the places of its strides, of all dimensions but the last
    laid_out  a tensor -> one of the same shape that lies in memory as the kernel is to find it

    The launcher's own tensor gets what the kernel has stored.
    """

    def __init__(self, kernel: object, result: int, strides: slice, laid_out: Callable[[Tensor], Tensor]):
        self.kernel, self.result, self.strides, self.laid_out = kernel, result, strides, laid_out

    def __getitem__(self, grid) -> Callable[..., None]:
        def launch(*args, **options) -> None:
            own, given = args[self.result], list(args)
            given[self.result] = placed = self.laid_out(own)
            given[self.strides] = placed.stride()[:-1]
            self.kernel[grid](*given, **options)
            own.copy_(placed)

        return launch


def with_gaps(x: Tensor, gap: int) -> Tensor:
    """The same rows (T, D), with `gap` elements between them that are nobody's: NaN."""
    wide = x.new_full((x.shape[0], x.shape[1] + gap), float("nan"))
    wide[:, : x.shape[1]] = x
    return wide[:, : x.shape[1]]


def tokens_first(x: Tensor) -> Tensor:
    """The same (B, H, T, D), lying in memory as (B, T, H, D), which is how a model makes it."""
    return x.transpose(1, 2).contiguous().transpose(1, 2)


class Products(Observer):
    """Counts the matrix products of its block, in every thread.

    `report()` is plain data: how many there were, the operations of the largest, and the operations of all by the
    length that they sum over, which tells q kᵀ (Dk) from dO vᵀ (Dv) and from the sums over keys and queries.
    """

    def __init__(self) -> None:
        super().__init__()
        self.flops: list[tuple[int, int]] = []  # of each: the length it sums over, its operations

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if torch.is_inference_mode_enabled():  # there, some come whole
            with self:
                result = operator.decompose(*args, **kwargs)
            if result is not NotImplemented:
                return result
        result = operator(*args, **kwargs)
        computed = count(operator, args, kwargs, result)
        if computed and computed.matmul:
            self.flops.append((computed.matmul // (2 * result.numel()), computed.matmul))
        return result

    def report(self) -> dict:
        by_length: dict[int, int] = {}
        for length, flops in sorted(self.flops):
            by_length[length] = by_length.get(length, 0) + flops
        largest = max((flops for _, flops in self.flops), default=0)
        return {"count": len(self.flops), "largest": largest, "summed over": by_length}
