"""Stage flash's backward pass: what surrounds the kernels of `backward_kernels`.

Three launches: delta, a sum over each row of dO ∘ o; then dk and dv, a program for each tile of keys; then dq, a
program for each tile of queries. Beyond the gradients, the memory is that of two numbers a row: O(T), as in the forward
pass. Nothing is added atomically, so the gradients are the same, bit for bit, every time.

Each launcher takes a kernel of one's own with the same arguments: `backward(…, dkdv_kernel=mine)`.
"""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from llmsys.attention.contract import within_reach
from llmsys.attention.flash.tiles import LOG2_E, SMALL, TABLES, TileConfig, block_of, target_of

DELTA_ROWS = 32  # rows for each program of the delta kernel; with any number, the same bytes are moved


@dataclass(frozen=True)
class BackwardTiles:
    """The tiles of the two large kernels: block_m rows of queries, block_n keys."""

    dkdv: TileConfig
    dq: TileConfig


def backward(
    q: Float[Tensor, "B Hq Tq Dk"],
    k: Float[Tensor, "B Hkv Tk Dk"],
    v: Float[Tensor, "B Hkv Tk Dv"],
    o: Float[Tensor, "B Hq Tq Dv"],
    lse: Float[Tensor, "B Hq Tq"],
    do: Float[Tensor, "B Hq Tq Dv"],
    dlse: Float[Tensor, "B Hq Tq"] | None,
    causal: bool,
    scale: float,
    precision: str,
    *,
    tiles: BackwardTiles | None = None,
    delta_kernel=None,
    dkdv_kernel=None,
    dq_kernel=None,
) -> tuple[Float[Tensor, "B Hq Tq Dk"], Float[Tensor, "B Hkv Tk Dk"], Float[Tensor, "B Hkv Tk Dv"]]:
    """dq, dk and dv, contiguous, in q's dtype. The arguments are those that the forward pass has checked.

    Raises ValueError for 2^31 elements of q, k or v, or more, that belong to one key head of one sequence.

    Parameters
    ----------
    o, lse
        What the forward pass returned for q, k and v.
    do, dlse
        The gradients of both; dlse is None where lse was not used.
    tiles
        Tiles of the kernels; by default what `backward_tiles_for` says.
    """
    given = {"q": q, "k": k, "v": v, "o": o, "do": do}
    q, k, v, o, do = (
        within_reach(name, x, "flash's backward pass", heads=x.shape[1] // k.shape[1]) for name, x in given.items()
    )
    tiles = tiles or backward_tiles_for(max(q.shape[3], v.shape[3]), q.element_size(), target_of(q.device))
    delta, lse_log2 = launch_delta(o, do, lse.contiguous(), dlse, delta_kernel)
    dk, dv = launch_dkdv(q, k, v, do, lse_log2, delta, causal, scale, precision, tiles.dkdv, dkdv_kernel)
    dq = launch_dq(q, k, v, do, lse_log2, delta, causal, scale, precision, tiles.dq, dq_kernel)
    return dq, dk, dv


def backward_tiles_for(D: int, itemsize: int, target: str = "sm_90") -> BackwardTiles:
    """The tiles for heads of D (the larger of Dk and Dv), elements of `itemsize` bytes and the GPU `target`.

    Measured on an H100; for GPUs with little shared memory, what fits there. A program holds dk and dv in registers,
    twice what o is in the forward pass: a tile has no more than 64 keys. dq is alone, and has tiles of 128 rows.
    """
    if itemsize == 4:  # in full precision, products are made of many small ones: small tiles, few registers
        small = TileConfig(32, 32, 4, 2) if D <= 128 else TileConfig(16, 16, 4, 1)
        return BackwardTiles(small, small)
    if TABLES.get(target, SMALL) is SMALL:
        small = TileConfig(64, 64, 4, 1) if D <= 64 else TileConfig(32, 32, 4, 1)
        return BackwardTiles(small, small)
    if D <= 64:
        return BackwardTiles(TileConfig(128, 64, 4, 2), TileConfig(128, 64, 8, 3))
    if D <= 128:
        return BackwardTiles(TileConfig(64, 64, 4, 2), TileConfig(128, 64, 8, 3))
    return BackwardTiles(TileConfig(32, 64, 8, 2), TileConfig(64, 32, 8, 2))


@torch.library.custom_op("llmsys::flash_backward", mutates_args=())
def flash_backward(
    q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, do: Tensor, dlse: Tensor | None,
    causal: bool, scale: float, precision: str,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """`backward` as an operator of torch, which `torch.compile` takes as it is."""
    return backward(q, k, v, o, lse, do, dlse, causal, scale, precision)


@flash_backward.register_fake
def _(q, k, v, o, lse, do, dlse, causal, scale, precision):
    return tuple(x.new_empty(x.shape) for x in (q, k, v))


def launch_delta(o: Tensor, do: Tensor, lse: Tensor, dlse: Tensor | None, kernel=None) -> tuple[Tensor, Tensor]:
    """delta = rowsum(do ∘ o) − dlse and lse in base two (+∞ for a row without a key), both (B, Hq, Tq) in fp32."""
    if kernel is None:
        from llmsys.attention.flash.backward_kernels import flash_delta_kernel as kernel  # Triton: not before now

    B, Hq, Tq, Dv = o.shape
    delta, lse_log2 = torch.empty_like(lse), torch.empty_like(lse)
    if lse.numel() == 0:
        return delta, lse_log2
    grid = (-(-Tq // DELTA_ROWS), B * Hq)
    with torch.cuda.device_of(o):
        kernel[grid](
            o, do, lse, None if dlse is None else dlse.contiguous(), delta, lse_log2,
            *o.stride()[:3], *do.stride()[:3], Hq, Tq,
            DV=Dv, BLOCK_M=DELTA_ROWS, BLOCK_DV=block_of(Dv), num_warps=4,
        )  # fmt: skip
    return delta, lse_log2


def launch_dkdv(
    q: Tensor, k: Tensor, v: Tensor, do: Tensor, lse_log2: Tensor, delta: Tensor,
    causal: bool, scale: float, precision: str, tiles: TileConfig, kernel=None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """dk and dv: a program for each tile of block_n keys of each key head."""
    if kernel is None:
        from llmsys.attention.flash.backward_kernels import flash_dkdv_kernel as kernel  # Triton: not before now

    dk, dv = k.new_empty(k.shape), v.new_empty(v.shape)
    B, Hkv, Tk, _ = k.shape
    if lse_log2.numel() == 0 or Tk == 0:  # no query, or no key
        return dk.zero_(), dv.zero_()
    _launch(
        kernel, (-(-Tk // tiles.block_n), B * Hkv), (dk, dv),
        q, k, v, do, lse_log2, delta, causal, scale, precision, tiles,
    )  # fmt: skip
    return dk, dv


def launch_dq(
    q: Tensor, k: Tensor, v: Tensor, do: Tensor, lse_log2: Tensor, delta: Tensor,
    causal: bool, scale: float, precision: str, tiles: TileConfig, kernel=None,
) -> Tensor:  # fmt: skip
    """dq: a program for each tile of block_m rows of each key head."""
    if kernel is None:
        from llmsys.attention.flash.backward_kernels import flash_dq_kernel as kernel  # Triton: not before now

    dq = q.new_empty(q.shape)
    if dq.numel() == 0:
        return dq
    B, Hkv = k.shape[:2]
    group_rows = q.shape[1] // Hkv * q.shape[2]
    _launch(
        kernel, (-(-group_rows // tiles.block_m), B * Hkv), (dq,),
        q, k, v, do, lse_log2, delta, causal, scale, precision, tiles,
    )  # fmt: skip
    return dq


def _launch(kernel, grid, results, q, k, v, do, lse_log2, delta, causal, scale, precision, tiles: TileConfig) -> None:
    """Launch one of the two large kernels: their arguments are the same but for the results that they store."""
    Hq, Tq, Dk = q.shape[1:]
    Hkv, Tk, Dv = v.shape[1:]
    with torch.cuda.device_of(q):
        kernel[grid](
            q, k, v, do, lse_log2, delta, *results,
            *q.stride()[:3], *k.stride()[:3], *v.stride()[:3], *do.stride()[:3],
            Hkv, Tq, Tk, scale, scale * LOG2_E,
            G=Hq // Hkv, DK=Dk, DV=Dv, CAUSAL=causal, BLOCK_M=tiles.block_m, BLOCK_N=tiles.block_n,
            BLOCK_DK=block_of(Dk), BLOCK_DV=block_of(Dv), PRECISION=precision,
            num_warps=tiles.num_warps, num_stages=tiles.num_stages,
        )  # fmt: skip
