"""Routes that have a name.

    random           whoever it is
    round-robin      one after the other
    fewest-tokens    whose requests have the fewest tokens
    least-full       the same, as a share of its cache: for engines that are not alike
    prefix-aware     who has least to do with it, and least to do

**Prefix-aware.** Of a prompt of T tokens of which an engine has `hit` in its cache, T − hit are left to compute. The
requests that it has already, `held` tokens, stand for what it is busy with. So the request goes where

    cost = weight · (T − hit) + held                                                                                (1)

is lowest, of equal ones to the first. By hits alone all that begin alike go to one engine, however long its queue is;
by load alone each engine computes, and keeps, the same prefixes as the others. The weight says how many tokens of
others a token is worth that need not be computed. Cost in tokens is cost in blocks but for rounding.

NVIDIA Dynamo's router has this cost, in blocks (its "routing concepts"); Mooncake's estimates TTFT in place of it,
https://arxiv.org/abs/2407.00079, section 6.
"""

import itertools
import math
import random
from collections.abc import Callable

from llmsys.serving.request import Request
from llmsys.serving.routing.engines import Engines, Route


def fewest_tokens(request: Request, engines: Engines) -> int:
    """To the engine whose requests have the fewest tokens; of equal ones, to the first."""
    held = engines.held
    return held.index(min(held))


def least_full(request: Request, engines: Engines) -> int:
    """To the engine whose requests have the fewest tokens, as a share of its room; of equal ones, to the first."""
    shares = [held / room for held, room in zip(engines.held, engines.room, strict=True)]
    return shares.index(min(shares))


class PrefixAware:
    """To the engine with the lowest cost (1); of equal ones, to the first.

    weight      of a token that is to be computed; ValueError where it is not a number from 0 on
    """

    def __init__(self, weight: float = 1.0):
        if not 0 <= weight < math.inf:
            raise ValueError(f"weight must be a finite number from 0 on, got {weight!r}: 1 is what Dynamo begins with")
        self.weight = weight

    def __call__(self, request: Request, engines: Engines) -> int:
        tokens, weight = len(request.tokens), self.weight
        costs = [weight * (tokens - hit) + held for hit, held in zip(engines.hits, engines.held, strict=True)]
        return costs.index(min(costs))


class RoundRobin:
    """One engine after the other, of each kind by itself: who was last chosen longest ago; of those that never were,
    the first. (So one that has died and come back is passed over meanwhile, and has its turn again.)"""

    def __init__(self):
        self._when: dict[tuple[str, str], int] = {}  # by kind and name
        self._turn = itertools.count()

    def __call__(self, request: Request, engines: Engines) -> int:
        kind, when = engines.kind, self._when
        turns = [when.get((kind, name), -1) for name in engines.names]
        number = turns.index(min(turns))
        when[kind, engines.names[number]] = next(self._turn)
        return number


class Random:
    """Any engine, each as likely as the others. One seed chooses one way."""

    def __init__(self, seed: int = 0):
        self._draw = random.Random(f"routes {seed}")

    def __call__(self, request: Request, engines: Engines) -> int:
        return self._draw.randrange(len(engines))


ROUTES: dict[str, Callable[[], Route]] = {
    "random": Random,
    "round-robin": RoundRobin,
    "fewest-tokens": lambda: fewest_tokens,
    "least-full": lambda: least_full,
    "prefix-aware": PrefixAware,
}
"""By name, what makes a route: each service has its own, for it may remember whom it chose."""


def as_route(route: str | Route | type) -> Route:
    """What `route=` means: a name of ROUTES, a class, of which a new one is made, or a route itself. ValueError for
    anything else."""
    if isinstance(route, str) and route in ROUTES:
        return ROUTES[route]()
    made = route() if isinstance(route, type) else route
    if callable(made):
        return made
    raise ValueError(f"route must be one of {', '.join(ROUTES)}, or take a request and engines, got {route!r}")


def chosen(route: Route, request: Request, engines: Engines) -> int:
    """The route's choice, which is not asked for where there is no other. ValueError where it is none of the engines:
    a route may be anybody's own."""
    if len(engines) == 1:
        return 0
    number = route(request, engines)
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number < len(engines):
        raise ValueError(f"route must choose one of {len(engines)} engines, by its number from 0 on, got {number!r}")
    return number
