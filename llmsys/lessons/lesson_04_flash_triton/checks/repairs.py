"""04.repair_mask, repair_sum, repair_strides, repair_empty_row: four kernels as they are found, mended."""

from llmsys.course.checking.answer import Answer
from llmsys.course.checking.checks import exercise_check
from llmsys.lessons.lesson_04_flash_triton.checks.launched import (
    BEYOND,
    CAUSALLY,
    LIBRARY,
    LOADED_K,
    LOADED_Q,
    LONGER,
    ONE_HEAD,
    below_zero,
    draw,
    exact_head,
    one_head,
)


@exercise_check(
    "04.repair_mask",
    reference=ONE_HEAD,
    forbids=LIBRARY,
    adapt=one_head,
    hints=(
        "Read the sanitizer's report: which lines left which tensor, and in which program?",
        "The last tile of queries has rows that do not exist. They must neither be loaded nor stored.",
        "q = load(…, mask=rows[:, None] < Tq, other=0.0)        store(…, mask=rows[:, None] < Tq)",
    ),
    equivalent={
        "0.0 → 1.0": "a row that does not exist may hold anything: it is not stored",
        f"{LOADED_Q}, other=0.0) → {LOADED_Q})": "the same",
    },
)
def repair_mask(answer: Answer) -> None:
    with answer.property("whole tiles: as before", why="The kernel was right for these."):
        q, k, v = draw(answer, 32, 32, scale=30.0)  # large scores: the maximum is still a maximum
        answer.matches(exact_head(q, k, v), q, k, v, rtol=1e-3, atol=1e-3)

    with answer.property(
        "a last tile of queries that is not full", why="Rows beyond the last query are somebody else's memory."
    ):
        for Tq, block_m, block_n in ((24, 16, 16), (33, 32, 32), (17, 16, 32)):
            q, k, v = draw(answer, Tq, 32, 32)  # a head larger than a tile: a mask along the wrong axis does not fit
            answer.matches(exact_head(q, k, v), q, k, v, block_m=block_m, block_n=block_n)

    with answer.property("a single query", why="That is what decoding asks for, token by token."):
        q, k, v = draw(answer, 1, 32)
        answer.matches(exact_head(q, k, v), q, k, v)
        q, k, v = (x.half() for x in draw(answer, 1, 64))
        expected = exact_head(q, k, v, scale=0.3)
        answer.matches(expected, q, k, v, scale=0.3, block_m=32, block_n=32, rtol=2e-3, atol=2e-3)

    with answer.property("tokens that lie apart", why="Between them is no memory of ours, either."):
        q, k, v = draw(answer, 19, 32)
        answer.matches(exact_head(q, k, v), q, k, v, gaps=(8, 16, 24))
        q, k, v = draw(answer, 40, 48)
        answer.matches(exact_head(q, k, v, scale=1.0), q, k, v, scale=1.0, gaps=(0, 8, 0), o_gap=24, block_m=32)


