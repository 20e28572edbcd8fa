"""A wire that is made up: layers are computed one after the other, and sent, through few buffers.

An order is a list of actions of the sender's program:

    ("compute", 3)     layer 3 is computed, and its keys and values are put into buffer 3 % buffers; returns when it is
    ("send", 3)        what is in that buffer goes onto the link, behind all that is there; returns at once
    ("wait", 3)        returns when layer 3 is through

`lanes` says when each happens, if a layer takes so long to compute and so long to send: the two lanes of a picture.
`Wire` has real buffers, and a thread that sends from them (`sending`).
"""

import queue
import threading
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor

Action = tuple[str, int]


@dataclass(frozen=True)
class Busy:
    """That a lane has something to do."""

    lane: str  #  "compute" or "link"
    layer: int
    start: float
    end: float


def lanes(order: Sequence[Action], *, compute: float, send: float) -> list[Busy]:
    """When what happens, if a layer is computed in so long and sent in so long.

    ValueError for an action that is none, a send of what is not computed, or a wait for what was not sent.
    """
    now = link = 0.0
    found: list[Busy] = []
    computed: set[int] = set()
    through: dict[int, float] = {}
    for what, layer in order:
        if what == "compute":
            found.append(Busy("compute", layer, now, now + compute))
            computed.add(layer)
            now += compute
        elif what == "send":
            if layer not in computed:
                raise ValueError(f"layer {layer} is sent before it is computed")
            start = max(now, link)
            link = through[layer] = start + send
            found.append(Busy("link", layer, start, link))
        elif what == "wait":
            if layer not in through:
                raise ValueError(f"layer {layer} is waited for before it is sent")
            now = max(now, through[layer])
        else:
            raise ValueError(f"an action is compute, send or wait, got {what!r}")
    return found


def in_the_open(order: Sequence[Action], *, compute: float, send: float) -> float:
    """How long sending goes on after the last layer was computed, or holds computing up: all that is not hidden."""
    busy = lanes(order, compute=compute, send=send)
    return max(each.end for each in busy) - compute * sum(each.lane == "compute" for each in busy)


class Wire:
    """Buffers, and a thread that sends what is in them. Context manager: at its end all that was sent has come.

    Attributes
    ----------
    received : dict
        Layer → what has come.
    """

    def __init__(self, buffers: int):
        self.received: dict[int, tuple[Tensor, ...]] = {}
        self._buffers: list[tuple[Tensor, ...] | None] = [None] * buffers
        self._to_send: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._through: dict[int, threading.Event] = {}
        self._sender = threading.Thread(target=self._send_all, daemon=True)

    def put(self, layer: int, tensors: tuple[Tensor, ...]) -> None:
        """Into the layer's buffer, over what is there."""
        place = layer % len(self._buffers)
        if self._buffers[place] is None:
            self._buffers[place] = tuple(each.clone() for each in tensors)
        else:
            for buffer, each in zip(self._buffers[place], tensors, strict=True):
                buffer.copy_(each)

    def send(self, layer: int) -> None:
        self._through[layer] = threading.Event()
        self._to_send.put(layer)

    def wait(self, layer: int) -> None:
        """Until the layer is through. ValueError where it was not sent."""
        if layer not in self._through:
            raise ValueError(f"layer {layer} is waited for before it is sent")
        self._through[layer].wait()

    def __enter__(self) -> "Wire":
        self._sender.start()
        return self

    def __exit__(self, *error) -> None:
        self._to_send.put(None)
        self._sender.join()

    def _send_all(self) -> None:
        while (layer := self._to_send.get()) is not None:
            self.received[layer] = tuple(each.clone() for each in self._buffers[layer % len(self._buffers)])
            self._through[layer].set()
