"""02.safe_softmax: three passes over a row, a tile at a time."""

import torch

from llmsys.attention import online
from llmsys.course.checking.answer import Answer
from llmsys.course.checking.checks import exercise_check
from llmsys.lessons.lesson_02_online_softmax.checks.rows import (
    FUSED,
    LIBRARY,
    a_tile_at_a_time,
    every_dtype,
    far_below_zero,
    large_logits,
    softmax,
)


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
        x = answer.randn(2, 3, 12) + torch.tensor([[60.0, 0.0, -60.0], [-60.0, 60.0, 0.0]])[..., None]  # e^-120 is 0
        answer.matches(softmax(x), x, 5)

    with answer.property(
        "logits of ±10,000 overflow nothing", why="e^88.8 is infinite in float32; the maximum must go before e^ does."
    ):
        for x in large_logits(answer, 4, 24):
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
