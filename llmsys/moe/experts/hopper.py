"""The grouped products on a Hopper GPU: whether they can be done there by its own kernels, tiles, and launches.

The copy engine wants addresses and rows that are multiples of 16 bytes, in half precision 8 numbers. What is not so, or
not on Hopper, is left to `matmul_kernels`.

**Ragged rows.** The engine keeps to the bounds of a tensor, but an expert's rows end inside of one. A descriptor of x
(R, C), with rows of s numbers, whose bound can be anywhere, has four dimensions (found in Triton's
`tools/ragged_tma.py`):

    sizes     2³¹, 2³¹, 2³⁰, C
    strides   2³⁴ − s, s, s, 1

To read n rows that end where row `stop` begins, a kernel asks for [2³⁰, stop, 2³⁰ − n, c]. In the first dimension, 2³⁰
times 2³⁴ numbers are 2⁶⁵ bytes, which in 64 bits are 0, so −2³⁰ rows are left of it; the second adds `stop` rows, the
third 2³⁰ − n. So the address is that of row stop − n, and it is n rows from the third dimension's bound.
"""

from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from llmsys.hardware.tier import interpreting, triton_installed
from llmsys.moe.experts.groups import Groups

BLOCK_M = 128
"""Rows of a tile: 64 of each of two consumers."""
FEW = 16
"""Up to so many rows an expert, on average, it is reading the matrices that takes the time, and the portable kernel's
tiles of 16 rows do that faster."""
GROUP = 4
"""Tiles of rows that have the same columns of a matrix, one after another. On an H200, of 1 to 8, four are within 1% of
the fastest at even loads and 3% faster than eight at skewed ones."""
REGISTERS = 232
"""Of a consumer's thread. The producer's warps keep 24."""


@dataclass(frozen=True)
class HopperTiles:
    """A tile of the result has BLOCK_M rows."""

    columns: int
    piece: int  #  columns that are written at once
    slots: int  #  of the ring
    inner: int = 64  # of the inner dimension, in a slot


WIDE, NARROW = HopperTiles(256, 128, 4), HopperTiles(128, 128, 6)


def tiles_for(columns: int) -> HopperTiles:
    """WIDE ones reread less, where they compute little beyond the last column: at most a thirtieth."""
    wide, narrow = (-(-columns // tiles.columns) * tiles.columns for tiles in (WIDE, NARROW))
    return WIDE if 30 * wide <= 31 * narrow else NARROW


def tile_rows(x: Tensor, assignments: int, experts: int) -> int | None:
    """The rows of a tile that groups are to have for these kernels; None where the portable ones are as good."""
    return BLOCK_M if assignments > FEW * experts and _on_hopper(x) else None


def takes(*tensors: Tensor, groups: Groups | None = None) -> bool:
    """Whether the kernels can read and write these matrices, each with adjacent numbers in its last or (a stack of
    matrices alone) its last but one dimension; and, where given, groups' tiles."""
    if not _on_hopper(tensors[0]) or (groups is not None and groups.block_m != BLOCK_M):
        return False
    return all(x.data_ptr() % 16 == 0 and _strides_fit(x) for x in tensors)


def _on_hopper(x: Tensor) -> bool:
    half = x.dtype in (torch.bfloat16, torch.float16)
    return half and x.is_cuda and triton_installed() and not interpreting() and _is_hopper(x.device.index)


@cache
def _is_hopper(device: int | None) -> bool:
    return torch.cuda.get_device_capability(device) == (9, 0)


def _strides_fit(x: Tensor) -> bool:
    *others, row, column = x.stride()
    if x.dim() == 3 and row == 1:
        row, column = column, row
    even = all(size % 8 == 0 for size in x.shape[1:])  # the first is the number of rows, or of experts
    return column == 1 and even and all(stride > 0 and stride % 8 == 0 for stride in (*others, row))


def multiply(
    x: Tensor, weight: Tensor, groups: Groups, *, tiles: HopperTiles | None = None, out: Tensor | None = None
) -> Tensor:
    """`llmsys.moe.experts.matmul.grouped_matmul`'s result, for what `takes` accepts. x (R, IN), weight (E, OUT, IN);
    `out` (R, OUT) is written to, where it is given."""
    from llmsys.moe.experts.hopper_kernels import grouped_matmul_hopper_kernel as kernel  # Triton: not before now

    OUT, IN = weight.shape[1:]
    out = x.new_empty(len(x), OUT) if out is None else out
    tiles = tiles or tiles_for(OUT)
    columns, transposed = -(-OUT // tiles.columns), weight.stride(2) == 1
    if transposed:
        weight_desc = _descriptor(weight, [1, tiles.columns, tiles.inner])
    else:
        weight_desc = _descriptor(weight.transpose(1, 2), [1, tiles.inner, tiles.columns])
    with torch.cuda.device_of(x):
        kernel[(_programs(x, len(groups.tile_expert) * columns),)](
            _descriptor(x, [BLOCK_M // 2, tiles.inner]), weight_desc, _ragged(out, [BLOCK_M // 2, tiles.piece]),
            groups.starts, groups.tile_expert, groups.tile_row, groups.tiles, columns, -(-IN // tiles.inner),
            TRANSPOSED=transposed, SLOTS=tiles.slots, GROUP=GROUP, REGISTERS=REGISTERS, num_warps=4,
        )  # fmt: skip
    return out


def weight_gradient(dout: Tensor, x: Tensor, groups: Groups, *, tiles: HopperTiles | None = None) -> Tensor:
    """`llmsys.moe.experts.matmul.weight_gradient`'s result, (E, OUT, IN), for what `takes` accepts."""
    from llmsys.moe.experts.hopper_kernels import weight_gradient_hopper_kernel as kernel  # Triton: not before now

    OUT, IN = dout.shape[1], x.shape[1]
    found = x.new_empty(groups.experts, OUT, IN)
    tiles = tiles or tiles_for(IN)
    m_tiles, columns = -(-OUT // BLOCK_M), -(-IN // tiles.columns)
    with torch.cuda.device_of(x):
        kernel[(_programs(x, groups.experts * m_tiles * columns),)](
            _ragged(dout, [tiles.inner, BLOCK_M // 2]), _ragged(x, [tiles.inner, tiles.columns]),
            _descriptor(found, [1, BLOCK_M // 2, tiles.piece]), groups.starts, groups.by_load, m_tiles, columns,
            groups.experts, SLOTS=tiles.slots, REGISTERS=REGISTERS, num_warps=4,
        )  # fmt: skip
    return found


def _programs(x: Tensor, most: int) -> int:
    return min(_multiprocessors(x.device), most)


@cache
def _multiprocessors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count


def _descriptor(x: Tensor, block: list[int]):
    return _described(x, list(x.shape), list(x.stride()), block)


def _ragged(x: Tensor, block: list[int]):
    """x (R, C), whose rows end wherever a kernel says."""
    stride = x.stride(0)
    return _described(
        x, [2**31 - 2**16, 2**31 - 2**16, 2**30, x.shape[1]], [2**34 - stride, stride, stride, 1], [1, 1, *block]
    )


def _described(x: Tensor, shape: list[int], strides: list[int], block: list[int]):
    from llmsys.attention.hopper.descriptors import tiles_descriptor

    return tiles_descriptor(x, shape, strides, block)
