"""The sending side: a layer's keys and values leave when that layer is computed, while the next ones still are.

A step computes chunks of several prompts, layer after layer. For each engine that is to have some of these, the step is
one **frame**: first its pieces are announced, (key, start, stop) each, and then every layer's rows follow, those of all
pieces behind each other. A piece goes from the first token that has not been sent to the last one that the step
computes. So it holds what was computed before as well, if the other side lacks it: a prefix that was hit here and not
there. What has been sent once is not sent again, not even where a request was preempted and computes it anew, for the
same tokens have the same keys and values.

Rows are copied out of the pages at once, so these need not be kept until the wire is done: a prompt's blocks are free
when its prefill is.

**When a layer leaves** is up to `transfer`, a function that is called after each layer of such a step:

    def push_each_layer(layer, layers, send):          # the one that is used where none is given
        send(layer)

    def push_at_the_end(layer, layers, send):          # nothing is hidden behind computing
        if layer == layers[-1]:
            for each in layers:
                send(each)

A `log` hears of it: LayerEvent("computed", 3, (17,)), then LayerEvent("sent", 3, (17,)), and on the other engine
LayerEvent("received", 3, (17,)). Overlap is thus a matter of order, and can be checked without a clock.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from llmsys.cache import CacheSpec, PagedCache
from llmsys.serving.disaggregate.relayout import read_rows, slots_of
from llmsys.serving.plan import StepPlan

Transfer = Callable[[int, Sequence[int], Callable[[int], None]], object]
"""(layer, layers, send): called when `layer` of `layers` has been computed; `send(i)` begins to send layer i, each one
once, and all of them before the call for the last one returns."""


def push_each_layer(layer: int, layers: Sequence[int], send: Callable[[int], None]) -> None:
    """Each layer leaves as soon as it is computed."""
    send(layer)


class Piece(NamedTuple):
    """Tokens of an attempt, from `start` to below `stop`."""

    key: int
    start: int
    stop: int


class LayerEvent(NamedTuple):
    """What happened to a layer of a step: "computed" or "sent" where it is computed, "received" where it goes."""

    what: str
    layer: int
    keys: tuple[int, ...]  #  of which attempts


class Wire(Protocol):
    """Takes frames to one other engine, in order, and makes nobody wait. What it is handed is its own. A wire that is
    broken takes everything and drops it; whoever made it says so elsewhere."""

    def begin(self, frame: int, pieces: Sequence[Piece]) -> None:
        """A frame's layers will follow."""

    def layer(self, frame: int, layer: int, rows: Tensor) -> None:
        """One of them: rows (T, Hkv, D) of all pieces, one behind the other."""

    def cut(self, frame: int) -> None:
        """No more layers of this frame will come, for its step went wrong."""

    def close(self) -> None:
        """Nothing more goes this way: what is handed over from now on, or waits to be sent, is dropped."""


@dataclass
class Outgoing:
    """An attempt of which some is sent."""

    to: str
    sent: int  #  tokens that the other side has


@dataclass
class Frame:
    """A step's pieces for one engine, while they leave."""

    to: str
    number: int
    pieces: list[Piece]
    slots: Tensor  #  of all their tokens, where the pages are


