"""The front's book: which request is where, who is told what, and what happens when an engine dies.

A request is served by **attempts**. One begins with all tokens that are known, goes through

    Reserve ──► Granted ──► Prefill ──► the first token ──► GoOn ──► Landed, more tokens … to the end
    decode      decode      prefill     prefill             decode   decode

and is given up where an engine dies that is still needed for it: until the keys and values have landed both, then the
decode engine alone. What was said so far is known, and the next attempt begins with it: no token is lost, and none is
said twice. Draws depend on a request's seed and the place of the token, so they too are the same in every attempt.

Where no prefill engine is left that reaches a decode engine, or no decode engine, whoever is left computes requests
from their beginning to their end.

Which of several engines is asked, a route says (`llmsys.serving.routing`): of what each has cached it is told what the
front remembers to have sent there.
"""

import itertools
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

from llmsys.serving.admission import waits_for_parent
from llmsys.serving.disaggregate import messages as say
from llmsys.serving.outcome import accept
from llmsys.serving.plan import Output
from llmsys.serving.request import Request, Status
from llmsys.serving.roster import Roster
from llmsys.serving.routing import Engines, Remembered, Route, as_route, chosen
from llmsys.serving.telemetry.events import Admitted, EventLog, Preempted, Progress, StepDone
from llmsys.serving.telemetry.metrics import Metrics

_LOGGER = logging.getLogger(__name__)
NOBODY_LEFT = "every engine of this service has died: start it again"
Send = Callable[[str, object], None]


@dataclass
class Attempt:
    """One try at a request."""

    key: int
    request: Request
    tokens: int  #  with which it began
    decode: str | None = None  #  the engine that goes on; None: nobody has to
    prefill: str | None = None  #  the engine that computes the first token, once blocks are granted
    said: bool = False  #  the first token was
    landed: bool = False

    @property
    def needs(self) -> tuple[str | None, ...]:
        """The engines without which it comes to nothing."""
        return (self.decode,) if self.said and self.landed else (self.prefill, self.decode)


