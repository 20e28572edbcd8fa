"""The exercises on plain data: a check passes numbers and lists, and gets numbers, texts and lists back.

What a function asked for, and in which order, is not in what comes back, only by how much that was too often: a mistake
is known by its outcome, and whoever tries `low` before `high` makes the same ones.
"""

import math
from collections.abc import Callable, Sequence

from llmsys.serving.request import Request
from llmsys.serving.routing.engines import Engines

BLOCK_SIZE = 16
MOST = 400
"""Calls after which a search is taken to have no end."""


def plain_goodput(function: Callable) -> Callable:
    """(a): `run(points, gpus=…, …)`, where a point [rate, share] says what is attained up to that rate. Gives what the
    function returned, whether that is a rate that it tried, and how many more than `most` it tried."""

    def run(points, most=MOST, **given):
        tried: list[float] = []

        def attained(rate):
            if len(tried) == MOST:
                raise ValueError(f"attained was called {MOST} times: this search has no end")
            tried.append(float(rate))
            return next(share for most, share in points if rate <= most)

        found = function(attained, **given)
        if isinstance(found, bool) or not isinstance(found, int | float):
            raise TypeError(f"a rate is wanted here, a number, got {found!r}")
        was_tried = any(math.isclose(found * given["gpus"], each, rel_tol=1e-9) for each in tried)
        return {"goodput": float(found), "was tried": was_tried, "too many": max(len(tried) - most, 0)}

    return run


def plain_order(function: Callable) -> Callable:
    """(b): `run(layers, buffers)` gives the actions as texts, "send 3"."""

    def run(layers, buffers):
        found = function(layers, buffers)
        if not isinstance(found, list | tuple):
            raise TypeError(f"a list of actions is wanted here, got {found!r}")
        return [_text(each) for each in found]

    return run


def plain_division(function: Callable) -> Callable:
    """(c): `run(prefill, decode)`, where the n-th number of each is what n engines reach. Gives the two counts, and how
    many times more than `most` it asked for a rate."""

    def run(prefill, decode, most=None):
        asked = [0]
        rates = _rates("prefill_rate", prefill, asked), _rates("decode_rate", decode, asked)
        counts = function(len(prefill) + 1, *rates)
        if not isinstance(counts, list | tuple) or [type(each) for each in counts] != [int, int]:
            raise TypeError(f"two counts are wanted here, (prefill, decode), got {counts!r}")
        too_many = 0 if most is None else max(asked[0] - most, 0)
        return {"prefill": counts[0], "decode": counts[1], "too many": too_many}

    return run


def plain_route(function: Callable) -> Callable:
    """(d): `run(tokens, held, hits, queued=…, weight=…)` asks about a prompt of so many tokens and gives the number of
    the engine, and whether what is known of the engines has been changed."""

    def run(tokens, held, hits, queued=None, weight=None):
        n, lists = len(held), (list(held), list(hits), list(queued or held))
        held, hits, queued = lists
        names, before = [f"prefill {i}" for i in range(n)], [list(each) for each in lists]
        engines = Engines("prefill", names, queued, held, [100_000] * n, BLOCK_SIZE, find=lambda: hits)
        request = Request("asked", range(tokens))
        found = function(request, engines) if weight is None else function(request, engines, weight=weight)
        if type(found) is not int:
            raise TypeError(f"the number of an engine is wanted here, an int like 0 for the first, got {found!r}")
        if not 0 <= found < n:
            raise ValueError(f"there are {n} engines, with the numbers from 0 to {n - 1}, and not {found}")
        return {"engine": found, "changed": [list(each) for each in lists] != before}

    return run


def _rates(name: str, rates: Sequence[float], asked: list[int]) -> Callable[[int], float]:
    def rate(engines):
        asked[0] += 1
        if type(engines) is not int or not 1 <= engines <= len(rates):
            raise ValueError(f"{name} was asked for {engines!r} engines: there can be from 1 to {len(rates)}")
        return rates[engines - 1]

    return rate


def _text(action: object) -> str:
    if not isinstance(action, list | tuple) or len(action) != 2 or not isinstance(action[0], str):
        raise TypeError(f'an action is a pair like ("send", 3), got {action!r}')
    return f"{action[0]} {action[1]}"
