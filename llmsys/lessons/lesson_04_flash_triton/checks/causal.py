"""04.causal: what is hidden, and what is skipped."""

import torch

from llmsys.course.checking.answer import Answer
from llmsys.course.checking.checks import exercise_check
from llmsys.lessons.lesson_04_flash_triton.checks.launched import (
    LIBRARY,
    ONE_HEAD,
    below_zero,
    draw,
    exact_head,
    one_head,
)


@exercise_check(
    "04.causal",
    reference=ONE_HEAD,
    forbids=LIBRARY,
    adapt=one_head,
    hints=(
        "Two questions. Which is the last key that the last row of this program sees? And within a tile, which pairs "
        "of row and key are allowed?",
        "Row i sees the keys j ≤ i + Tk − Tq. So the loop ends at stop = (the program's first row) + BLOCK_M + Tk − "
        "Tq, never more than Tk here; and in a tile, s is −∞ where keys[None, :] > rows[:, None] + Tk − Tq.",
        "stop = Tk\n"
        "if CAUSAL: stop = program_id * BLOCK_M + BLOCK_M + Tk - Tq\n"
        "for start in range(0, stop, BLOCK_N):\n"
        "    s = …as before…\n"
        "    if CAUSAL: s = where(keys[None, :] <= rows[:, None] + Tk - Tq, s, -inf)\n"
        "    …as before…",
    ),
    equivalent={"CAUSAL → False where Tq > Tk": "Tq is at most Tk in this exercise"},
)
def causal(answer: Answer) -> None:
    with answer.property("values that are all alike: o is that value", why="Weights sum to one, whatever they are."):
        q, k, v = draw(answer, 16, 32)
        answer.matches(v[:1].expand(16, -1).clone(), q, k, v[:1].expand(32, -1).clone(), causal=True)

    with answer.property("one tile, on the diagonal", why="A token sees itself and what came before."):
        q, k, v = draw(answer, 16, 16)
        answer.matches(exact_head(q, k, v, causal=True), q, k, v, causal=True)

    with answer.property("not causal: every query sees every key", why="CAUSAL is an argument: ask it."):
        q, k, v = draw(answer, 16, 32)
        answer.matches(exact_head(q, k, v), q, k, v)
        q, k, v = (x.half() for x in draw(answer, 32, 64))
        options = {"scale": 0.3, "causal": False}
        expected = exact_head(q, k, v, **options)
        answer.matches(expected, q, k, v, **options, block_m=32, block_n=32, rtol=2e-3, atol=2e-3)

    with answer.property("many tiles, as many queries as keys", why="Below the diagonal a tile is seen as a whole."):
        q, k, v = draw(answer, 32, 32, scale=2.0)
        answer.matches(exact_head(q, k, v, causal=True), q, k, v, causal=True)

    with answer.property(
        "fewer queries than keys: aligned at the end",
        why="With a cache the queries are the last tokens: query i is token i + Tk − Tq.",
    ):
        for Tq, Tk, scale in ((32, 48, None), (16, 80, 0.3)):
            q, k, v = draw(answer, Tq, Tk)
            answer.matches(exact_head(q, k, v, causal=True, scale=scale), q, k, v, causal=True, scale=scale)

    with answer.property(
        "tiles that are not square", why="The diagonal crosses two tiles of keys, or ends in the middle of one."
    ):
        for block_m, block_n, Tq in ((32, 16, 32), (16, 64, 48)):
            q, k, v = draw(answer, Tq, 64)
            answer.matches(exact_head(q, k, v, causal=True), q, k, v, causal=True, block_m=block_m, block_n=block_n)

    with answer.property(
        "what is hidden may be far above what is seen",
        why="It must not set the maximum: all that is seen would vanish.",
    ):
        q, k, v = draw(answer, 16, 16)
        k = k + 10 * (torch.arange(16.0) - 16)[:, None]  # all scores are negative, each about 30 above the one before
        answer.matches(exact_head(q.abs(), k, v, causal=True), q.abs(), k, v, causal=True, rtol=1e-3, atol=1e-3)

    with answer.property("scores far below zero", why="What is hidden must be below all scores: no number is, −∞ is."):
        q, k, v = below_zero(answer, 16, 16, 16, 1e6)
        answer.matches(exact_head(q, k, v, causal=True), q, k, v, causal=True, rtol=1e-3, atol=1e-3)

    with answer.property(
        "tokens that lie apart, and a scale of one's own", why="As in (a).",
        hint="Four tensors, four strides: which line uses which? And the scale is in scale_log2, whatever it is.",
    ):  # fmt: skip
        q, k, v = draw(answer, 32, 48)  # two programs: where the second one's queries begin is a matter of strides, too
        options = {"causal": True, "scale": 1.0}
        answer.matches(exact_head(q, k, v, **options), q, k, v, **options, gaps=(8, 0, 24), o_gap=16)
        q, k, v = (x.half() for x in draw(answer, 32, 64, 32))
        options = {"causal": True, "scale": 0.3}
        expected, tiles = exact_head(q, k, v, **options), {"block_m": 32, "block_n": 32}
        answer.matches(expected, q, k, v, **options, **tiles, gaps=(8, 16, 0), o_gap=8, rtol=2e-3, atol=2e-3)

    with answer.property(
        "tiles that no query sees are neither loaded nor multiplied",
        why="Half of all tiles of a long sequence: half of the work.",
        hint="Which is the last key that the last row of a program sees, with as many queries as keys, and with fewer? "
        "And are products made of what was loaded, in the type that it has?",
    ):
        for half, Tk, block_n, tiles in (
            (False, 48, 16, 1 + 2 + 3),  # of keys, that the three programs see
            (True, 64, 32, 1 + 2 + 2),  # 32, 48 and 64 keys
            (False, 64, 16, 2 + 3 + 4),
            (False, 64, 64, 1 + 1 + 1),
        ):
            q, k, v = (x.half() if half else x for x in draw(answer, 48, Tk))
            run = answer(q, k, v, causal=True, block_n=block_n)
            answer.traffic(run, loaded=q.nbytes + tiles * block_n * 2 * 16 * q.itemsize, stored=q.nbytes)
            answer.products(run, tiles * 2 * 16 * block_n * 16, "fp16" if half else "fp32")
            answer.tiles(run, dots=2 * tiles)
            near = {"rtol": 2e-3, "atol": 2e-3} if half else {}
            answer.equal(run, exact_head(q, k, v, causal=True), **near)
