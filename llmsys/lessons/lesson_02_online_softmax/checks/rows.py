"""What the checks of lesson 02 have in common: what is expected of a row, rows that are drawn, how its reads count."""

import torch

from llmsys.attention import online
from llmsys.course.checking.answer import Answer
from llmsys.course.checking.watch import FUSED_ATTENTION, FUSED_SOFTMAX
from llmsys.lessons.common import later_stages

FUSED = (*FUSED_SOFTMAX, *FUSED_ATTENTION)
LIBRARY = (
    online.safe_softmax,
    online.online_softmax,
    online.online_attention,
    "llmsys.attention.row_softmax:softmax_rows",
    *later_stages("online"),
)


def softmax(x: torch.Tensor) -> torch.Tensor:
    """What is expected, computed in float64 and rounded once."""
    return torch.softmax(x.double(), dim=-1).to(x.dtype)


def a_tile_at_a_time(answer: Answer, passes: int, otherwise: str) -> None:
    """The call reads x so many times, a tile at a time, and keeps no more than a few tiles from one pass to the next.
    `otherwise` says what it must mean that x was read less often.

    Four allowances. Where two passes meet, a tile may still be on the chip: then it is read once less. The maximum may
    begin with a column, which is read once more. Threads hold a few tiles each. And in the last pass there may be
    another y, in tiles that are put together in the end.
    """
    answer.reads_at_once(answer(answer.randn(3, 50), 7), 3 * 7)  # whoever has tiles of a size of their own
    rows, N, tile = 2, 1024, 16  # 64 tiles
    for x in (answer.randn(rows, N), answer.spread(answer.randn(rows, N))):
        run = answer(x, tile)
        answer.reads_at_once(run, rows * tile)
        answer.reads(run, at_most=passes + 1 / N, at_least=passes - (passes - 1) * tile / N, otherwise=otherwise)
        answer.keeps(run, 16 * rows * tile * 4, "16 tiles", passes=passes - 1)
        answer.keeps(run, (N * 8 + 16 * tile * 4) * rows, "16 tiles, and as many numbers as y has, in float64")
        answer.equal(run, softmax(x))


def every_dtype(answer: Answer) -> None:
    """y has the dtype of x, and in float64 nothing on the way has fewer bits."""
    for dtype, tolerance in ((torch.float16, 1e-2), (torch.bfloat16, 1e-1)):
        x = answer.randn(3, 13, dtype=dtype)
        answer.matches(softmax(x), x, 5, rtol=tolerance)  # sums in 16 bits are right, too
    x = answer.randn(3, 13, dtype=torch.float64, scale=30) / 3  # no numbers of float32
    answer.matches(softmax(x), x, 5, rtol=1e-10, atol=1e-14)


def large_logits(answer: Answer, *shape: int) -> list[torch.Tensor]:
    """Logits of ±10,000: in any order, the same shape again and with other numbers, rising and falling from tile to
    tile; and some that are far above 0."""
    x = answer.randn(*shape, scale=1e4)
    return [x, -x, x.sort().values, x.sort(descending=True).values, -far_below_zero(answer, 2, 21)]


def far_below_zero(answer: Answer, *shape: int) -> torch.Tensor:
    """Logits of about −2.6·10³⁸, a few apart: of the numbers that anybody would begin with, only float32's least, about
    −3.4·10³⁸, and −∞ are below them. They are multiples of 2¹⁰⁵, as float32 is there, so that nothing is rounded."""
    return -1.5 * 2.0**127 + 2.0**105 * answer.randint(0, 3, shape).float()
