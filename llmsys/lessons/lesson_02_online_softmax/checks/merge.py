"""02.merge: the summary of a row, from those of two pieces of it."""

import math

import torch

from llmsys.attention import online
from llmsys.course.checking.answer import Answer
from llmsys.course.checking.checks import exercise_check
from llmsys.lessons.lesson_02_online_softmax.checks.rows import FUSED, LIBRARY, far_below_zero


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
        a, b = ((m + 1000, l) for m, l in (a, b))  # where float32 has few bits behind the point
        answer.matches(tuple(online.merge(a, b)), a, b, rtol=1e-10)
        for dtype, tolerance in ((torch.float16, 1e-2), (torch.bfloat16, 1e-1)):  # m and l have the dtype of a and b
            a, b = ((answer.randn(7, dtype=dtype), (1 + answer.randn(7).abs()).to(dtype)) for _ in range(2))
            answer.matches(tuple(online.merge(a, b)), a, b, rtol=tolerance)

    with answer.property(
        "a large sum far below: it shrinks by as much as it has to", why="e^(m₁ − m) is small, and ℓ₁ may be large."
    ):
        m, distance = answer.randn(16), 2.5 * torch.arange(16)
        a, b = (m, 1 + answer.randn(16).abs()), (m - distance, 1e6 * (1 + answer.randn(16).abs()))
        whole = rounded(online.merge(*(tuple(x.double() for x in pair) for pair in (a, b))))
        answer.matches(whole, a, b)
        answer.matches(whole, b, a)

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
        answer.matches(a, a, nothing)

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
