"""Races: what a launch's result hangs on that nobody has put in order.

The interpreter runs one program after the other, and the lanes of a tile all at once, so a kernel with a race gives an
answer there, the same one every time. A GPU gives another one every time. For each piece of memory a `Shadow` notes who
stored to which bytes and who loaded them, and says what an access meets:

- *Programs.* One stores what another one stores or loads. Programs of a launch run in any order, and side by side.
- *Lanes.* Two lanes of one store give the same bytes different values. Which of them stays is anybody's guess.
- *Atomics* may meet each other. One that meets another program's plain load or store is a race like any other.

There is also what cannot be known here, because the interpreter has neither threads nor waiting; it is named, and is
then neither a race nor the absence of one:

- *Order by atomics.* A program that has done an atomic operation may have waited for another one by it.
- *Order within a program.* Which threads hold a tile is the compiler's choice. What a program has stored, its other
  threads may load too early; and what one lane has loaded, another may overwrite before. `tl.debug_barrier()` puts both
  in order. An element that a lane loads, and the same lane of the same shape of tile stores, is taken to be in order:
  that is how everybody works in place.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

LOADS, STORES, ATOMICS = "loads", "stores", "atomics"

# A lane is one number: its place in its tile, the shape of the tile, and the phase (below), from the lowest bit up.
_SHAPE, _PHASE = 21, 31


@dataclass(frozen=True)
class Meeting:
    """What an access meets: by which of its lanes (a mask), and who has done what before."""

    lanes: np.ndarray
    what: str  # what had been done there: "stores", "loads" or "atomics"
    who: str  # by whom: "another program", "this program", or "a lane" of the same store
    certain: bool  # False: there may be an order that cannot be seen here


class Clock:
    """Which program runs, and in which phase of it: a phase ends with a program, and at a barrier."""

    def __init__(self):
        self.program = -1
        self.phase = self.start = 0  # phases are counted over all programs; `start` is this program's first
        self.after_atomic = False
        self._shapes: dict[tuple, int] = {}

    def enter(self, program: int) -> None:
        """This program runs now: perhaps the same as before."""
        if program != self.program:
            self.program, self.after_atomic = program, False
            self.phase += 1
            self.start = self.phase

    def barrier(self) -> None:
        """All that the program has done is done before what comes."""
        self.phase += 1

    def codes(self, lanes: np.ndarray, shape: tuple) -> np.ndarray:
        """A number for each lane, which is larger than those of all earlier phases."""
        kind = self._shapes.setdefault(shape, len(self._shapes) % (1 << (_PHASE - _SHAPE)))
        return lanes.astype(np.int64) | kind << _SHAPE | self.phase << _PHASE


class Shadow:
    """What the programs of one launch have done to the bytes from `start` to `end`.

    It keeps account of cells: elements, where all accesses keep to them, and single bytes from the first on that does
    not.
    """

    def __init__(self, start: int, end: int, cell: int):
        self.start, self.end, self.cell = start, end, cell
        self._arrays: dict[str, np.ndarray] = {}  # made when first needed; 0: nobody yet

    def access(
        self, kind: str, addresses: np.ndarray, size: int, lanes: np.ndarray, shape: tuple, clock: Clock,
        values: Callable[[], np.ndarray],
    ) -> Iterator[Meeting]:  # fmt: skip
        """Note an access of `size` bytes at each address, and yield what it meets (`Meeting`s over these lanes).

        lanes
            The place of each address in its tile, which has the shape `shape`.
        values
            A function that gives the bytes that a store stores, (lanes, size); it is called if two lanes meet.
        """
        cells, each = self._cells(addresses, size)
        codes = np.repeat(clock.codes(lanes, shape), each)
        mine, now = clock.start << _PHASE, clock.phase << _PHASE

        for name in {LOADS: (STORES, ATOMICS), STORES: (STORES, LOADS, ATOMICS), ATOMICS: (STORES, LOADS)}[kind]:
            if f"{name} first" not in self._arrays:  # nobody has done that yet
                continue
            first, last = self._arrays[f"{name} first"][cells], self._arrays[f"{name} last"][cells]
            others = (first > 0) & (first < mine)
            if others.any():
                yield Meeting(_by_lane(others, each), name, "another program", certain=not clock.after_atomic)
            if kind == LOADS or (kind == ATOMICS and name == STORES):
                early = last >= now  # by this program, with nothing in between that puts them in order
            else:
                early = (last >= now) & (last != codes)
            if early.any():
                yield Meeting(_by_lane(early, each), name, "this program", certain=False)

        if kind == STORES:
            yield from self._lanes_that_meet(cells, each, values)
        first, last = self._array(f"{kind} first"), self._array(f"{kind} last")
        new = first[cells] == 0
        first[cells[new]] = codes[new]
        last[cells] = codes

    def _lanes_that_meet(self, cells: np.ndarray, each: int, values: Callable[[], np.ndarray]) -> Iterator[Meeting]:
        """Lanes of one store that give a cell different values."""
        winner = self._array("scratch")
        positions = np.arange(cells.size)
        winner[cells] = positions
        doubled = winner[cells] != positions
        if doubled.any():
            contents = values().reshape(cells.size, self.cell)
            differ = doubled & (contents != contents[winner[cells]]).any(axis=1)
            if differ.any():
                lost = np.isin(cells, cells[differ])  # with the lanes whose value stays
                yield Meeting(_by_lane(lost, each), STORES, "a lane", certain=True)

    def _cells(self, addresses: np.ndarray, size: int) -> tuple[np.ndarray, int]:
        """The cells of all lanes one after the other, and how many each lane has."""
        offsets = addresses - self.start
        if size % self.cell or (offsets % self.cell).any():
            self._arrays = {name: np.repeat(array, self.cell) for name, array in self._arrays.items()}
            self.cell = 1
        each = size // self.cell
        return (offsets[:, None] // self.cell + np.arange(each)).ravel(), each

    def _array(self, name: str) -> np.ndarray:
        if name not in self._arrays:  # zeros take no memory before they are touched
            self._arrays[name] = np.zeros(-(-(self.end - self.start) // self.cell), dtype=np.int64)
        return self._arrays[name]


def shadows(pieces: list[tuple[int, int, int]]) -> list[Shadow]:
    """A shadow for each piece of memory, (start, end, bytes of an element), in their order.

    Pieces that overlap have one and the same: what is stored by way of one tensor is loaded by way of another.
    """
    found: list[Shadow | None] = [None] * len(pieces)
    group: list[int] = []
    end = -1

    def close() -> None:
        if group:
            start = pieces[group[0]][0]
            cell = math.gcd(*(n for i in group for n in (pieces[i][2], pieces[i][0] - start)))
            shadow = Shadow(start, end, cell)
            for i in group:
                found[i] = shadow

    for i in sorted(range(len(pieces)), key=lambda i: pieces[i][:2]):
        if pieces[i][0] >= end:
            close()
            group, end = [], pieces[i][0]
        group.append(i)
        end = max(end, pieces[i][1])
    close()
    return found


def _by_lane(cells: np.ndarray, each: int) -> np.ndarray:
    return cells.reshape(-1, each).any(axis=1)
