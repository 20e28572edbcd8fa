"""What happens to requests, written down once: a lesson's picture, a simulator, metrics and a benchmark read one log.

    scheduler = Scheduler(pool, …)
    scheduler.events.listen(print)                   # each event as it happens
    [each for each in scheduler.events if each.request == "a"]
        Arrived(step=0, time=0.00, request="a", prompt_tokens=40, parent=None)
        Admitted(step=0, time=0.01, request="a", hit_tokens=32, shared=False)
        Computed(step=0, time=0.05, request="a", start=32, tokens=8, guesses=0)
        Token(step=0, time=0.05, request="a", token=1204)
        …
        Finished(step=9, time=0.31, request="a", reason="stop", generated=10)

Every event has the number of the step in which it happened (of the next one whose result comes, if it was between
steps) and the time in seconds on the scheduler's clock. The time to a request's first token is `Token.time −
Arrived.time` of its first; its time in the queue is `Admitted.time − Arrived.time`; what preemption cost is the sum of
`Preempted.lost`. Where steps are planned ahead, a request is admitted to a step while the one before it still runs, and
that one's events go on after this.

**Most events are of one kind**: a step computed a token of a request, and said its next. With hundreds of requests and
hundreds of steps a second, to make two objects of each of these would cost more than all else that the host does. So
what a step brought is kept as one `Progress`, and becomes `Computed`s and `Token`s when somebody reads the log. A
simulator skips whole runs of steps, and keeps each as one `Several`.
"""

import logging
import math
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Protocol

from llmsys.models.sampling import whole_number

_LOGGER = logging.getLogger(__name__)


@dataclass(frozen=True)
class Event:
    step: int
    time: float


@dataclass(frozen=True)
class RequestEvent(Event):
    request: str  #  its id


@dataclass(frozen=True)
class Arrived(RequestEvent):
    prompt_tokens: int
    parent: str | None = None  #  of the second to the n-th answer to a prompt: the request that is the first


@dataclass(frozen=True)
class Admitted(RequestEvent):
    """It has blocks from now on. After a preemption it is admitted again."""

    hit_tokens: int  #  that it need not compute
    shared: bool = False  #  these are its parent's, the last and unfinished block as well


@dataclass(frozen=True)
class Computed(RequestEvent):
    start: int  #  tokens that were in the cache before
    tokens: int  #  computed in this step, guesses among them
    guesses: int = 0


@dataclass(frozen=True)
class Token(RequestEvent):
    """One more token is known. Tokens that one step accepts come one after the other, at one time."""

    token: int


@dataclass(frozen=True)
class Preempted(RequestEvent):
    lost: int  #  tokens that were computed, and are no longer its own; some may be hit when it is admitted again


@dataclass(frozen=True)
class Finished(RequestEvent):
    reason: str  #  "stop" or "length"
    generated: int


@dataclass(frozen=True)
class Failed(RequestEvent):
    error: str


@dataclass(frozen=True)
class Aborted(RequestEvent):
    pass


@dataclass(frozen=True)
class StepDone(Event):
    """A step's result has been taken in; the events of its requests come before this one.

    What it computed of requests that had ended before counts as little as they do. A step of which nothing counts is
    not written down.

    `seconds` is the time until its tokens were known. Nobody waits on a GPU for a step without any, one chunk of a long
    prompt: most of its time is then in the next step's.
    """

    seconds: float  #  since it was planned, or since the step before it was done, if that was later
    phase: str  #  "prefill", "decode" or, where it had both, "mixed"
    tokens: int  #  computed in it
    sequences: int  #  for which it computed
    running: int
    waiting: int
    blocks_used: int
    blocks: int  #  of the pool, block 0 left out


@dataclass(frozen=True)
class HostCopied(Event):
    """A step was planned in which evicted blocks go to the host, or come back from there."""

    stored: int  #  blocks
    returned: int  #  blocks
    returned_tokens: int  #  in these, which need not be computed