@exercise_check(
    "04.repair_sum",
    reference=ONE_HEAD,
    forbids=LIBRARY,
    adapt=one_head,
    hints=(
        "The sanitizer has nothing to say: no lane leaves its tensor. So look at what the lanes that are masked hold.",
        "A key that does not exist is loaded as zeros. Its score is then q·0 = 0, and 2^(0 − m) is not 0. Which score "
        "vanishes from the maximum and from the sum alike?",
        "s = where(keys[None, :] < Tk, s, -inf), between the product and the maximum",
    ),
    equivalent={
        "0.0 → 1.0": "a key that does not exist may hold anything finite: its score is hidden",
        "0.0 → 1.0 (2)": "a value that does not exist may be anything finite: its weight is 0",
        f"{LOADED_K}, other=0.0) → {LOADED_K})": "and its score is replaced, whatever it is",
    },
)
def repair_sum(answer: Answer) -> None:
    with answer.property("whole tiles: as before", why="The kernel was right for these."):
        q, k, v = draw(answer, 32, 32)
        answer.matches(exact_head(q, k, v), q, k, v)

    with answer.property(
        "a last tile of keys that is not full", why="The weights of the keys that exist must sum to one."
    ):
        for Tk, block_n in ((36, 16), (33, 32)):
            q, k, v = draw(answer, 16, Tk)
            answer.matches(exact_head(q, k, v), q, k, v, block_n=block_n)
        q, k, v = (x.half() for x in draw(answer, 64, 50, 32))
        options = {"scale": 0.3, "block_m": 32, "gaps": (8, 24, 16), "o_gap": 40, "rtol": 2e-3, "atol": 2e-3}
        answer.matches(exact_head(q, k, v, scale=0.3), q, k, v, **options)

    with answer.property("a single key: o is its value", why="A softmax over one score is 1, whatever the score is."):
        q, k, v = draw(answer, 16, 1)
        answer.matches(v.expand(16, -1).clone(), q, k, v)

    with answer.property("a key of zeros is a key, too", why="Its score is 0, as that of none, and it counts."):
        q, k, v = draw(answer, 16, 20)
        q[3], k[[0, 5, 18]] = 0.0, 0.0
        answer.matches(exact_head(q, k, v), q, k, v)

    with answer.property("scores far below zero", why="A key that does not exist must not be the largest one, either."):
        q, k, v = below_zero(answer, 16, 20, 16, 100.0)
        answer.matches(exact_head(q, k, v), q, k, v, rtol=1e-3, atol=1e-3)

    with answer.property("scores of −1,000,000", why="Only −∞ is below all of them."):
        q, k, v = below_zero(answer, 16, 20, 16, 1e6)
        answer.matches(exact_head(q, k, v), q, k, v, rtol=1e-2, atol=1e-2)


@exercise_check(
    "04.repair_strides",
    reference=ONE_HEAD,
    forbids=LIBRARY,
    adapt=one_head,
    hints=(
        "Write down, for the tile of k, the address of element (d, key) as it is computed, and as it should be: key "
        "number n begins at n · k_stride.",
        "A tile may be loaded transposed, (D, BLOCK_N), at no cost: only which index is multiplied by the stride "
        "decides what is where. It must be the token's index, wherever that stands.",
        "k = load(k_ptr + keys[None, :] * k_stride + d[:, None])      # (D, BLOCK_N)",
    ),
)
def repair_strides(answer: Answer) -> None:
    with answer.property("values that are all alike: o is that value", why="Weights sum to one, whatever they are."):
        q, k, v = draw(answer, 16, 16)
        answer.matches(q.new_full((16, 16), 0.5), q, k, v.new_full((16, 16), 0.5))

    with answer.property(
        "as many keys as a head is large", why="A square is the treacherous case: nothing leaves its tensor."
    ):
        q, k, v = draw(answer, 32, 32, 32)
        answer.matches(exact_head(q, k, v), q, k, v)

    with answer.property("more keys, and fewer", why="With fewer keys, swapped strides lead out of the tensor."):
        for Tk, D in ((64, 16), (16, 64)):
            q, k, v = draw(answer, 16, Tk, D, scale=20.0)
            answer.matches(exact_head(q, k, v), q, k, v, rtol=1e-3, atol=1e-3)

    with answer.property(
        "tokens that lie apart: equal distances in q and k",
        why="A head is a slice of a wider matrix: from token to token is a stride, not D.",
    ):
        q, k, v = draw(answer, 16, 32)
        answer.matches(exact_head(q, k, v), q, k, v, gaps=(8, 8, 0))

    with answer.property("tokens that lie apart: three different distances", why="k and v need not lie as q does."):
        q, k, v = draw(answer, 32, 32)
        answer.matches(exact_head(q, k, v), q, k, v, gaps=(8, 0, 24))
        q, k, v = (x.half() for x in draw(answer, 64, 96, 32))
        options = {"scale": 0.3, "block_m": 32, "block_n": 16, "gaps": (0, 24, 8), "o_gap": 16}
        answer.matches(exact_head(q, k, v, scale=0.3), q, k, v, **options, rtol=2e-3, atol=2e-3)


