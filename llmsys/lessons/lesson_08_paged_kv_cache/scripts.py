"""Exercises (a) and (b) on plain data: a script of calls is played on a pool, and what came of each is handed back.

    play = played(Pool)
    play(num_blocks=5, block_size=4, script=[["allocate", "a", 6], ["free", "a"]])
    ["Pool(5, 4); 4 free", "a = allocate(6): blocks [1, 2], 6 tokens; 2 free", "free(a): blocks [], 0 tokens; 4 free"]

A script's calls, each a list; names are sequences, and stand for their tables:

    allocate NAME LENGTH     extend NAME LENGTH     free NAME     free_blocks
    free-in-another NAME     in a second pool, made like the first
    match TOKENS             begin NAME TOKENS: match, allocate, the model computes them, register
    admit NAME TOKENS        the same without registering           register NAME COMPUTED
    append NAME TOKENS       extend; copies are made, the tokens computed
    fork NAME NEW
    often allocate LENGTH    many times, each of which has no room    often match TOKENS: many times, unknown tokens
    free-a-stranger          a table that the pool did not make, where one was that it made and that nobody has any more

**What is computed** is played, too, in a memory that has for each slot the tokens up to its own: keys and values depend
on all of them. After each call, every table in use is read, and a slot that holds something else is reported.
"""

from collections.abc import Callable, Iterator

from llmsys.cache import BlockTable, OutOfBlocks, PrefixHit
from llmsys.lessons.lesson_08_paged_kv_cache.counted_work import growing
from llmsys.lessons.lesson_08_paged_kv_cache.kept import kept

OFTEN = 20


def played(make: Callable) -> Callable:
    """`make`, a class of pools, as a function of plain data.

    num_blocks    blocks of the pool; or two sizes, in a list: then the script is a word, a key of `LIVES`, and what
                  is handed back is a list of the calls that cost more steps in the larger pool
    told          what is said of each call: "all" of it; "lengths", the numbers of tokens and blocks, where it is the
                  pool's own affair which blocks they are; "tokens", those of a table, and nothing of hits
    colliding     the pool's `hash_block` says the same of everything
    """

    def run(*, num_blocks, block_size, script, told="all", colliding=False):
        if isinstance(num_blocks, list):
            return growing(lambda size: make(size, block_size), LIVES[script], tuple(num_blocks))
        play = _Play(lambda: make(num_blocks, block_size), block_size, told)
        if colliding:
            play.pool.hash_block = lambda before, tokens: b""
        lines = [f"Pool({num_blocks}, {block_size}){play.free()}"]
        for verb, *given in script:
            lines.append(play.told(verb, *given))
        return lines

    return run


