"""When things happen on one SM: `run` finds the time of each action of `llmsys.hardware.sm_actions`.

Time goes from one event to the next: an engine has done something, or a program begins. Between events, each engine
works on the first thing that each program has started on it, on all of them at the same speed (`_advance`). At an
event, programs go on until they have to wait (`_go_on`). `_obstacle` says what an action must wait for, and `_do` does
it, or raises if it is wrong. Nothing is computed: actions have names and costs, and no numbers.
"""

from collections import Counter, deque
from collections.abc import Sequence

from llmsys.hardware.barrier import Deadlock, Race
from llmsys.hardware.sm_actions import (
    ENGINES,
    Action,
    Costs,
    Load,
    Output,
    Pass,
    Scores,
    Softmax,
    Span,
    Timeline,
    Turn,
    Wait,
)


def run(programs: Sequence[Sequence[Action]], costs: Costs, *, slots: int = 2, begin: Sequence[float] = ()) -> Timeline:
    """Run one program for each warpgroup, and perhaps one for a producer, until all have ended.

    slots   tiles of K, and of V, that shared memory has room for; a tile's slot is free when every warpgroup that uses
            it has waited for its product
    begin   the cycle in which each program begins; those that are not named begin in cycle 0

    Raises
    ------
    Race
        Something is used that was not waited for, or not rescaled; says what, and by whom.
    ValueError
        A program is not attention: a tile is left out or taken twice, two tiles of scores are held at once, for which
        registers are too few, a turn is passed on by one that does not have it.
    Deadlock
        Nobody can go on; says who waits for what, and why it does not come.
    """
    if slots < 1:
        raise ValueError(f"slots must be at least 1, got {slots}")
    if len(begin) > len(programs):
        raise ValueError(f"begin must have at most a number for each of the {len(programs)} programs, got {len(begin)}")
    return _SM([list(program) for program in programs], costs, slots, begin).run()


# How the times are found


class _Work:
    """Something an engine has to do for the program number `owner`; `left` are the cycles that it still takes."""

    def __init__(self, engine: str, owner: int, label: str, cycles: float):
        self.engine, self.owner, self.label, self.left = engine, owner, label, cycles
        self.start: float | None = None
        self.done = False


class _Program:
    """A warpgroup's or the producer's list of actions, how far it has come, and what it holds."""

    def __init__(self, number: int, actions: list[Action], begin: float):
        self.number, self.actions, self.at = number, actions, 0
        self.computes = any(isinstance(each, Scores | Softmax | Output) for each in actions)
        self.name = f"warpgroup {number}" if self.computes or not actions else "producer"
        self.waited: set[tuple[str, int]] = set()  # what it has waited for
        self.work: dict[tuple[str, int], _Work] = {}  # each "S", "P" and "O" that it has started
        self.scores: int | None = None  # number of the S that it holds: started, and not yet a P
        self.output: int | None = None  # number of the O that it started last
        self.waiting: tuple[float, str] | None = (0.0, "its beginning") if begin > 0 else None
        self.begin, self.has_turn = begin, False

    @property
    def next(self) -> Action | None:
        return self.actions[self.at] if self.at < len(self.actions) else None

    def numbers(self, kind: type) -> list[int]:
        """The tiles that its actions of this kind are about."""
        return [each.i for each in self.actions if isinstance(each, kind)]


READERS = {"K": Scores, "V": Output}
"""The product that reads a tile of K or V."""


