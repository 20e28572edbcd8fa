"""Attention of ragged sequences to latent pages, the absorbed form: `latent_decode`.

    o_i = softmax(scale · q_i · [c, r]ᵀ) c        for each query token and head i: its own q, the same [c, r]

Each slot of the cache has a latent vector c and a rotated key r, side by side. Queries come absorbed, [q_c, q_r], and
what comes out is still latent (`llmsys.attention.latent`). Every key is read for 64 rows at a time, a row being a query
token with one head. That is the right shape for decoding, and for the few tokens of a draft. Chunks of prompts are
taken as well, of which each tile of rows passes over the keys that none of them sees.

Two kernels for one contract: Gluon on Hopper (`hopper`), and Triton (`kernels`) for other GPUs, the interpreter, and
trees of drafts. Each cuts the keys of all sequences into equal runs; one merge adds up what was cut. What is
launched depends on sizes of tensors and on `max_query_len`, and on no length: so nothing waits for the GPU, and a CUDA
graph of it serves any lengths.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from llmsys.attention.flash.tiles import LOG2_E, TileConfig, block_of, target_of
from llmsys.attention.latent.hopper import hopper_latent_decode, hopper_takes
from llmsys.attention.latent.hopper.decode import ROWS, members_for
from llmsys.attention.paged.arguments import check_step
from llmsys.attention.paged.plans import LARGE_SMS
from llmsys.attention.paged.write import check_device

LARGEST_LATENT, LARGEST_ROPE = 512, 128
LEAST_TILE = 16
"""Rows, and keys, of the smallest tiles."""
MANY_ROWS = 1024
"""Rows of a step from which on a program of the merge has several. Where they are fewer, each has more parts."""
MANY_PARTS = 32
"""Parts of a sequence from which on, with few rows, a program of the merge reads so many at a time."""


@dataclass(frozen=True)
class Kernels:
    """The Triton kernels that are launched, or others with their arguments in their place."""

    latent: object
    merge: object


def latent_decode(
    q: Float[Tensor, "N Hq Dk"],
    pages: Float[Tensor, "blocks P Dk"],
    *,
    latent: int,
    query_start_loc: Int[Tensor, " S1"],
    seq_lens: Int[Tensor, " S"],
    block_table: Int[Tensor, "S M"],
    max_query_len: int = 1,
    scale: float,
    tree_mask: Bool[Tensor, "N W"] | None = None,
    return_lse: bool = False,
    language: Literal["auto", "triton", "gluon"] = "auto",
    tiles: TileConfig | None = None,
    programs: int | None = None,
    kernels: Kernels | None = None,
) -> Float[Tensor, "N Hq latent"] | tuple[Float[Tensor, "N Hq latent"], Float[Tensor, "N Hq"]]:
    """Attention of ragged sequences to latent pages, by kernels: on a GPU, or in Triton's interpreter.

    Parameters
    ----------
    q
        Absorbed queries of all new tokens, side by side: the first `latent` columns against c, the rest rotated.
        Dk is 512 + 64 in DeepSeek's models; up to 512 + 128 here. In float32, float16 or bfloat16.
    pages
        A slot is c, `latent` numbers, then the rotated key. q's dtype; the last stride is 1.
    query_start_loc, seq_lens, block_table, tree_mask
        The step, as in `llmsys.attention.paged.arguments`: attention is causal, aligned bottom-right; slots that no
        length reaches may hold NaN; entries of the table beyond those needed may be anything.
    max_query_len
        The most tokens that a sequence brings. Advice: what comes out does not depend on it.
    scale
        1/√(size of an *expanded* key), 1/√192 for DeepSeek-V3, times mscale² under YaRN. Never 1/√Dk.
    language
        "gluon" is for Hopper, in half precision, 512 + 64, at most 128 heads, pages of 16 to 256 (a power of two), and
        no tree; "auto" goes there by itself.
    tiles, programs, kernels
        Of the Triton kernel, in place of what `tiles_for` says. Where one is given, this kernel is launched.

    Returns o (N, Hq, latent) in q's dtype and, if asked for, lse (N, Hq) in fp32: 0 and −∞ for a token that sees no key
    or belongs to no sequence. The same arguments give the same bits.

    Raises ValueError for shapes, dtypes, devices and options that do not fit, before anything runs.

    (DeepSeek-V2, https://arxiv.org/abs/2405.04434, section 2.1 and appendix C.)
    """
    _check(q, pages, latent, scale, language)
    check_step(q, query_start_loc, seq_lens, block_table, tree_mask)
    N, Hq, Dk = q.shape
    S = seq_lens.shape[0]
    o = torch.empty(N, Hq, latent, dtype=q.dtype, device=q.device)
    lse = torch.empty(N, Hq, dtype=torch.float32, device=q.device)
    if o.numel() == 0 or S == 0:
        o.zero_(), lse.fill_(float("-inf"))
        return (o, lse) if return_lse else o
    keys = block_table.shape[1] * pages.shape[1]
    if (N * Hq // LEAST_TILE + S) * max(keys // LEAST_TILE, 1) >= 2**31:
        raise ValueError(
            f"block_table must be for fewer keys: {keys} for each of {S} sequences, with {N} tokens of {Hq} heads, are "
            "more than 32 bits count in tiles"
        )
    if tree_mask is not None and tree_mask.shape[1] <= 1:
        tree_mask = None  # a tree of one token says nothing
    gluon = language != "triton" and tree_mask is tiles is programs is kernels is None
    gluon = gluon and hopper_takes(q, pages, latent, block_table)
    if language == "gluon" and not gluon:
        raise ValueError(
            'language must be "auto" or "triton" for this step: "gluon" is for Hopper GPUs, in half precision, latents '
            "of 512 and rotated keys of 64, at most 128 heads, pages of 16, 32, 64, 128 or 256 that lie in a row, and "
            "no tree"
        )
    if kernels is None:
        check_device(q)
        kernels = _kernels()
    results, step = (o, lse), (query_start_loc, seq_lens, block_table)
    members = members_for(Hq, max_query_len) if gluon else 1
    with torch.cuda.device_of(q):
        if gluon:
            programs = _multiprocessors(q.device) // members * members
            scratch = scratch_for(q, programs, ROWS, latent)
            hopper_latent_decode(q, pages, *results, *scratch, *step, scale, members)
        else:
            tree = tree_mask is not None
            found, an_sm = tiles_for(Hq * max(max_query_len, 1), Dk, q.element_size(), tree, target_of(q.device))
            tiles = tiles or found
            scratch = scratch_for(q, programs or _multiprocessors(q.device) * an_sm, tiles.block_m, latent)
            q = q if q.stride(2) == 1 else q.contiguous()
            kernels.latent[(len(scratch[0]) // 2,)](
                q, pages, *results, *scratch, *step, tree_mask, *q.stride()[:2], *pages.stride()[:2],
                block_table.stride(0), S, tree_mask.shape[1] if tree else 0, scale * LOG2_E,
                HEADS=Hq, LATENT=latent, ROPE=Dk - latent, PAGE=pages.shape[1], TREE=tree, BLOCK_S=_up(S, 64),
                BLOCK_M=tiles.block_m, BLOCK_N=tiles.block_n, BLOCK_L=block_of(latent), BLOCK_R=block_of(Dk - latent),
                PRECISION="ieee", num_warps=tiles.num_warps, num_stages=tiles.num_stages,
            )  # fmt: skip
        launch_merge(*results, *scratch, query_start_loc, members, kernels.merge)
    return (o, lse) if return_lse else o


def scratch_for(q: Tensor, programs: int, rows: int, latent: int) -> tuple[Tensor, Tensor, Tensor]:
    """What programs leave for each other, of `rows` rows at a time: part, part_lse, cuts (`kernels`)."""
    part = torch.empty(2 * programs, rows, latent, dtype=torch.float32, device=q.device)
    part_lse = torch.empty(2 * programs, rows, dtype=torch.float32, device=q.device)
    return part, part_lse, torch.empty(3, programs, dtype=torch.int32, device=q.device)


def launch_merge(
    o: Tensor, lse: Tensor, part: Tensor, part_lse: Tensor, cuts: Tensor, query_start_loc: Tensor, members: int,
    kernel: object = None,
) -> None:  # fmt: skip
    """Add up the parts that the programs of a split kernel, in teams of so many, have left; clear rows of nobody."""
    (N, Hq, latent), programs, rows = o.shape, cuts.shape[1], part.shape[1]
    S = len(query_start_loc) - 1
    block_m, parts = (4, 2) if N * Hq >= MANY_ROWS else (1, 8)
    if N * Hq < MANY_ROWS and programs > MANY_PARTS * members * S:
        parts = MANY_PARTS
    if o.device.type == "cpu":  # the interpreter takes as long for a row as for many
        block_m, parts = rows, 4
    early = _begins_early(o.device)
    (kernel or _kernels().merge)[(programs, -(-min(rows, N * Hq) // block_m))](
        o, lse, part, part_lse, cuts, query_start_loc, S, N,
        HEADS=Hq, LATENT=latent, MEMBERS=members, ROWS=rows, BLOCK_M=block_m, BLOCK_L=block_of(latent), PARTS=parts,
        EARLY=early, num_warps=4, **(dict(launch_pdl=True) if early else {}),
    )  # fmt: skip


def tiles_for(rows: int, width: int, itemsize: int, tree: bool, target: str) -> tuple[TileConfig, int]:
    """The Triton kernel's tiles where a sequence has about so many rows, Hq · Tq, and slots are `width` wide, and how
    many of its programs an SM is given.

    A tile of rows has all columns of o in registers, which is what bounds it: 64 rows of 512 are 128 registers in each
    of 256 threads. On an H200 in bf16, 64 rows and 64 keys are the fastest all the same, though some 300 bytes a thread
    are spilled: 8,192 keys of 128 heads take 1,184 µs without the merge, with 32 keys 1,656, with one stage 1,405. With
    32 heads, 32 rows and 64 keys take 591 µs, 64 rows 720, 32 keys 878.
    """
    if itemsize == 4:
        return TileConfig(16, 16, 8, 2), 1
    if target not in LARGE_SMS:
        return TileConfig(16 if rows <= 16 else 32, 16, 8, 2), 1
    if rows <= 16:
        return TileConfig(16, 16 if tree else 32, 4, 2), 2
    if tree:
        return TileConfig(32, 32, 8, 2), 1
    if rows <= 32:
        return TileConfig(32, 64, 8, 2), 1
    # Two tiles of 64 keys and one of rows are 216 KiB at 576 wide, and more where Triton compiles for another GPU.
    return TileConfig(64, 64 if width <= 576 and target == "sm_90" else 32, 8, 2), 1


def _check(q: Tensor, pages: Tensor, latent: int, scale: float, language: str) -> None:
    if language not in ("auto", "triton", "gluon"):
        raise ValueError(f'language must be "auto", "triton" or "gluon", got {language!r}')
    for name, x, shape in (("q", q, "(N, Hq, Dk)"), ("pages", pages, "(num_blocks, block_size, Dk)")):
        if not isinstance(x, Tensor) or x.dim() != 3:
            got = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
            raise ValueError(f"{name} must be a torch.Tensor {shape}, got {got}")
    if q.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise ValueError(f"q must be float32, float16 or bfloat16 for the kernels, got {q.dtype}")
    if pages.dtype != q.dtype or pages.device != q.device:
        raise ValueError(f"pages must be {q.dtype} on {q.device} as q, got {pages.dtype} on {pages.device}")
    Dk = q.shape[2]
    if pages.shape[2] != Dk:
        raise ValueError(f"pages must have slots of q's {Dk} columns, latent and rotated key, got {pages.shape[2]}")
    if 0 in pages.shape or pages.stride(2) != 1:
        raise ValueError(
            f"pages must have a block and a slot at least, whose numbers lie side by side; got {tuple(pages.shape)} "
            f"with strides {pages.stride()}"
        )
    if not 1 <= latent <= LARGEST_LATENT or not 1 <= Dk - latent <= LARGEST_ROPE:
        raise ValueError(
            f"latent must be 1 to {LARGEST_LATENT} of q's {Dk} columns, and leave 1 to {LARGEST_ROPE} for the rotated "
            f"key, got {latent}"
        )
    if not 0 < scale < float("inf"):
        raise ValueError(f"scale must be a positive number, 1/√(size of an expanded key), got {scale}")


def _up(n: int, least: int) -> int:
    """The next power of two, `least` at least."""
    return max(least, 1 << (n - 1).bit_length())


@lru_cache
def _kernels() -> Kernels:
    from llmsys.attention.latent.kernels import latent_kernel  # Triton: not before now
    from llmsys.attention.latent.merge_kernel import merge_kernel

    return Kernels(latent_kernel, merge_kernel)


@lru_cache
def _begins_early(device: torch.device) -> bool:
    """Whether a kernel can be launched while the one before it still runs (programmatic dependent launch): from Hopper
    on. The merge is then on its SM when its parts are there, which saves 1 to 6 µs a call on an H200."""
    return device.type == "cuda" and torch.cuda.get_device_capability(device) >= (9, 0)


@lru_cache
def _multiprocessors(device: torch.device) -> int:
    """In the interpreter three: programs run one after the other there, and a line that is cut is the usual case."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 3