@exercise_check(
    "04.repair_empty_row",
    reference=ONE_HEAD,
    forbids=LIBRARY,
    adapt=one_head,
    hints=(
        "Take a row that sees no key, and follow it by hand: what is m_new, what is s − m_new, what is l at the end?",
        "Two places divide nothing by nothing. In the loop, −∞ − (−∞): subtract a finite number where m_new is −∞. At "
        "the end, 0 / 0: divide by something else where l is 0.",
        "shift = where(m_new == -inf, 0.0, m_new);  p = exp2(s - shift);  shrink = exp2(m - shift)\n"
        "o = o / where(l > 0, l, 1.0)",
    ),
    equivalent={
        "0.0 → 1.0": "a row that does not exist may hold anything: it is not stored",
        "0.0 → 1.0 (2)": "a key that does not exist may hold anything finite: its score is hidden",
        "0.0 → 1.0 (3)": "any finite number does in the place of −∞: 2^(−∞ − 1) is 0, too",
        "0.0 → 1.0 (4)": "a value that does not exist may be anything finite: its weight is 0",
        "1.0 → 2.0": "0 / 2 is 0",
        f"{LOADED_Q}, other=0.0) → {LOADED_Q})": "a row that does not exist is not stored",
        f"{LOADED_K}, other=0.0) → {LOADED_K})": "the score of a key that does not exist is replaced",
        f"seen & ({CAUSALLY.format('rows')}) → {CAUSALLY.format('rows')}": BEYOND,
        "tl.minimum → tl.maximum": LONGER,
        "stop = tl.minimum(tl.program_id(0) * BLOCK_M + BLOCK_M + Tk - Tq, Tk) → left out": LONGER,
        "tl.program_id(0) * BLOCK_M + BLOCK_M + Tk - Tq → tl.program_id(0) * BLOCK_M + BLOCK_M + Tk + Tq": LONGER,
    },
)
def repair_empty_row(answer: Answer) -> None:
    with answer.property("every row sees a key: as before", why="The kernel was right for these."):
        for Tq, Tk in ((32, 32), (16, 40)):
            q, k, v = draw(answer, Tq, Tk)
            answer.matches(exact_head(q, k, v, causal=True), q, k, v, causal=True)
        answer.matches(exact_head(q, k, v), q, k, v)

    with answer.property(
        "a program none of whose rows sees a key: o = 0", why="Its loop has no steps: l is still 0 at the end."
    ):
        q, k, v = draw(answer, 32, 16)
        answer.matches(exact_head(q, k, v, causal=True), q, k, v, causal=True)

    with answer.property(
        "a program in which some rows see a key, and some do not", why="All scores of such a row are −∞, and so is m."
    ):
        for Tq, Tk in ((24, 16), (24, 19), (16, 1)):
            q, k, v = draw(answer, Tq, Tk)
            answer.matches(exact_head(q, k, v, causal=True), q, k, v, causal=True)
        q, k, v = (x.half() for x in draw(answer, 50, 20, 32))  # the second program's first row is row 32
        options = {"causal": True, "scale": 0.3}
        expected, apart = exact_head(q, k, v, **options), {"gaps": (8, 24, 16), "o_gap": 40}
        answer.matches(expected, q, k, v, **options, **apart, block_m=32, rtol=2e-3, atol=2e-3)

    with answer.property("scores far below zero", why="m begins below all scores, and 0 is above some."):
        for size in (100.0, 1e6):
            q, k, v = below_zero(answer, 24, 16, 16, size)
            answer.matches(exact_head(q, k, v, causal=True), q, k, v, causal=True, rtol=1e-3, atol=1e-3)

    with answer.property("not causal: every row sees a key, however many rows there are", why="Ask l, or CAUSAL."):
        q, k, v = draw(answer, 24, 17)  # if the loop ended where a causal one does, the first program would miss a key
        answer.matches(exact_head(q, k, v), q, k, v)
        answer.matches(exact_head(q, k, v, scale=0.3), q, k, v, scale=0.3, block_m=32, block_n=32)

    with answer.property("a NaN that goes in comes out", why="It is a sign of trouble elsewhere: do not wash it away."):
        q, k, v = draw(answer, 24, 16)
        q[20, 3] = float("nan")
        answer.matches(exact_head(q, k, v, causal=True), q, k, v, causal=True)
        q, k, v = draw(answer, 24, 17)
        v[3, 5] = float("nan")
        answer.matches(exact_head(q, k, v), q, k, v)