class Router(Roster):
    """A roster whose requests are computed elsewhere.

    Parameters
    ----------
    hellos
        The engines, and which of them are to prefill and to decode, by name.
    send
        send(name, message) tells an engine. It must not raise where that one is dead.
    route
        Who of several is asked: a name of `llmsys.serving.routing.ROUTES`, or a route.
    """

    def __init__(
        self,
        hellos: Sequence[say.Hello],
        *,
        prefill: Sequence[str],
        decode: Sequence[str],
        send: Send,
        metrics: Metrics,
        events: EventLog,
        clock: Callable[[], float],
        route: str | Route | type = "least-full",
    ):
        _check_models(hellos)
        smallest = min(hellos, key=lambda each: (each.num_blocks - 1) * each.block_size)
        super().__init__(smallest, min(each.max_model_len for each in hellos), events, clock)
        tokenizer = hellos[0].tokenizer
        self.eos_ids = frozenset(tokenizer.eos_ids if tokenizer else ())
        self.hellos = {each.name: each for each in hellos}
        self.alive = {each.name for each in hellos}
        self.reports: dict[str, say.Report] = {}
        self.attempts: dict[int, Attempt] = {}
        self._send, self._metrics = send, metrics
        self.assign(prefill, decode)
        self._route = as_route(route)
        self._room = {each.name: (each.num_blocks - 1) * each.block_size for each in hellos}
        self._sent = Remembered(max(each.block_size for each in hellos), self._room)
        self._of_request: dict[str, Attempt] = {}
        self._broken: set[frozenset[str]] = set()  # pairs
        self._keys = itertools.count(1)

    @property
    def blocks(self) -> int:
        """Of all living engines."""
        return sum(each.num_blocks - 1 for name, each in self.hellos.items() if name in self.alive)

    def assign(self, prefill: Sequence[str], decode: Sequence[str]) -> None:
        """Who is to do what, from now on; requests under way go on where they are. No `prefill`: nothing is divided,
        and each of `decode` computes requests from their beginning to their end.

        ValueError where a name is not known or has two roles, or nobody is to decode.
        """
        _check_roles(list(self.hellos), prefill, decode)
        self._prefill, self._decode = tuple(prefill), tuple(decode)
        self.max_sequences = sum(each.max_sequences for each in self.hellos.values() if each.name in decode)

    # What the engine's interface asks for

    def add(self, request: Request) -> list[Request]:
        answers = super().add(request)
        self._begin(each for each in answers if not waits_for_parent(each))
        return answers

    def fail_all(self) -> list[str]:
        """Nobody is left who could compute anything. The requests that failed."""
        ids = list(self.requests)
        for each in ids:
            self._end(each, Status.FAILED, error=NOBODY_LEFT)
        return ids

    # What engines say

    def heard(self, name: str, message) -> list[str]:
        """Takes in what an engine said; None: it has died. The requests of which something is new."""
        if name not in self.alive:
            return []
        if message is None:
            return self._died(name)
        if isinstance(message, say.Died):
            _LOGGER.error("%s dies: %s", name, message.why)
            return []
        if isinstance(message, say.Pong):
            return []
        if isinstance(message, say.Report):
            return self._reported(name, message)
        if isinstance(message, say.Broken):
            self._broken.add(frozenset((name, message.name)))
            self._again(each for each in self.attempts.values() if {name, message.name} <= set(each.needs))
            return []
        attempt = self.attempts.get(message.key)
        if attempt is None:  # given up
            return []
        if isinstance(message, say.Granted):
            self._granted(attempt, message.start)
        elif isinstance(message, say.Landed):
            attempt.landed = True
            if attempt.said:
                self._begin(self._children(attempt.request))
        else:
            self._end(attempt.request.id, Status.FAILED, error=message.error)
            return [attempt.request.id]
        return []

    def _granted(self, attempt: Attempt, start: int) -> None:
        request = attempt.request
        able = self._who_can_push_to(attempt.decode)
        if not able:
            self._again([attempt])
            return
        attempt.prefill = self._choose("prefill", able, request)
        self._admitted(request, start)
        tokens, sampling = self._what_is_left(request)
        self._send(attempt.prefill, say.Prefill(attempt.key, tokens, sampling, request.salt, attempt.decode, start))

    def _reported(self, name: str, report: say.Report) -> list[str]:
        before = self.reports.get(name, say.Report())
        self.reports[name] = report
        totals, now, changed = self._metrics.totals, self.clock(), []
        totals.preemptions += report.preempted[0] - before.preempted[0]
        totals.lost_tokens += report.preempted[1] - before.preempted[1]
        for said in report.said:
            if (attempt := self.attempts.get(said.key)) is not None:
                self._said(name, attempt, said, now)
                changed.append(attempt.request.id)
        blocks = self.blocks
        used = sum(each.blocks_used for each in self.reports.values())
        for step in report.steps:
            counts = (step.tokens, step.sequences, len(self.running), len(self.waiting), used, blocks)
            self.events.add(StepDone(self.steps_done, now, sum(step.seconds.values()), step.phase, *counts))
            self._metrics.step_took(step.seconds)
            totals.computed_tokens += step.tokens
            self.steps_done += 1
        return changed

    def _said(self, name: str, attempt: Attempt, said: say.Said, now: float) -> None:
        request, reason = attempt.request, None
        if said.error is None:
            tokens, reason = accept(request, Output(request.id, said.tokens, said.logprobs), self.eos_ids)
            self.events.add_progress(Progress(self.steps_done, now, [(request.id, request.computed, 0, 0, tokens)]))
        if said.error is not None or reason is not None:
            status = Status.FINISHED if said.error is None else Status.FAILED
            self._end(request.id, status, reason=reason, error=said.error, now=now)
            return
        if attempt.said:
            return
        attempt.said = True
        if name == attempt.prefill and attempt.decode is not None:
            self._send(attempt.decode, say.GoOn(attempt.key, said.tokens[0]))
        if attempt.landed:
            self._begin(self._children(request))

    def _died(self, name: str) -> list[str]:
        self.alive.discard(name)
        self.reports.pop(name, None)
        self._sent.forget(name)
        _LOGGER.error("%s has died; %s left", name, ", ".join(sorted(self.alive)) or "nobody is")
        for other in self.alive:
            self._send(other, say.Lost(name))
        self._again(each for each in self.attempts.values() if name in each.needs)
        return [] if self.alive else self.fail_all()

    # Attempts

    def _begin(self, requests: Iterable[Request]) -> None:
        for request in list(requests):
            if not request.ended and request.id not in self._of_request and self.alive:
                self._try(request)

    def _try(self, request: Request) -> None:
        tokens, sampling = self._what_is_left(request)
        attempt = Attempt(next(self._keys), request, len(tokens))
        self.attempts[attempt.key] = self._of_request[request.id] = attempt
        prefill = [name for name in self._prefill if name in self.alive]
        if sampling.max_tokens == 1 and prefill:  # whoever computes the prompt says all there is to say
            attempt.prefill = self._choose("prefill", prefill, request)
            self._send(attempt.prefill, say.Prefill(attempt.key, tokens, sampling, request.salt, None, 0))
            self._admitted(request, 0)
            return
        able = [name for name in self._decode if name in self.alive and self._who_can_push_to(name)]
        if able:
            attempt.decode = self._choose("decode", able, request)
            self._send(attempt.decode, say.Reserve(attempt.key, tokens, sampling, request.salt))
            return
        # Decode engines first: what they compute by graphs, a prefill engine computes kernel by kernel.
        either = [name for name in self._decode if name in self.alive] or prefill
        attempt.decode, attempt.landed = self._choose("both", either, request), True
        self._send(attempt.decode, say.Compute(attempt.key, tokens, sampling, request.salt))
        self._admitted(request, 0)

    def _again(self, attempts: Iterable[Attempt]) -> None:
        """These have come to nothing, and begin anew with what is known by now."""
        for attempt in list(attempts):
            request = attempt.request
            self._give_up(attempt)
            if request.status is Status.RUNNING:
                self._note(Preempted, request, lost=request.computed)
                self.running.remove(request)
                self.waiting.append(request)
                self.waiting.sort(key=lambda each: each.order)
                request.status = Status.WAITING
            self._begin([request])

    def _give_up(self, attempt: Attempt) -> None:
        del self.attempts[attempt.key], self._of_request[attempt.request.id]
        for name in {attempt.prefill, attempt.decode} & self.alive:
            self._send(name, say.Cancel(attempt.key))

    def _end(self, request_id: str, *args, **named) -> bool:
        attempt = self._of_request.get(request_id)
        request = self.requests.get(request_id)
        if attempt is not None:
            self._give_up(attempt)
        ended = super()._end(request_id, *args, **named)
        self._ended.clear()  # which is for a runner
        if request is not None:
            self._begin(self._children(request))
        return ended

    def _release(self, request: Request) -> None:
        self.running.remove(request)

    def _admitted(self, request: Request, start: int) -> None:
        if request.status is Status.WAITING:
            self.waiting.remove(request)
            self.running.append(request)
            request.status = Status.RUNNING
        self._note(Admitted, request, hit_tokens=start)

    def _children(self, request: Request) -> list[Request]:
        """The other answers to its prompt, which have waited for it to land: now they find its blocks there."""
        return [each for each in self.waiting if each.parent is request]

    @staticmethod
    def _what_is_left(request: Request):
        """Its known tokens, and how the others are drawn; an engine need not know of stop strings."""
        left = request.limit - len(request.tokens)
        return tuple(request.tokens), replace(request.sampling, max_tokens=left, stop=())

    # Who is asked

    def _who_can_push_to(self, decode: str) -> list[str]:
        return [name for name in self._prefill if name in self.alive and frozenset((name, decode)) not in self._broken]

    def _choose(self, kind: str, names: Sequence[str], request: Request) -> str:
        """The engine of these that is to have the request, by the route."""
        queued, held = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
        for each in self.attempts.values():
            for name in {each.decode, each.prefill} & held.keys():
                queued[name] += 0 if each.said else each.tokens
                held[name] += 0 if each.said and name != each.decode else each.tokens
        tokens, salt = request.tokens, request.salt
        engines = Engines(
            kind, names, list(queued.values()), list(held.values()), [self._room[name] for name in names],
            self._sent.block_size, find=lambda: self._sent.hits(names, tokens, salt=salt),
        )  # fmt: skip
        name = names[chosen(self._route, request, engines)]
        self._sent.note(name, tokens, salt=salt)
        return name


def _check_roles(names: Sequence[str], prefill: Sequence[str], decode: Sequence[str]) -> None:
    if not decode:
        raise ValueError("decode must be at least one engine, got none")
    for role, some in (("prefill", prefill), ("decode", decode)):
        if unknown := [name for name in some if name not in names]:
            raise ValueError(f"{role} must be names of {names}, got {unknown[0]!r}")
    if len({*prefill, *decode}) < len(prefill) + len(decode):
        raise ValueError(f"each engine must have one role, got {prefill} and {decode}")


def _check_models(hellos: Sequence[say.Hello]) -> None:
    names = [each.name for each in hellos]
    if len(set(names)) < len(names):
        raise ValueError(f"each engine must have a name of its own, got {names}")
    first = hellos[0]
    for each in hellos[1:]:
        if each.model == first.model:
            continue
        what = next(
            words
            for mine, its, words in zip(
                each.model, first.model, ("settings", "layers' caches", "dtypes", "weights"), strict=True
            )
            if mine != its
        )
        raise ValueError(
            f"all engines must have one model, and the {what} of {each.name!r} are others than those of "
            f"{first.name!r}: what one computes, the other could not go on from"
        )
