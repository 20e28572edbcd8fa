"""Wires between processes: frames over a pair of ranks (`llmsys.parallel.ranks.pairs`).

A message is four numbers, and mostly a tensor behind them:

    (0, frame, pieces, 0)     then pieces · 3 numbers: key, start, stop
    (1, frame, layer, rows)   then the layer's rows (rows, Hkv, D)
    (2, frame, 0, 0)          the frame is cut

The numbers go through gloo, so the host that must know what comes waits for no GPU. Rows go through NCCL where both
ends are on GPUs, else through gloo as well. Each end has a thread of its own, so that nobody who computes waits for the
wire: the sender's takes from a queue, the receiver's puts into the engine's inbox. How much may lie in these is up to
the receiving engine, which grants no more than its window.

**Rows count when they are here**, and not when NCCL has been told to receive them: its call returns at once, and where
the sender dies then, nothing comes, or a part. So the receiver's thread waits for them, and the engine's own stream
waits for no other machine. Whatever else goes wrong in such a thread, as where there is no memory for what comes,
breaks the pair: who is not heard any more must be known to be so, or its requests would wait for ever.
"""

import contextlib
import logging
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor

from llmsys.cache import CacheSpec
from llmsys.parallel.ranks import Pair, PairBroken
from llmsys.serving.disaggregate.arrivals import Announced, Cut, Rows
from llmsys.serving.disaggregate.messages import Broken
from llmsys.serving.disaggregate.push import Piece

BEGIN, LAYER, CUT = 0, 1, 2
_LOGGER = logging.getLogger(__name__)


class PairWire:
    """The sending end: a `Wire`.

    Parameters
    ----------
    numbers
        A pair by gloo.
    rows
        The pair for rows: the same one, or one by NCCL.
    broken
        Called, in the wire's thread, when the other end is gone, or something cannot be sent.
    silent_after
        As for `Watch`.

    Attributes
    ----------
    sent
        Called, in the wire's thread, with each layer's bytes and the seconds (of `time.perf_counter`) at which its rows
        were there to be sent, and were sent. None: nobody is.
    """

    def __init__(
        self, numbers: Pair, rows: Pair, broken: Callable[[], object], *, silent_after: float | None = None
    ):
        self._numbers, self._rows, self._broken = numbers, rows, broken
        self._watch = Watch(silent_after, "sends keys and values", numbers, rows)
        self.sent: Callable[[int, float, float], object] | None = None
        self._items: queue.SimpleQueue = queue.SimpleQueue()
        self._on_gpu, self._closed = rows.backend == "nccl", False
        threading.Thread(target=self._work, daemon=True, name="sends keys and values").start()

    def begin(self, frame: int, pieces: Sequence[Piece]) -> None:
        self._put(((BEGIN, frame, len(pieces), 0), torch.tensor(pieces, dtype=torch.int64), None))

    def layer(self, frame: int, layer: int, rows: Tensor) -> None:
        ready = None
        if rows.is_cuda:
            ready = torch.cuda.Event()
            ready.record()
        self._put(((LAYER, frame, layer, len(rows)), rows, ready))

    def cut(self, frame: int) -> None:
        self._put(((CUT, frame, 0, 0), None, None))

    def close(self) -> None:
        self._closed = True
        self._items.put(None)
        self._watch.close()
        self._numbers.abort()
        self._rows.abort()

    def _put(self, item: tuple) -> None:
        if not self._closed:
            self._items.put(item)

    @torch.inference_mode()
    def _work(self) -> None:
        try:
            stream = None
            while (item := self._items.get()) is not None:
                numbers, tensor, ready = item
                if ready is not None:
                    ready.synchronize()  # or the other end's GPU would wait for this one's computing
                began = time.perf_counter()
                with self._watch.one():
                    self._numbers.send(torch.tensor(numbers, dtype=torch.int64))
                    if tensor is None:
                        continue
                    if tensor.is_cuda and self._on_gpu:
                        stream = stream or torch.cuda.Stream(tensor.device)
                        with torch.cuda.stream(stream):
                            self._rows.send(tensor)
                            stream.synchronize()  # its memory may be used again from now on
                    else:
                        self._numbers.send(tensor.cpu())
                if self.sent is not None and numbers[0] == LAYER:
                    self.sent(tensor.nbytes, began, time.perf_counter())
        except Exception as error:
            _note("send keys and values", error)
            self._numbers.abort()  # so that the other end hears of it
            self._rows.abort()
            self._broken()
            while self._items.get() is not None:  # dropped: nothing of it is kept
                pass


