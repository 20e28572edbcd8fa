"""Attention over pages: what surrounds the kernels. The contract is `llmsys.attention.paged.arguments`'s.

Decode steps on an H100 or H200 have a kernel of their own, in Gluon (`llmsys.attention.paged.hopper`). All else, and
everything on other GPUs, is done by Triton's.

A sequence that brings many tokens has work for many programs, each with a tile of queries (`ragged_kernel`). One that
brings few must have its keys divided (`split_kernels`). In a step that has both, each kernel takes its own; where every
sequence brings few, or all tiles of queries together would not fill the GPU, the split kernel takes all.

What is launched depends on sizes of tensors, on the number of multiprocessors and on `max_query_len`, and not on a
length that is on the GPU: so nothing waits, and a CUDA graph of it serves steps of other lengths.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from llmsys.attention.flash.tiles import LOG2_E, TileConfig, block_of, target_of
from llmsys.attention.paged.arguments import check_pages, check_step
from llmsys.attention.paged.hopper import hopper_decode, hopper_takes
from llmsys.attention.paged.plans import Plan, plan_for
from llmsys.attention.paged.write import check_device

LARGEST_HEAD = 256


@dataclass(frozen=True)
class Kernels:
    """The kernels that are launched, or others with their arguments in their place."""

    ragged: object
    split: object
    merge: object


def paged_attention(
    q: Float[Tensor, "N Hq Dk"],
    key_pages: Float[Tensor, "blocks P Hkv Dk"],
    value_pages: Float[Tensor, "blocks P Hkv Dv"],
    *,
    query_start_loc: Int[Tensor, " S1"],
    seq_lens: Int[Tensor, " S"],
    block_table: Int[Tensor, "S M"],
    max_query_len: int,
    max_seq_len: int,
    scale: float | None = None,
    tree_mask: Bool[Tensor, "N W"] | None = None,
    return_lse: bool = False,
    language: Literal["auto", "triton", "gluon"] = "auto",
    plan: Plan | None = None,
    kernels: Kernels | None = None,
) -> Float[Tensor, "N Hq Dv"] | tuple[Float[Tensor, "N Hq Dv"], Float[Tensor, "N Hq"]]:
    """Attention of ragged sequences over pages, by kernels: on a GPU, or in the interpreter.

    Heads of at most 256, in fp32, fp16 and bf16. `language` says whose kernels: "gluon" takes decode steps on a Hopper
    GPU, in half precision, with heads of 64 or 128, and "auto" goes there by itself. `plan`, of the Triton kernels, is
    by default what `plan_for` says; where it or `kernels` is given, it is they that are launched.
    """
    if language not in ("auto", "triton", "gluon"):
        raise ValueError(f'language must be "auto", "triton" or "gluon", got {language!r}')
    scale = check_pages(q, key_pages, value_pages, scale=scale)
    check_step(q, query_start_loc, seq_lens, block_table, tree_mask)
    for name, x in (("key_pages", key_pages), ("value_pages", value_pages)):
        if x.shape[3] > LARGEST_HEAD:
            raise ValueError(f"{name} must have heads of at most {LARGEST_HEAD} for the kernels, got {x.shape[3]}")
        if x.stride(3) != 1:
            raise ValueError(f"{name} must have a stride of 1 in the last dimension, got {x.stride(3)}")
    if q.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"q must be float32, float16 or bfloat16 for the kernels, got {q.dtype}")
    N, Hq, Dk = q.shape
    S, M = block_table.shape
    page, Hkv, Dv = value_pages.shape[1:]
    G = Hq // Hkv
    o = torch.empty(N, Hq, Dv, dtype=q.dtype, device=q.device)
    lse = torch.empty(N, Hq, dtype=torch.float32, device=q.device)
    if o.numel() == 0 or S == 0:
        o.zero_(), lse.fill_(float("-inf"))
        return (o, lse) if return_lse else o
    if tree_mask is not None and tree_mask.shape[1] <= 1:
        tree_mask = None  # a tree of one token says nothing
    ours = language != "triton" and plan is None and kernels is None
    if ours and hopper_takes(q, key_pages, value_pages, block_table, max_query_len, tree_mask is not None):
        hopper_decode(
            q, key_pages, value_pages, o, lse, query_start_loc, seq_lens, block_table, scale, _multiprocessors(q.device)
        )
        return (o, lse) if return_lse else o
    if language == "gluon":
        raise ValueError(
            'language must be "auto" or "triton" for this step: "gluon" is for decode steps on a Hopper GPU, in half '
            "precision, with heads of 64 or 128 and pages of a power of two, 16 at least"
        )
    if kernels is None:
        check_device(q)
        kernels = _kernels()
    if q.stride(2) != 1:
        q = q.contiguous()
    plan = plan or plan_for(
        N, S, G, Hkv, max(Dk, Dv), q.element_size(), max_query_len, tree_mask is not None, target_of(q.device),
        _multiprocessors(q.device),
    )  # fmt: skip
    most = _tiles(N, S, G, Hkv, M * page, plan.split)
    if most >= 2**31 or N * Hq >= 2**31:
        raise ValueError(f"block_table must be for fewer keys: {S} × {M} blocks of {page} tokens are more than 32 bits "
                         "count in tiles")  # fmt: skip
    programs = min(plan.programs, most)
    rows = plan.split.block_m
    part = torch.empty(2 * programs, rows, Dv, dtype=torch.float32, device=q.device)
    part_lse = torch.empty(2 * programs, rows, dtype=torch.float32, device=q.device)

    step = (query_start_loc, seq_lens, block_table, tree_mask)
    strides = (*q.stride()[:2], *key_pages.stride()[:3], *value_pages.stride()[:3], block_table.stride(0))
    sizes = (Hkv, S, 0 if tree_mask is None else tree_mask.shape[1], scale * LOG2_E)
    shape = dict(G=G, DV=Dv, FEW=plan.few, BLOCK_S=max(64, 1 << (S - 1).bit_length()), BLOCK_DV=block_of(Dv))
    walk = shape | dict(DK=Dk, PAGE=page, TREE=tree_mask is not None, BLOCK_DK=block_of(Dk), PRECISION="ieee")
    with torch.cuda.device_of(q):
        if plan.ragged:
            kernels.ragged[(N * G // plan.ragged.block_m + S, Hkv)](
                q, key_pages, value_pages, o, lse, *step, *strides, *sizes, **walk, **_options(plan.ragged)
            )
        kernels.split[(programs,)](
            q, key_pages, value_pages, o, lse, part, part_lse, *step, *strides, *sizes, **walk, **_options(plan.split)
        )
        kernels.merge[(programs,)](
            o, lse, part, part_lse, query_start_loc, seq_lens, Hkv, S, N, **shape,
            BLOCK_M=rows, BLOCK_N=plan.split.block_n, num_warps=4,
        )  # fmt: skip
    return (o, lse) if return_lse else o


def _tiles(N: int, S: int, G: int, Hkv: int, most_keys: int, tiles: TileConfig) -> int:
    """The most tiles that the split kernel's line can have, whatever the lengths."""
    return (N * G // tiles.block_m + S) * Hkv * max(-(-most_keys // tiles.block_n), 1)


def _options(tiles: TileConfig) -> dict[str, int]:
    return dict(
        BLOCK_M=tiles.block_m, BLOCK_N=tiles.block_n, num_warps=tiles.num_warps, num_stages=tiles.num_stages
    )  # fmt: skip


@lru_cache
def _kernels() -> Kernels:
    from llmsys.attention.paged.ragged_kernel import ragged_kernel  # Triton: not before now
    from llmsys.attention.paged.split_kernels import merge_kernel, split_kernel

    return Kernels(ragged_kernel, split_kernel, merge_kernel)


@lru_cache
def _multiprocessors(device: torch.device) -> int:
    """In the interpreter one: programs run one after the other there."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