class Push:
    """What one engine sends.

    Parameters
    ----------
    cache, spec
        The engine's pages, and what its layers keep.
    device
        Where they are.
    transfer
        When a layer leaves.
    log
        Called with each LayerEvent. None: nobody is.

    Attributes
    ----------
    wires : dict
        To other engines, by their names.
    outgoing : dict
        By key.
    """

    def __init__(
        self,
        cache: PagedCache,
        spec: CacheSpec,
        device: torch.device,
        *,
        transfer: Transfer = push_each_layer,
        log: Callable[[LayerEvent], object] | None = None,
    ):
        if not callable(transfer):
            raise ValueError(f"transfer must be a function of (layer, layers, send), got {transfer!r}")
        self.wires: dict[str, Wire] = {}
        self.outgoing: dict[int, Outgoing] = {}
        self._cache, self._device, self._transfer, self._log = cache, device, transfer, log
        self._specs = {each.layer: each for each in spec.layers}
        self._layers = tuple(self._specs)
        self._frames: list[Frame] = []
        self._numbers = 0
        self._unsent: list[int] = []
        self._computed: set[int] = set()

    def expect(self, key: int, to: str, start: int) -> None:
        """Of this attempt, what is computed from token `start` on goes to `to`. ValueError where there is no wire."""
        if to not in self.wires:
            raise ValueError(f"to must be an engine to which there is a wire ({', '.join(self.wires)}), got {to!r}")
        self.outgoing[key] = Outgoing(to, start)

    def forget(self, key: int) -> None:
        """Nothing more of it is sent."""
        self.outgoing.pop(key, None)

    def lost(self, name: str) -> None:
        """Nothing more is sent to that engine."""
        self.outgoing = {key: going for key, going in self.outgoing.items() if going.to != name}
        if name in self.wires:
            self.wires[name].close()

    @contextmanager
    def step(self, plan: StepPlan) -> Iterator[bool]:
        """A block in which the plan's step is launched. Whether something of it leaves: then it must be launched layer
        by layer.

        RuntimeError where `transfer` has not sent every layer by the last one, or the step's layers were not computed
        by the cache's `attend`. Then, and where the block raises, the frames are cut.
        """
        self._begin(plan)
        if not self._frames:
            yield False
            return
        self._unsent, self._computed = list(self._layers), set()
        self._cache.after_layer = self._after_layer
        try:
            yield True
            if self._unsent:
                what = "computed by the cache's attend" if self._unsent[0] not in self._computed else "sent by transfer"
                raise RuntimeError(
                    f"layers {self._unsent} of this step were not {what}: transfer must send all layers by the end of "
                    "its call for the last one, and the runner must launch such a step layer by layer"
                )
        except BaseException:
            for frame in self._frames:
                self.wires[frame.to].cut(frame.number)
            raise
        finally:
            self._cache.after_layer = None
            frames, self._frames = self._frames, []
        for piece in (piece for frame in frames for piece in frame.pieces):
            self.outgoing[piece.key].sent = piece.stop

    def _begin(self, plan: StepPlan) -> None:
        pieces: dict[str, list[Piece]] = {}
        slots: dict[str, list[Tensor]] = {}
        for work in plan.work:
            going = self.outgoing.get(int(work.request))
            if going is None or work.end <= going.sent:
                continue
            pieces.setdefault(going.to, []).append(Piece(int(work.request), going.sent, work.end))
            of_work = slots_of(work.blocks, self._cache.block_size, going.sent, work.end)
            slots.setdefault(going.to, []).append(of_work)
        for to, some in pieces.items():
            on_device = torch.cat(slots[to]).to(self._device, non_blocking=True)
            self._frames.append(Frame(to, self._numbers, some, on_device))
            self.wires[to].begin(self._numbers, some)
            self._numbers += 1

    def _after_layer(self, layer: int) -> None:
        self._computed.add(layer)
        self._note("computed", layer)
        self._transfer(layer, self._layers, self._send)

    def _send(self, layer: int) -> None:
        if layer not in self._unsent or layer not in self._computed:
            known = "has been sent before" if layer in self._computed else "has not been computed yet"
            if layer not in self._specs:
                known = f"is none of the layers {list(self._layers)}"
            raise ValueError(f"transfer: send({layer!r}), and that layer {known}")
        self._unsent.remove(layer)
        spec = self._specs[layer]
        keys, values = self._cache.pages_of(spec, self._device)
        for frame in self._frames:
            rows = read_rows(keys, None if spec.values_in_keys else values, frame.slots)
            self.wires[frame.to].layer(frame.number, layer, rows)
        self._note("sent", layer)

    def _note(self, what: str, layer: int) -> None:
        if self._log is not None:
            self._log(LayerEvent(what, layer, tuple(piece.key for frame in self._frames for piece in frame.pieces)))
