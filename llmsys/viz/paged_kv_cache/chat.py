"""A small chat service on a block pool: what the stepper of lesson 08 shows, moment by moment.

    moments = play(BlockPool(17, 4))          ->  [Moment, …], the last with all totals

Six requests, four of which begin with the same system prompt; one answers twice (a fork), one is a conversation's
second turn, and one shares nothing. Words stand for tokens, and a token is computed in the step in which it is
said. The pool decides which block is whose; here is only noted
what the service would have written where. Any pool with the library's contract can be played, the reader's own too.
"""

from collections.abc import Sequence
from dataclasses import dataclass

SYSTEM = "You are a guide . Be brief ."
SKY = f"{SYSTEM} Why is the sky blue ?"
FIRST, SECOND = "Air turns blue light most .", "Short waves turn more ."
SLOTS = 64
"""Of the whole memory."""

SCRIPT = (
    ("arrive", "A", SKY),
    ("arrive", "B", f"{SYSTEM} Name a red fruit ."),
    ("fork", "A", "A′"),
    ("say", {"A": FIRST, "A′": SECOND, "B": "The cherry ."}),
    ("leave", "B"),
    ("leave", "A′"),
    ("leave", "A"),
    ("arrive", "C", f"{SKY} {FIRST} And why red at dusk ?"),
    ("arrive", "D", "Sort these : plum fig date lime pear quince kiwi apple grape mango"),
    ("say", {"C": "More air , less blue .", "D": "apple date fig grape kiwi lime mango pear"}),
    ("leave", "D"),
    ("arrive", "E", f"{SYSTEM} Name a red fruit . The cherry . Another ?"),
    ("say", {"E": "The plum ."}),
    ("leave", "C"),
    ("leave", "E"),
)  # fmt: skip
"""What happens: ("arrive", who, prompt), ("fork", who, the new name), ("say", {who: answer}), ("leave", who)."""


@dataclass(frozen=True)
class Block:
    """One block as it is now. `owners` are the sequences in whose tables it stands; a block without owners is "cached"
    if the pool would still find it for some text, otherwise "free"."""

    id: int
    words: tuple[str, ...]  # of its slots, as far as they are written
    owners: tuple[str, ...]
    cached: bool = False
    written: tuple[int, ...] = ()  # slots of this moment
    copied_from: int | None = None
    evicted: bool = False  # it was cached a moment ago, and holds something else now

    @property
    def state(self) -> str:
        return "used" if self.owners else "cached" if self.cached else "free"


@dataclass(frozen=True)
class Table:
    """A sequence's block table; `hit` are how many of its tokens it found in the pool, `new` the blocks that it got in
    this moment."""

    name: str
    blocks: tuple[int, ...]
    words: tuple[str, ...]
    hit: int
    new: tuple[int, ...] = ()


@dataclass(frozen=True)
class Moment:
    """The pool after something has happened: `head` says what, `tail` what follows from it."""

    head: str
    tail: str
    block_size: int
    blocks: tuple[Block, ...]
    tables: tuple[Table, ...]
    computed: int  # tokens whose keys and values were computed so far
    hit: int  # tokens that were found instead
    peak: int  # the most blocks that were in use at once
    copies: int
    evictions: int

    def count(self, state: str) -> int:
        return sum(block.state == state for block in self.blocks)


@dataclass
class _Sequence:
    table: object
    words: list[str]
    hit: int = 0


