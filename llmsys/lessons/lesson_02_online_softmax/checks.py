"""The checks of lesson 02, online softmax."""

import math

import torch

from llmsys.attention import online
from llmsys.course.checking.answer import Answer
from llmsys.course.checking.checks import exercise_check
from llmsys.course.checking.watch import FUSED_ATTENTION, FUSED_SOFTMAX
from llmsys.hardware.tier import triton_device
from llmsys.lessons.common import PoisonedResults, StridedResults, later_stages, with_gaps

FUSED = (*FUSED_SOFTMAX, *FUSED_ATTENTION)
LIBRARY = (
    online.safe_softmax,
    online.online_softmax,
    online.online_attention,
    "llmsys.attention.row_softmax:softmax_rows",
    *later_stages("online"),
)


def launch(kernel):
    """A softmax kernel as an ordinary function, wherever Triton runs; `columns` cuts a slice with gaps out of x, and
    `y_gap` is how many elements lie between the rows of y that are nobody's."""
    from llmsys.attention.row_softmax import softmax_rows  # loads Triton, which only a kernel's check needs

    def softmax(x: torch.Tensor, *, block: int, columns: int | None = None, y_gap: int = 0) -> torch.Tensor:
        poisoned = PoisonedResults(kernel, slice(1, 2))
        if y_gap:
            poisoned = StridedResults(poisoned, 1, slice(3, 4), lambda y: with_gaps(y, y_gap))
        return softmax_rows(x.to(triton_device())[:, :columns], kernel=poisoned, block=block).to(x.device)

    return softmax


def softmax(x: torch.Tensor) -> torch.Tensor:
    """What is expected, computed in float64 and rounded once."""
    return torch.softmax(x.double(), dim=-1).to(x.dtype)


def a_tile_at_a_time(answer: Answer, passes: int, otherwise: str) -> None:
    """The call reads x so many times, a tile at a time, and keeps no more than a few tiles from one pass to the next.
    `otherwise` says what it must mean that x was read less often.

    Three allowances. Where two passes meet, a tile may still be on the chip: then it is read once less. Threads hold a
    few tiles each. And in the last pass there may be another y, in tiles that are put together in the end.
    """
    rows, N, tile = 2, 1024, 16  # 64 tiles
    for x in (answer.randn(rows, N), answer.spread(answer.randn(rows, N))):
        run = answer(x, tile)
        answer.reads_at_once(run, rows * tile)
        answer.reads(run, at_most=passes, at_least=passes - (passes - 1) * tile / N, otherwise=otherwise)
        answer.keeps(run, 16 * rows * tile * 4, "16 tiles", passes=passes - 1)
        answer.keeps(run, (N + 16 * tile) * rows * 4, "16 tiles, and as many numbers as y has")
        answer.equal(run, softmax(x))


def every_dtype(answer: Answer) -> None:
    """y has the dtype of x."""
    for dtype, tolerance in ((torch.float64, None), (torch.float16, 1e-2), (torch.bfloat16, 1e-1)):
        x = answer.randn(3, 13, dtype=dtype)
        answer.matches(softmax(x), x, 5, rtol=tolerance)  # sums in 16 bits are right, too


def far_below_zero(answer: Answer, *shape: int) -> torch.Tensor:
    """Logits of about −3·10⁸, a few apart: no finite number that anybody would begin with is below them. They are
    multiples of 32, as float32 is there, so that nothing is rounded."""
    return -3e8 + 32 * answer.randint(0, 3, shape).float()