class _SM:
    """The state of the SM: programs, tiles in shared memory, the engines' queues, and the time."""

    def __init__(self, programs: list[list[Action]], costs: Costs, slots: int, begin: Sequence[float]):
        starts = [*begin, *[0.0] * (len(programs) - len(begin))]
        self.programs = [_Program(n, each, starts[n]) for n, each in enumerate(programs)]
        for program in self.programs:
            _check_complete(program)
        self.costs, self.slots, self.time = costs, slots, 0.0
        self.loads: dict[tuple[str, int], _Work] = {}
        self.users = {  # for each tile, the number of warpgroups that have not yet waited for the product that reads it
            tile: Counter(i for each in self.programs for i in each.numbers(kind)) for tile, kind in READERS.items()
        }
        self.held = {tile: set() for tile in READERS}  # tiles that are loaded and whose slots are not free
        self.queues: dict[str, dict[int, deque[_Work]]] = {engine: {} for engine in ENGINES}
        self.busy = dict.fromkeys(ENGINES, 0.0)
        self.spans: list[Span] = []
        self.waits: list[Span] = []
        takes_turns = [p for p in self.programs if any(isinstance(each, Turn | Pass) for each in p.actions)]
        self.turns = {p.number: 0 for p in takes_turns}  # turns that were passed on to a program and not yet taken
        if takes_turns:
            self.turns[takes_turns[0].number] = 1

    def run(self) -> Timeline:
        while True:
            while any([self._go_on(program) for program in self.programs]):  # a list: each of them, in order
                pass
            if all(program.next is None for program in self.programs) and not self._active():
                break
            self._advance()
        for program in self.programs:
            if program.output is not None:
                self._needs(program, ("O", program.output), "ends")
        spans = tuple(sorted(self.spans, key=lambda span: (span.start, span.warpgroup)))
        names = tuple(program.name for program in self.programs)
        return Timeline(spans, tuple(self.waits), names, self.time, self.busy)

    def _go_on(self, program: _Program) -> bool:
        """Let a program do what it can in this cycle. Returns whether that was anything."""
        before = program.at
        while (action := program.next) is not None and self.time >= program.begin:
            if reason := self._obstacle(program, action):
                program.waiting = program.waiting or (self.time, reason)
                break
            if program.waiting:
                start, what = program.waiting
                if self.time > start:
                    self.waits.append(Span("wait", program.number, what, start, self.time))
                program.waiting = None
            self._do(program, action)
            program.at += 1
        return program.at > before

    def _obstacle(self, program: _Program, action: Action) -> str | None:
        """What the program has to wait for before it can do this action; None if it need not wait."""
        last = program.actions[program.at - 1] if program.at else None
        if isinstance(last, Softmax) and not program.work["P", last.i].done:
            return f"P{last.i}"
        match action:
            case Wait(what, i):
                started = self.loads if what in "KV" else program.work
                return None if (what, i) in started and started[what, i].done else f"{what}{i}"
            case Load(tile, i):
                return f"a slot for {tile}{i}" if len(self.held[tile]) >= self.slots else None
            case Turn():
                return None if self.turns[program.number] else "its turn"
        return None

    def _do(self, program: _Program, action: Action) -> None:
        """Do an action that need not wait. Raises Race or ValueError if the action is wrong."""
        match action:
            case Wait(what, i):
                if what in "SO" and (what, i) not in program.waited:
                    self._give_back("K" if what == "S" else "V", i)
                program.waited.add((what, i))
            case Load(tile, i):
                if (tile, i) in self.loads:
                    raise ValueError(f"{program.name} loads {tile}{i}, which has been loaded")
                self.loads[tile, i] = self._start("copy", program, f"{tile}{i}", self.costs.load)
                self.held[tile].add(i)
            case Scores(i):
                self._needs(program, ("K", i), f"starts S{i}")
                if program.scores is not None:
                    raise ValueError(
                        f"{program.name} starts S{i} while it holds S{program.scores}: registers have room for one "
                        "tile of scores; Softmax first"
                    )
                program.scores = i
                program.work["S", i] = self._start("tensor", program, f"S{i}", self.costs.scores)
            case Softmax(i):
                self._needs(program, ("S", i), f"computes P{i}")
                program.scores = None
                program.work["P", i] = self._start("exp", program, f"P{i}", self.costs.softmax)
            case Output(i):
                self._needs(program, ("V", i), f"starts O{i}")
                if ("P", i) not in program.work:
                    raise Race(f"{program.name} starts O{i} and has not computed P{i}")
                if program.output is not None:
                    self._needs(program, ("O", program.output), f"starts O{i}, of which it rescales what is there,")
                program.output = i
                program.work["O", i] = self._start("tensor", program, f"O{i}", self.costs.output)
            case Turn():
                self.turns[program.number] -= 1
                program.has_turn = True
            case Pass():
                if not program.has_turn:
                    raise ValueError(f"{program.name} passes on a turn that it does not have")
                program.has_turn = False
                ring = list(self.turns)
                self.turns[ring[(ring.index(program.number) + 1) % len(ring)]] += 1

    def _give_back(self, tile: str, i: int) -> None:
        """One warpgroup needs the tile no longer; after the last, its slot is free."""
        self.users[tile][i] -= 1
        if not self.users[tile][i]:
            self.held[tile].discard(i)

    @staticmethod
    def _needs(program: _Program, what: tuple[str, int], does: str) -> None:
        if what not in program.waited:
            raise Race(f"{program.name} {does} and has not waited for {what[0]}{what[1]}")

    # Engines

    def _start(self, engine: str, program: _Program, label: str, cycles: float) -> _Work:
        work = _Work(engine, program.number, label, cycles)
        self.queues[engine].setdefault(program.number, deque()).append(work)
        return work

    def _active(self) -> dict[str, list[_Work]]:
        """What each engine works on: the first of each program's queue."""
        heads = {engine: [queue[0] for queue in queues.values() if queue] for engine, queues in self.queues.items()}
        return {engine: works for engine, works in heads.items() if works}

    def _advance(self) -> None:
        """Go on to the next cycle in which an engine has done something, or a program begins."""
        active = self._active()
        until = [work.left * len(works) for works in active.values() for work in works]
        until += [each.begin - self.time for each in self.programs if each.next is not None and each.begin > self.time]
        if not until:
            raise Deadlock("; ".join(f"{each.name} {self._stuck(each)}" for each in self.programs if each.next))
        passed = min(until)
        for engine, works in active.items():
            self.busy[engine] += passed
            for work in works:
                work.start = self.time if work.start is None else work.start
                work.left -= passed / len(works)
        self.time += passed
        for engine, works in active.items():
            for work in works:
                if work.left < 1e-6:  # cycles: sums of fractions
                    work.done = True
                    self.queues[engine][work.owner].popleft()
                    self.spans.append(Span(engine, work.owner, work.label, work.start, self.time))

    def _stuck(self, program: _Program) -> str:
        match program.next:
            case Wait("K" | "V" as tile, i):
                later = [each for each in self.programs if Load(tile, i) in each.actions]
                why = f"which {later[0].name} has not loaded yet" if later else "which nobody loads"
                return f"waits for {tile}{i}, {why}"
            case Wait(what, i):
                return f"waits for {what}{i}, which it has not started"
            case Load(tile, i):
                kept, kind, what = min(self.held[tile]), READERS[tile], "S" if tile == "K" else "O"
                users = [p for p in self.programs if kept in p.numbers(kind) and (what, kept) not in p.waited]
                return f"waits for a slot for {tile}{i}: {users[0].name} has not waited for {what}{kept}"
        ring = list(self.turns)
        before = self.programs[ring[ring.index(program.number) - 1]]
        return f"waits for its turn, which {before.name} has not passed on"


def _check_complete(program: _Program) -> None:
    """Raises ValueError if the program does not have Scores, Softmax and Output of tiles 0, 1, … once each."""
    for action in program.actions:
        if not isinstance(action, Action):
            raise ValueError(f"{program.name} has {action!r}, which is no action of llmsys.hardware.sm")
        names = "KV" if isinstance(action, Load) else "KVSO" if isinstance(action, Wait) else None
        name = action.tile if isinstance(action, Load) else getattr(action, "what", None)
        if names and name not in tuple(names):
            raise ValueError(f"{program.name}: {action!r} must name one of {', '.join(names)}")
    scores, softmaxes, outputs = (sorted(program.numbers(kind)) for kind in (Scores, Softmax, Output))
    if not scores == softmaxes == outputs == list(range(len(scores))):
        raise ValueError(
            f"{program.name} must have Scores, Softmax and Output of tiles 0, 1, … once each; it has Scores of "
            f"{scores}, Softmax of {softmaxes}, Output of {outputs}"
        )