class Progress(NamedTuple):
    """What one step brought several requests: for each a `Computed`, and a `Token` for each that was said."""

    step: int
    time: float
    rows: Sequence[tuple[str, int, int, int, tuple[int, ...]]]
    """(request, start, tokens, guesses, what was said) each."""

    @property
    def size(self) -> int:
        """How many events these are."""
        return len(self.rows) + sum([len(row[4]) for row in self.rows])

    def events(self) -> Iterator[Computed | Token]:
        for request, start, tokens, guesses, said in self.rows:
            yield Computed(self.step, self.time, request, start, tokens, guesses)
            for token in said:
                yield Token(self.step, self.time, request, token)


class Several(Protocol):
    """What several steps brought, kept as one, as `Progress` is for one step."""

    @property
    def size(self) -> int:
        """How many events these are."""
        ...

    def events(self) -> Iterator[Event]: ...


class EventLog:
    """Events in the order in which they happened, the last `keep` of them (None: all).

    A listener is called with every event, at once, in the thread that caused it; it must not call the scheduler. That
    is in the middle of its work, so what a listener raises is logged, with its traceback, and stops nothing.
    """

    def __init__(self, keep: int | None = None):
        if keep is not None:
            whole_number("keep", keep, at_least=0)
        self._keep = math.inf if keep is None else keep
        self._entries: deque[tuple[int, Event | Progress | Several]] = deque()  # with the numbers of their events
        self._held = 0  # events in these: what is kept, and perhaps some of the same step
        self._listeners: list[tuple[Callable[[Event], object], Callable[[Progress], object] | None]] = []
        # Who is told of these: whole, or of each event.
        self._of_several: list[tuple[Callable[[Event], object], Callable[[Several], object] | None]] = []

    def __iter__(self) -> Iterator[Event]:
        events: list[Event] = []
        for _, entry in self._entries:
            if isinstance(entry, Event):
                events.append(entry)
            else:
                events += entry.events()
        return iter(events[len(events) - len(self) :])

    def __len__(self) -> int:
        return min(self._held, self._keep)

    def listen(
        self,
        listener: Callable[[Event], object],
        *,
        progress: Callable[[Progress], object] | None = None,
        several: Callable[[Several], object] | bool = True,
    ) -> None:
        """Calls `listener` with every event; where there is a `progress`, that one with those that it stands for.

        several      called with steps that were skipped; True: `listener` is, with their events; False: nobody is
        """
        self._listeners.append((listener, progress))
        if several:
            self._of_several.append((listener, None if several is True else several))

    @property
    def wants_several(self) -> bool:
        """Whether anybody reads what is added with `add_several`: a listener, or whoever reads the log later."""
        return bool(self._keep or self._of_several)

    def add(self, event: Event) -> None:
        self._add(1, event)
        for listener, _ in self._listeners:
            _call(listener, event)

    def add_progress(self, progress: Progress) -> None:
        """What a step brought to several requests, one after the other."""
        self._add(progress.size, progress)
        for listener, takes_progress in self._listeners:
            if takes_progress is not None:
                _call(takes_progress, progress)
            else:
                for event in progress.events():
                    _call(listener, event)

    def add_several(self, several: Several) -> None:
        """What a run of steps brought, one after the other."""
        self._add(several.size, several)
        for listener, takes_several in self._of_several:
            if takes_several is not None:
                _call(takes_several, several)
            else:
                for event in several.events():
                    _call(listener, event)

    def _add(self, size: int, entry: Event | Progress | Several) -> None:
        entries = self._entries
        entries.append((size, entry))
        self._held += size
        while entries and self._held - entries[0][0] >= self._keep:
            self._held -= entries.popleft()[0]

    def records(self) -> list[dict[str, Any]]:
        """The events as plain dicts, for JSON: `{"event": "Token", "step": 0, …}`."""
        return [{"event": type(each).__name__, **asdict(each)} for each in self]


def _call(listener: Callable, what: Event | Progress | Several) -> None:
    try:
        listener(what)
    except Exception:
        _LOGGER.exception("a listener of the event log raised at %s", what)
