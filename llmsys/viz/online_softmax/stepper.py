"""The online softmax in motion: m and ℓ while a row streams in, and what three passes would have done meanwhile.

The frames are states of a fold, `merge(state, summarize(element))`; the drawing only draws. What a
block of the stack is worth, and by how much the stack shrinks, are `rescale`'s; the weights are `online_softmax`'s; how
many passes each way takes is counted while it runs.
"""

import random
from collections.abc import Sequence

import torch

from llmsys.attention import online
from llmsys.hardware.meters import reads_of
from llmsys.viz.kit.controls import Choice, Entry
from llmsys.viz.kit.numbers import number, subscript
from llmsys.viz.kit.stepper import Stepper
from llmsys.viz.online_softmax.frame import Step, draw

ROW = (1.2, 0.3, 2.1, -0.5, 1.8, 3.4, 0.9, 2.9, -1.1, 3.1, 1.5, 2.6)
LONGEST = 16
ORDERS = {
    "as given": "given",
    "ascending: every step rescales": "ascending",
    "descending: none does": "descending",
    "random": "random",
    "one huge outlier, last": "outlier",
}


def stepper(x: Sequence[float] | None = None, order: str = "given", *, merge=online.merge) -> Stepper:
    """Step through the online softmax of a row x of 1 to 16 numbers, in an order: "given", "ascending", "descending",
    "random" or "outlier" (a huge one comes last). `merge`, by which an element joins the others, has the contract of
    `online.merge`: it takes two pairs (m, l), and gives one.

    Raises ValueError for another order, or a row that cannot be shown.
    """
    row = check_row(ROW if x is None else [float(each) for each in x])
    return Stepper(
        lambda order, row: steps(arranged(row_of(row), order), merge),
        draw,
        title="Online softmax: a row streams in",
        describe=describe,
        controls=[
            Choice("order", "Order", ORDERS, start=order),
            Entry("row", "Your own row", " ".join(f"{each:g}" for each in row), "numbers, such as 1 3 -inf 2"),
        ],
        static=most_telling,
    )


def steps(x: Sequence[float], merge=online.merge) -> list[Step]:
    """The states while x is read, an element at a time; then y written by the online softmax, then by the safe one."""
    row = torch.tensor(x, dtype=torch.float64)
    state, rescalings, found = online.identity(dtype=row.dtype), 0, []
    passes = (_passes(online.online_softmax, row), _passes(online.safe_softmax, row))
    found.append(Step(tuple(x), 0, *_floats(state), *_floats(state), 1.0, (), (), 0, 0, passes))
    for i in range(len(x)):
        before, state = state, online.Partial(*merge(state, online.summarize(row[i : i + 1])))
        rescalings += bool(state.m > before.m and before.l > 0)
        factor = online.rescale(before.m, state.m).item()
        old, terms = found[-1].terms, tuple(online.rescale(row[: i + 1], state.m).tolist())
        states = (*_floats(before), *_floats(state))
        found.append(Step(tuple(x), i + 1, *states, factor, old, terms, rescalings, i + 1, passes))
    last = found[-1]
    y = tuple(online.online_softmax(row, tile=1).tolist())
    settled = {"m_before": last.m, "l_before": last.l, "factor": 1.0, "terms_before": last.terms, "y": y}
    for passes_done in dict.fromkeys(passes):
        found.append(Step(**{**vars(last), **settled, "clock": round(passes_done * len(x))}))
    top = max(max(step.l_before, step.l) for step in found)
    return [Step(**{**vars(step), "top": max(top, 1.0)}) for step in found]


def arranged(x: list[float], order: str) -> list[float]:
    """The row in an order, which is one of `ORDERS`' values."""
    if order == "random":
        return random.Random(1).sample(x, len(x))
    if order == "outlier":
        top = max(max(each for each in x), 0.0)
        return [*x[: LONGEST - 1], top + 8.0]
    return {"given": list, "ascending": sorted, "descending": lambda x: sorted(x, reverse=True)}[order](x)


def row_of(text: str) -> list[float]:
    """The numbers in a text, with spaces or commas between them. Raises ValueError where there is anything else."""
    words = text.replace("−", "-").replace(",", " ").split()
    try:
        return check_row([float(word) for word in words])
    except ValueError as error:
        if "could not convert" not in str(error):
            raise
        word = str(error).partition(": ")[2]
        raise ValueError(f"{word} is not a number. Type some with spaces between them, such as: 1 3 -inf 2") from None


def check_row(x: list[float]) -> list[float]:
    """The row as it is. Raises ValueError where it is too long or too short, or its softmax is not defined."""
    if not 1 <= len(x) <= LONGEST:
        raise ValueError(f"the row must have 1 to {LONGEST} numbers to be drawn; it has {len(x)}")
    if not all(each < float("inf") for each in x):
        raise ValueError("the row has a NaN or an ∞ in it, and so has no softmax; −∞ is fine")
    if max(x) == float("-inf"):
        raise ValueError(
            "nothing but −∞: such a row has no largest element to measure the others by; give one number more"
        )
    return x


def most_telling(frames: Sequence[Step]) -> int:
    """The step that stands for all: the one that scales the sum down most, or else the last that reads an element."""
    fold = [step for step in frames if not step.y]
    shrinking = [(step.l_before * (1 - step.factor), step.read) for step in fold if step.shrinks]
    return max(shrinking)[1] if shrinking else len(fold) - 1


def describe(step: Step) -> str:
    """The caption of a step: what the element read does to m and ℓ."""
    n = len(step.x)
    if step.y:
        if step.clock > step.passes[0] * n:
            return f"Only now, after {step.clock} reads, has the safe softmax written y, too."
        done = "the online softmax has gone through the row again and written y"
        return f"After {step.clock} reads {done}; the safe softmax has m and ℓ, and needs a third pass for y."
    if step.read == 0:
        return "Nothing has been read: the summary of nothing is m = −∞ and ℓ = 0."
    name, value = f"x{subscript(step.read)}", number(step.x[step.read - 1])
    state = f"ℓ is {number(step.l)}"
    if step.m == float("-inf"):
        return f"{name} = −∞ adds nothing: the summary is still that of nothing."
    if step.shrinks:
        return (
            f"{name} = {value} is a new maximum: the sum so far shrinks to {number(step.factor)} of what it was, "
            f"and 1 is added; {state}."
        )
    if step.m > step.m_before:
        return f"{name} = {value} is the first maximum, and adds e⁰ = 1; {state}."
    return (
        f"{name} = {value}: the maximum stays {number(step.m)}, so {number(step.terms[-1])} is simply added; {state}."
    )


def _passes(softmax, row: torch.Tensor) -> float:
    with reads_of(row) as reads:
        softmax(row, tile=1)
    return reads.passes


def _floats(state: online.Partial) -> tuple[float, float]:
    return state.m.item(), state.l.item()
