"""Attention over pages in plain PyTorch: gather what a sequence has kept, and attend with any stage.

It is the definition of `paged_attention`, what kernels are tested against, and what runs where there is no GPU. A
table of blocks is only an index: once K and V of a sequence lie in a row again, attention is what it always was. A
kernel differs in one thing: it reads the pages where they are, and copies nothing.

The lengths are read on the host here, so on a GPU this waits.
"""

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from llmsys.attention.contract import Attention
from llmsys.attention.naive import naive_attention
from llmsys.attention.paged.arguments import check_pages, check_step, check_written


def write_pages_reference(
    k: Shaped[Tensor, "N Hkv Dk"],
    v: Shaped[Tensor, "N Hkv Dv"] | None,
    key_pages: Shaped[Tensor, "blocks P Hkv Dk"],
    value_pages: Shaped[Tensor, "blocks P Hkv Dv"] | None,
    slot_mapping: Int[Tensor, " N"],
) -> None:
    """Write token n's key and value into slot slot_mapping[n], nowhere where that is −1. On the CPU."""
    check_written(k, v, key_pages, value_pages, slot_mapping)
    slots = slot_mapping.cpu().numpy()
    kept = torch.from_numpy(np.flatnonzero(slots >= 0)).to(k.device)
    page, place = (torch.from_numpy(x[slots >= 0]).to(k.device) for x in np.divmod(slots, key_pages.shape[1]))
    for x, pages in ((k, key_pages), (v, value_pages)):
        if x is not None:
            pages.index_put_((page, place), x.index_select(0, kept))


def gather_pages(
    pages: Shaped[Tensor, "blocks P H D"], blocks: Int[Tensor, " M"], length: int
) -> Shaped[Tensor, "length H D"]:
    """What the first `length` slots of these blocks hold, in order, as a copy. Blocks beyond those are not looked at.

    Raises ValueError where there are too few blocks, or one is not there.
    """
    num_blocks, block_size = pages.shape[:2]
    needed = -(-length // block_size)
    if needed > len(blocks):
        raise ValueError(f"blocks must be {needed} at least for {length} tokens in pages of {block_size}, got {blocks}")
    used = blocks[:needed].cpu()
    if needed and not (0 <= used.numpy().min() and used.numpy().max() < num_blocks):
        raise ValueError(f"blocks must be from 0 to {num_blocks - 1}, got {used.tolist()}")
    return pages.index_select(0, used.to(pages.device)).flatten(0, 1)[:length]


def paged_attention_reference(
    q: Float[Tensor, "N Hq Dk"],
    key_pages: Float[Tensor, "blocks P Hkv Dk"],
    value_pages: Float[Tensor, "blocks P Hkv Dv"],
    *,
    query_start_loc: Int[Tensor, " S1"],
    seq_lens: Int[Tensor, " S"],
    block_table: Int[Tensor, "S M"],
    max_query_len: int = 0,
    max_seq_len: int = 0,
    scale: float | None = None,
    tree_mask: Bool[Tensor, "N W"] | None = None,
    return_lse: bool = False,
    stage: Attention = naive_attention,
) -> Float[Tensor, "N Hq Dv"] | tuple[Float[Tensor, "N Hq Dv"], Float[Tensor, "N Hq"]]:
    """Attention over pages, one sequence after the other. The contract is `llmsys.attention.paged.arguments`'s.

    `stage` attends, called with (1, H, T, D). `max_query_len` and `max_seq_len` are not needed.
    """
    check_pages(q, key_pages, value_pages, scale=scale)
    check_step(q, query_start_loc, seq_lens, block_table, tree_mask)
    N, Hq, _ = q.shape
    o = q.new_zeros(N, Hq, value_pages.shape[3])
    lse = q.new_full((N, Hq), float("-inf"), dtype=torch.float32)
    starts, lengths = query_start_loc.tolist(), seq_lens.tolist()
    tree = None if tree_mask is None else tree_mask.cpu().numpy()
    # A learner's stage may know neither: they are passed on only where they are asked for.
    options = ({} if scale is None else {"scale": scale}) | ({"return_lse": True} if return_lse else {})
    for start, end, length, blocks in zip(starts[:-1], starts[1:], lengths, block_table, strict=True):
        if start == end:
            continue
        k, v = (gather_pages(pages, blocks, length) for pages in (key_pages, value_pages))
        for rows, seen in _rows_and_keys(tree, start, end, length):
            arguments = (x.transpose(0, 1)[None] for x in (q[rows], k[seen], v[seen]))  # (1, H, T, D)
            found = stage(*arguments, causal=True, **options)
            if return_lse:
                found, its_lse = found
                lse[rows] = its_lse[0].T
            o[rows] = found[0].transpose(0, 1)
    return (o, lse) if return_lse else o


def _rows_and_keys(tree: np.ndarray | None, start: int, end: int, length: int):
    """The sequence's tokens, and which of its keys they are given: all at once, or, in a tree, each by itself.

    A token of a tree attends to the keys that it sees as the last token does to all.
    """
    if tree is None or not tree[start:end].any():
        yield slice(start, end), slice(0, length)
        return
    computed = length - (end - start)
    for n in range(start, end):
        own = np.flatnonzero(tree[n]) if tree[n].any() else np.arange(n - start + 1)
        yield slice(n, n + 1), torch.from_numpy(np.concatenate((np.arange(computed), computed + own)))
