"""02.softmax_kernel: the two passes as a Triton kernel, a row a program."""

import torch

from llmsys.course.checking.answer import Answer, Run
from llmsys.course.checking.checks import exercise_check
from llmsys.hardware.tier import triton_device
from llmsys.lessons.common import PoisonedResults, StridedResults, with_gaps
from llmsys.lessons.lesson_02_online_softmax.checks.rows import far_below_zero, large_logits, softmax


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


def loaded(run: Run) -> int:
    """How many tiles the kernel took with tl.load."""
    return run.operations.get("load", 0)


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
        x = answer.randn(1, 192, scale=0.1)  # a sum of many alike, which has to shrink to nearly nothing
        x[:, -1] = 30
        answer.matches(softmax(x), x, block=64)

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
        x = far_below_zero(answer, 1, 21)
        answer.matches(softmax(x), x, block=16)

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
        for x in large_logits(answer, 2, 40)[2:]:
            answer.matches(softmax(x), x, block=32)
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
        run = answer(x[:1], block=8)  # 5 tiles, no more and no fewer
        answer.tiles(run, loads=2 * 5)
        answer.that(
            run, lambda r: not r.watched or loaded(r) >= 2 * 5 - 1,  # a tile may stay from one loop to the other
            "a row of 40 columns to be loaded in tiles of BLOCK = 8: 2 × 5 times tl.load",
            got=lambda r: f"{loaded(r)} times tl.load", by=loaded,
        )  # fmt: skip
