"""08.split_kv: the keys of a sequence in pieces, and the combine."""

from collections.abc import Callable
from math import ceil

import torch

from llmsys.course.checking.answer import Answer
from llmsys.course.checking.checks import exercise_check
from llmsys.course.checking.runner import Run
from llmsys.course.checking.watch import FUSED_ATTENTION
from llmsys.lessons.common import multiples
from llmsys.lessons.lesson_08_paged_kv_cache.decoding import Step, draw
from llmsys.lessons.lesson_08_paged_kv_cache.plain_attend import with_attend


@exercise_check(
    "08.split_kv",
    reference="llmsys.attention.paged.pieces:split_kv",
    forbids=(
        "llmsys.attention.paged.forward:*", "llmsys.attention.paged.reference:*",
        "llmsys.attention.paged.one_token:attend_one_token", *FUSED_ATTENTION,
    ),
    adapt=with_attend,
    hints=(
        "Take 75 keys in pages of 16, in two pieces, on paper. How many pages are there, how many has a piece, at "
        "which column of the table's row does each begin, and how many keys has it? Then write each of these as a "
        "tensor of all sequences and pieces.",
        "Per sequence: pages = ceil(length / P), each = ceil(pages / pieces). Piece p begins at column p · each, and "
        "has length − p · each · P keys, at least 0 and at most each · P. What attend is given has one row for each "
        "sequence and piece, in the same order in q, lengths and table. What comes back is taken apart again, and "
        "weighted by e^(lse − the largest lse of all pieces); where that is −∞, there was no key at all.",
        "pages = (seq_lens + P - 1) // P;  each = ((pages + pieces - 1) // pieces)[:, None]\n"
        "first = arange(pieces) * each                                    # (S, pieces)\n"
        "lengths = minimum((seq_lens[:, None] - first * P).clamp(0), each * P)\n"
        "column = first[:, :, None] + arange(ceil(M / pieces)), at most M - 1;  table = the row's entries there\n"
        "o, lse = attend(q, each row `pieces` times, the pages, lengths and table with S · pieces rows)\n"
        "o, lse = as (S, pieces, …);  m = the largest lse;  w = exp(lse - m), or 0 where m is -inf\n"
        "o = sum of w · o / sum of w, or 0;  lse = m + log(sum of w)",
    ),
    equivalent={
        "0.0 → 1.0": "any finite number does in the place of −∞: e^(−∞ − 1) is 0, too",
        "1.0 → 2.0": "0 / 2 is 0",
        "0 → 1 (7)": "the largest weight is 1, so their sum is never between",
    },
)  # fmt: skip
def split_kv(answer: Answer) -> None:
    def right(step: Step, pieces: int, half: bool = False, **options):
        near = {"rtol": 2e-3, "atol": 2e-3} if half else {}
        return answer.matches(step.expected, *step.given, pieces, **options, **near)

    with answer.property("one piece: o is what attend gives", why="Nothing is split, and nothing is to be combined."):
        step = draw(answer, [12], page=4, D=8)
        answer.matches(step.expected[0], *step.given, 1, report="o")

    with answer.property("and lse, too", why="The sum of one denominator: m + ln 1."):
        right(draw(answer, [8], page=4, D=8), 1)

    with answer.property(
        "two pieces of whole pages", why="Each is a sequence of its own: the same q, a part of the table's row."
    ):
        right(draw(answer, [16], page=4, D=8), 2)

    with answer.property(
        "pieces weigh by their log-sum-exps", why="e^lse is a piece's denominator: some pieces have nearly all of it.",
        hint="A piece's o is divided by its own denominator already. What must it be multiplied by, so that the pieces "
        "add up?",
    ):  # fmt: skip
        for _ in range(2):
            right(draw(answer, [24], page=4, D=8, change=lambda q, k, v: (3 * q, k, v)), 3)
        right(draw(answer, [16], page=4, D=8, in_order=True, change=_faint), 2)

    with answer.property("several heads, and several of a group", why="Each query head has weights of its own."):
        right(draw(answer, [16], page=4, G=3, Hkv=2, D=8), 2)
        right(draw(answer, [12], page=4, G=2, Hkv=3, D=5), 3)

    with answer.property(
        "as many pages as the pieces do not divide", why="ceil(pages / pieces) each, and the last ones have fewer.",
        hint="Which columns of the row does the last piece ask for? Are they all there?",
    ):  # fmt: skip
        for length, pieces in ((20, 4), (20, 2), (20, 3), (28, 4)):
            right(draw(answer, [length], page=4, D=8, spare=0), pieces)

    with answer.property(
        "lengths that end within a page, or one past it",
        why="The last piece that has keys has what is left: lengths are counted in keys, and begin at pages.",
        hint="Take 17 keys in pages of 4 and two pieces: how many keys has each, and do they add up to 17?",
    ):
        for length, pieces in ((17, 4), (15, 2), (16, 2), (17, 2), (13, 3), (75, 6)):
            right(draw(answer, [length], page=4, D=8), pieces)

    with answer.property(
        "more pieces than pages: some have no key",
        why="Their o is 0 and their lse −∞, which weighs nothing. A length below 0 is none.",
        hint="Which lengths do the pieces of one page have, if there are four? And which weight has −∞?",
    ):
        right(draw(answer, [6], page=4, D=8), 4)
        right(draw(answer, [1], page=4, D=8, spare=0), 5)

    with answer.property(
        "sequences of different lengths side by side", why="Each has pages of its own, and pieces of its own size."
    ):
        right(draw(answer, [40, 3, 17], page=4, D=8), 3)
        right(draw(answer, [1, 64], page=16, G=3, D=8), 2)

    with answer.property(
        "a sequence without a key: o = 0, lse = −∞", why="All of its pieces are empty, and −∞ − (−∞) is NaN.",
        hint="What is the largest lse where all are −∞, and what are lse − m, the sum of the weights and its "
        "logarithm?",
    ):  # fmt: skip
        right(draw(answer, [0, 9, 0], page=4, D=8), 2)
        right(draw(answer, [0], page=4, G=2, D=8), 3)

    with answer.property(
        "pages of any size, and of one layer in a larger cache",
        why="The pages are handed on, with all their strides. q, too, may lie in memory in another order.",
    ):
        right(draw(answer, [100, 64], page=64, D=8), 2)
        right(draw(answer, [50, 0, 31], page=24, G=2, Hkv=2, D=8), 2, apart=True)
        right(draw(answer, [16, 33], page=5, D=8), 4, apart=True)

    with answer.property(
        "logits of ±10,000", why="e^10000 is infinite: the largest lse is taken out first, as in lesson 02."
    ):
        for sign in (1, -1):
            right(draw(answer, [20, 3], page=4, change=_ten_thousand(sign)), 3, half=True)

    with answer.property(
        "float16: o is rounded once, and lse not at all",
        why="Parts that cancel keep every error of theirs. What attend gives is in float32: leave it so until the end.",
        hint="In which type do you weigh and add up, and where does o get q's?",
    ):
        right(draw(answer, [30, 7], page=4, G=2, D=8, half=True), 3, half=True)
        right(draw(answer, [32], page=4, D=8, half=True, change=_cancelling), 2, half=True)
        step = draw(answer, [30, 7], page=4, G=3, D=8, half=True)
        answer.matches(step.expected[1], *step.given, 3, report="lse")
        right(step, 1, half=True)

    with answer.property(
        "attend is called once, for all pieces of all sequences",
        why="One launch keeps all SMs busy. One after the other, the pieces would gain nothing.",
        hint="How many rows does q have when you hand it to attend, and how many tables are there?",
    ):
        for lengths, pieces in (([40, 9], 3), ([33], 4)):
            run = answer(*draw(answer, lengths, page=4, D=8).given, pieces, report="steps")
            rows = len(lengths) * pieces
            answer.that(run, lambda r: len(r.value) == 1, "one call of attend", lambda r: f"{len(r.value)} calls")
            _handed(
                answer, run, 0, lambda found, n=rows: found == n, f"{rows} rows of q, {pieces} pieces of each sequence"
            )
            _handed(answer, run, 2, lambda found, n=lengths: found == n, f"pieces of {lengths} keys together")

    with answer.property(
        "pieces are cut by the sequence's own pages, however wide the table is",
        why="The longest piece is what everybody waits for. A table is as wide as the longest sequence that there may "
        "ever be.",
        hint="A table of 64 columns, of which a sequence uses 4: how many pages has each of its two pieces?",
    ):
        for lengths, spare, pieces in (([40], 50, 5), ([60, 0], 17, 4), ([31, 7, 64], 0, 3), ([7], 30, 2)):
            step = draw(answer, lengths, page=4, D=8, spare=spare)
            run = answer(*step.given, pieces, report="steps")
            most = [4 * ceil(ceil(length / 4) / pieces) for length in lengths]
            what = f"pieces of at most {' and '.join(map(str, most))} keys"
            _handed(answer, run, 1, lambda found, most=most: all(a <= b for a, b in zip(found, most)), what)  # noqa: B905
            right(step, pieces)

    with answer.property(
        "nothing is asked on the host: shapes follow from shapes, and rows of the table grow no longer",
        why="A CUDA graph replays the launches of other lengths, and a step that asks for a length waits for the GPU.",
        hint="Which of your lines need a number that is in seq_lens, as a Python number or as a size? On which device "
        "is what you make?",
    ):
        for S, columns, pieces in ((3, 7, 2), (1, 12, 5)):
            pages = answer.randn(9, 4, 2, 8)
            table = torch.zeros(S, columns, dtype=torch.int32)
            run = answer(answer.randn(S, 6, 8), pages, pages, table[:, 0], table, pieces, report="shapes")
            rows = S * pieces
            handed = [[rows, min(x[-1], columns)] for x in run.value[2:3]]  # a row may be shorter, and not longer
            answer.equal(run, [[rows, 6, 8], [rows], *handed, [S, 6, 8], [S, 6]])

    with answer.property("all of it together", why="A step has all of this at the same time, and the next one, too."):
        for lengths, pieces, options in (
            ([19, 0, 64, 1], 3, {"page": 16, "G": 3, "Hkv": 2, "D": 10, "half": True}),
            ([5, 48], 4, {"page": 12, "G": 1, "Hkv": 3, "D": 8, "spare": 9}),
        ):
            for apart in (False, True, False):  # the same shapes, and other numbers
                step = draw(answer, lengths, **options)
                right(step, pieces, half=options.get("half", False), apart=apart)