@exercise_check(
    "02.safe_softmax",
    reference=online.safe_softmax,
    forbids=(*FUSED, *LIBRARY, online.summarize),
    hints=(
        "Three loops over `range(0, N, tile)`, one after another. What does each one need from the loop before it? "
        "(Shapes that do not fit: amax(dim=-1) and sum(dim=-1) drop the last dimension. m[..., None] has it back, as a "
        "1, and so has the result of amax(dim=-1, keepdim=True): that meets a tile.)",
        "After the first loop m holds each row's maximum; after the second, l holds each row's Σ e^(x − m). "
        "Both have x's "
        "shape without its last dimension, and need a [..., None] to meet a tile. The maximum of nothing is −∞.",
        "m = -inf for each row; for each tile: m = maximum(m, tile.amax(-1))\n"
        "l = 0 for each row;    for each tile: l = l + exp(tile - m[..., None]).sum(-1)\n"
        "y = empty_like(x);     for each tile: y[..., the tile's columns] = exp(tile - m[..., None]) / l[..., None]",
    ),
)
def safe_softmax(answer: Answer) -> None:
    with answer.property(
        "one row, one tile: the weights are softmax's", why="This is equation (3) itself, before any tiling."
    ):
        x = answer.randn(1, 8)
        answer.matches(softmax(x), x, 8)

    with answer.property(
        "several tiles: the tile size does not show in the result", why="The result must not depend on the tile size."
    ):
        for tile in (1, 2, 4):
            x = answer.randn(2, 8, scale=3)
            answer.matches(softmax(x), x, tile)
        for tile in (4, 1):  # the same shape again, and other numbers
            x = answer.randn(2, 8, scale=3)
            answer.matches(softmax(x), x, tile)

    with answer.property(
        "a row whose last tile is not full", why="N is whatever the vocabulary has; nobody rounds it up for you."
    ):
        for shape, tile in (((3, 7), 4), ((3, 13), 5), ((3, 17), 16), ((3, 3), 64), ((11,), 3), ((2, 1, 3, 5), 2)):
            x = answer.randn(*shape, scale=3)
            answer.matches(softmax(x), x, tile)
            answer.matches(softmax(x), answer.spread(x), tile)
        every_dtype(answer)

    with answer.property(
        "each row has a maximum of its own",
        why="Under another row's maximum, a row of small logits vanishes entirely: 0/0.",
    ):
        x = answer.randn(2, 3, 12) + torch.tensor([60.0, 0.0, -60.0])[:, None]  # e^±60 are float32 numbers, e^-120 not
        answer.matches(softmax(x), x, 5)

    with answer.property(
        "logits of ±10,000 overflow nothing", why="e^88.8 is infinite in float32; the maximum must go before e^ does."
    ):
        x = answer.randn(4, 24, scale=1e4)
        answer.matches(softmax(x), x, 8)

    with answer.property(
        "rows of nothing but −10,000s", why="The maximum of nothing is −∞: one that begins at 0 stays above such a row."
    ):
        x = answer.randn(2, 24) - 1e4
        answer.matches(softmax(x), x, 8)
        x = far_below_zero(answer, 2, 21)
        answer.matches(softmax(x), x, 8)

    with answer.property(
        "x is read three times, a tile at a time",
        why="The row does not fit on the chip: what is longer than a tile lives in the memory that we want to spare.",
    ):
        a_tile_at_a_time(answer, 3, "something as long as the row was kept, or two of the three loops are one")


