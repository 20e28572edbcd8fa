"""Routes that have a name."""

from collections.abc import Callable

from llmsys.serving.request import Request
from llmsys.serving.routing.engines import Engines, Route


def fewest_tokens(request: Request, engines: Engines) -> int:
    """To the engine whose requests have the fewest tokens; of equal ones, to the first."""
    held = engines.held
    return held.index(min(held))


ROUTES: dict[str, Callable[[], Route]] = {"fewest-tokens": lambda: fewest_tokens}
"""By name, what makes a route: each service has its own, for it may remember whom it chose."""


def as_route(route: str | Route | type) -> Route:
    """What `route=` means: a name of ROUTES, a class, of which a new one is made, or a route itself. ValueError for
    anything else."""
    if isinstance(route, str) and route in ROUTES:
        return ROUTES[route]()
    if callable(route):
        return route() if isinstance(route, type) else route
    raise ValueError(f"route must be one of {', '.join(ROUTES)}, or take a request and engines, got {route!r}")
