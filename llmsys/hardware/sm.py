"""One SM as a machine with three engines: what the order of the work costs, before any kernel is written.

An SM of an H100 has tensor cores, units for exponentials, and a copy engine. A warpgroup (4 warps, with 64 rows of
queries) goes through its list of actions in order. It *starts* copies and products, which run by themselves, and waits
for them where its list says so; a softmax it computes itself:

    [Load("K", 0), Wait("K", 0), Scores(0), Wait("S", 0), Softmax(0), Load("V", 0), Wait("V", 0), Output(0), …]

    timeline = run(fa2_order(tiles=16, warpgroups=2), attention_costs(D=128))
    timeline.cycles, timeline.utilisation("tensor")

`run` refuses orders that a GPU would compute nonsense with, and names deadlocks. It has three rules of time:

- an engine does the work of one warpgroup in the order in which it was started;
- warpgroups that want the same engine at the same time share it evenly: schedulers pick instructions of all in turn;
- starting, waiting and passing on a turn cost nothing, and a result is there as soon as its engine is done.

By the last rule the model is an upper bound. By the second, warpgroups that begin in step stay in step: all multiply,
then all compute exponentials. Those that begin half a step apart stay apart, and overlap without having arranged it. So
an order without turns has a worst and a best case (`run(…, begin=…)`), and a GPU is somewhere between; with turns there
is one case.

How that compares, in tensor core utilisation, with two warpgroups, heads of 128 and no mask:

    order        model, in step … apart      H100
    fa1          0.38                        not measured
    fa2          0.56 … 1.00                 0.35 of 989 TFLOP/s (FlashAttention-2; its products are the A100's
                                             instruction, which reaches about two thirds of that)
    producer     0.56 … 1.00                 0.58 (570 TFLOP/s: FlashAttention-3 before its ping-pong)
    ping_pong    1.00                        0.63 to 0.65 (620 to 640, with it)
    overlapped   1.00                        0.65 to 0.67 (640 to 660, and softmax while P V runs)

The model has the order of the orders right, and the direction of each step; it makes turns look better than they are,
because chance does part of their work, and it cannot see what the last step wins: latencies. Of what is missing to
1.00, a part is the clock, which a GPU at its 700 W lowers from the 1.83 GHz of the 989 TFLOP/s to 1.5 to 1.7.
(H100: `llmsys.bench.recorded`, attention, 16k tokens, for FA2; for the others https://arxiv.org/abs/2407.08608, section
3; the two thirds: https://pytorch.org/blog/flashattention-3/.)
"""

from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from llmsys.hardware.mbarrier import Deadlock, Race

ENGINES = ("tensor", "exp", "copy")
CLOCK = 1.83e9  # Hz, at which 132 SMs have the 989 TFLOP/s of the H100's data sheet

FLOPS_A_CYCLE = 4096
"""Of an SM's four tensor cores in half precision: 989.5e12 / 132 / 1.83e9. In fp8, twice as many."""
EXPONENTIALS_A_CYCLE = 16
"""Of an SM (CUDA C++ programming guide, arithmetic instructions; https://arxiv.org/abs/2407.08608, section 3.1)."""
LANES = 128
"""Simple fp32 operations of an SM in a cycle (the same table of the guide)."""
COPIED_A_CYCLE = 5120 / 132
"""Bytes from the L2 cache that an SM gets when all read: the width of the A100's cache, as that of the H100's is not
published, over 132 SMs. Most of K and V is there, for the SMs that work on a head read the same."""


@dataclass(frozen=True)
class Costs:
    """Cycles of an SM, when nobody shares its engines.

    load      copy a tile of K or V, for all warpgroups
    scores    S = Q Kᵀ of one warpgroup
    softmax   P out of S, with m, l and the rescaling of O, of one warpgroup
    output    O += P V of one warpgroup
    """

    load: float
    scores: float
    softmax: float
    output: float


def attention_costs(block_m: int = 64, block_n: int = 128, D: int = 128, itemsize: int = 2) -> Costs:
    """Costs of a tile of block_n keys for a warpgroup with block_m queries, from an H100's published figures.

    itemsize: bytes of an element, 2 (fp16, bf16) or 1 (fp8). The softmax needs an exponential for each score, and 3.5
    simple operations: maximum, scale and shift in one, sum, and half a conversion; and one for each element of O.
    """
    for name, value in {"block_m": block_m, "block_n": block_n, "D": D}.items():
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if itemsize not in (1, 2):
        raise ValueError(f"itemsize must be 1 (fp8) or 2 (fp16, bf16), got {itemsize}")
    scores = block_m * block_n
    product = 2 * scores * D / (FLOPS_A_CYCLE * 2 / itemsize)
    softmax = scores / EXPONENTIALS_A_CYCLE + (3.5 * scores + block_m * D) / LANES
    return Costs(block_n * D * itemsize / COPIED_A_CYCLE, product, softmax, product)


