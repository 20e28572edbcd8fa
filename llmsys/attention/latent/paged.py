"""Latent attention over pages: what surrounds the kernel.

The contract is that of attention over pages (`llmsys.attention.paged.arguments`), with one key head, of L + R columns,
and values that are a view of the pages' first L columns. So a paged cache whose values are in its keys needs nothing
else: any number of query tokens a sequence, causal, with or without a tree, and no length on the host.

On Hopper a kernel in Gluon does it (`llmsys.attention.latent.decode`), chunks of prompts as well as decode steps: on an
H200, in bf16, 544 TFLOP/s for 2,048 tokens of 128 heads after 6,144 others, where the Triton kernel here has 246. That
one is for all other GPUs, for the interpreter, and for trees; of a chunk's tiles of rows each passes over the keys that
none of them sees.
"""

from functools import lru_cache

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from llmsys.attention.flash.tiles import LOG2_E, TileConfig, block_of, target_of
from llmsys.attention.latent.decode import LARGEST_LATENT, LARGEST_ROPE, latent_decode
from llmsys.attention.latent.hopper import hopper_takes
from llmsys.attention.paged.arguments import check_pages, check_step
from llmsys.attention.paged.plans import LARGE_SMS
from llmsys.attention.paged.write import check_device


def paged_latent_attention(
    q: Float[Tensor, "N Hq LR"],
    key_pages: Float[Tensor, "blocks P 1 LR"],
    value_pages: Float[Tensor, "blocks P 1 L"],
    *,
    query_start_loc: Int[Tensor, " S1"],
    seq_lens: Int[Tensor, " S"],
    block_table: Int[Tensor, "S M"],
    max_query_len: int,
    max_seq_len: int,
    scale: float | None = None,
    tree_mask: Bool[Tensor, "N W"] | None = None,
    return_lse: bool = False,
    tiles: TileConfig | None = None,
    programs: int | None = None,
    kernels: tuple[object, object] | None = None,
) -> Float[Tensor, "N Hq L"] | tuple[Float[Tensor, "N Hq L"], Float[Tensor, "N Hq"]]:
    """Attention of ragged sequences to latents in pages, by a Triton kernel: on a GPU, or in the interpreter.

    Parameters
    ----------
    q
        Absorbed queries (`llmsys.attention.latent.absorb_queries`), turned; fp32, fp16 or bf16.
    key_pages, value_pages
        [c ; r] of each slot, and a view of its c. L at most 512, R at most 128.
    scale
        That of the naive form, 1/√(Dn + R), which cannot be seen here: it must be given.
    tiles, programs, kernels
        In place of `tiles_for`'s choice, and of the two kernels (latent, merge): where one of them is given, it is
        this kernel that is launched.

    Raises
    ------
    ValueError
        The contract is broken, a size is too large, or there is no scale; the message says what was expected.
    """
    if scale is None:
        raise ValueError(
            "scale must be given for absorbed queries: 1/√(Dn + R) of the queries before they were absorbed (1/√192 "
            "for DeepSeek-V3), not of the latents' size"
        )
    scale = check_pages(q, key_pages, value_pages, scale=scale)
    check_step(q, query_start_loc, seq_lens, block_table, tree_mask)
    N, Hq, D = q.shape
    S, M = block_table.shape
    page, Hkv, L = value_pages.shape[1:]
    if Hkv != 1:
        raise ValueError(f"key_pages must have one head, which all query heads share, got {Hkv}")
    if value_pages.data_ptr() != key_pages.data_ptr() or value_pages.stride() != key_pages.stride() or L >= D:
        raise ValueError(
            f"value_pages must be a view of key_pages' first L columns, key_pages[..., :L], L below {D}; got a tensor "
            f"of its own of {L} columns"
        )
    if L > LARGEST_LATENT or D - L > LARGEST_ROPE:
        raise ValueError(
            f"key_pages must have at most {LARGEST_LATENT} + {LARGEST_ROPE} columns for the kernel, got {L} + {D - L}"
        )
    if key_pages.stride(3) != 1:
        raise ValueError(f"key_pages must have a stride of 1 in the last dimension, got {key_pages.stride(3)}")
    if q.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"q must be float32, float16 or bfloat16 for the kernel, got {q.dtype}")
    if tree_mask is not None and tree_mask.shape[1] <= 1:
        tree_mask = None  # a tree of one token says nothing
    pages = key_pages[:, :, 0]
    ours = tree_mask is None and tiles is programs is kernels is None
    if ours and hopper_takes(q, pages, L, block_table):
        return latent_decode(
            q, pages, latent=L, query_start_loc=query_start_loc, seq_lens=seq_lens,
            block_table=block_table, max_query_len=max_query_len, scale=scale, return_lse=return_lse,
        )  # fmt: skip
    o = torch.empty(N, Hq, L, dtype=q.dtype, device=q.device)
    lse = torch.empty(N, Hq, dtype=torch.float32, device=q.device)
    if o.numel() == 0 or S == 0:
        o.zero_(), lse.fill_(float("-inf"))
        return (o, lse) if return_lse else o
    if kernels is None:
        check_device(q)
        kernels = _kernels()
    if q.stride(2) != 1:
        q = q.contiguous()
    rows = Hq * max(max_query_len, 1)
    tiles = tiles or tiles_for(q.element_size(), rows, tree_mask is not None, target_of(q.device))
    most = (N * Hq // tiles.block_m + S) * max(-(-M * page // tiles.block_n), 1)
    if most >= 2**31 or N * Hq >= 2**31:
        raise ValueError(f"block_table must be for fewer keys: {S} × {M} blocks of {page} tokens are more than 32 bits "
                         "count in tiles")  # fmt: skip
    an_sm = 2 if tiles.block_m == 16 else 1
    programs = min(programs or an_sm * _multiprocessors(q.device), most)
    part = torch.empty(2 * programs, tiles.block_m, L, dtype=torch.float32, device=q.device)
    part_lse = torch.empty(2 * programs, tiles.block_m, dtype=torch.float32, device=q.device)
    BLOCK_S = max(64, 1 << (S - 1).bit_length())
    with torch.cuda.device_of(q):
        kernels[0][(programs,)](
            q, key_pages, o, lse, part, part_lse, query_start_loc, seq_lens, block_table, tree_mask,
            *q.stride()[:2], *key_pages.stride()[:2], block_table.stride(0), S,
            0 if tree_mask is None else tree_mask.shape[1], scale * LOG2_E,
            G=Hq, L=L, R=D - L, PAGE=page, TREE=tree_mask is not None, BLOCK_S=BLOCK_S, BLOCK_M=tiles.block_m,
            BLOCK_N=tiles.block_n, BLOCK_L=block_of(L), BLOCK_R=block_of(D - L), PRECISION="ieee",
            num_warps=tiles.num_warps, num_stages=tiles.num_stages,
        )  # fmt: skip
        kernels[1][(programs,)](
            o, lse, part, part_lse, query_start_loc, seq_lens, 1, S, N, G=Hq, DV=L, FEW=0, BLOCK_S=BLOCK_S,
            BLOCK_M=tiles.block_m, BLOCK_N=tiles.block_n, BLOCK_DV=block_of(L), num_warps=8,
        )  # fmt: skip
    return (o, lse) if return_lse else o


def tiles_for(itemsize: int, rows: int, tree: bool, target: str) -> TileConfig:
    """The tiles for elements of `itemsize` bytes, where a sequence has about so many rows, Hq · Tq.

    A tile of rows has all L columns of o in registers, which is what bounds it: 64 rows of 512 are 128 registers in
    each of 256 threads. Measured on an H200, for bf16: 64 rows and 64 keys are the fastest from 32 rows on, although
    some 200 bytes a thread are spilled (246 TFLOP/s; without, with 32 keys, 183). The others are the largest tiles that
    compile without spilling.
    """
    if itemsize == 4:
        return TileConfig(16, 16, 8, 2)
    if target not in LARGE_SMS:
        return TileConfig(16 if rows <= 16 else 32, 16, 8, 2)
    if rows <= 16:
        return TileConfig(16, 16 if tree else 32, 4, 2)
    return TileConfig(32, 32, 8, 2) if tree else TileConfig(64, 64, 8, 1)


@lru_cache
def _kernels() -> tuple[object, object]:
    from llmsys.attention.latent.kernels import latent_kernel  # Triton: not before now
    from llmsys.attention.paged.split_kernels import merge_kernel

    return latent_kernel, merge_kernel


@lru_cache
def _multiprocessors(device: torch.device) -> int:
    """In the interpreter one: programs run one after the other there."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