class _Play:
    """A pool, the sequences that are in it, and the memory whose slots it hands out."""

    def __init__(self, make: Callable, block_size: int, told: str):
        self.make, self.pool, self.block_size, self.in_words = make, make(), block_size, told
        self.tables: dict[str, BlockTable] = {}
        self.texts: dict[str, list[int]] = {}  # the tokens of each sequence that is in use
        self.memory: dict[int, tuple[int, ...]] = {}  # of each slot, the tokens up to its own
        for name in ("allocate", "extend", "free", "match", "register", "fork"):
            if not callable(getattr(self.pool, name, len)):
                kind = type(getattr(self.pool, name)).__name__
                raise TypeError(f"self.{name} is a {kind}, which hides the method {name}: give it another name")

    def told(self, verb: str, *given) -> str:
        """The call, and what came of it, in a line."""
        shown = [_short(each) if isinstance(each, list) else each for each in given]
        maker = verb in ("allocate", "begin", "admit")
        call = f"{shown[0]} = {verb}({shown[1]})" if maker else f"{verb}({', '.join(map(str, shown))})"
        if verb == "fork":
            call = f"{given[1]} = fork({given[0]})"
        if not maker and verb not in ("match", "often") and given and given[0] not in self.tables:
            return f"{call}: there is no {given[0]}"
        try:
            said = getattr(self, "_" + verb.replace("-", "_"))(*given)
        except OutOfBlocks:
            said = "OutOfBlocks"
        except ValueError:
            said = "ValueError"
        return f"{call}: {said}{self.free()}{self._misread()}"

    def free(self) -> str:
        """How many blocks are free, as the end of a line."""
        return "" if self.in_words == "tokens" else f"; {self.pool.free_blocks} free"

    def _table(self, name: str, *, before: str = "") -> str:
        table = self.tables[name]
        blocks = [int(block) for block in table.blocks]
        shown = {"all": f"blocks {blocks}, ", "lengths": f"{len(blocks)} blocks, ", "tokens": ""}[self.in_words]
        return f"{before if self.in_words != 'tokens' else ''}{shown}{int(table.length)} tokens"

    def _made(self, name: str, table: object, method: str) -> None:
        if not isinstance(table, BlockTable):
            raise TypeError(f"{method} must return a BlockTable, got {type(table).__name__}")
        self.tables[name] = table

    # Exercise (a)

    def _allocate(self, name: str, length: int) -> str:
        self._made(name, self.pool.allocate(length), "allocate")
        return self._table(name)

    def _extend(self, name: str, length: int) -> str:
        try:
            self.pool.extend(self.tables[name], length)
        except (OutOfBlocks, ValueError) as error:  # the table must be as it was
            return f"{'OutOfBlocks' if isinstance(error, OutOfBlocks) else 'ValueError'}, {self._table(name)}"
        return self._table(name)

    def _free(self, name: str) -> str:
        self.pool.free(self.tables[name])
        self.texts.pop(name, None)
        return self._table(name)

    def _free_in_another(self, name: str) -> str:
        other = self.make()
        before = other.free_blocks
        try:
            other.free(self.tables[name])
        except ValueError:
            return f"ValueError, {self._table(name)}, {other.free_blocks - before} more are free there"
        return f"no error, {other.free_blocks - before} more are free there"

    def _free_blocks(self) -> str:
        return "asked"

    def _free_a_stranger(self) -> str:
        self.pool.allocate(1)  # nobody has this table, and its place in memory may be another's soon
        strangers = [BlockTable([1], 1) for _ in range(OFTEN)]
        refused = 0
        for each in strangers:
            try:
                self.pool.free(each)
            except ValueError:
                refused += 1
        return f"{refused} of {OFTEN} strangers are refused"

    def _often(self, verb: str, given) -> str:
        """Calls after which the pool should keep as much as before."""
        before = kept(self.pool)
        for n in range(OFTEN):
            try:
                if verb == "match":
                    self._hit([1000 + n, *given])
                else:
                    getattr(self.pool, verb)(given)
            except OutOfBlocks:
                pass
        more = kept(self.pool) - before
        return f"{OFTEN} times; the pool keeps {f'{more:+} elements' if more else 'as much as before'}"

    # Exercise (b)

    def _match(self, tokens: list[int]) -> str:
        hit = self._hit(tokens)
        if self.in_words == "tokens":
            return "asked"
        where = f" in {[int(block) for block in hit.blocks]}" if self.in_words == "all" else ""
        return f"{int(hit.tokens)} tokens{where}"

    def _begin(self, name: str, tokens: list[int]) -> str:
        said = self._admit(name, tokens)
        self.pool.register(self.tables[name], tokens, len(tokens))
        return said

    def _admit(self, name: str, tokens: list[int]) -> str:
        hit = self._hit(tokens)
        self._made(name, self.pool.allocate(len(tokens), hit), "allocate")
        self.texts[name] = list(tokens)
        self._compute(name, int(hit.tokens))
        return self._table(name, before=f"hits {int(hit.tokens)} tokens, ")

    def _register(self, name: str, computed: int) -> str:
        text = self.texts.get(name, [])
        self.pool.register(self.tables[name], text, min(computed, len(text)))  # less where a call had no room
        return "done"

    def _append(self, name: str, tokens: list[int]) -> str:
        table = self.tables[name]
        start = int(table.length)
        try:
            copies = self.pool.extend(table, start + len(tokens))
        except (OutOfBlocks, ValueError) as error:
            return f"{'OutOfBlocks' if isinstance(error, OutOfBlocks) else 'ValueError'}, {self._table(name)}"
        if not isinstance(copies, (list, tuple)):
            raise TypeError(f"extend must return a list of copies, empty where there are none; got "
                            f"{type(copies).__name__}")  # fmt: skip
        pairs = [(int(source), int(target)) for source, target in copies]
        for source, target in pairs:
            for n in range(self.block_size):
                self.memory[target * self.block_size + n] = self.memory.get(source * self.block_size + n, ())
        self.texts[name] += tokens
        self._compute(name, start)
        shown = ", ".join(f"{source} to {target}" for source, target in pairs) if self.in_words == "all" else len(pairs)
        return self._table(name, before=f"copies {shown}, " if pairs else "")

    def _fork(self, name: str, new: str) -> str:
        self._made(new, self.pool.fork(self.tables[name]), "fork")
        if name in self.texts:
            self.texts[new] = list(self.texts[name])
        return self._table(new)

    # What the model does

    def _hit(self, tokens: list[int]) -> PrefixHit:
        hit = self.pool.match(tokens)
        if not isinstance(hit, PrefixHit):
            raise TypeError(f"match must return a PrefixHit, got {type(hit).__name__}")
        return hit

    def _slot(self, name: str, i: int) -> int:
        return self.tables[name].blocks[i // self.block_size] * self.block_size + i % self.block_size

    def _compute(self, name: str, start: int) -> None:
        """Keys and values of a sequence's tokens from `start` on."""
        for i in range(start, len(self.texts[name])):
            self.memory[self._slot(name, i)] = tuple(self.texts[name][: i + 1])

    def _misread(self) -> str:
        """What a sequence would find in a slot that is not its own token's."""
        for name, text in self.texts.items():
            for i in range(len(text)):
                if self.memory.get(self._slot(name, i)) != tuple(text[: i + 1]):
                    return f"; the keys and values of {name}'s token {i} are gone: another one's are there"
        return ""


def _short(tokens: list[int]) -> str:
    """Tokens in a few characters: all of them, or both ends."""
    return str(tokens) if len(tokens) <= 10 else f"{str(tokens[:4])[:-1]}, …, {str(tokens[-3:])[1:]}"


# Lives whose calls are counted


def _plain_life(pool: object) -> Iterator[tuple[str, Callable]]:
    """A sequence in a pool of which much is free, then one in a pool that is full of others."""
    size = pool.block_size
    for case in ("many free blocks", "many tables"):
        count = 3 if case == "many free blocks" else pool.free_blocks // 5 - 4
        tables = [pool.allocate(5 * size) for _ in range(count)]
        made = [pool.allocate(size)]
        yield f"free_blocks with {case}", lambda: pool.free_blocks
        yield f"allocate with {case}", lambda made=made: made.append(pool.allocate(8 * size))
        yield f"extend with {case}", lambda made=made: pool.extend(made[1], 12 * size)
        yield f"free with {case}", lambda made=made: pool.free(made[0])
        yield f"free with {case}", lambda made=made: pool.free(made[1])
        yield f"free with {case}", lambda tables=tables: pool.free(tables[len(tables) // 2])


def _sharing_life(pool: object) -> Iterator[tuple[str, Callable]]:
    """A full pool: half of its blocks in use, the others cached, so that a hit is in the middle, and each new block an
    eviction."""
    size, tables = pool.block_size, []
    texts = [[n, *range(2 * size - 1)] for n in range((pool.num_blocks - 1) // 2)]
    for text in texts:
        tables.append(pool.allocate(2 * size, pool.match(text)))
        pool.register(tables[-1], text, 2 * size)
    if pool.free_blocks:
        pool.allocate(pool.free_blocks * size)
    for table in tables[::2]:
        pool.free(table)
    text = [*texts[len(texts) // 4 * 2], *range(10 * size)]
    made = []
    yield "match", lambda: made.append(pool.match(text))
    yield "allocate", lambda: made.append(pool.allocate(8 * size - 1, made[0]))
    yield "register", lambda: pool.register(made[1], text, 7 * size)
    yield "fork", lambda: made.append(pool.fork(made[1]))
    yield "extend", lambda: pool.extend(made[2], 9 * size)
    yield "free", lambda: pool.free(made[1])
    yield "free", lambda: pool.free(made[2])


def _long_life(pool: object) -> Iterator[tuple[str, Callable]]:
    """A sequence that has a third of the pool, is known but for its last block, and becomes known to its end."""
    size, blocks = pool.block_size, pool.num_blocks // 3
    text = list(range((blocks + 1) * size))
    table = pool.allocate(blocks * size, pool.match(text))
    pool.register(table, text, blocks * size)
    pool.extend(table, (blocks + 1) * size)
    yield "register of a sequence that is known but for its last block", lambda: pool.register(table, text, len(text))


LIVES = {"plain": _plain_life, "sharing": _sharing_life, "long": _long_life}
