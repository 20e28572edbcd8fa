"""Keys and values between caches that are cut differently: other block sizes, other splits of the heads.

On the way, keys and values lie in **rows**, one a token, which know of no block: (T, Hkv, Dk + Dv), a token's keys and
behind them its values. Who sends reads rows out of its pages, who receives writes them into its own, and neither has
to know how the other one's blocks are cut:

    rows = read_rows(keys, values, slots_of(blocks, block_size, start, stop))       there
    write_rows(rows, keys, values, slots_of(blocks, block_size, start, stop))       here: other blocks, another size

**Heads.** Where attention is spread over n ranks, each keeps Hkv/n of the heads, or where n is more than Hkv, one head
that n/Hkv ranks keep alike. From n ranks to m, `head_moves` says which heads of whom go where; each of the m gets every
head of its own once. A move's rows are read and written by the same two functions, of these heads alone:

    for move in head_moves(heads, senders, receivers):
        rows = read_rows(keys, values, slots, heads=move.theirs)              on rank move.sender
        write_rows(rows, keys, values, slots, heads=move.ours)                on rank move.receiver

DeepSeek serves the two phases with different parallelism (https://arxiv.org/abs/2412.19437, section 3.4). The engines
here keep all heads on one rank each, so what they push is one move of all heads from one to one; the other splits are
for who spreads a model over ranks.

`relay` is all of it in one, from pages to pages: what a transfer must come to, however it is done.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Int, Shaped
from torch import Tensor

ALL = slice(None)


def slots_of(blocks: Sequence[int], block_size: int, start: int, stop: int) -> Int[Tensor, " T"]:
    """The slots of a sequence's tokens from `start` to below `stop`: blocks[i // block_size] · block_size + i %
    block_size for token i. int64, in CPU memory.

    ValueError where the range is none, or the blocks do not hold it.
    """
    if block_size < 1:
        raise ValueError(f"block_size must be at least 1 token, got {block_size}")
    if not 0 <= start <= stop <= len(blocks) * block_size:
        raise ValueError(
            f"start and stop must be a range of the {len(blocks)} blocks' {len(blocks) * block_size} tokens, "
            f"got {start} and {stop}"
        )
    first = start // block_size  # a chunk of a long prompt is told by its own blocks
    ids = torch.tensor(blocks[first : -(-stop // block_size)], dtype=torch.int64)
    tokens = torch.arange(start, stop)
    return ids[tokens // block_size - first] * block_size + tokens % block_size


def read_rows(
    keys: Shaped[Tensor, "blocks size Hkv Dk"],
    values: Shaped[Tensor, "blocks size Hkv Dv"] | None,
    slots: Int[Tensor, " T"],
    *,
    heads: slice = ALL,
) -> Shaped[Tensor, "T H D"]:
    """The rows in these slots, a copy: D is Dk + Dv, or Dk where `values` is None because they are in the keys.

    heads      of which of the pages' heads
    """
    slots = slots.to(keys.device, non_blocking=True)
    parts = [pages.flatten(0, 1)[:, heads].index_select(0, slots) for pages in (keys, values) if pages is not None]
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim=2)


def write_rows(
    rows: Shaped[Tensor, "T Hkv D"],
    keys: Shaped[Tensor, "blocks size Hkv Dk"],
    values: Shaped[Tensor, "blocks size Hkv Dv"] | None,
    slots: Int[Tensor, " T"],
    *,
    heads: slice = ALL,
) -> None:
    """Writes rows into these slots, of these heads. ValueError where they are not of as many heads, or of other sizes
    than the pages'."""
    Dk, Dv = keys.shape[3], 0 if values is None else values.shape[3]
    expected = (len(slots), len(range(*heads.indices(keys.shape[2]))), Dk + Dv)
    if tuple(rows.shape) != expected or rows.dtype != keys.dtype:
        raise ValueError(
            f"rows must be (T, H, Dk + Dv) = {expected} in {keys.dtype}, got {tuple(rows.shape)} in {rows.dtype}"
        )
    slots = slots.to(keys.device, non_blocking=True)
    keys.flatten(0, 1)[:, heads].index_copy_(0, slots, rows[..., :Dk])
    if values is not None:
        values.flatten(0, 1)[:, heads].index_copy_(0, slots, rows[..., Dk:])