class Service:
    """Plays the script on a pool, and notes a `Moment` after each thing that happens.

    sharing    False: nothing is registered or looked up, and a fork computes its text again
    """

    def __init__(self, pool, *, sharing: bool = True):
        self.pool, self.sharing, self.size = pool, sharing, pool.block_size
        self.moments: list[Moment] = []
        self._live: dict[str, _Sequence] = {}
        self._contents: dict[int, list[str]] = {n: [] for n in range(1, pool.num_blocks)}
        self._texts: list[list[str]] = []
        self._written: dict[int, list[int]] = {}
        self._new: set[int] = set()
        self._copied: dict[int, int] = {}
        self._ids: dict[str, int] = {}
        self._computed = self._hit = self._peak = self._copies = self._evictions = 0

    def play(self) -> list[Moment]:
        blocks = self.pool.num_blocks - 1
        tail = f"{blocks} blocks of {self.size} slots are free. Block 0 is nobody's, and not shown."
        self._note("The pool is empty.", tail)
        for what, *arguments in SCRIPT:
            getattr(self, f"_{what}")(*arguments)
        return self.moments

    # What happens

    def _arrive(self, name: str, text: str) -> None:
        words = text.split()
        hit = self.pool.match(self._tokens(words)) if self.sharing else None
        found = hit.tokens if hit else 0
        table = self.pool.allocate(len(words), hit) if found else self.pool.allocate(len(words))
        self._live[name] = _Sequence(table, words, found)
        self._new |= set(table.blocks[found // self.size :])
        self._write(name, found)
        self._hit += found
        if found:
            blocks = _listed(table.blocks[: found // self.size])
            tail = f"{found} of its {len(words)} tokens are found, in {blocks}."
        else:
            tail = f"All of its {len(words)} tokens are computed."
        self._note(f"{name} comes in.", tail)

    def _fork(self, name: str, other: str) -> None:
        one = self._live[name]
        if self.sharing:
            table = self.pool.fork(one.table)
            self._live[other] = _Sequence(table, list(one.words), len(one.words))
            self._hit += len(one.words)
            self._note(
                f"{name} shall answer twice: {other} is a fork.",
                "No block is taken: every block of the table is shared, the half-full one, too.",
            )
        else:
            table = self.pool.allocate(len(one.words))
            self._live[other] = _Sequence(table, list(one.words))
            self._new |= set(table.blocks)
            self._write(other, 0)
            self._note(
                f"{name} shall answer twice: {other} is computed again.",
                f"All of its {len(one.words)} tokens, for nothing is shared.",
            )

    def _say(self, answers: dict[str, str]) -> None:
        """Decoding: each step gives every sequence that has not said everything one token."""
        left = {name: text.split() for name, text in answers.items()}
        while left:
            copies = []
            for name, words in left.items():
                one = self._live[name]
                before = len(one.table.blocks)
                made = list(self.pool.extend(one.table, len(one.words) + 1) or ())
                self._apply(made)
                copies += [(name, *copy) for copy in made]
                self._new |= set(one.table.blocks[before:])
                one.words.append(words.pop(0))
                self._write(name, len(one.words) - 1)
            left = {name: words for name, words in left.items() if words}
            tail = f"New: {_listed(sorted(self._new))}." if self._new else "There is room in the last block."
            if copies:
                tail = " ".join(
                    f"{name} would write into block {source}, which is shared: it is copied first, to block {target}."
                    for name, source, target in copies
                )
            self._note("Each gets a token." if len(self._written) > 1 else "One more token.", tail)

    def _leave(self, name: str) -> None:
        one = self._live.pop(name)
        self._texts.append(one.words)
        shared = [block.id for block in self.moments[-1].blocks if name in block.owners and len(block.owners) > 1]
        alone = [block.id for block in self.moments[-1].blocks if block.owners == (name,)]
        self.pool.free(one.table)
        findable = self._findable()
        cached, free = [n for n in alone if n in findable], [n for n in alone if n not in findable]
        parts = [
            f"{_listed(blocks).capitalize()} {words}."
            for blocks, words in (
                (shared, f"stay{'s' * (len(shared) == 1)} with others"),
                (cached, f"{'is' if len(cached) == 1 else 'are'} free, and kept until needed"),
                (free, f"{'is' if len(free) == 1 else 'are'} free"),
            )
            if blocks
        ]
        self._note(f"{name} is done.", " ".join(parts))

    # What is noted

    def _tokens(self, words: Sequence[str]) -> list[int]:
        return [self._ids.setdefault(word, len(self._ids)) for word in words]

    def _write(self, name: str, start: int) -> None:
        """The keys and values of a sequence's words from `start` on go into their slots, and full blocks are known."""
        one = self._live[name]
        for i in range(start, len(one.words)):
            block, place = one.table.blocks[i // self.size], i % self.size
            del self._contents[block][place:]
            self._contents[block].append(one.words[i])
            self._written.setdefault(block, []).append(place)
        self._computed += len(one.words) - start
        if self.sharing:
            self.pool.register(one.table, self._tokens(one.words), len(one.words))

    def _apply(self, copies) -> None:
        for source, target in copies:
            self._contents[target] = list(self._contents[source])
            self._copied[target] = source
            self._copies += 1

    def _findable(self) -> set[int]:
        """Blocks that a text which was there before would find, were it asked again."""
        if not self.sharing:
            return set()
        texts = [*self._texts, *(one.words for one in self._live.values())]
        return {block for words in texts for block in self.pool.match(self._tokens([*words, "…"])).blocks}

    def _blocks(self) -> list[Block]:
        findable = self._findable()
        before = {block.id: block for block in self.moments[-1].blocks} if self.moments else {}
        found = []
        for id, words in self._contents.items():
            owners = tuple(name for name, one in self._live.items() if id in one.table.blocks)
            evicted = id in before and before[id].state == "cached" and id in self._new
            found.append(
                Block(
                    id,
                    tuple(words) if owners or id in findable else (),
                    owners,
                    id in findable and not owners,
                    tuple(self._written.get(id, ())),
                    self._copied.get(id),
                    evicted,
                )  # fmt: skip
            )
        return found

    def _note(self, head: str, tail: str) -> None:
        blocks = self._blocks()
        evicted = [block.id for block in blocks if block.evicted]
        self._evictions += len(evicted)
        if evicted:
            tail += f" {_listed(evicted).capitalize()} was cached, the least recently used."
        tables = tuple(
            Table(
                name,
                tuple(one.table.blocks),
                tuple(one.words),
                one.hit,
                tuple(id for id in one.table.blocks if id in self._new or id in self._copied),
            )  # fmt: skip
            for name, one in self._live.items()
        )
        self._peak = max(self._peak, sum(bool(block.owners) for block in blocks))
        self.moments.append(
            Moment(
                head,
                tail,
                self.size,
                tuple(blocks),
                tables,
                self._computed,
                self._hit,
                self._peak,
                self._copies,
                self._evictions,
            )  # fmt: skip
        )
        self._written, self._new, self._copied = {}, set(), {}


def play(pool, *, sharing: bool = True) -> list[Moment]:
    """The moments of the small chat service on a pool that is empty."""
    return Service(pool, sharing=sharing).play()


def _listed(blocks: Sequence[int]) -> str:
    """Blocks in words: "block 3", "blocks 1, 2 and 5 to 8"."""
    runs: list[list[int]] = []
    for block in blocks:
        if runs and block == runs[-1][-1] + 1:
            runs[-1].append(block)
        else:
            runs.append([block])
    parts = [part for run in runs for part in ([f"{run[0]} to {run[-1]}"] if len(run) > 2 else map(str, run))]
    many = "blocks" if len(blocks) > 1 else "block"
    return f"{many} {', '.join(parts[:-1])} and {parts[-1]}" if len(parts) > 1 else f"{many} {parts[0]}"
