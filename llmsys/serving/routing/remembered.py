"""What engines have in their prefix caches, guessed from what they were sent.

    sent = Remembered(block_size=16, rooms={"prefill 0": 60_000, "prefill 1": 60_000})
    sent.note("prefill 0", tokens)                       it was given a request with these tokens
    sent.hits(["prefill 0", "prefill 1"], others)        [48, 0]: of these tokens, the leading ones that each has seen

Who sends requests to engines in other processes cannot look into their caches. It can be told of each block that comes
and goes, which is exact and a message a block; or it remembers, for each engine, the blocks of tokens that it sent
there, as many as there is room for, and takes the ones that it sent longest ago for evicted. A wrong guess costs a
prefix that is computed again, and no wrong token: the engine looks for itself.

Here it is the second. (Dynamo's router has both; SGLang's keeps a tree of texts, the same guess.)

A block is remembered by a hash of its tokens, and of all before them, so a hit ends at the first block that was not
sent. Python's own hash will do: two prefixes that collide are a wrong guess.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence

from llmsys.models.sampling import whole_number


class Remembered:
    """Which blocks of tokens each engine was sent last.

    Parameters
    ----------
    block_size
        Tokens of a block.
    rooms
        Engine → tokens that its cache has slots for.
    """

    def __init__(self, block_size: int, rooms: Mapping[str, int]):
        self.block_size = whole_number("block_size", block_size, at_least=1)
        self._most = {name: room // block_size for name, room in rooms.items()}
        self._blocks: dict[str, OrderedDict[int, None]] = {name: OrderedDict() for name in rooms}  # oldest first

    def note(self, name: str, tokens: Sequence[int], *, salt: str | None = None) -> None:
        """An engine was given these tokens to compute, or to keep. LookupError for a name that is not known."""
        blocks = self._blocks[name]
        for key in reversed(list(self._keys(tokens, salt))):  # a head is of use without its tail, and not otherwise
            blocks[key] = None
            blocks.move_to_end(key)
        while len(blocks) > self._most[name]:
            blocks.popitem(last=False)

    def hits(self, names: Sequence[str], tokens: Sequence[int], *, salt: str | None = None) -> list[int]:
        """Of these tokens, the leading ones that each engine has been sent: whole blocks, short of the last token."""
        found = dict.fromkeys(names, 0)
        having = list(found)
        for number, key in enumerate(self._keys(tokens[:-1], salt), 1):
            having = [name for name in having if key in self._blocks[name]]
            if not having:
                break
            found |= dict.fromkeys(having, number * self.block_size)
        return [found[name] for name in names]

    def forget(self, name: str) -> None:
        """An engine's cache is lost."""
        self._blocks[name].clear()

    def _keys(self, tokens: Sequence[int], salt: str | None) -> Iterator[int]:
        size, key = self.block_size, hash(salt)
        for start in range(0, len(tokens) - size + 1, size):
            key = hash((key, tuple(tokens[start : start + size])))
            yield key