@exercise_check(
    "02.merge",
    reference=online.merge,
    forbids=(*FUSED, *LIBRARY, online.rescale),
    hints=(
        "Which of the two sums was taken under a maximum that is too small? What is it too large by, as a factor?",
        "Both sums are brought to m = max(m1, m2) with a factor e^(m_i − m) ≤ 1, then added. For two identities that "
        "exponent is −∞ − (−∞) = NaN: put some finite number in m's place there; e^(−∞ − finite) is the 0 "
        "that you want.",
        "m      = maximum(m1, m2)\n"
        "finite = where(m == -inf, 0, m)\n"
        "l      = l1 * exp(m1 - finite) + l2 * exp(m2 - finite)\n"
        "return m, l",
    ),
    equivalent={
        "torch.zeros_like → torch.ones_like": "any finite number does in the place of −∞: e^(−∞ − 1) is 0, too"
    },
)
def merge(answer: Answer) -> None:
    def halves(*shape: int, scale: float = 1.0):
        """Two random pieces of each row, their summaries and that of both together."""
        left, right = answer.randn(*shape, 6, scale=scale), answer.randn(*shape, 9, scale=scale)
        both = torch.cat([left, right], dim=-1)
        return *(tuple(online.summarize(x)) for x in (left, right)), tuple(online.summarize(both.double()))

    def rounded(whole):
        return tuple(x.float() for x in whole)

    with answer.property("pieces with the same maximum: the sums add up", why="Both were taken under one m already."):
        m, l1, l2 = answer.randn(1), 1 + answer.randn(1).abs(), 1 + answer.randn(1).abs()
        answer.matches((m, l1 + l2), (m, l1), (m, l2))
        answer.matches((m - 7, l1 + 2 * l2), (m - 7, 2 * l2), (m - 7, l1))  # the same shape again, and other numbers

    with answer.property(
        "the second piece has the larger maximum: the first sum shrinks",
        why="A sum taken under a smaller maximum is too large, by the factor e^(m − m₁).",
    ):
        m, l1, l2 = answer.randn(5), 1 + answer.randn(5).abs(), 1 + answer.randn(5).abs()
        answer.matches((m + 1.5, l1 * math.exp(-1.5) + l2), (m, l1), (m + 1.5, l2))

    with answer.property(
        "the first piece has the larger maximum: the second sum shrinks",
        why="When tiles are merged as a tree, the larger maximum can come from either side.",
    ):
        m, l1, l2 = answer.randn(5), 1 + answer.randn(5).abs(), 1 + answer.randn(5).abs()
        answer.matches((m + 1.5, l1 + l2 * math.exp(-1.5)), (m + 1.5, l1), (m, l2))

    with answer.property(
        "two pieces of many rows give what one pass over both gives",
        why="Each row decides for itself which side is rescaled.",
    ):
        for shape in ((3, 5), (), (7, 1, 3)):
            a, b, whole = halves(*shape, scale=3)
            answer.matches(rounded(whole), a, b)
        a, b = (tuple(answer.spread(x) for x in pair) for pair in (a, b))
        answer.matches(rounded(whole), a, b)
        a, b = (tuple(x.double() for x in pair) for pair in (a, b))
        answer.matches(tuple(online.merge(a, b)), a, b)

    with answer.property("maxima of ±10,000 overflow nothing", why="No exponent is ever positive."):
        a, b, whole = halves(16, scale=1e4)
        answer.matches(rounded(whole), a, b)
        a, b = ((far_below_zero(answer, 5), 1 + answer.randn(5).abs()) for _ in range(2))
        whole = online.merge(*(tuple(x.double() for x in pair) for pair in (a, b)))
        answer.matches(rounded(whole), a, b)

    with answer.property(
        "the identity (−∞, 0) changes nothing, on either side",
        why="It is the summary of nothing: a fold begins with it.",
    ):
        nothing = (torch.full((4,), -math.inf), torch.zeros(4))
        a = (answer.randn(4, scale=10), 1 + answer.randn(4).abs())
        answer.matches(a, a, nothing)
        answer.matches(a, nothing, a)

    with answer.property(
        "two identities give the identity, and no NaN",
        why="−∞ − (−∞) is NaN. Pieces of a row with nothing in them are common: a causal mask hides whole tiles.",
    ):
        m, l = answer.randn(4), 1 + answer.randn(4).abs()
        empty = torch.tensor([True, False, True, False])
        a = (m.masked_fill(empty, -math.inf), l.masked_fill(empty, 0.0))
        nothing = (torch.full((4,), -math.inf), torch.zeros(4))
        answer.matches(nothing, nothing, nothing)
        answer.matches(a, a, nothing)  # rows of both kinds in one call
        answer.matches(a, nothing, a)
        empty = torch.tensor([True, True, False, False])  # of the four rows, each is empty on another side
        b = (answer.randn(4).masked_fill(empty, -math.inf), (1 + answer.randn(4).abs()).masked_fill(empty, 0.0))
        answer.matches(tuple(online.merge(a, b)), a, b)
        answer.matches(tuple(online.merge(a, b)), b, a)

    with answer.property(
        "a NaN that goes in comes out, in its row alone",
        why="It says that something went wrong before. Whoever turns it into a number hides that.",
    ):
        broken = torch.tensor([True, False, False, True])
        m, l = answer.randn(4), 1 + answer.randn(4).abs()
        b = (m - 0.5, l + 1)
        whole = (m, l + (l + 1) * math.exp(-0.5))
        a, whole = (tuple(x.masked_fill(broken, math.nan) for x in pair) for pair in ((m, l), whole))
        answer.matches(whole, a, b)
        answer.matches(whole, b, a)
        answer.matches(a, nothing, a)

    with answer.property(
        "any tree over the tiles, in any order, gives one result",
        why="Associative and commutative: that is what lets many processors share a row.",
    ):
        x = answer.randn(2, 40, scale=5)
        whole = rounded(online.summarize(x.double()))
        for _ in range(3):
            parts = [tuple(online.summarize(tile)) for tile in x.split(7, dim=-1)]
            while len(parts) > 1:
                a, b = (parts.pop(int(answer.randint(0, len(parts)))) for _ in range(2))
                run = answer(a, b)
                parts.append(run.value)
            answer.equal(run, whole)


