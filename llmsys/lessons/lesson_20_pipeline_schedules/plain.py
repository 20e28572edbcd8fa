"""The exercises on plain data: an action is a text, "2F5" for stage, kind and microbatch, and a pair is "(2F5;1B3)".

A check passes texts and numbers, and gets texts and numbers back; the reader's function sees the library's own `Action`
and `Costs`. Each adapter turns the reader's function into such a function of plain data.
"""

import operator
import re
from collections.abc import Callable, Sequence

from llmsys.lessons.lesson_20_pipeline_schedules.given import given_order
from llmsys.parallel.pipeline.actions import Action, Kind, pair
from llmsys.parallel.pipeline.communication import Exchange, Program, Transfer
from llmsys.parallel.pipeline.costs import Costs
from llmsys.parallel.pipeline.dependencies import dependencies as needed_before
from llmsys.parallel.pipeline.dualpipe import dualpipe
from llmsys.parallel.pipeline.placement import Placement
from llmsys.parallel.pipeline.schedule import Schedule

ACTION = re.compile(r"(-?\d+)([FBIW])(-?\d+)(?:r(-?\d+))?")


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
    """(c): the arguments of `simulate_step` with actions as texts and costs as a dict, and how many steps are taken,
    one after the other. A step is a list of lines: "rank 1: 1F0 from 1 to 2", or "rank 1: 1F0", with told="who"."""

    def run(todo, free, done, costs, num_stages, steps=1, told="all"):
        todo, free = [actions_of(each) for each in todo], list(free)
        done, given = {action_of(text): tuple(when) for text, when in done.items()}, Costs(**costs)
        lines = []
        for _ in range(steps):
            before = (list(todo), list(free), dict(done))
            ran = function(todo, free, done, lambda action: needed_before(action, num_stages), given)
            for name, was, now in zip(("todo", "free", "done"), before, (todo, free, done), strict=True):
                if was != now:
                    raise ValueError(f"simulate_step changed {name}: what ran is returned, and noted by whoever called")
            ran = _rows(ran)
            when = [f" from {start:g} to {end:g}" if told == "all" else "" for *_, start, end in ran]
            lines.append([f"rank {row[0]}: {text_of(row[1])}{times}" for row, times in zip(ran, when, strict=True)])
            for rank, action, _, end in ran:
                todo[rank], free[rank] = todo[rank][1:], end
                done |= {part: (end, rank) for part in action.parts}
        return lines

    return run


def _rows(ran: object) -> list[tuple]:
    wanted = "simulate_step returns a list of (rank, action, start, end)"
    if not hasattr(ran, "__iter__") or isinstance(ran, str):
        raise TypeError(f"{wanted}, got {ran!r}")
    rows = []
    for each in ran:
        try:
            rank, action, start, end = each
            row = (operator.index(rank), action, float(start), float(end))  # NumPy's and torch's numbers, too
        except (TypeError, ValueError):
            raise TypeError(f"{wanted}, and one of them is {each!r}") from None
        if not isinstance(action, Action) or isinstance(start, str) or isinstance(end, str):
            raise TypeError(f"{wanted}, and one of them is {each!r}")
        rows.append(row)
    return sorted(rows, key=lambda each: each[0])


def plain_fill(function: Callable) -> Callable:
    """(d): `run(num_ranks, num_microbatches)` gives each rank's order, filled."""

    def run(num_ranks, num_microbatches):
        filled = []
        for rank in range(num_ranks):
            order = given_order(rank, num_ranks, num_microbatches)
            filled.append(texts_of(function(order, rank)))
            if order != given_order(rank, num_ranks, num_microbatches):
                raise ValueError(
                    "fill_with_w changed the order that it was given: make a list of its own for the result"
                )
        return filled

    return run


def plain_fold(function: Callable) -> Callable:
    """fold: `run("dualpipe(8, 20)")` folds DualPipe's schedule of 8 ranks and 20 microbatches, and gives the result as
    a dict: the placement's ranks, the number of microbatches, the order of each rank."""

    def run(schedule):
        folded = function(dualpipe(*map(int, re.findall(r"\d+", schedule))))
        if not isinstance(folded, Schedule):
            raise TypeError(f"fold returns a Schedule, got {folded!r:.60}")
        return {
            "ranks": [list(row) for row in folded.placement.ranks],
            "microbatches": operator.index(folded.num_microbatches),
            "orders": [texts_of(order) for order in folded.orders],
        }

    return run


def schedule_of(folded: dict) -> Schedule:
    """The schedule that `plain_fold` tells of. ValueError where it cannot be one."""
    orders, microbatches = [actions_of(order) for order in folded["orders"]], folded["microbatches"]
    if type(microbatches) is not int or microbatches > sum(map(len, orders)):  # a reply's number builds nothing large
        raise ValueError(f"there are {microbatches!r:.30} microbatches, and {sum(map(len, orders))} actions")
    return Schedule("yours", Placement("yours", folded["ranks"]), microbatches, orders)


def plain_unblock(function: Callable) -> Callable:
    """unblock: `run(programs)` gives the programs, as `program_texts` has them."""

    def run(programs):
        given = tuple(program_of(program, rank) for rank, program in enumerate(programs))
        result = function(given)
        if not hasattr(result, "__iter__") or isinstance(result, str):
            raise TypeError(f"unblock returns a program for each rank, got {result!r:.60}")
        return [program_texts(program, rank) for rank, program in enumerate(result)]

    return run


def program_texts(program: object, rank: int) -> list[str]:
    """A rank's program as texts: "0F1" is an action, "→1 0F1" sends its result to rank 1, "←1 1I0" receives. Transfers
    that begin together are joined by a plus sign. TypeError for what is no program."""
    if not hasattr(program, "__iter__") or isinstance(program, str):
        raise TypeError(f"a program is a sequence of actions and exchanges, got {program!r:.60}")
    return [" + ".join(_moved(each, rank) for each in step.transfers) if isinstance(step, Exchange) else text_of(step)
            for step in program]  # fmt: skip


def program_of(texts: Sequence[str], rank: int) -> Program:
    """The program of a rank that texts tell of; each exchange has one transfer."""
    steps = []
    for text in texts:
        way, _, of = text.partition(" ")
        if way.startswith("→"):
            steps.append(Exchange((Transfer(action_of(of), rank, int(way[1:])),)))
        elif way.startswith("←"):
            steps.append(Exchange((Transfer(action_of(of), int(way[1:]), rank),)))
        else:
            steps.append(action_of(text))
    return tuple(steps)


def _moved(transfer: object, rank: int) -> str:
    if not isinstance(transfer, Transfer) or rank not in (transfer.source, transfer.destination):
        raise TypeError(f"rank {rank} has an exchange that is none of its own, {transfer!r:.90}")
    if rank == transfer.source:
        return f"→{transfer.destination} {transfer.of}"
    return f"←{transfer.source} {transfer.of}"
