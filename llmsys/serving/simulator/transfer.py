"""How long a request's cache is on its way from the GPU that computed its prompt to the one that decodes.

    Transfer(bytes_per_token=131_072, bandwidth=50e9, latency=20e-6)                 when the prompt is computed, as one
    Transfer(bytes_per_token=131_072, bandwidth=50e9, latency=20e-6, layers=32)      layer by layer, while it is

A link passes one byte after the other, so a cache of n bytes takes n / bandwidth on it, and waits while others are
there. A latency later it has arrived. Two links are passed: the sender's, which all that it sends shares, and the
receiver's. (What is between them is taken to be wide enough.)

**Layer by layer** a layer's keys and values leave as soon as it is computed, and the layers after it hide them. A step
from b to e has L layers of c = (e − b) / L each, and a layer's keys and values take x on the link. Layer i is through
after layer i − 1, and after it was computed at b + i c. So the last one is through at

    max(f + L x,  b + c + L x,  e + x)                                                                              (1)

where f is when the link is free: the longest way through two rows, of layers and of sends, changes over once, and as
its length is linear in where, at an end. If computing is slower than sending, x < c, all is hidden but x: a share of
1/L. If sending is slower, all is hidden but what the link takes for longer than the step.

What a step finds in its prefix cache can leave when it begins, before the first layer. Requests of one step share the
sender's link, a layer of all of them before the next. The receiver's link is held to its bandwidth and no more: what a
step sends there is through no sooner than if all of it had come when the step began, behind what came before. A cache
has arrived when it is through both. Of a long prompt, which several steps compute, each step sends its part.

Counted in whole ticks, as all here is, so that a workload has one result.
"""

import math
from dataclasses import dataclass

from llmsys.models.sampling import whole_number
from llmsys.serving.simulator.step_times import TICKS


@dataclass(frozen=True)
class Transfer:
    """What it takes to move a cache. ValueError for a number that is out of its range.

    The default is free: nothing to move, over a link without a limit.
    """

    bytes_per_token: int | float = 0
    """Of keys and values, in all layers: `llmsys.models.decode_cost.bytes_per_token`."""
    bandwidth: int | float = math.inf
    """Bytes a second, of each GPU's link in each direction."""
    latency: int | float = 0.0
    """Seconds, of each cache."""
    layers: int | None = None
    """Of the model, where each is sent when it is computed. None: all of a prompt's are, when the last one is."""

    def __post_init__(self):
        for name, value in (("bytes_per_token", self.bytes_per_token), ("latency", self.latency)):
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be a finite number from 0 on, got {value}")
        if not self.bandwidth > 0:
            raise ValueError(f"bandwidth must be bytes a second above 0, or infinity, got {self.bandwidth}")
        if self.layers is not None:
            whole_number("layers", self.layers, at_least=1)

    def ticks(self, tokens: int) -> int:
        """How long so many tokens' keys and values take on a link."""
        return round(tokens * self.bytes_per_token / self.bandwidth * TICKS)

    @property
    def latency_ticks(self) -> int:
        return round(self.latency * TICKS)


class Link:
    """One end of the way: a queue, first come first served.

    Attributes
    ----------
    free : int
        When all that was given to it is through, in ticks.
    busy : int
        How many ticks it had something to pass.
    """

    def __init__(self):
        self.free = self.busy = 0

    def carry(self, ready: int, ticks: int) -> int:
        """What is ready at a tick, behind all else: when it is through."""
        self.busy += ticks
        self.free = max(self.free, ready) + ticks
        return self.free

    def send_layers(self, began: int, ended: int, layers: int, *, made: int, found: int = 0) -> int:
        """What a step computes, a layer at a time, and before it what it found in its cache: when the last is through.

        made, found      ticks on the link
        """
        self.busy += made + found
        start = max(self.free, began) + found
        first, share = began + (ended - began) // layers, -(-made // layers)
        self.free = max(start + made, first + made, ended + share)
        return self.free


def send_whole(sender: Link, receiver: Link, ready: int, ticks: int) -> int:
    """A cache that is ready, as one, when both ends are free: when it is through."""
    start = max(sender.free, receiver.free, ready)
    sender.carry(start, ticks)
    return receiver.carry(start, ticks)