class Receiving:
    """The receiving end.

    Parameters
    ----------
    sender
        The engine's name at the other end.
    numbers, rows
        As for `PairWire`.
    spec
        What each layer keeps: the shape of what comes.
    device
        Where rows through NCCL are to lie. Through gloo they come into CPU memory.
    put
        Into the inbox.
    silent_after
        As for `Watch`.
    """

    def __init__(
        self, sender: str, numbers: Pair, rows: Pair, spec: CacheSpec, device: torch.device, put: Callable, *,
        silent_after: float | None = None,
    ):  # fmt: skip
        self._watch = Watch(silent_after, f"receives from {sender}", numbers, rows)
        self._sender, self._numbers, self._rows, self._put = sender, numbers, rows, put
        self._shapes = {
            each.layer: (each.heads, each.Dk + (0 if each.values_in_keys else each.Dv), each.dtype)
            for each in spec.layers
        }
        self._device = device if rows.backend == "nccl" else torch.device("cpu")
        self._thread = threading.Thread(target=self._work, daemon=True, name=f"receives from {sender}")
        self._thread.start()

    def close(self) -> None:
        self._watch.close()
        self._numbers.abort()
        self._rows.abort()

    @torch.inference_mode()
    def _work(self) -> None:
        try:
            numbers, stream = torch.zeros(4, dtype=torch.int64), None
            if self._device.type == "cuda":
                stream = torch.cuda.Stream(self._device)
            while True:
                self._numbers.recv(numbers)
                kind, frame, a, b = numbers.tolist()
                with self._watch.one():
                    if kind == BEGIN:
                        pieces = torch.zeros(a, 3, dtype=torch.int64)
                        self._numbers.recv(pieces)
                        came = Announced(self._sender, frame, tuple(Piece(*each) for each in pieces.tolist()))
                    elif kind == CUT:
                        came = Cut(self._sender, frame)
                    else:
                        came = self._layer(frame, a, b, stream)
                self._put(came)
        except Exception as error:
            _note(f"receive from {self._sender}", error)
            self.close()
            self._put(Broken(self._sender))

    def _layer(self, frame: int, layer: int, tokens: int, stream) -> Rows:
        heads, D, dtype = self._shapes[layer]
        if stream is None:
            rows = torch.empty(tokens, heads, D, dtype=dtype)
            self._numbers.recv(rows)
            return Rows(self._sender, frame, layer, rows)
        with torch.cuda.stream(stream):
            rows = torch.empty(tokens, heads, D, dtype=dtype, device=self._device)
            self._rows.recv(rows)
        stream.synchronize()
        if self._rows.aborted:  # which ends the waiting, too, and what is in `rows` then is anything
            raise PairBroken(f"{self._rows.name} was aborted while rows came", self._rows.peer)

        def read() -> None:  # their memory is this thread's stream's, which is not to have it back before
            rows.record_stream(torch.cuda.current_stream(self._device))

        return Rows(self._sender, frame, layer, rows, read)


class Watch:
    """Breaks the pairs of a wire that hangs: one whose transfer of one message has taken `silent_after` seconds. Then
    who waits in it raises, as where the other end has died. None: it may hang.

    It has a thread of its own, for the one that waits cannot look at a clock, and a transfer is soon over.
    """

    def __init__(self, silent_after: float | None, what: str, *pairs: Pair):
        self._since: float | None = None
        self._over = threading.Event()
        if silent_after is not None:
            work = threading.Thread(
                target=self._work, args=(silent_after, what, pairs), daemon=True, name=f"watches who {what}"
            )
            work.start()

    @contextlib.contextmanager
    def one(self) -> Iterator[None]:
        """A block in which a message is transferred."""
        self._since = time.monotonic()
        try:
            yield
        finally:
            self._since = None

    def close(self) -> None:
        """It watches no more."""
        self._over.set()

    def _work(self, silent_after: float, what: str, pairs: Sequence[Pair]) -> None:
        while not self._over.wait(silent_after / 4):
            since = self._since
            if since is not None and time.monotonic() - since >= silent_after:
                _LOGGER.error("who %s has waited for %g s: the wire is broken off", what, silent_after)
                for pair in pairs:
                    pair.abort()
                return


def _note(what: str, error: Exception) -> None:
    if not isinstance(error, PairBroken):  # of which the front hears
        _LOGGER.error("cannot %s any more", what, exc_info=error)
