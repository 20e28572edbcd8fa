"""Wires whose pairs break, or whose threads go wrong: rows count when they are here, and nobody waits for ever."""

import contextlib
import queue
import threading
import time

import pytest
import torch

from llmsys.cache import CacheSpec, LayerCache
from llmsys.parallel.ranks import PairBroken
from llmsys.serving.disaggregate.arrivals import Announced, Rows
from llmsys.serving.disaggregate.messages import Broken
from llmsys.serving.disaggregate.push import Piece
from llmsys.serving.disaggregate.wires import BEGIN, LAYER, PairWire, Receiving

SPEC = CacheSpec((LayerCache(0, 2, 3, 3, torch.float32),))
OUT_OF_MEMORY = RuntimeError("CUDA out of memory")


class MadeUpPair:
    """One end of a pair: what is to be received is given, and may be an error."""

    name, peer = "the pair of ranks 0 and 1", 1

    def __init__(self, to_come=(), backend="gloo", fails=None):
        self.backend, self.aborted, self.sent = backend, False, []
        self._to_come, self._fails, self._over = list(to_come), fails, threading.Event()

    def recv(self, tensor, tag=0) -> None:
        if not self._to_come:
            self._over.wait()
            raise PairBroken("it was aborted", 1)
        what = self._to_come.pop(0)
        if isinstance(what, Exception):
            raise what
        tensor.copy_(what)

    def send(self, tensor, tag=0) -> None:
        if self.aborted:
            raise PairBroken("it was aborted", 1)
        if self._fails is not None:
            raise self._fails
        self.sent.append(tensor)

    def abort(self) -> None:
        self.aborted = True
        self._over.set()


class MadeUpStream:
    """A GPU's, which is done when `then` has been called."""

    def __init__(self, then):
        self.synchronize = then


def numbers(*of) -> torch.Tensor:
    return torch.tensor(of, dtype=torch.int64)


ANNOUNCED = [numbers(BEGIN, 7, 1, 0), numbers(5, 0, 4).view(1, 3)]
ROWS = torch.arange(4 * 2 * 6).view(4, 2, 6).float()


def receiving(monkeypatch, rows_pair, *, numbers_pair=None, then=lambda: None):
    """The receiving end on a GPU that is made up; and its inbox."""
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: MadeUpStream(then))
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: contextlib.nullcontext())
    monkeypatch.setattr(threading.Thread, "start", lambda self: None)
    inbox = queue.SimpleQueue()
    numbers_pair = numbers_pair or MadeUpPair([*ANNOUNCED, numbers(LAYER, 7, 0, 4), PairBroken("gone", 1)])
    end = Receiving("prefill 0", numbers_pair, rows_pair, SPEC, torch.device("cpu"), inbox.put)
    end._device = type("Cuda", (), dict(type="cuda"))()
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *size, device=None, **more: empty(*size, **more))
    end._work()
    return end, [inbox.get() for _ in range(inbox.qsize())]


def test_rows_on_a_gpu_are_told_of_when_they_are_here(monkeypatch):
    done = []
    _, told = receiving(monkeypatch, MadeUpPair([ROWS], "nccl"), then=lambda: done.append(True))
    assert [type(each) for each in told] == [Announced, Rows, Broken] and done
    assert told[0].pieces == (Piece(5, 0, 4),) and torch.equal(told[1].rows, ROWS)


def test_rows_whose_pair_is_aborted_while_they_come_are_not_believed(monkeypatch):
    pair = MadeUpPair([ROWS], "nccl")
    end, told = receiving(monkeypatch, pair, then=pair.abort)
    assert [type(each) for each in told] == [Announced, Broken]
    assert end._numbers.aborted, "nothing more comes this way"


def test_a_receiving_thread_for_which_there_is_no_memory_breaks_its_pair_and_says_so(monkeypatch):
    pair = MadeUpPair([OUT_OF_MEMORY], "nccl")
    end, told = receiving(monkeypatch, pair)
    assert told[-1] == Broken("prefill 0") and pair.aborted and end._numbers.aborted


@pytest.mark.parametrize("error", [OUT_OF_MEMORY, PairBroken("gone", 1)], ids=["another error", "a broken pair"])
def test_a_sending_thread_that_goes_wrong_breaks_its_pair_says_so_and_keeps_nothing(error):
    pair, said = MadeUpPair(fails=error), threading.Event()
    wire = PairWire(pair, pair, said.set)
    wire.begin(0, [Piece(1, 0, 4)])
    assert said.wait(20) and pair.aborted
    wire.layer(0, 0, ROWS)
    wire.close()
    wire.layer(0, 0, ROWS)


class Endless(MadeUpPair):
    """What is begun does not end before it is aborted."""

    def send(self, tensor, tag=0) -> None:
        self._over.wait()
        raise PairBroken("it was aborted", 1)


def test_a_transfer_that_does_not_end_breaks_its_wire_after_so_many_seconds_at_both_ends():
    pair, said = Endless(), threading.Event()
    PairWire(pair, pair, said.set, silent_after=0.2).begin(0, [Piece(1, 0, 4)])
    assert said.wait(20) and pair.aborted
    pair, inbox = MadeUpPair([numbers(BEGIN, 7, 1, 0)]), queue.SimpleQueue()  # and its pieces never come
    Receiving("prefill 0", pair, pair, SPEC, torch.device("cpu"), inbox.put, silent_after=0.2)
    assert inbox.get(timeout=20) == Broken("prefill 0") and pair.aborted


def test_a_wire_by_which_nothing_is_to_come_is_left_alone():
    pair, inbox = MadeUpPair([*ANNOUNCED, numbers(LAYER, 7, 0, 4), ROWS]), queue.SimpleQueue()
    end = Receiving("prefill 0", pair, pair, SPEC, torch.device("cpu"), inbox.put, silent_after=0.1)
    assert [type(inbox.get(timeout=20)) for _ in range(2)] == [Announced, Rows]
    time.sleep(0.5)
    assert not pair.aborted and inbox.empty()
    end.close()
    assert inbox.get(timeout=20) == Broken("prefill 0")
