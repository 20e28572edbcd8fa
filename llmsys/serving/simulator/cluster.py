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
others are computed must know where to. `route` decides: by default for the engine whose requests have the fewest prompt
tokens together, of those that it has not done with (and of equal ones for the first).

**In the order of time**: what prefillers do depends on no decoder, so they go first, the one whose step ends next
before the others, for they share links; what they send is then given to the decoders when it arrives.
"""

import copy
import functools
import heapq
import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from llmsys.models.sampling import whole_number
from llmsys.serving.admission import token_limit
from llmsys.serving.policies import Policy
from llmsys.serving.request import Request
from llmsys.serving.sampling.sampling_params import SamplingParams
from llmsys.serving.simulator.instance import Instance
from llmsys.serving.simulator.phases import Decoder, Part, Prefiller
from llmsys.serving.simulator.step_times import TICKS, StepTimes
from llmsys.serving.simulator.tally import Tally, joined
from llmsys.serving.simulator.transfer import Link, Transfer, send_whole
from llmsys.serving.telemetry.events import Event, EventLog, Finished
from llmsys.serving.telemetry.metrics import RequestMetrics
from llmsys.serving.workload.arrivals import Arrival, prompt_tokens

Route = Callable[[Request, Sequence[int]], int]
"""A request, and of each engine the prompt tokens of requests that it has and has not done with → which engine."""


@dataclass(frozen=True)
class Placement:
    """How many engines there are of each kind: `colocated` ones, or else at least one that computes prompts and at
    least one that decodes. Each has one GPU. ValueError for anything else."""

    colocated: int = 0
    prefill: int = 0
    decode: int = 0

    def __post_init__(self):
        for name in ("colocated", "prefill", "decode"):
            whole_number(name, getattr(self, name), at_least=0)
        if bool(self.prefill) != bool(self.decode) or bool(self.colocated) == bool(self.prefill):
            raise ValueError(
                "a placement must have colocated engines, or else some for prefill and some for decode, got "
                f"colocated {self.colocated}, prefill {self.prefill}, decode {self.decode}"
            )

    @property
    def gpus(self) -> int:
        return self.colocated + self.prefill + self.decode

    def __str__(self) -> str:
        return f"{self.colocated} colocated" if self.colocated else f"{self.prefill} prefill, {self.decode} decode"


def fewest_tokens(request: Request, loads: Sequence[int]) -> int:
    """A `Route`: to the engine with the fewest prompt tokens."""
    return min(range(len(loads)), key=loads.__getitem__)


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
        Where a request goes.
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
        Where requests come, and where caches do.
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
        route: Route = fewest_tokens,
        policy: object = "stall-free",
        prefill_settings: Mapping[str, object] | None = None,
        decode_settings: Mapping[str, object] | None = None,
        events: Sequence[EventLog] | None = None,
        gaps: bool = False,
        **settings,
    ):
        self.placement, self.route, self.gaps = placement, route, gaps
        self.transfer = Transfer() if transfer is None else transfer
        logs = [EventLog(keep=0) for _ in range(placement.gpus)] if events is None else list(events)
        if len(logs) != placement.gpus:
            raise ValueError(f"events must be a log for each of {placement.gpus} engines, got {len(logs)}")
        common = dict(times=times, num_blocks=num_blocks, policy=policy) | settings
        of_prefill, of_decode = common | dict(prefill_settings or {}), common | dict(decode_settings or {})
        at_door = placement.colocated or placement.prefill
        self.first: list[Instance] = []
        self.second: list[Instance] = []
        for i, log in enumerate(logs):
            if placement.colocated:
                self.first.append(Instance(**_own(common, log, alone=placement.gpus == 1)))
            elif i < at_door:
                self.first.append(Prefiller(**_own(of_prefill, log), send=self._sender(i)))
            else:
                self.second.append(Decoder(**_own(of_decode, log)))
        self.outgoing = [Link() for _ in range(placement.prefill)]
        self.incoming = [Link() for _ in self.second]
        self.transfers: dict[str, float] = {}
        self.moved_tokens = 0
        self._tallies = Tally(gaps=gaps), Tally(gaps=gaps)
        self._loads = [0] * at_door, [0] * placement.decode
        for engines, tally, loads in zip((self.first, self.second), self._tallies, self._loads, strict=True):
            for i, engine in enumerate(engines):
                tally.listen_to(engine.events)
                engine.events.listen(_done_with(tally, loads, i), progress=_nothing, several=False)
        self._count = itertools.count()
        self._last = 0  # when the last one came, in ticks
        self._to_move: dict[str, tuple[int, Request]] = {}  # to which decoder
        self._moving: list[tuple[int, int, int, Request]] = []  # (when it arrives, its place, where, who): a heap

    @property
    def engines(self) -> list[Instance]:
        return self.first + self.second

    @property
    def seconds(self) -> float:
        """From 0 to the end of the last step that is done."""
        return max(engine.now for engine in self.engines) / TICKS

    def add(self, arrival: Arrival) -> None:
        """A request comes; what happens until then is done first. Its id is its number, from 0 on.

        ValueError for a time before the last one, or a request that is too long for an engine.
        """
        tick = round(arrival.at * TICKS)
        if tick < self._last:
            raise ValueError(
                f"at must be at least {self._last / TICKS:g} s, when the last request came, got {arrival.at:g}"
            )
        self._last, number = tick, next(self._count)
        name, prompt = str(number), prompt_tokens(arrival, number)
        if not self.second:
            if len(self.first) > 1:
                self.advance_to(tick)
            request = Request(name, prompt, _params(arrival.output))
            i = self._choose(0, request)
            self.first[i].add_at(request, tick)
        else:
            self.advance_to(tick)
            request = Request(name, prompt, _params(1))
            goes_on = copy.copy(request)  # whose prompt need not be looked at again
            goes_on.tokens, goes_on.sampling = list(request.tokens), _params(arrival.output)
            i = self._choose(0, request)
            if arrival.output > 1:
                j = self._choose(1, goes_on)
                scheduler = self.second[j].scheduler
                token_limit(goes_on, scheduler.pool, scheduler.max_model_len)  # refused now, if it is
            self.first[i].add_at(request, tick)
            if arrival.output > 1:
                self._to_move[name] = j, goes_on
                self._loads[1][j] += arrival.prompt
        self._loads[0][i] += arrival.prompt

    def advance(self, until: float = math.inf) -> None:
        """Do what ends by then, in seconds; without a time, all."""
        self.advance_to(math.inf if until == math.inf else round(until * TICKS))

    def advance_to(self, tick: float) -> None:
        """The same, until a time in ticks."""
        if not self.second:
            for engine in self.first:
                engine.advance_to(tick)
            return
        while True:
            ends = [engine.next_end(tick) for engine in self.first]
            if (end := min(ends)) > tick or end == math.inf:
                break
            self.first[ends.index(end)].advance_to(end)
        while self._moving and self._moving[0][0] <= tick:
            at, _, j, request = heapq.heappop(self._moving)
            self.second[j].receive(request, at)
        for engine in self.second:
            engine.advance_to(tick)

    def requests(self) -> list[RequestMetrics]:
        """All that have come, in their order."""
        first, second = (tally.requests for tally in self._tallies)
        under_way = {request.id for _, _, _, request in self._moving}
        found = []
        for name in sorted(first, key=int):
            one = first[name]
            if name in second:
                one = joined(one, second[name], gaps=self.gaps)
            elif name in under_way:  # a first token is not the end of it
                one = replace(one, last_token=None, ended=None, finished=False, output_tokens=0)
            found.append(one)
        return found

    def _choose(self, kind: int, request: Request) -> int:
        loads = self._loads[kind]
        chosen = self.route(request, tuple(loads)) if len(loads) > 1 else 0
        if not (isinstance(chosen, int) and 0 <= chosen < len(loads)):
            raise ValueError(f"route must choose one of {len(loads)} engines, from 0 on, got {chosen!r}")
        return chosen

    def _sender(self, i: int) -> Callable[[int, int, Sequence[Part]], Mapping[str, int]]:
        return lambda began, ended, parts: self._send(i, began, ended, parts)

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
                j = self._to_move[part.request][0]
                of[j] = of.get(j, 0) + part.found + part.made
            there = {j: max(through, self.incoming[j].carry(began, ticks(tokens))) for j, tokens in of.items()}
        for part in parts:
            if part.done:
                j, request = self._to_move.pop(part.request)
                tokens = len(request.prompt)
                if transfer.layers is None:
                    end = send_whole(link, self.incoming[j], ended, transfer.ticks(tokens))
                else:
                    end = there[j]
                arrivals[part.request] = end = end + transfer.latency_ticks
                heapq.heappush(self._moving, (end, int(part.request), j, request))
                self.transfers[part.request] = (end - ended) / TICKS
                self.moved_tokens += tokens
        return arrivals


def new_policy(policy: object) -> str | Policy:
    """What `policy` names or makes. ValueError for a policy itself, which may remember another run."""
    if isinstance(policy, str):
        return policy
    if not isinstance(policy, type) and hasattr(policy, "turns"):
        raise ValueError("policy must be a name, or what makes a policy (its class), for each run needs a new one")
    if not callable(policy):
        raise ValueError(f"policy must be a name, or what makes a policy (its class), got {policy!r}")
    return policy()


def _own(settings: dict, events: EventLog, *, alone: bool = False) -> dict:
    """An engine's settings, with a log and a policy of its own."""
    policy = settings["policy"]
    kept = alone and not isinstance(policy, type) and hasattr(policy, "turns")
    return settings | dict(events=events, policy=policy if kept else new_policy(policy))


def _done_with(tally: Tally, loads: list[int], i: int) -> Callable[[Event], None]:
    """A listener that takes a request off an engine's load when it ends."""

    def on(event: Event) -> None:
        if type(event) is Finished:
            loads[i] -= tally.requests[event.request].prompt_tokens

    return on


def _nothing(progress: object) -> None:
    pass


@functools.lru_cache(maxsize=4096)
def _params(output: int) -> SamplingParams:
    return SamplingParams(max_tokens=output)
