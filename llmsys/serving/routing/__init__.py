"""Which engine computes a request, where there are several: one protocol for real engines and for simulated ones.

    engines     what is known of each engine that may be chosen, in columns; and what a route is
    policies    routes that have a name
"""

from llmsys.serving.routing.engines import Engines, Route
from llmsys.serving.routing.policies import ROUTES, as_route, fewest_tokens

__all__ = ["ROUTES", "Engines", "Route", "as_route", "fewest_tokens"]
