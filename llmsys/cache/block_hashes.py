"""What a block holds, by its content: how a prefix that was computed once is found again.

Keys and values of a token depend on every token before it. So a block of `block_size` tokens is the same as another one
only if all that comes before it is the same, too, and its hash is chained:

    hash_i = H(hash_(i−1), tokens of block i)        hash_(−1) = H(salt)

Equal chains have equal hashes, so finding the longest cached prefix is one look-up a block, from the left, up to the
first miss. The *salt* keeps apart what must not be shared although the tokens are equal: keys and values under another
adapter's weights, or another tenant's (who could otherwise learn from the time to the first token what was asked
before).

**A hash is a hint, and the tokens decide.** Two chains may have one hash, by chance or by somebody's intent. A hit
therefore compares the block's own tokens, and what came before: a `Prefix` points to the `Prefix` before it, which has
been compared already, so this is one test of identity and the whole chain is exact. (Comparing tokens alone would not
do: the two chains A X and B X with H(A) = H(B) have one hash and one last block.) vLLM keeps no tokens and relies on
SHA-256 instead; here a short hash is enough.

Two sequences that run side by side may both compute one prefix. Then two blocks hold it, and either serves a hit; when
one is evicted, the other remains.
"""

import hashlib
import struct
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

BlockHash = Callable[[Hashable, tuple], Hashable]
"""(the hash before, the block's tokens) → the block's hash."""


@dataclass(eq=False, slots=True)
class Prefix:
    """The tokens of a block and everything before them. There is one object for each content that some block holds."""

    before: "Prefix | str | None"  #  of the first block: the salt
    tokens: tuple  #  or, in a simulation, what says which they are
    hash: Hashable
    blocks: OrderedDict[int, None] = field(default_factory=OrderedDict)  #  that hold it; the free ones first
    slot: int | None = None  #  of the host's memory, where the pool has a host tier and that holds it, too

    @property
    def held(self) -> bool:
        """Somewhere."""
        return bool(self.blocks) or self.slot is not None


def block_hash(before: bytes, tokens: tuple[int, ...]) -> bytes:
    """The hash, 16 bytes, of a block whose predecessor has the hash `before`. It is the same in every process, so that
    workers can tell each other what they hold. ValueError for tokens that are no 64-bit integers."""
    try:
        packed = struct.pack(f"<{len(tokens)}q", *tokens)
    except struct.error as error:
        raise ValueError(f"tokens must be integers of at most 64 bits, as a tokenizer's ids are; got {error}") from None
    return hashlib.blake2b(before + packed, digest_size=16).digest()


def salt_hash(salt: str | None) -> bytes:
    """What the chain of a sequence begins with."""
    if salt is None:
        return bytes(16)
    if not isinstance(salt, str):
        raise ValueError(f"salt must be a string, as an adapter's or a tenant's name is, or None, got {salt!r}")
    return hashlib.blake2b(salt.encode(errors="surrogatepass"), digest_size=16).digest()


class PrefixIndex:
    """Which block holds which prefix. A look-up's time does not depend on the number of blocks, unless hashes collide.

    `hash_block` is there to be replaced where collisions are to be seen: with `lambda before, tokens: b""` all hashes
    are equal, and the hits are the same.
    """

    def __init__(self, hash_block: BlockHash = block_hash):
        self._hash_block = hash_block
        self._by_hash: dict[Hashable, list[Prefix]] = {}  # one each, unless hashes collide
        self._by_block: dict[int, Prefix] = {}

    def __contains__(self, block: int) -> bool:
        return block in self._by_block

    def of(self, block: int) -> Prefix | None:
        """What the block is known to hold."""
        return self._by_block.get(block)

    def find(self, before: Prefix | str | None, tokens: tuple) -> Prefix | None:
        """The prefix that is held: these tokens after `before`, a prefix that was found, or a salt."""
        prefix = self.describe(before, tokens)
        return prefix if prefix.held else None

    def describe(self, before: Prefix | str | None, tokens: tuple) -> Prefix:
        """The same, or a new prefix that is not held yet. Changes nothing."""
        start = before.hash if isinstance(before, Prefix) else salt_hash(before)
        hashed = self._hash_block(start, tokens)
        for each in self._by_hash.get(hashed, ()):
            if each.before == before and each.tokens == tokens:  # prefixes are equal if they are the same object
                return each
        return Prefix(before, tokens, hashed)

    def hold(self, block: int, prefix: Prefix) -> None:
        """From now on the block, which is in use, holds the prefix."""
        if not prefix.held:
            self._by_hash.setdefault(prefix.hash, []).append(prefix)
        prefix.blocks[block] = None
        self._by_block[block] = prefix

    def forget(self, block: int) -> None:
        """The block will be overwritten. A prefix that is not held any more is gone, too."""
        prefix = self._by_block.pop(block)
        del prefix.blocks[block]
        self._let_go(prefix)

    def hold_on_host(self, slot: int, prefix: Prefix) -> None:
        """From now on the host's slot holds the prefix, which some block still holds."""
        prefix.slot = slot

    def forget_on_host(self, prefix: Prefix) -> None:
        """It will be overwritten there."""
        prefix.slot = None
        self._let_go(prefix)

    def _let_go(self, prefix: Prefix) -> None:
        if not prefix.held:
            alike = self._by_hash[prefix.hash]
            alike.remove(prefix)
            if not alike:
                del self._by_hash[prefix.hash]

    def put_last(self, block: int) -> None:
        """The block is free now: others that hold the same, and may be in use, serve hits before it does."""
        self._by_block[block].blocks.move_to_end(block, last=False)

    @staticmethod
    def block_of(prefix: Prefix) -> int | None:
        """A block that holds the prefix. One that is in use, if there is one, for to share that costs no room. None
        where the host alone holds it."""
        return next(reversed(prefix.blocks), None)
