"""Several engines behind one door: each does all of a request, or some compute prompts and others go on from there.

    cluster = Cluster(Placement(prefill=2, decode=1), times=times, num_blocks=40_000, transfer=transfer)
    cluster.add(Arrival(0.5, prompt=900, output=200))
    cluster.advance()
    cluster.requests()                                      when each had its tokens

    colocated        request ─► engine ─► tokens
                     request ─► engine ─► tokens

    disaggregated    request ─► prefiller ─► first token
                                    │ cache
                                    ╰─► decoder ─► the other tokens

Where a request goes is decided when it comes, for its prefiller and for its decoder, since layers that are sent while
others are computed must know where to. A route decides (`llmsys.serving.routing`): by default for the engine whose
requests have the fewest tokens together, of those that it has not done with (and of equal ones for the first).

**In the order of time** (`agenda`): what prefillers do depends on no decoder, so they go first, the one whose step ends
next before the others, for they share links; what they send is then given to the decoders when it arrives.

**An engine may die** (`failures`). Its requests begin anew with all tokens that are known, and so do those whose caches
were under way to it or from it, or were to be sent to it. Where no engine is left that could have a request, it waits
for the next one that comes back.
"""

import functools
import heapq
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from llmsys.serving.admission import token_limit
from llmsys.serving.request import Request
from llmsys.serving.routing import Route, as_route
from llmsys.serving.sampling.sampling_params import SamplingParams
from llmsys.serving.simulator.agenda import Agenda
from llmsys.serving.simulator.door import Door
from llmsys.serving.simulator.engines import Placement, makers
from llmsys.serving.simulator.failures import Failure, Failures, Outages
from llmsys.serving.simulator.instance import Instance
from llmsys.serving.simulator.known_tokens import SAID, KnownTokens, SimulatedRequest, known_prompt
from llmsys.serving.simulator.phases import Part
from llmsys.serving.simulator.step_times import TICKS, StepTimes
from llmsys.serving.simulator.tally import Tally
from llmsys.serving.simulator.transfer import Link, Transfer, send_whole
from llmsys.serving.telemetry.events import EventLog
from llmsys.serving.telemetry.metrics import RequestMetrics
from llmsys.serving.workload.arrivals import Arrival


class Journey(NamedTuple):
    """Where a request's cache is to go."""

    sender: int
    receiver: int
    request: Request


class Moving(NamedTuple):
    """A cache that is under way."""

    arrives: int  #  ticks
    number: int  #  of the request
    sender: int
    receiver: int
    request: Request