def _cancelling(q, k, v):
    """Keys that weigh the same, values near 1,000 in the first half and near −1,000 in the second: the mean of each
    half has a fraction that half precision has no room for, and o is what is left of both."""
    half = len(v[0]) // 2
    far = torch.where((torch.arange(2 * half) < half)[:, None, None], 1000.0, -1000.0)
    return q * 0, k, [far + multiples(v[0] * 2, 0.5)]


def _ten_thousand(sign: int) -> Callable:
    """Scores near that, all of one sign, and exact in float32."""
    return lambda q, k, v: (sign * multiples(q.abs() * 1e4, 128), [x.abs().round() for x in k], v)


def _faint(q, k, v):
    """The last piece of two has scores that are lower by 7, and values that are larger by as much."""
    last = (torch.arange(len(k[0])) >= len(k[0]) // 2)[:, None, None]
    q[..., 0] = 4.0
    k[0][..., 0] = torch.where(last[..., 0], -7.0, 0.0) * q.shape[2] ** 0.5 / 4
    return q, k, [torch.where(last, 500.0, 1.0) * v[0]]


def _handed(answer: Answer, run: Run, which: int, holds: Callable[[object], bool], expected: str) -> None:
    """What attend was handed in its first call is right: of [rows of q, the longest pieces, all keys], the number
    `which`."""
    answer.that(run, lambda r: holds(r.value[0][which]), expected, lambda r: str(r.value[0][which]))
