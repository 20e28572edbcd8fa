"""05.backward_stored: the gradients from the weights that the forward pass kept."""

import torch

from llmsys.attention import backward
from llmsys.course.checking.answer import Answer
from llmsys.course.checking.checks import exercise_check
from llmsys.lessons.common import tokens_first
from llmsys.lessons.lesson_05_backward_pass.gradients import (
    FORBIDDEN,
    draw,
    exact_gradients,
    one_gradient,
    under_mask,
    weights,
)

TOLERANCES = {torch.float64: 1e-7, torch.float32: 1e-4, torch.float16: 3e-2}  # for sums of many products


@exercise_check(
    "05.backward_stored",
    reference=backward.backward_stored,
    forbids=FORBIDDEN,
    adapt=one_gradient,
    hints=(
        "Equations (2) to (5) are five lines. Write each with its shapes beside it, for one head; which of them need "
        "a transposition so that the shapes fit?",
        "With groups, stack the G · Tq rows of a key head first: q.unflatten(1, (Hkv, G)).flatten(2, 3), and p and do "
        "likewise. Then dK and dV are sums over all heads of the group by themselves, and of dQ alone the rows have to "
        "be unstacked. delta is a sum over keys: a number for each row, so keep its dimension.",
        "Q, P, dO = (x stacked: (B, Hkv, G·Tq, …) for x in (q, p, do))\n"
        "dV = P.mT @ dO;  dP = dO @ v.mT\n"
        "dS = P * (dP - (P * dP).sum(-1, keepdim=True))\n"
        "dQ = scale * dS @ k, unstacked to q's shape;  dK = scale * dS.mT @ Q",
    ),
)
def backward_stored(answer: Answer) -> None:
    def right(only: str, q, k, v, do, *, causal=False, tolerance=None, layout=lambda x: x, **options):
        expected = exact_gradients(q, k, v, do, causal=causal, **options)
        p = weights(q, k, causal=causal, **options)
        given = map(layout, (q, k, v, p, do))
        expected = expected[only] if only else tuple(expected.values())
        answer.matches(expected, *given, only=only, rtol=tolerance, atol=tolerance, **options)

    with answer.property("dv: a value's gradient is what the queries made of it", why="o = P v, so dV = Pᵀ dO."):
        right("dv", *draw(answer, 5, 9, Dv=4))

    with answer.property(
        "a single key: nothing reaches q and k", why="Its weight is 1, whatever its score is: P does not depend on S.",
        hint="For one key, P is 1 and delta is dP itself: which number does your dS give?",
    ):  # fmt: skip
        for only in ("dq", "dk"):
            right(only, *draw(answer, 4, 1), scale=1.0)

    with answer.property("dq, for a scale of 1", why="delta is the mean of a row of dP under its weights: Σ P ∘ dP."):
        right("dq", *draw(answer, 5, 9, Dv=4), scale=1.0)

    with answer.property("dk, for a scale of 1", why="dK is a sum over queries, so dS is transposed."):
        right("dk", *draw(answer, 5, 9, Dv=4), scale=1.0)

    with answer.property(
        "the scale, by default 1/√Dk", why="S = scale · q kᵀ: it is in both gradients, once.",
        hint="Which of (2) to (5) have the scale in them? And of which tensor is the default's D the head size?",
    ):  # fmt: skip
        right("", *draw(answer, 6, 7, Dv=4))
        right("", *draw(answer, 6, 7), scale=0.3)

    with answer.property(
        "all three, for many heads and sequences", why="Heads know nothing of each other.",
        hint="Products, transpositions and sums are of the last two dimensions: .mT, not .T; dim=-1, not dim=1.",
    ):  # fmt: skip
        right("", *draw(answer, 6, 7, B=2, Hkv=3, Dv=4))

    with answer.property(
        "grouped queries: dk and dv are sums over the group",
        why="G query heads read the same key head, h // G: whatever each of them asks of it adds up.",
        hint="q has G times as many heads as k. Which of them belong to one key head, and what becomes of their G "
        "shares of its dk and dv?",
    ):
        for only in ("dv", "dk", "dq"):
            right(only, *draw(answer, 5, 7, B=2, G=3, Hkv=2, Dv=4))

    with answer.property(
        "weights of zero, and rows without a key", why="What was masked had no part in o: its gradient is 0, no NaN.",
        hint="Take the weights as they are: no logarithm of them, no quotient by a row's sum. A row may be all zeros.",
    ):  # fmt: skip
        right("", *draw(answer, 7, 7), causal=True)
        right("", *draw(answer, 9, 4, G=2), causal=True)

    with answer.property(
        "any mask: the weights say what was seen", why="A window, a document's end: the forward pass knew, and kept P.",
        hint="P is given, with zeros where a key was masked. Does your function use these, or weights of its own?",
    ):  # fmt: skip
        q, k, v, do = draw(answer, 8, 9, B=2, Hkv=2, Dv=5)
        distance = torch.arange(9) - torch.arange(8)[:, None]
        for seen in ((distance >= 0) & (distance < 3), distance % 3 == 0):
            p, expected = under_mask(q, k, v, do, seen)
            answer.matches(tuple(expected.values()), q, k, v, p, do)

    with answer.property(
        "weights close to 0 and 1", why="A row that is sure of itself has hardly any gradient.",
        hint="dP − delta is the small difference of two numbers that may be large. Where is it taken, before or after "
        "the product with P?",
    ):  # fmt: skip
        right("", *draw(answer, 8, 8, scale=30.0), tolerance=1e-3)

    with answer.property(
        "all of it together: options, sizes, dtypes and strides",
        why="A model asks for several at once, and its tensors are views of larger ones.",
        hint="Which line assumes something of one tensor that another one need not have: its size, its dtype, how it "
        "lies in memory (view, as_strided), how many heads it has?",
    ):
        for (Tq, Tk), (B, G, Hkv), (Dk, Dv), options, dtype in (  # each pair of options is in one of them
            ((3, 11), (2, 3, 2), (6, 5), {"causal": True, "scale": 0.3}, torch.float32),
            ((11, 3), (3, 2, 1), (5, 9), {"causal": True, "scale": 0.6}, torch.float64),
            ((11, 4), (1, 1, 3), (6, 7), {"causal": True}, torch.float16),
            ((7, 7), (2, 1, 2), (3, 6), {"scale": 1.5}, torch.float32),
            ((7, 5), (1, 3, 1), (6, 6), {"scale": 0.3}, torch.float16),
            ((1, 13), (2, 2, 2), (7, 3), {"causal": True, "scale": 0.7}, torch.float32),
            ((5, 6), (3, 2, 2), (6, 5), {}, torch.float64),
        ):
            for layout in (answer.spread, tokens_first):  # and the same shape twice, with other numbers
                tensors = (x.to(dtype) for x in draw(answer, Tq, Tk, B=B, G=G, Hkv=Hkv, Dk=Dk, Dv=Dv))
                right("", *tensors, **options, layout=layout, tolerance=TOLERANCES[dtype])
