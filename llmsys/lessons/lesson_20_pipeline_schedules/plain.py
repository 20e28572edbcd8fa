"""The exercises on plain data: an action is a text, "2F5" for stage, kind and microbatch, and a pair is "(2F5;1B3)".

A check passes texts and numbers, and gets texts and numbers back; the reader's function sees the library's own `Action`
and `Costs`. Each adapter turns the reader's function into such a function of plain data.
"""

import re
from collections.abc import Callable, Sequence

from llmsys.parallel.pipeline.actions import Action, Kind, pair
from llmsys.parallel.pipeline.costs import Costs
from llmsys.parallel.pipeline.dependencies import dependencies as needed_before

ACTION = re.compile(r"(\d+)([FBIW])(\d+)(?:r(\d+))?")


def action_of(text: str) -> Action:
    """The action that a text names. ValueError for any other text."""
    if text.startswith("("):
        forward, backward = text.strip("()").split(";")
        return pair(action_of(forward), action_of(backward))
    found = ACTION.fullmatch(text)
    if not found:
        raise ValueError(f"an action reads like 2F5 (stage, kind, microbatch), got {text!r}")
    stage, kind, microbatch, replica = found.groups()
    return Action(Kind(kind), int(stage), int(microbatch), int(replica or 0))


def actions_of(texts: str | Sequence[str]) -> tuple[Action, ...]:
    """The actions that a text names one after the other, or a sequence of texts."""
    return tuple(map(action_of, texts.split() if isinstance(texts, str) else texts))


def text_of(action: object) -> str:
    """An action as a text. TypeError for what is none."""
    if not isinstance(action, Action):
        raise TypeError(f"an Action is wanted here, as F(0, 3) makes one, got {action!r}")
    if action.kind is Kind.FB:
        return f"({action.forward};{action.backward})"
    return str(action)


def texts_of(actions: object) -> list[str]:
    """Actions as texts. TypeError for what are none, or where one stands for several."""
    if isinstance(actions, Action | str) or not hasattr(actions, "__iter__"):
        raise TypeError(f"a list of actions is wanted here, got {actions!r}")
    return [text_of(each) for each in actions]


def plain_dependencies(function: Callable) -> Callable:
    """(a): `run(action, num_stages)` gives the texts in order of their names. One that is there twice stays twice."""

    def run(action, num_stages):
        return sorted(texts_of(function(action_of(action), num_stages)))

    return run


def plain_orders(function: Callable) -> Callable:
    """(b): `run(num_ranks, num_microbatches)` gives the order of each rank."""

    def run(num_ranks, num_microbatches):
        return [texts_of(function(rank, num_ranks, num_microbatches)) for rank in range(num_ranks)]

    return run


def plain_step(function: Callable) -> Callable:
    """(c): the arguments of `simulate_step`, actions as texts, costs as a dict. A result is [rank, text, start, end]."""

    def run(todo, free, done, costs, num_stages):
        ran = function(
            [actions_of(each) for each in todo],
            list(free),
            {action_of(text): tuple(when) for text, when in done.items()},
            lambda action: needed_before(action, num_stages),
            Costs(**costs),
        )
        if not hasattr(ran, "__iter__"):
            raise TypeError(f"simulate_step returns a list of (rank, action, start, end), got {ran!r}")
        return [[rank, text_of(action), float(start), float(end)] for rank, action, start, end in ran]

    return run


def plain_fill(function: Callable) -> Callable:
    """(d): `run(orders)` gives each rank's order, filled. `orders` are lists of texts, rank 0 first."""

    def run(orders):
        return [texts_of(function(list(actions_of(order)), rank)) for rank, order in enumerate(orders)]

    return run
