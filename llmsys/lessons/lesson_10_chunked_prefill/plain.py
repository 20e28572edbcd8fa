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
    StepDone,
    Token,
)

MOST_TRIALS = 4000
"""After so many runs a search is stopped: it has no end."""


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
    for kind, time, *rest in lines:
        step = sum(isinstance(each, StepDone) for each in found)
        name = rest[0] if rest else ""
        more = rest[1] if len(rest) > 1 else 1
        found.append(
            {
                "Arrived": lambda: Arrived(step, time, name, prompt_tokens=more),
                "Admitted": lambda: Admitted(step, time, name, hit_tokens=0),
                "Computed": lambda: Computed(step, time, name, start=0, tokens=more),
                "Token": lambda: Token(step, time, name, token=more),
                "Preempted": lambda: Preempted(step, time, name, lost=more),
                "Finished": lambda: Finished(step, time, name, "length", more),
                "Failed": lambda: Failed(step, time, name, "not finite"),
                "Aborted": lambda: Aborted(step, time, name),
                "Step": lambda: StepDone(step, time, 0.01, "mixed", 1, 1, 1, 0, 1, 9),
            }[kind]()
        )
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
    [[budget, its highest rate, what is attained beyond]], and tried is [[budget, rate], …], in order."""

    def run(curves, low, high, share, within):
        tried: list[list[float]] = []

        def attained(budget: int, rate: float) -> float:
            tried.append([budget, rate])
            if len(tried) > MOST_TRIALS:
                raise RuntimeError(f"attained was asked {MOST_TRIALS} times: the search does not end")
            knee, beyond = next((knee, beyond) for of, knee, beyond in curves if of == budget)
            return 1.0 - (1.0 - share) * rate / knee if rate <= knee else beyond

        budgets = [budget for budget, *_ in curves]
        found = function(attained, budgets, low=low, high=high, share=share, within=within)
        if not isinstance(found, tuple | list) or len(found) != 2:
            raise TypeError(f"choose_budget must return a pair, (budget, rate), got {found!r}")
        return {"budget": found[0], "rate": float(found[1]), "tried": tried}

    return run
