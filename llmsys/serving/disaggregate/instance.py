"""One engine of several: it does what the front tells it, and says what came of it.

    instance = Instance("decode 0", model, num_blocks=1000)
    instance.inbox.put(message)       from the front; wires put there what arrives
    instance.turn()                   takes in what is there, and one step: the messages for the front

Every engine can do everything: compute a prompt and push it, receive one and go on, or serve a request from its
beginning to its end. What a "prefill engine" and a "decode engine" are is what they are told. So where all of one kind
have died, the others serve alone.

It is the loop of any engine (`llmsys.serving.loop`) with a scheduler that can reserve. An instance is used by one
thread; its inbox may be filled by any.
"""

import contextlib
import hashlib
import os
import queue
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Protocol

import torch
from torch import nn

from llmsys.serving.disaggregate import messages as say
from llmsys.serving.disaggregate.arrivals import Announced, Arrivals, Cut, Rows
from llmsys.serving.disaggregate.push import LayerEvent, Push, Transfer, Wire, push_each_layer
from llmsys.serving.disaggregate.reserving import ReservingScheduler
from llmsys.serving.engine import Engine
from llmsys.serving.guard import Guard
from llmsys.serving.loop import Loop
from llmsys.serving.plan import StepPlan
from llmsys.serving.request import Request
from llmsys.serving.runner import Launched

SAMPLED = 8  # elements of each weight by which two models are compared


class Ends(Protocol):
    """Something that can be closed; again, and nothing happens."""

    def close(self) -> None: ...


