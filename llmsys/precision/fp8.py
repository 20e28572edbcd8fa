"""Eight-bit floating point: a tensor as codes of eight bits, with one scale for each block of rows.

The format is e4m3: a sign, 4 bits of exponent, 3 of mantissa. Its numbers lie between 2⁻⁹ and 448, which is little: a
tensor of small numbers would become zeros, one of large numbers would not fit. So numbers are stored as x ≈ code ·
scale, where the scale moves the largest of them to 448.

How many numbers share a scale decides what is lost. Between 2⁻⁶ and 448, neighbouring codes are 1/8 of a power of two
apart: rounding moves a number by 1/16 of itself at most. Below 2⁻⁶ they are 2⁻⁹ apart, whatever the number, so there
the error stops shrinking:

    |x − code · scale|  ≤  max(|x| / 16,  scale / 1024)            scale = (largest |x| of the block) / 448

One outlier among millions of numbers thus costs all of them their small values, if they share its scale; with a scale
for each 128 rows, it costs its own block. Blocks are of rows, because attention multiplies tile by tile: where a tile
of keys is a block, its scale leaves the matrix product as a single factor, S = (Q codes · K codes) · scale_q · scale_k.

(The format: https://arxiv.org/abs/2209.05433. Scales by block in attention: https://arxiv.org/abs/2407.08608,
section 3.3. In torch: `torch.float8_e4m3fn`, "fn" for finite: it has NaN and no infinity.)
"""

import torch
from jaxtyping import Float, Float8e4m3fn, Float32
from torch import Tensor

LARGEST = 448.0
"""The largest number of e4m3: 1.75 · 2⁸."""

ROWS = 128
"""Rows of a block, where none are named: the tile of keys of `llmsys.attention.hopper.fp8`."""


def quantize_blocks(
    x: Float[Tensor, "*batch T D"], rows: int = ROWS
) -> tuple[Float8e4m3fn[Tensor, "*batch T D"], Float32[Tensor, "*batch blocks"]]:
    """Codes and scales of x: each block of `rows` rows and all D columns has one scale, and the last may be shorter.

    x ≈ codes · scale of the block; see `error_bound`. The scales are such that the largest number of a block gets the
    code 448 or −448; a block of zeros has the scale 1, and one of numbers so tiny that the scale would be below fp32's
    smallest normal number, 2⁻¹²⁶, has that for its scale, and smaller codes. NaN stays NaN and infinity saturates, and
    neither counts for the scale: what else is in their block is stored as well as without them.

    Raises
    ------
    ValueError
        x has fewer than two dimensions, is not of floating point, or rows is not positive.
    """
    _check(x, rows)
    blocks = _in_blocks(x.float(), rows)  # (..., blocks, rows, D)
    finite = torch.where(blocks.isfinite(), blocks.abs(), 0.0)
    largest = finite.amax((-2, -1)) if blocks.numel() else finite.sum((-2, -1))
    # A number as small as fp32 has them, divided by 448, would be rounded to few bits, or to zero.
    smallest = torch.finfo(torch.float32).tiny
    # By a tensor: torch divides by a Python number on a GPU by multiplying with its inverse, in other last bits.
    scales = torch.where(largest > 0, (largest / torch.full_like(largest, LARGEST)).clamp(min=smallest), 1.0)
    scaled = blocks * (1 / scales)[..., None, None]  # one division a block
    # torch's cast makes NaN of what is too large. Here that is infinity, and 448 plus a rounding error.
    codes = scaled.clamp(-LARGEST, LARGEST).to(torch.float8_e4m3fn)
    return codes.flatten(-3, -2)[..., : x.shape[-2], :], scales


def dequantize_blocks(
    codes: Float8e4m3fn[Tensor, "*batch T D"], scales: Float32[Tensor, "*batch blocks"], rows: int = ROWS
) -> Float32[Tensor, "*batch T D"]:
    """The numbers that codes and scales of `quantize_blocks`, made with the same `rows`, stand for.

    Raises
    ------
    ValueError
        The number of scales is not that of the blocks.
    """
    _check(codes, rows)
    return codes.float() * _by_row(codes, scales, rows)


def error_bound(
    x: Float[Tensor, "*batch T D"], scales: Float32[Tensor, "*batch blocks"], rows: int = ROWS
) -> Float32[Tensor, "*batch T D"]:
    """How far codes · scale may be from each finite number of x: max(|x| / 16, scale / 1024), see above. (..., T, D)"""
    _check(x, rows)
    rounding = 1 + 2**-20  # of fp32: of the scale, the division by it and the multiplication with it
    return torch.maximum(x.float().abs() / 16, _by_row(x, scales, rows) / 1024) * rounding


def _in_blocks(x: Tensor, rows: int) -> Tensor:
    """x (..., T, D) as (..., blocks, rows, D); zeros fill the last block."""
    T = x.shape[-2]
    blocks = -(-T // rows)
    x = torch.nn.functional.pad(x, (0, 0, 0, blocks * rows - T))
    return x.unflatten(-2, (blocks, rows))


def _by_row(x: Tensor, scales: Tensor, rows: int) -> Tensor:
    """The scale of each row of x, (..., T, 1)."""
    T = x.shape[-2]
    expected = (*x.shape[:-2], -(-T // rows))
    if tuple(scales.shape) != expected:
        raise ValueError(
            f"scales must have the shape {expected}, one for each {rows} rows of {tuple(x.shape)}, got "
            f"{tuple(scales.shape)}"
        )
    return scales.repeat_interleave(rows, dim=-1)[..., :T, None]


def _check(x: Tensor, rows: int) -> None:
    if x.dim() < 2:
        raise ValueError(f"x must have at least two dimensions (..., T, D), got shape {tuple(x.shape)}")
    if not x.is_floating_point():
        raise ValueError(f"x must be a floating-point tensor, got {x.dtype}")
    if rows < 1:
        raise ValueError(f"rows must be at least 1, got {rows}")