class Cluster:
    """Simulated engines, and the links between them.

    Parameters
    ----------
    placement
        How many there are.
    times, num_blocks, settings
        Of each: see `Instance`.
    transfer
        How caches go from one to another. By default they are there at once.
    route
        Where a request goes: the name of a route, a route, or its class. Engines are called "both 0", "both 1" …, or
        "prefill 0" … and "decode 0" ….
    failures
        Which engines die, and when: `Failure`s, or `Failures` that are drawn. None: none does.
    policy
        The name of one, or what makes a policy of your own (its class), for each engine has one. One engine may be
        given a policy itself.
    prefill_settings, decode_settings
        Of these engines, where they differ: other `times` (of another parallelism), another `max_tokens_per_step`.
        Colocated ones have neither.
    events
        Where to write down what happens, for each engine: colocated ones, or prefillers and then decoders. None:
        nothing is kept.
    gaps
        Whether the longest gap of each request is found.

    Attributes
    ----------
    first, second : list of Instance
        Where requests come, and where caches do. One that dies is replaced by another when it is back.
    transfers : dict
        Of each request that moved, by its id, the seconds from its first token until its cache had arrived.
    moved_tokens : int
        Tokens whose keys and values were sent.
    outgoing, incoming : list of Link
        Of the prefillers, and of the decoders.
    """

    def __init__(
        self,
        placement: Placement,
        *,
        times: StepTimes,
        num_blocks: int,
        transfer: Transfer | None = None,
        route: str | Route | type = "fewest-tokens",
        failures: Sequence[Failure] | Failures | None = None,
        policy: object = "stall-free",
        prefill_settings: Mapping[str, object] | None = None,
        decode_settings: Mapping[str, object] | None = None,
        events: Sequence[EventLog] | None = None,
        gaps: bool = False,
        **settings,
    ):
        self.placement, self.route, self.gaps = placement, as_route(route), gaps
        self.transfer = Transfer() if transfer is None else transfer
        logs = [EventLog(keep=0) for _ in range(placement.gpus)] if events is None else list(events)
        if len(logs) != placement.gpus:
            raise ValueError(f"events must be a log for each of {placement.gpus} engines, got {len(logs)}")
        common = dict(times=times, num_blocks=num_blocks, policy=policy) | settings
        differing = dict(prefill_settings or {}), dict(decode_settings or {})
        alone = placement.gpus == 1 and failures is None
        self._makers = makers(placement, common, differing, logs, send=self._send, alone=alone)
        at_door = placement.colocated or placement.prefill
        made = [make() for make in self._makers]
        self.first, self.second = made[:at_door], made[at_door:]
        self.outgoing = [Link() for _ in range(placement.prefill)]
        self.incoming = [Link() for _ in self.second]
        self.transfers: dict[str, float] = {}
        self.moved_tokens = 0
        self._to_move: dict[str, Journey] = {}  # whose prompts are not computed yet
        self._moving: list[Moving] = []  # a heap
        self._tally = Tally(gaps=gaps, goes_on=self._to_move.__contains__)
        for each in made:
            self._tally.listen_to(each.events)
        kinds = ("both",) if placement.colocated else ("prefill", "decode")
        parts = [(kind, part) for kind, part in zip(kinds, (self.first, self.second), strict=False)]
        self._doors = [Door(kind, part, self.route) for kind, part in parts]
        self._agendas = [Agenda(self.first), Agenda(self.second)]
        self._may_die = failures is not None
        self._outages = Outages(failures, [name for door in self._doors for name in door.names])
        self._former: list[Instance] = []  # who died
        self._stranded: list[tuple[str, KnownTokens, int]] = []
        self._count = itertools.count()
        self._last = 0  # when the last one came, in ticks

    @property
    def engines(self) -> list[Instance]:
        return self.first + self.second

    @property
    def ever(self) -> list[Instance]:
        """These, and those that were there before one of them."""
        return self._former + self.engines

    @property
    def seconds(self) -> float:
        """From 0 to the end of the last step that is done."""
        return max((engine.now for engine in self.ever if engine.steps), default=0) / TICKS

    def add(self, arrival: Arrival) -> None:
        """A request comes; what happens until then is done first. Its id is its number, from 0 on.

        ValueError for a time before the last one, or a request that is too long for an engine. Where engines may die,
        one that computes prompts must have room for its answer, too: with as much as was said of it, it begins anew.
        """
        tick = round(arrival.at * TICKS)
        if tick < self._last:
            raise ValueError(
                f"at must be at least {self._last / TICKS:g} s, when the last request came, got {arrival.at:g}"
            )
        self._last, number = tick, next(self._count)
        prompt = known_prompt(arrival, number)
        if self._may_die:
            self._check_anew(str(number), prompt, arrival.output)
        self.advance_to(tick)
        self._begin(str(number), prompt, arrival.output, tick)
        self._tally.comes(str(number), arrival.prompt, tick / TICKS)  # it may have to wait until an engine hears of it

    def advance(self, until: float = math.inf) -> None:
        """Do what ends by then, in seconds; without a time, all.

        RuntimeError where requests are left, and no engine that could have them is or ever will be.
        """
        tick = math.inf if until == math.inf else round(until * TICKS)
        self.advance_to(tick)
        for door, agenda in zip(self._doors, self._agendas, strict=False):
            for i in door.alive:
                door.engines[i].advance_to(tick)
                door.engines[i].lockstep.sync()
                agenda.changed(i)

    def advance_to(self, tick: float) -> None:
        """The same, until a time in ticks, as far as others can notice."""
        while (then := self._outages.tick) <= tick and then < math.inf:
            if tick == math.inf and not self._unfinished_by(then):
                return
            outage = self._outages.pop()
            self._run_to(outage.tick)
            kind, _, number = outage.engine.partition(" ")
            happens = self._dies if outage.dies else self._is_back
            happens(int(kind == "decode"), int(number), outage.tick)
        self._run_to(tick)
        if tick == math.inf and self._stranded:
            raise RuntimeError(
                f"{len(self._stranded)} requests are left, and no engine is there, or ever will be, that could have "
                "them: let one come back (until=…), or place more"
            )

    def requests(self) -> list[RequestMetrics]:
        """All that have come, in their order."""
        found = self._tally.requests
        return [found[name] for name in sorted(found, key=int)]

    # Where requests go

    def _begin(self, name: str, prompt: KnownTokens, output: int, tick: int) -> None:
        """A request, or what is left of it: where it goes is decided."""
        if not all(door.alive for door in self._doors):
            self._stranded.append((name, prompt, output))
            return
        first = self._doors[0]
        request = SimulatedRequest(name, prompt, _params(1 if self.second else output))
        i = first.choose(request)
        if self.second and output > 1:
            goes_on = SimulatedRequest(name, prompt, _params(output))
            j = self._doors[1].choose(goes_on)
            scheduler = self.second[j].scheduler
            token_limit(goes_on, scheduler.pool, scheduler.max_model_len)  # refused now, if it is
        self.first[i].add_at(request, tick)
        if self.second and output > 1:
            self._to_move[name] = Journey(i, j, goes_on)
            self._doors[1].give(j, goes_on)
        first.give(i, request)
        self._agendas[0].changed(i)

    def _check_anew(self, name: str, prompt: KnownTokens, output: int) -> None:
        """ValueError for a request that an engine which computes prompts could not take with what was said of it."""
        scheduler = self.first[0].scheduler
        try:
            token_limit(SimulatedRequest(name, prompt, _params(output)), scheduler.pool, scheduler.max_model_len)
        except ValueError as error:
            raise ValueError(f"request {name}, which begins anew where engines die: {error}") from None

    def _run_to(self, tick: float) -> None:
        """All do what ends by then; nobody dies until then."""
        self._agendas[0].advance_to(tick)
        while self._moving and self._moving[0].arrives <= tick:
            at, _, _, j, request = heapq.heappop(self._moving)
            self.second[j].receive(request, at)
            self._agendas[1].changed(j)
        self._agendas[1].advance_to(tick)

    def _send(self, i: int, began: int, ended: int, parts: Sequence[Part]) -> dict[str, int]:
        """What a step of the i-th prefiller brought is sent to decoders: when those will have arrived that are done."""
        transfer, link = self.transfer, self.outgoing[i]
        parts = [part for part in parts if part.request in self._to_move]
        arrivals: dict[str, int] = {}
        if transfer.layers is not None and parts:
            ticks = transfer.ticks
            found, made = ticks(sum(part.found for part in parts)), ticks(sum(part.made for part in parts))
            through = link.send_layers(began, ended, transfer.layers, made=made, found=found)
            of: dict[int, int] = {}  # tokens for each decoder
            for part in parts:
                j = self._to_move[part.request].receiver
                of[j] = of.get(j, 0) + part.found + part.made
            there = {j: max(through, self.incoming[j].carry(began, ticks(tokens))) for j, tokens in of.items()}
        for part in parts:
            if part.done:
                _, j, request = self._to_move.pop(part.request)
                tokens = len(request.prompt)
                if transfer.layers is None:
                    end = send_whole(link, self.incoming[j], ended, transfer.ticks(tokens))
                else:
                    end = there[j]
                arrivals[part.request] = end = end + transfer.latency_ticks
                heapq.heappush(self._moving, Moving(end, int(part.request), i, j, request))
                self.transfers[part.request] = (end - ended) / TICKS
                self.moved_tokens += tokens
        return arrivals

    # Who dies, and who is back

    def _unfinished_by(self, tick: float) -> bool:
        """Whether a request is left at a time; what happens until then is done."""
        self._run_to(tick)
        return self._tally.unfinished > 0

    def _dies(self, place: int, i: int, tick: int) -> None:
        door = self._doors[place]
        door.died(i)
        self._agendas[place].leave_out(i)
        engine = door.engines[i]
        engine.advance_to(tick)
        lost = {each.id: (each.tokens, engine.has(each), each) for each in engine.unfinished()}
        for cache in self._moving:
            if i == (cache.sender, cache.receiver)[place]:
                tokens = cache.request.tokens.copy()
                tokens.append(SAID)  # the first token, which was said when it left
                lost[cache.request.id] = tokens, len(cache.request.prompt), cache.request
        self._moving = [cache for cache in self._moving if i != (cache.sender, cache.receiver)[place]]
        heapq.heapify(self._moving)
        if place:
            for name, journey in self._to_move.items():
                if journey.receiver == i:
                    computed = self.first[journey.sender].abort(name)
                    self._agendas[0].changed(journey.sender)
                    lost[name] = journey.request.tokens, computed, journey.request
        for name in sorted(lost, key=int):
            tokens, computed, request = lost[name]
            if (journey := self._to_move.pop(name, None)) is not None:
                request = journey.request  # the whole of it
            for each in self._doors:
                each.take_back(name)
            self._tally.begins_anew(name, tokens.said, computed)
            left = request.sampling.max_tokens - (tokens.said - request.prompt.said)
            self._begin(name, tokens.copy(), left, tick)

    def _is_back(self, place: int, i: int, tick: int) -> None:
        """Another engine, in whose cache nothing is, and links on which nothing is."""
        engines = self._doors[place].engines
        self._former.append(engines[i])
        engines[i] = self._makers[place * len(self.first) + i]()
        engines[i].now = tick
        if self.second:
            (self.outgoing, self.incoming)[place][i] = Link()
        self._doors[place].is_back(i)
        waited, self._stranded = self._stranded, []
        for name, prompt, output in waited:
            self._begin(name, prompt, output, tick)


@functools.lru_cache(maxsize=4096)
def _params(output: int) -> SamplingParams:
    return SamplingParams(max_tokens=output)