class Instance:
    """See above.

    Parameters
    ----------
    name
        By which others know it.
    model, settings
        The engine's, as for `Engine`; no two instances need have the same settings.
    window
        As for `ReservingScheduler`.
    transfer, log
        As for `Push`.

    Attributes
    ----------
    inbox : Queue
        Messages of `messages`, and Announced, Rows and Cut from wires.
    scheduler, pool
    push : Push
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        *,
        window: int | None = None,
        transfer: Transfer = push_each_layer,
        log: Callable[[LayerEvent], object] | None = None,
        **settings,
    ):
        def scheduler(*args, **named):
            return ReservingScheduler(*args, window=window, **named)

        if settings.get("host_cache"):
            raise ValueError("host_cache must be None in engines that hand blocks to each other: give it to one Engine")
        self.name, self.inbox = name, queue.SimpleQueue()
        self.engine = engine = Engine(model, scheduler=scheduler, **settings)
        self.scheduler: ReservingScheduler = engine.scheduler
        self.pool, model = engine.pool, engine.model
        spec = model.cache_spec()
        self.push = Push(engine.runner.cache, spec, model.device, transfer=transfer, log=log)
        self.closed = False
        self._arrivals = Arrivals(engine.runner.cache, spec, model.device, log)
        self._guard = Guard(lambda _: None)
        ahead = engine._loop.ahead
        self._loop = Loop(self.scheduler, engine.metrics, self._guard, engine.clock, self._take, ahead=ahead)
        self._asked: deque[tuple[int, Request]] = deque()  # for whom there is no room yet
        self._requests: dict[int, Request] = {}  # that have not ended
        self._told: dict[int, int] = {}  # how many of their tokens the front knows
        self._whole: set[int] = set()  # all keys and values are here
        self._next: dict[int, int] = {}  # the tokens from which those go on
        self._said: list[say.Said] = []
        self._replies: list = []
        self._hears: dict[str, Ends] = {}

    def connect(self, name: str, wire: Wire) -> None:
        """From now on prompts can be pushed to an engine of that name."""
        self.push.wires[name] = wire

    def hear(self, name: str, end: Ends) -> None:
        """What an engine of that name pushes comes by `end`, which is closed when that engine has died."""
        self._hears[name] = end

    @property
    def busy(self) -> bool:
        """A turn would do something, though nothing comes in."""
        return bool(self.scheduler.has_unfinished or self._said or self._replies)

    def hello(self) -> say.Hello:
        """What the front has to know of this engine."""
        engine, model = self.engine, self.engine.model
        return say.Hello(
            self.name, model.config, model.tokenizer, model.cache_spec(), str(model.device), model.dtype,
            self.pool.block_size, self.pool.num_blocks, engine.max_model_len, self.scheduler.max_sequences,
            fingerprint(model), os.getpid(),
        )  # fmt: skip

    def turn(self) -> list:
        """Takes in all that came, does one step if there is one to do, and returns what the front is to know.

        A step that raises fails its requests, which is said of them. One that fails nobody breaks the instance, and so
        does one after which the device answers nothing any more: that is no fault of these requests, which others can
        compute, and all that came here later would fail as well.
        """
        with contextlib.suppress(queue.Empty):
            while not self.closed:
                self.take(self.inbox.get_nowait())
        self._let_in()
        if self.scheduler.has_unfinished and not self.closed:
            before = len(self._said)
            try:
                self._loop.step(self)
            except Exception:
                if len(self._said) == before or not answers(self.engine.model.device):
                    raise
        self._let_in()
        return self._news()

    def take(self, item) -> None:
        """One message, or what arrived."""
        if isinstance(item, Announced | Rows | Cut):
            self._arrived(self._arrivals.take(item))
        elif isinstance(item, say.Close):
            self.closed = True
        elif isinstance(item, say.Ping):
            self._replies.append(say.Pong())
        elif isinstance(item, say.Lost):
            self._lost(item.name)
        elif isinstance(item, say.Broken):
            self._lost(item.name)
            self._replies.append(item)
        elif isinstance(item, say.Cancel):
            self._cancel(item.key)
        elif isinstance(item, say.GoOn):
            if item.key in self._requests:
                self._next[item.key] = item.token
        elif isinstance(item, say.Reserve):
            self._asked.append((item.key, self._request(item, item.sampling)))
        else:
            self._add(item)

    def launch(self, plan: StepPlan) -> Launched:
        """The runner's, and what the step computes of prompts for others leaves layer by layer. (For the loop.)"""
        with self.push.step(plan) as some:
            return self.engine.runner.launch(plan, by_layers=some)

    def _request(self, item, sampling) -> Request:
        request = Request(str(item.key), item.tokens, sampling, salt=item.salt)
        self._requests[item.key], self._told[item.key] = request, len(item.tokens)
        return request

    def _add(self, item: say.Prefill | say.Compute) -> None:
        one = isinstance(item, say.Prefill)
        request = self._request(item, replace(item.sampling, max_tokens=1) if one else item.sampling)
        try:
            if one and item.to is not None:
                self.push.expect(item.key, item.to, item.start)
            self.scheduler.add(request)
        except ValueError as error:
            self._refuse(item.key, error)

    def _refuse(self, key: int, error: ValueError) -> None:
        self.push.forget(key)
        self._requests.pop(key), self._told.pop(key)
        self._replies.append(say.Refused(key, str(error)))

    def _cancel(self, key: int) -> None:
        request = self._requests.get(key)
        self._asked = deque(each for each in self._asked if each[0] != key)
        if request is not None:
            with self._guard.work():
                self.scheduler.abort(request.id)
                self._loop.forget_ended()
            self._forget(key)

    def _lost(self, name: str) -> None:
        self._arrivals.lost(name)
        self.push.lost(name)
        if (end := self._hears.pop(name, None)) is not None:
            end.close()

    def _forget(self, key: int) -> None:
        self.engine.metrics.requests.pop(str(key), None)
        self.push.forget(key)
        self._arrivals.forget(key)
        self._whole.discard(key)
        for each in (self._requests, self._told, self._next):
            each.pop(key, None)

    def _let_in(self) -> None:
        """Those whose keys and values are all here, and whose next token is known, run; then who waits for room."""
        for key in [key for key in self._whole if key in self._next]:
            request = self._requests[key]
            if self.scheduler.land(request, self._next[key]):
                self._whole.discard(key)
                del self._next[key]
                self._told[key] += 1
                if request.ended:  # which the front sees as well, by the same rule
                    self._forget(key)
        while self._asked:
            key, request = self._asked[0]
            try:
                start = self.scheduler.expect(request)
            except ValueError as error:
                self._refuse(key, error)
            else:
                if start is None:
                    break
                self._arrivals.expect(key, request, start)
                self._replies.append(say.Granted(key, start))
            self._asked.popleft()

    def _arrived(self, whole: Iterable[int]) -> None:
        for key in whole:
            self._whole.add(key)
            self.scheduler.delivered(self._requests[key])
            self._replies.append(say.Landed(key))

    def _take(self, requests: Iterable[str]) -> list:
        """For the loop: what a step brought to these."""
        for key in map(int, requests):
            request = self._requests.get(key)
            if request is None:
                continue
            told = self._told[key]
            new, self._told[key] = tuple(request.tokens[told:]), len(request.tokens)
            if new or request.error is not None:
                asked, generated = request.sampling.logprobs is not None, request.num_generated
                # Of a request that landed, those of the first token stayed where that was drawn.
                logprobs = tuple(request.logprobs[len(request.logprobs) - len(new) :]) if asked and generated else None
                self._said.append(say.Said(key, new, logprobs if new else None, request.error))
            if request.ended:
                self._forget(key)
        return []

    def _news(self) -> list:
        replies, self._replies = self._replies, []
        said, self._said = self._said, []
        metrics, steps = self.engine.metrics, []
        while metrics.steps:
            step = metrics.steps.popleft()
            steps.append(say.Step(step.seconds, step.kind, step.tokens, step.sequences))
        if said or steps or replies:
            scheduler, totals = self.scheduler, metrics.totals
            replies.append(
                say.Report(
                    tuple(said), tuple(steps), self.pool.stats.used, len(scheduler.running),
                    len(scheduler.waiting) + len(scheduler.arriving) + len(self._asked),
                    (totals.preemptions, totals.lost_tokens),
                )
            )  # fmt: skip
        return replies


def answers(device: torch.device) -> bool:
    """Whether it still computes. After an address that is none, say, a GPU does nothing more for its process."""
    try:
        if device.type == "cuda":
            torch.cuda.synchronize(device)
    except RuntimeError:
        return False
    return True


@torch.no_grad()
def fingerprint(model: nn.Module) -> str:
    """Of the weights: of each its name, shape and a few elements. Two checkpoints of one architecture differ in it."""
    found = hashlib.blake2b(digest_size=16)
    for name, weight in model.named_parameters():
        flat = weight.detach().flatten()
        some = flat[:: max(1, len(flat) // SAMPLED)][:SAMPLED].double().cpu()
        found.update(f"{name} {tuple(weight.shape)} {weight.dtype} {some.tolist()}".encode())
    return found.hexdigest()
