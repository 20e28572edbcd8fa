"""02.online_softmax: two passes, because the first one carries maximum and sum."""

import math

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
        x = answer.randn(2, 250, scale=0.1)  # a sum of many alike, which has to shrink to nearly nothing
        x[:, -1] = 30
        answer.matches(softmax(x), x, 64)

    with answer.property("a row whose last tile is not full", why="N is whatever it is."):
        for shape, tile in (((2, 3, 7), 4), ((2, 13), 5), ((2, 17), 16), ((3, 1), 1), ((2, 3), 64), ((11,), 3)):
            x = answer.randn(*shape, scale=3)
            answer.matches(softmax(x), x, tile)
            answer.matches(softmax(x), answer.spread(x), tile)
        every_dtype(answer)

    with answer.property(
        "logits of ±10,000, and rows of nothing but −10,000s", why="The running maximum begins at −∞, not at 0."
    ):
        for x in large_logits(answer, 2, 2, 24):
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

    with answer.property(
        "y is finished where it is written", why="To divide all of y in the end is one more pass: over y.",
        hint="What of the row must be known before the first weight is written, so that it can be divided at once? "
        "Which loop finds it out?",
    ):  # fmt: skip
        x = answer.randn(2, 512)
        run = answer(x, 16)
        answer.done_with_the_last_read(run, x.numel() // 2, "half of what x has")
