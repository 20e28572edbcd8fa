"""The contract of attention over pages, and the checks that keep it.

    f(q, key_pages, value_pages, *, query_start_loc, seq_lens, block_table, max_query_len, max_seq_len,
      scale=None, tree_mask=None, return_lse=False) -> o  or  (o, lse)

    q            (N, Hq, Dk)                the new tokens of all sequences, side by side
    key_pages    (num_blocks, P, Hkv, Dk)   memory for num_blocks · P tokens, which lie in slots: page · P + place
    value_pages  (num_blocks, P, Hkv, Dv)   a view of the keys' first Dv columns where latent attention keeps both there
    o            (N, Hq, Dv)                lse (N, Hq), fp32

What the step is (`llmsys.cache.batch`), int32, on q's device:

    query_start_loc  (S + 1,)  the tokens of sequence i are those from [i] to below [i + 1]
    seq_lens         (S,)      its keys, those of its new tokens included
    block_table      (S, M)    its pages in order; entries beyond those it needs may be anything
    tree_mask        (N, W)    bool: token n sees the j-th of its sequence's new tokens, and all keys before these. A
                               token whose row is all False is in no tree. Trees have causal order: no token sees a
                               later one, and each sees itself

Causal attention is aligned bottom-right, as in every stage: a sequence with Tq new tokens and Tk keys lets its query i
see the keys j ≤ i + Tk − Tq. A token that sees no key, or belongs to no sequence, has o = 0 and lse = −∞. Slots that no
sequence's length reaches are never read: they may hold NaN.

`max_query_len` and `max_seq_len` are known on the host, and no more than advice. Which kernels are launched may depend
on them; what comes out does not, so a captured launch stays right when it is replayed with other lengths. Nobody looks
into the tensors before the launch, because that would wait for the GPU: ids of pages that a length reaches must be
right.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor

PagedAttention = Callable[..., Tensor | tuple[Tensor, Tensor]]


def check_pages(q: Tensor, key_pages: Tensor, value_pages: Tensor, *, scale: float | None = None) -> float:
    """Check q and the pages, and return the scale to use (1/√Dk where `scale` is None).

    Raises ValueError, which names the first argument that breaks the contract, what it was and what was expected.
    """
    _check_tensor("q", q, "(N, Hq, Dk)", 3)
    N, Hq, Dk = q.shape
    for name, x in (("key_pages", key_pages), ("value_pages", value_pages)):
        _check_tensor(name, x, "(num_blocks, block_size, Hkv, D)", 4)
        if x.dtype != q.dtype or x.device != q.device:
            raise ValueError(f"{name} must be {q.dtype} on {q.device} as q, got {x.dtype} on {x.device}")
    if not q.is_floating_point():
        raise ValueError(f"q must be a floating-point tensor, got {q.dtype}")
    num_blocks, block_size, Hkv, _ = key_pages.shape
    if key_pages.shape[3] != Dk or Dk == 0:
        raise ValueError(f"key_pages must have q's head size, at least 1, got {key_pages.shape[3]} and {Dk}")
    if value_pages.shape[:3] != key_pages.shape[:3]:
        raise ValueError(
            f"value_pages must have the keys' blocks, block size and heads, {tuple(key_pages.shape[:3])}, got "
            f"{tuple(value_pages.shape[:3])}"
        )
    if num_blocks == 0 or block_size == 0 or Hkv == 0:
        raise ValueError(f"key_pages must have a block, a slot and a head at least, got {tuple(key_pages.shape)}")
    if Hq % Hkv:
        raise ValueError(f"q must have a multiple of the keys' {Hkv} heads (grouped queries), got {Hq}")
    if scale is None:
        return 1 / math.sqrt(Dk)
    if not 0 < scale < math.inf:
        raise ValueError(f"scale must be a positive number or None (for 1/√Dk), got {scale}")
    return float(scale)


def check_step(
    q: Tensor, query_start_loc: Tensor, seq_lens: Tensor, block_table: Tensor, tree_mask: Tensor | None
) -> None:
    """Check the shapes, types and places of what says whose the tokens are. Raises ValueError as `check_pages`."""
    _check_numbers("seq_lens", seq_lens, "(S,)", 1, q)
    S = seq_lens.shape[0]
    _check_numbers("query_start_loc", query_start_loc, "(S + 1,)", 1, q)
    if query_start_loc.shape[0] != S + 1:
        raise ValueError(
            f"query_start_loc must have S + 1 = {S + 1} entries, for seq_lens has {S}; got {query_start_loc.shape[0]}"
        )
    _check_numbers("block_table", block_table, "(S, M)", 2, q)
    if block_table.shape[0] != S:
        raise ValueError(f"block_table must have a row for each of the {S} sequences, got {block_table.shape[0]}")
    if tree_mask is not None and (
        tree_mask.dtype != torch.bool or tree_mask.dim() != 2 or tree_mask.shape[0] != q.shape[0]
    ):
        raise ValueError(
            f"tree_mask must be bool (N, W) with N = {q.shape[0]}, or None, got {tree_mask.dtype} of shape "
            f"{tuple(tree_mask.shape)}"
        )


def check_written(k: Tensor, v: Tensor | None, key_pages: Tensor, value_pages: Tensor | None, slots: Tensor) -> None:
    """Check what `write_pages` is handed. Raises ValueError as `check_pages`."""
    if (v is None) != (value_pages is None):
        raise ValueError("v and value_pages must both be given, or both be None where the values are in the keys")
    given = (("k", k, "key_pages", key_pages), ("v", v, "value_pages", value_pages))
    for name, x, pages_name, pages in given:
        if x is None:
            continue
        _check_tensor(name, x, "(N, Hkv, D)", 3)
        _check_tensor(pages_name, pages, "(num_blocks, block_size, Hkv, D)", 4)
        if x.shape[0] != k.shape[0] or pages.shape[2:] != x.shape[1:] or pages.dtype != x.dtype:
            raise ValueError(
                f"{name} must be {k.shape[0]} tokens with the heads, size and dtype of {pages_name}, "
                f"{tuple(pages.shape[2:])} in {pages.dtype}; got {tuple(x.shape)} in {x.dtype}"
            )
    _check_numbers("slot_mapping", slots, "(N,)", 1, k)
    if slots.shape[0] != k.shape[0]:
        raise ValueError(f"slot_mapping must be one for each of k's {k.shape[0]} tokens, got {slots.shape[0]}")


def _check_tensor(name: str, x: object, shape: str, dimensions: int) -> None:
    if not isinstance(x, Tensor) or x.dim() != dimensions:
        got = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise ValueError(f"{name} must be a torch.Tensor {shape}, got {got}")


def _check_numbers(name: str, x: object, shape: str, dimensions: int, like: Tensor) -> None:
    _check_tensor(name, x, shape, dimensions)
    if x.dtype != torch.int32 or x.device != like.device:
        raise ValueError(f"{name} must be int32 on {like.device}, got {x.dtype} on {x.device}")