# Actions


@dataclass(frozen=True)
class Load:
    """Start to copy tile i of "K" or "V" into shared memory, for all warpgroups, as soon as there is a slot for it."""

    tile: str
    i: int


@dataclass(frozen=True)
class Scores:
    """Start S_i = Q K_iᵀ."""

    i: int


@dataclass(frozen=True)
class Softmax:
    """Compute P_i out of S_i, and rescale O; the warpgroup does nothing else meanwhile."""

    i: int


@dataclass(frozen=True)
class Output:
    """Start O += P_i V_i."""

    i: int


@dataclass(frozen=True)
class Wait:
    """Wait for tile i of "K" or "V", or for this warpgroup's product "S" or "O" number i."""

    what: str
    i: int


@dataclass(frozen=True)
class Turn:
    """Wait for the turn. It goes round the programs that have turns; the first of them has it first."""


@dataclass(frozen=True)
class Pass:
    """Pass the turn on."""


Action = Load | Scores | Softmax | Output | Wait | Turn | Pass
Programs = list[list[Action]]


# Orders: for so many tiles of keys and so many warpgroups, a list of actions for each


def fa1_order(tiles: int, warpgroups: int) -> Programs:
    """One thing after the other, and one warpgroup after the other: nothing overlaps."""
    programs: Programs = [[] for _ in range(warpgroups)]
    for i in range(tiles):
        for j, program in enumerate(programs):
            first = j == 0  # who loads for all
            program += [Turn(), *([Load("K", i)] if first else []), Wait("K", i), Scores(i), Wait("S", i), Softmax(i)]
            program += [*([Load("V", i)] if first else []), Wait("V", i), Output(i), Wait("O", i), Pass()]
    return programs


def fa2_order(tiles: int, warpgroups: int) -> Programs:
    """Warpgroups that take no notice of each other; the first starts each copy a tile ahead."""
    programs = _independent(tiles, warpgroups)
    ahead: list[Action] = [Load("K", 0), Load("V", 0)] if tiles else []
    for action in programs[0]:
        ahead.append(action)
        if isinstance(action, Scores) and action.i + 1 < tiles:
            ahead += [Load("K", action.i + 1), Load("V", action.i + 1)]
    return [ahead, *programs[1:]]


def producer_order(tiles: int, warpgroups: int) -> Programs:
    """The same, but a producer, the last program, starts all copies."""
    return [*_independent(tiles, warpgroups), _producer(tiles)]


def ping_pong_order(tiles: int, warpgroups: int) -> Programs:
    """Both products of a step, S_i and P V of the tile before, in the warpgroup's turn; its softmax after that."""
    programs: Programs = [[] for _ in range(warpgroups)]
    for program in programs:
        for i in range(tiles):
            program += [Wait("K", i), *([Wait("V", i - 1)] if i else []), Turn(), Scores(i)]
            program += [Output(i - 1), Wait("O", i - 1)] if i else []
            program += [Wait("S", i), Pass(), Softmax(i)]
        program += _last(tiles)
    return [*programs, _producer(tiles)]


def overlapped_order(tiles: int, warpgroups: int) -> Programs:
    """Ping-pong, and the softmax of tile i runs while P V of tile i − 1 does: FlashAttention-3's order.

    The turn is passed on when S_i is there. (`hopper_consumer` passes it on as soon as both products are started: on a
    GPU that takes time itself.)
    """
    programs: Programs = [[] for _ in range(warpgroups)]
    for program in programs:
        for i in range(tiles):
            program += [Wait("K", i), *([Wait("V", i - 1)] if i else []), Turn(), Scores(i)]
            program += [Output(i - 1)] if i else []
            program += [Wait("S", i), Pass(), Softmax(i), *([Wait("O", i - 1)] if i else [])]
        program += _last(tiles)
    return [*programs, _producer(tiles)]


ORDERS = {
    "fa1": fa1_order,
    "fa2": fa2_order,
    "producer": producer_order,
    "ping_pong": ping_pong_order,
    "overlapped": overlapped_order,
}
"""The orders by name, from the first that was built to the fastest."""


def _independent(tiles: int, warpgroups: int) -> Programs:
    one: list[Action] = []
    for i in range(tiles):
        one += [Wait("K", i), Scores(i), Wait("S", i), Softmax(i), Wait("V", i), Output(i), Wait("O", i)]
    return [list(one) for _ in range(warpgroups)]


