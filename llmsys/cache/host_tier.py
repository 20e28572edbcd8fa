"""The host tier: where evicted blocks go, and from where they come back. Ids and tokens only, as in the block pool.

A pool that is full evicts: the least recently used of the cached blocks is written over, and who asks for its prefix
again has to compute it. Main memory is larger than a GPU's. Reaching it takes long, but often not as long as computing:

    evicted       block 7 ──► slot 3     CopyOut(7, 3), before a step writes block 7
    hit again     slot 3 ──► block 9     CopyIn(3, 9), before a step reads block 9

The pool says which block is evicted and which slot is hit, and this file which slot takes it, and which copies are to
be made (`copies`): they go into a step's plan, in one order with those of copy on write, for a block may be all of
source, target, evicted and hit within one plan.

**A content is one `Prefix`**, wherever it lies: `Prefix.blocks` on the device, `Prefix.slot` here. So a prefix of which
some blocks are on the device and some are here is found by one look-up a block, from the left.

**A slot keeps its content when that goes back to the device.** It cannot change, so when the device evicts it again
there is nothing to copy: a prefix that goes to and fro crosses the link once outwards, and once inwards each time. The
price is that what is in use on the device may lie here as well; it is the first to go, for the order of reuse is

    a slot that holds nothing; else the one whose content was evicted from the device, or taken back, longest ago

and within one table the tail goes before the head, as on the device, because that is how the device evicts it.

**Which hits come back** is a rule's to say (`TakesBack`), which is told how many tokens need not be computed, and how
many blocks must be copied for that. They come all or none. (`llmsys.serving.host_cache` has the rule that knows devices
and models.)

In vLLM this is OffloadingConnector with CPUOffloadingSpec; the idea of a cheaper tier for conversations that pause is
CachedAttention's, https://arxiv.org/abs/2403.19708.
"""

from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from llmsys.cache.block_hashes import Prefix, PrefixIndex
from llmsys.cache.block_table import Copy, CopyIn, CopyOut


class Offer(NamedTuple):
    """What could come back for a sequence."""

    start: int
    """Tokens that are on the device."""
    end: int
    """Tokens that would be if the blocks came back; the computing then begins here, and not at `start`."""
    known: int
    """Tokens of the sequence in all, so what is computed ends here."""
    blocks: int
    """Blocks to be copied: fewer than those from `start` to `end` where some of these are on the device."""


TakesBack = Callable[[Offer], bool]


def always(offer: Offer) -> bool:
    """The rule that takes back whatever there is."""
    return True


@dataclass(frozen=True)
class HostStats:
    """A tier's state (in blocks) and what happened so far."""

    blocks: int
    held: int
    stored: int  #  copied out
    returned: int  #  copied in
    dropped: int  #  to make room for others


class HostTier:
    """Slots in main memory, and which evicted block each holds. Made by `BlockPool(host_blocks=…)`, used by it alone.

    Parameters
    ----------
    blocks
        How many slots there are, at least 1.
    block_size
        Tokens in a block.
    index
        The pool's.
    takes_back
        Which hits are worth their copies.
    """

    def __init__(self, blocks: int, block_size: int, index: PrefixIndex, takes_back: TakesBack = always):
        if isinstance(blocks, bool) or not isinstance(blocks, int) or blocks < 1:
            raise ValueError(f"host_blocks must be a whole number of at least 1, or 0 for no host tier, got {blocks!r}")
        self.blocks, self.block_size = blocks, block_size
        self._index, self._takes_back = index, takes_back
        self._empty = list(range(blocks - 1, -1, -1))  # a stack: slot 0 is taken first
        self._held: OrderedDict[int, Prefix] = OrderedDict()  # by slot; the first to go first
        self._copies: list[CopyOut | CopyIn] = []  # that no plan has yet
        self._stored = self._returned = self._dropped = 0

    @property
    def stats(self) -> HostStats:
        return HostStats(self.blocks, len(self._held), self._stored, self._returned, self._dropped)

    def contents(self) -> dict[int, Prefix]:
        """What each slot holds, the first to be reused first."""
        return dict(self._held)

    def copies(self) -> list[CopyOut | CopyIn]:
        """Those to be made before the next step writes anything, in this order; each is said once."""
        if not self._copies:
            return []
        copies, self._copies = self._copies, []
        return copies

    # What the pool says

    def worthwhile(self, prefixes: list[Prefix], known: int) -> list[Prefix]:
        """Of a sequence of `known` tokens, the prefixes that were found: all of them, or those before the first that
        would have to come back. Changes nothing."""
        first = next((n for n, each in enumerate(prefixes) if not each.blocks), None)
        if first is None:
            return prefixes
        size, absent = self.block_size, sum(not each.blocks for each in prefixes)
        offer = Offer(first * size, len(prefixes) * size, known, absent)
        return prefixes if self._takes_back(offer) else prefixes[:first]

    def keep(self, block: int, prefix: Prefix) -> None:
        """The device's block is about to be evicted. Nothing is copied where its content lies elsewhere, too."""
        if prefix.slot is not None:
            self._held.move_to_end(prefix.slot)
        elif len(prefix.blocks) == 1 and (self._empty or self._held):
            slot = self._empty.pop() if self._empty else self._drop_oldest()
            self._held[slot] = prefix
            self._index.hold_on_host(slot, prefix)
            self._copies.append(CopyOut(block, slot))
            self._stored += 1

    def lock(self, prefixes: Sequence[Prefix]) -> None:
        """These are about to come back, until `bring_back`: what is evicted to make room for them is not to go into
        their slots."""
        for each in prefixes:
            del self._held[each.slot]

    def bring_back(self, prefixes: Sequence[Prefix], blocks: Sequence[int]) -> None:
        """Locked ones come back, each to a block: the head, which others may share, is the last to go from here."""
        self._copies += [CopyIn(prefix.slot, block) for prefix, block in zip(prefixes, blocks, strict=True)]
        self._held.update((each.slot, each) for each in reversed(prefixes))
        self._returned += len(blocks)

    def forget(self, slot: int) -> None:
        """What the slot holds is not to be believed."""
        if (prefix := self._held.pop(slot, None)) is not None:
            self._index.forget_on_host(prefix)
            self._empty.append(slot)

    def _drop_oldest(self) -> int:
        slot, prefix = self._held.popitem(last=False)
        self._index.forget_on_host(prefix)
        self._dropped += 1
        return slot


def counted(copies: Sequence[Copy | CopyOut | CopyIn]) -> tuple[int, int]:
    """How many of a plan's copies go to the host, and how many come from there."""
    kinds = [type(each) for each in copies]
    return kinds.count(CopyOut), kinds.count(CopyIn)
