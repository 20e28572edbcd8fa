"""The exercises of lesson 10 on plain data: what a check hands over and gets back are lists and numbers.

An event is a list, [kind, seconds, request, …]: ["Arrived", 0.5, "a"], ["Token", 0.9, "a"], ["Step", 0.9]. How long
steps take is a dict of prices. Attainment is a curve for each budget, and what a reader's function asked is counted.
"""

from collections.abc import Callable

from llmsys.serving.goodput import Limits
from llmsys.serving.simulator.step_times import Prices, StepTimes
from llmsys.serving.telemetry.events import (
    Aborted,
    Admitted,
    Arrived,
    Computed,
    Event,
    Failed,
    Finished,
    Preempted,
    RequestEvent,
    StepDone,
    Token,
)

MOST_TRIALS = 4000
"""After so many runs a search is stopped: it has no end."""
KINDS: dict[str, tuple[type[RequestEvent], dict]] = {
    "Arrived": (Arrived, {"prompt_tokens": None}),
    "Admitted": (Admitted, {"hit_tokens": None}),
    "Computed": (Computed, {"start": 1, "tokens": None}),
    "Token": (Token, {"token": None}),
    "Preempted": (Preempted, {"lost": None}),
    "Finished": (Finished, {"reason": "length", "generated": None}),
    "Failed": (Failed, {"error": "not finite"}),
    "Aborted": (Aborted, {}),
}
"""Of an event's kind: its class, and what else it has; None stands for the number in the list."""


def plain_log(function: Callable) -> Callable:
    """(a): `run(events, limits)` gives [ttft, tpot, goodput], with limits as {"ttft": seconds, "tpot": seconds}."""

    def run(events, limits):
        found = function(events_of(events), Limits(**limits))
        if not isinstance(found, tuple | list) or len(found) != 3:
            raise TypeError(f"read_log must return three things, (ttft, tpot, goodput), got {found!r}")
        ttft, tpot, goodput = found
        if not isinstance(ttft, dict) or not isinstance(tpot, dict):
            raise TypeError("ttft and tpot must be dicts: a request's id -> seconds")
        return [dict(sorted(ttft.items())), dict(sorted(tpot.items())), goodput]

    return run


def events_of(lines: list) -> list[Event]:
    """A log of the library's own events."""
    found: list[Event] = []
    step = 0
    for kind, time, *rest in lines:
        if kind == "Step":
            found.append(StepDone(step, time, 0.01, "mixed", 1, 1, 1, 0, 1, 9))
            step += 1
        else:
            make, more = KINDS[kind]
            name, number = rest[0], rest[1] if len(rest) > 1 else 1
            found.append(make(step, time, name, **{key: value or number for key, value in more.items()}))
    return found


def plain_steps(function: Callable) -> Callable:
    """(b): `run(prompt, contexts, budget, decode, mixed)` gives [[piece, seconds], …]."""

    def run(prompt, contexts, budget, decode, mixed):
        times = StepTimes(Prices(**decode), Prices(**mixed))
        found = function(prompt, contexts, budget=budget, times=times)
        try:
            return [[piece, float(seconds)] for piece, seconds in found]
        except (TypeError, ValueError):
            raise TypeError(f"prefill_steps must return a list of pairs (piece, seconds), got {found!r}") from None

    return run


def plain_choice(function: Callable) -> Callable:
    """(c): `run(curves, low, high, share, within)` gives {"budget", "rate", "tried"}, where curves are
    [[budget, its highest rate, what is attained beyond]] (and "just", where no more than the share is attained before
    it), and tried is [[budget, rate], …], in order."""

    def run(curves, low, high, share, within):
        tried: list[list[float]] = []

        def attained(budget: int, rate: float) -> float:
            tried.append([budget, rate])
            if len(tried) > MOST_TRIALS:
                raise RuntimeError(f"attained was asked {MOST_TRIALS} times: the search does not end")
            knee, beyond, *just = next(curve for of, *curve in curves if of == budget)
            return beyond if rate > knee else share if just else 1.0 - (1.0 - share) * rate / knee

        budgets = [budget for budget, *_ in curves]
        found = function(attained, budgets, low=low, high=high, share=share, within=within)
        if not isinstance(found, tuple | list) or len(found) != 2:
            raise TypeError(f"choose_budget must return a pair, (budget, rate), got {found!r}")
        return {"budget": found[0], "rate": float(found[1]), "tried": tried}

    return run
