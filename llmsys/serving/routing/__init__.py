"""Which engine computes a request, where there are several: one protocol for real engines and for simulated ones.

    engines     what is known of each engine that may be chosen, in columns; and what a route is
    policies    routes that have a name
    remembered  what is in whose prefix cache, guessed from what each was sent: for who cannot look into them
"""

from llmsys.serving.routing.engines import Engines, Route
from llmsys.serving.routing.policies import (
    ROUTES,
    PrefixAware,
    Random,
    RoundRobin,
    as_route,
    chosen,
    fewest_tokens,
    least_full,
)
from llmsys.serving.routing.remembered import Remembered

__all__ = [
    "ROUTES", "Engines", "PrefixAware", "Random", "Remembered", "RoundRobin", "Route", "as_route", "chosen",
    "fewest_tokens", "least_full",
]  # fmt: skip
