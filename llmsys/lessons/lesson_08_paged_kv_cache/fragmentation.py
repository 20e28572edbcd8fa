"""What a memory for keys and values is used for, by how it is divided among sequences.

    fill(EqualRows(memory, row=8192), requests)      ->  Shares(kept=0.15, later=0.01, never=0.84, …)

A service under full load is played, a step at a time: whenever the next request fits, it comes in, with its prompt;
each step gives every sequence one more token; one that has its whole answer leaves. What is counted is slots of tokens,
averaged over the steps from the first time that a request had to wait to the last arrival.

    kept       hold a token
    later      are reserved, and will hold one: the answer that is still to come
    never      are reserved, and will not: the sequence ends before (internal fragmentation)
    holes      are free, and as many as the next request asks for, but not in one piece (external fragmentation)
    too few    are free, and less than the next request asks for
"""

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from llmsys.cache.block_pool import BlockPool
from llmsys.cache.block_table import BlockTable, OutOfBlocks
from llmsys.serving import RequestLength


@dataclass(frozen=True)
class Shares:
    """Parts of the memory, which add up to 1, and how many sequences were in it on average."""

    kept: float
    later: float
    never: float
    holes: float
    too_few: float
    sequences: float
    preempted: int = 0  # requests that were thrown out again, for lack of room

    @property
    def waste(self) -> float:
        return 1 - self.kept


class EqualRows:
    """A row for each sequence, all of `row` slots: the cache of lesson 07."""

    def __init__(self, memory: int, *, row: int):
        self.memory, self.row = memory, row
        self._free = memory // row
        self._rest = memory % row

    @property
    def free(self) -> int:
        return self._free * self.row + self._rest

    def wants(self, request: RequestLength) -> int:
        return self.row

    @property
    def longest(self) -> int:
        """Tokens of the longest sequence that can be served."""
        return self.row if self.memory >= self.row else 0

    def take(self, request: RequestLength) -> object | None:
        """What stands for the sequence's slots; None where it does not fit."""
        if not self._free:
            return None
        self._free -= 1
        return self.row

    def grow(self, place: object, length: int) -> bool:
        return True

    def give_back(self, place: object) -> None:
        self._free += 1

    def reserved(self, place: object) -> int:
        return self.row


class Pieces:
    """A piece in one for each sequence: its prompt, and room for an answer. The first hole that is large enough is
    taken, and holes that touch become one again.

    answer     slots for each answer; None where its length is known in advance (an oracle)
    """

    def __init__(self, memory: int, *, answer: int | None):
        self.memory, self.answer = memory, answer
        self._holes = [(0, memory)]  # from, to; in order

    @property
    def free(self) -> int:
        return sum(end - start for start, end in self._holes)

    def wants(self, request: RequestLength) -> int:
        return request.prompt + (request.output if self.answer is None else max(self.answer, request.output))

    @property
    def longest(self) -> int:
        return self.memory - (self.answer or 0)

    def take(self, request: RequestLength) -> tuple[int, int] | None:
        size = self.wants(request)
        for i, (start, end) in enumerate(self._holes):
            if end - start >= size:
                self._holes[i : i + 1] = [(start + size, end)] if end - start > size else []
                return start, start + size
        return None

    def grow(self, place: tuple[int, int], length: int) -> bool:
        return True

    def give_back(self, place: tuple[int, int]) -> None:
        joined: list[tuple[int, int]] = []
        for start, end in sorted([*self._holes, place]):
            if joined and joined[-1][1] == start:
                joined[-1] = joined[-1][0], end
            else:
                joined.append((start, end))
        self._holes = joined

    def reserved(self, place: tuple[int, int]) -> int:
        return place[1] - place[0]


class Blocks:
    """Blocks of `block_size` slots from the library's pool, another one whenever the last is full.

    A hundredth of the blocks is left free when a request comes in, so that those who are there can grow.
    """

    def __init__(self, memory: int, *, block_size: int = 16):
        self.memory, self.block_size = memory, block_size
        self._pool = BlockPool(1 + memory // block_size, block_size)
        self._reserve = self._pool.free_blocks // 100

    @property
    def free(self) -> int:
        return self._pool.free_blocks * self.block_size + self.memory % self.block_size

    def wants(self, request: RequestLength) -> int:
        return (self._pool.blocks_for(request.prompt) + self._reserve) * self.block_size

    @property
    def longest(self) -> int:
        return (self._pool.free_blocks - self._reserve) * self.block_size

    def take(self, request: RequestLength) -> BlockTable | None:
        try:
            return self._pool.allocate(request.prompt, reserve=self._reserve)
        except OutOfBlocks:
            return None

    def grow(self, place: BlockTable, length: int) -> bool:
        if length <= len(place.blocks) * self.block_size:
            return True
        try:
            self._pool.extend(place, length)
        except OutOfBlocks:
            return False
        return True

    def give_back(self, place: BlockTable) -> None:
        self._pool.free(place)

    def reserved(self, place: BlockTable) -> int:
        return len(place.blocks) * self.block_size


@dataclass
class _Running:
    request: RequestLength
    place: object
    length: int

    @property
    def end(self) -> int:
        return self.request.prompt + self.request.output


def fill(memory: EqualRows | Pieces | Blocks, requests: Iterable[RequestLength]) -> Shares:
    """Play a service under full load, and average what its slots are used for.

    ValueError where a request does not fit into the empty memory, or there is never one too many.
    """
    waiting, running = deque(requests), []
    for each in waiting:
        if each.prompt + each.output > memory.longest:
            raise ValueError(f"{each} must have at most {memory.longest} tokens: make the memory, or its rows, larger")
    slots, preempted, steps, sequences = dict.fromkeys(("kept", "later", "never", "holes", "too_few"), 0), 0, 0, 0
    full = False
    while waiting:
        while waiting and (place := memory.take(waiting[0])) is not None:
            running.append(_Running(waiting.popleft(), place, 0))
            running[-1].length = running[-1].request.prompt
        full = full or bool(waiting)
        if waiting and full:
            for name, count in _uses(memory, running, memory.wants(waiting[0])).items():
                slots[name] += count
            steps, sequences = steps + 1, sequences + len(running)
        thrown_out = []
        for each in list(running):  # the oldest first
            while each not in thrown_out and not memory.grow(each.place, each.length + 1):
                newest = running.pop()
                memory.give_back(newest.place)
                thrown_out.append(newest)
            if each not in thrown_out:
                each.length += 1
        for each in thrown_out:
            waiting.appendleft(each.request)
            preempted += 1
        for each in [each for each in running if each.length >= each.end]:
            running.remove(each)
            memory.give_back(each.place)
    if not steps:
        raise ValueError(f"requests must be more than a memory of {memory.memory} slots holds: give more of them")
    shares = {name: count / (steps * memory.memory) for name, count in slots.items()}
    return Shares(**shares, sequences=sequences / steps, preempted=preempted)


def _uses(memory: EqualRows | Pieces | Blocks, running: list[_Running], wanted: int) -> dict[str, int]:
    kept = sum(each.length for each in running)
    reserved = sum(memory.reserved(each.place) for each in running)
    later = sum(min(each.end, memory.reserved(each.place)) - each.length for each in running)
    free = memory.free
    return {
        "kept": kept, "later": later, "never": reserved - kept - later,
        "holes": free if free >= wanted else 0, "too_few": free if free < wanted else 0,
    }  # fmt: skip