@exercise_check(
    "02.online_softmax",
    reference=online.online_softmax,
    forbids=(*FUSED, *LIBRARY),
    hints=(
        "The first loop carries two tensors from tile to tile, m and l, one number a row. What are they "
        "before the first tile?",
        "In the first loop, load the tile once (.clone()), summarise it under its own maximum, (m_t, Σ e^(x − "
        "m_t)), then "
        "(m, l) = merge((m, l), that). Nothing is written before the loop is over: the first weights need the "
        "whole row's l.",
        "m, l = -inf, 0 for each row\n"
        "for each tile: tile = x[..., its columns].clone();  m_t = tile.amax(-1)\n"
        "               m, l = merge((m, l), (m_t, exp(tile - m_t[..., None]).sum(-1)))\n"
        "for each tile: y[..., its columns] = exp(tile - m[..., None]) / l[..., None]\n"
        "(and where m_t is -inf, subtract 0 instead of it)",
    ),
    equivalent={
        "torch.zeros_like → torch.ones_like": "under m = −∞ any l does: the first merge multiplies it by 0",
        "torch.zeros_like → torch.ones_like (2)": "any finite number does in the place of −∞: e^(−∞ − 1) is 0, too",
    },
)
def online_softmax(answer: Answer) -> None:
    with answer.property("a row that fits in one tile", why="The fold has a single step; the result is softmax."):
        x = answer.randn(2, 8)
        answer.matches(softmax(x), x, 8)

    with answer.property(
        "the maximum falls from tile to tile", why="The first tile has the largest: later sums join under its maximum."
    ):
        x = answer.randn(2, 24, scale=3).sort(dim=-1, descending=True).values
        answer.matches(softmax(x), x, 8)

    with answer.property(
        "the maximum rises in every tile",
        why="What was summed so far was summed under a smaller maximum, and must shrink: the heart of equation (4).",
    ):
        x = answer.randn(2, 24, scale=3).sort(dim=-1).values
        answer.matches(softmax(x), x, 8)
        answer.matches(softmax(x), x, 1)
        x = answer.randn(2, 24, scale=3).sort(dim=-1).values  # the same shape again, and other numbers
        answer.matches(softmax(x), x, 8)

    with answer.property("a row whose last tile is not full", why="N is whatever it is."):
        for shape, tile in (((2, 3, 7), 4), ((2, 13), 5), ((2, 17), 16), ((3, 1), 1), ((2, 3), 64), ((11,), 3)):
            x = answer.randn(*shape, scale=3)
            answer.matches(softmax(x), x, tile)
            answer.matches(softmax(x), answer.spread(x), tile)
        every_dtype(answer)

    with answer.property(
        "logits of ±10,000, and rows of nothing but −10,000s", why="The running maximum begins at −∞, not at 0."
    ):
        x = answer.randn(4, 24, scale=1e4)
        answer.matches(softmax(x), x, 8)
        x = answer.randn(4, 24) - 1e4
        answer.matches(softmax(x), x, 8)
        x = far_below_zero(answer, 2, 21)
        answer.matches(softmax(x), x, 8)

    with answer.property(
        "a tile of nothing but −∞ adds nothing",
        why="That is how a mask looks; its maximum is −∞, and −∞ − (−∞) is NaN.",
    ):
        x = answer.randn(3, 20, scale=3)
        x[:, :8] = -math.inf
        x[1, 16:] = -math.inf
        answer.matches(softmax(x), x, 4)
        x = far_below_zero(answer, 3, 20)  # what is masked is below whatever is not
        x[:, ::3] = x[0, 4:12] = -math.inf
        answer.matches(softmax(x), answer.spread(x), 4)

    with answer.property(
        "x is read twice, a tile at a time", why="Two passes is what this was about: three were safe."
    ):
        a_tile_at_a_time(answer, 2, "something as long as the row was kept")


LOADED = "tl.load(x_row + cols, mask=cols < n_cols, other=float('-inf'))"  # as the solution does