class HeadMove(NamedTuple):
    """Heads that go from one rank to another: `count` of them, from number `there` of the sender's on to number `here`
    of the receiver's on."""

    sender: int
    receiver: int
    there: int
    here: int
    count: int

    @property
    def theirs(self) -> slice:
        """Of the sender's heads."""
        return slice(self.there, self.there + self.count)

    @property
    def ours(self) -> slice:
        """Of the receiver's heads."""
        return slice(self.here, self.here + self.count)


def head_moves(heads: int, senders: int, receivers: int) -> list[HeadMove]:
    """What each of `receivers` ranks gets from which of `senders`, so that it has all heads of its own, once each.

    Where several senders keep a head alike, the receivers are spread over them. ValueError where the heads cannot be
    split so many ways: one must be a multiple of the other.
    """
    if heads < 1:
        raise ValueError(f"heads must be at least 1, got {heads}")
    theirs, ours = _split(heads, senders, "senders"), _split(heads, receivers, "receivers")
    moves = []
    for receiver, wanted in enumerate(ours):
        head = wanted.start
        while head < wanted.stop:
            holders = [sender for sender, held in enumerate(theirs) if head in held]
            sender = holders[receiver % len(holders)]
            count = min(wanted.stop, theirs[sender].stop) - head
            moves.append(HeadMove(sender, receiver, head - theirs[sender].start, head - wanted.start, count))
            head += count
    return moves


def relay(
    pages: Sequence[Shaped[Tensor, "blocks size H D"]],
    tokens: int,
    *,
    heads: int,
    block_size: int,
    parts: int,
) -> list[Shaped[Tensor, "blocks size H D"]]:
    """A sequence's pages, in order and split over len(pages) ranks, laid anew in blocks of `block_size` for `parts`.

    Parameters
    ----------
    pages
        Of each rank that sends: the sequence's blocks in their order, with that rank's heads.
    tokens
        Of the sequence. What lies behind them in the last block is not looked at.
    heads
        In all.

    Returns
    -------
    Of each rank that receives, its heads in ⌈tokens / block_size⌉ blocks; 0 behind the last token.

    Raises
    ------
    ValueError
        A number is below 1, the heads cannot be split so, or the pages are not these heads', or too few.
    """
    for name, value in (("tokens", tokens), ("block_size", block_size)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if not pages:
        raise ValueError("pages must be of one rank at least")
    moves, share = head_moves(heads, len(pages), parts), max(1, heads // len(pages))
    for sender, each in enumerate(pages):
        if each.dim() != 4 or each.shape[2] != share or each.shape[0] * each.shape[1] < tokens:
            raise ValueError(
                f"pages[{sender}] must be (blocks, size, H, D) with H = {share} heads and room for {tokens} tokens, "
                f"got {tuple(each.shape)}"
            )
    blocks, D, first = -(-tokens // block_size), pages[0].shape[3], torch.arange(tokens)
    laid = [pages[0].new_zeros(blocks, block_size, max(1, heads // parts), D) for _ in range(parts)]
    for move in moves:  # the sequence's blocks lie in their order, so a token's slot is its number
        rows = read_rows(pages[move.sender], None, first, heads=move.theirs)
        write_rows(rows, laid[move.receiver], None, first, heads=move.ours)
    return laid


def _split(heads: int, parts: int, name: str) -> list[range]:
    """Which heads each of so many ranks keeps."""
    if parts < 1 or (heads % parts and parts % heads):
        raise ValueError(
            f"{name} must be at least 1, and divide the {heads} heads or be a multiple of them, got {parts}: "
            "a rank keeps whole heads, as many as any other"
        )
    if parts <= heads:
        share = heads // parts
        return [range(i * share, (i + 1) * share) for i in range(parts)]
    return [range(i * heads // parts, i * heads // parts + 1) for i in range(parts)]