def _producer(tiles: int) -> list[Action]:
    return [Load(tile, i) for i in range(tiles) for tile in "KV"]


def _last(tiles: int) -> list[Action]:
    return [Wait("V", tiles - 1), Output(tiles - 1), Wait("O", tiles - 1)] if tiles else []


# What comes out


@dataclass(frozen=True)
class Span:
    """From one cycle to another, something that an engine did for a program, or a program's wait (engine "wait")."""

    engine: str
    warpgroup: int
    label: str
    start: float
    end: float


@dataclass(frozen=True)
class Timeline:
    """What happened.

    spans    work of the engines, by its start: "K0", "V0" copied, "S0" and "O0" products, "P0" a softmax. Spans of
             two warpgroups on one engine may overlap: then they share it.
    waits    when a program could not go on, and for what
    names    of the programs: "warpgroup 0", …, and "producer"
    cycles   from the beginning to the end
    busy     for each engine, the cycles in which it did something
    """

    spans: tuple[Span, ...]
    waits: tuple[Span, ...]
    names: tuple[str, ...]
    cycles: float
    busy: dict[str, float] = field(repr=False)

    @property
    def seconds(self) -> float:
        """At `CLOCK`."""
        return self.cycles / CLOCK

    def utilisation(self, engine: str) -> float:
        """The part of all cycles in which this engine did something: "tensor", "exp" or "copy"."""
        if engine not in ENGINES:
            raise ValueError(f"engine must be one of {', '.join(ENGINES)}, got {engine!r}")
        return self.busy[engine] / self.cycles if self.cycles else 0.0


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


# How it is found


class _Work:
    """Something an engine has to do."""

    def __init__(self, engine: str, owner: int, label: str, cycles: float):
        self.engine, self.owner, self.label, self.left, self.start, self.done = engine, owner, label, cycles, None, False


class _Program:
    def __init__(self, number: int, actions: list[Action], begin: float):
        self.number, self.actions, self.at = number, actions, 0
        self.computes = any(isinstance(each, Scores | Softmax | Output) for each in actions)
        self.name = f"warpgroup {number}" if self.computes or not actions else "producer"
        self.waited: set[tuple[str, int]] = set()
        self.work: dict[tuple[str, int], _Work] = {}  # "S", "P" and "O" that it has started
        self.scores: int | None = None  # the S that it holds: started, and not yet a P
        self.output: int | None = None  # the O that it started last
        self.waiting: tuple[float, str] | None = (0.0, "its beginning") if begin > 0 else None
        self.begin, self.has_turn = begin, False

    @property
    def next(self) -> Action | None:
        return self.actions[self.at] if self.at < len(self.actions) else None

    def numbers(self, kind: type) -> list[int]:
        return [each.i for each in self.actions if isinstance(each, kind)]


READERS = {"K": Scores, "V": Output}


class _SM:
    def __init__(self, programs: list[list[Action]], costs: Costs, slots: int, begin: Sequence[float]):
        starts = [*begin, *[0.0] * (len(programs) - len(begin))]
        self.programs = [_Program(n, each, starts[n]) for n, each in enumerate(programs)]
        for program in self.programs:
            _check_complete(program)
        self.costs, self.slots, self.time = costs, slots, 0.0
        self.loads: dict[tuple[str, int], _Work] = {}
        self.users = {  # of each tile: how many warpgroups have not yet waited for the product that reads it
            tile: Counter(i for each in self.programs for i in each.numbers(kind)) for tile, kind in READERS.items()
        }
        self.held = {tile: set() for tile in READERS}  # loaded, and its slot is not free
        self.queues: dict[str, dict[int, deque[_Work]]] = {engine: {} for engine in ENGINES}
        self.busy = dict.fromkeys(ENGINES, 0.0)
        self.spans: list[Span] = []
        self.waits: list[Span] = []
        takes_turns = [p for p in self.programs if any(isinstance(each, Turn | Pass) for each in p.actions)]
        self.turns = {p.number: 0 for p in takes_turns}  # that have been passed on to it and not taken
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
        """Let it do what it can in this cycle; whether that was anything."""
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
        """What it has to wait for before it can do this."""
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
        """To the next cycle in which something is done, or a program begins."""
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
    """The scores, softmax and output of each tile that it has to do with, once each."""
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
            f"{program.name} must have Scores, Softmax and Output of tiles 0, 1, … once each; it has Scores of {scores}, "
            f"Softmax of {softmaxes}, Output of {outputs}"
        )