@exercise_check(
    "02.softmax_kernel",
    reference="llmsys.attention.row_softmax:softmax_kernel",
    forbids=("triton.language.standard:softmax",),
    adapt=launch,
    hints=(
        "Start from row_max_kernel: it already walks over the tiles of one row. Give it a second number to "
        "carry, l, and a "
        "second loop that stores.",
        "In the first loop, m_new = max(m, largest of the tile); l shrinks by e^(m − m_new) and grows by the "
        "tile's sum of "
        "e^(x − m_new). Lanes beyond the end must add 0 to that sum: load −∞ there. In the second loop, mask "
        "the store, too, "
        "and use y's own row stride.",
        "for each tile: x = load(x row + cols, mask=cols < n_cols, other=-inf)\n"
        "               m_new = maximum(m, max(x));  l = l * exp(m - m_new) + sum(exp(x - m_new));  m = m_new\n"
        "for each tile: x = load(as before);  store(y row + cols, exp(x - m) / l, mask=cols < n_cols)",
    ),
    equivalent={
        "0.0 → 1.0": "under m = −∞ any l does: the first tile multiplies it by e^(−∞) = 0",
        f"{LOADED}.to(tl.float32) → {LOADED}": "m is a float32, and so is x − m_new",
        f"{LOADED}.to(tl.float32) → {LOADED} (2)": "m is a float32, and so is x − m",
        f"{LOADED} → tl.load(x_row + cols, mask=cols < n_cols) (2)": "what is beyond the row's end is not stored",
    },
)
def softmax_kernel(answer: Answer) -> None:
    with answer.property("a row that is exactly one tile", why="One step in each loop: equation (3), a row a program."):
        x = answer.randn(1, 16)
        answer.matches(softmax(x), x, block=16)

    with answer.property("several rows", why="A program finds its row by its number and x's row stride."):
        x = answer.randn(3, 16)
        answer.matches(softmax(x), x, block=16)

    with answer.property(
        "several tiles a row", why="m and l are carried from tile to tile, and l shrinks when m rises."
    ):
        for x in (answer.randn(2, 64, scale=3).sort().values, answer.randn(2, 64, scale=3)):
            answer.matches(softmax(x), x, block=16)
        x = answer.randn(2, 128, scale=20).sort(descending=True).values
        answer.matches(softmax(x), x, block=32)

    with answer.property(
        "a last tile that is not full: no lane beyond the row counts, loads or stores",
        why="Beyond the end of a row is somebody else's memory, and e^(0 − m) is not nothing.",
    ):
        for rows, n, block in ((1, 13, 16), (2, 37, 16), (3, 17, 16), (2, 1, 4)):
            x = answer.randn(rows, n, scale=3) - 20  # far below 0: a lane that counts as 0 would dominate
            answer.matches(softmax(x), x, block=block)
        for below, block in ((1e4, 16), (1e6, 8)):  # no number is below all logits: −∞ is
            x = answer.randn(2, 21, scale=3) - below
            answer.matches(softmax(x), x, block=block)

    with answer.property(
        "x and y with different row strides", why="A slice of a wider tensor has gaps between its rows; y has none.",
        hint="Two tensors, two row strides: from a row of y to the next it is y_row_stride, whatever n_cols is.",
    ):  # fmt: skip
        x = answer.randn(3, 24)
        answer.matches(softmax(x[:, :16]), x, block=16, columns=16)
        x = answer.randn(3, 40, scale=3).half()  # here y has gaps, and others
        answer.matches(softmax(x[:, :37]), x, block=16, columns=37, y_gap=8)
        x = answer.randn(4, 21, scale=3) - 1e4
        answer.matches(softmax(x), x, block=32, y_gap=5)

    with answer.property(
        "logits of ±10,000 overflow nothing", why="Subtract before you exponentiate.",
        hint="Take a row in which every logit is −10,000: what is m before the first tile, and what is x − m then? And "
        "is anything rounded before x and m are subtracted?",
    ):  # fmt: skip
        for x in (answer.randn(3, 40, scale=1e4), answer.randn(3, 40, scale=1e4).sort().values):
            answer.matches(softmax(x), x, block=16)
        for x in (answer.randn(2, 40) - 1e4, answer.randn(2, 40) + 1e4, answer.randn(2, 40, scale=5) - 1e6):
            answer.matches(softmax(x), x, block=16)

    with answer.property(
        "float16 rows, summed in float32", why="A sum of many terms in float16 loses the small ones.",
        hint="Which type has l at the end of a step? It began in float32, and must stay there.",
    ):  # fmt: skip
        x = answer.randn(2, 300).half()
        run = answer(x, block=64)
        answer.accurate(run, torch.softmax(x.double(), -1), torch.softmax(x, -1), tiny=1e-4)
        # 16 columns that weigh 1, and many that weigh e^-8 each: a tile of those is less than half a step of a float16
        # that is 16, and all of them are a fiftieth of the sum.
        x = answer.randn(1, 1024, scale=0.05) - 8
        x[:, :16] = 0
        answer.matches(softmax(x.half()), x.half(), block=16)

    with answer.property(
        "x is loaded twice and y is stored once", why="Bytes are what takes the time: a third loop costs a third read."
    ):
        for dtype in (torch.float32, torch.float16):
            x = answer.randn(3, 40).to(dtype)
            run = answer(x, block=16)
            answer.traffic(run, loaded=2 * x.nbytes, stored=x.nbytes)
            answer.tiles(run, loads=3 * 2 * 3)  # rows, passes, tiles
            answer.equal(run, softmax(x))
