"""Descriptors: what the copy engine (TMA) must know of a tensor before a kernel can name its tiles by coordinates.

The engine reads tensors as they lie, whatever their strides, if addresses are multiples of 16 bytes and rows are
contiguous; `for_copy_engine` copies what is not so. Where tensor cores read a tile from shared memory, its 16-byte
pieces are swapped on the way in (swizzled), so that wgmma meets no bank conflicts.
"""

from functools import cache

import torch
from torch import Tensor

from llmsys.attention.hopper.schedule import ROWS

ALIGNED = 16  # bytes: what the copy engine wants of addresses and strides


def descriptor(x: Tensor, rows: int):
    """A descriptor of x (B, H, T, D) in tiles of `rows` rows of a head; of a copy if the copy engine cannot read x."""
    x = for_copy_engine(x)
    # A dimension of size 1 may have any stride, and the copy engine wants a good one.
    strides = [stride if size > 1 else x.shape[3] for size, stride in zip(x.shape[:3], x.stride()[:3], strict=True)]
    return _descriptor(x, [*strides, 1], [1, 1, rows, x.shape[3]], swizzle=128)


def rows_descriptor(rows: Tensor, n: int):
    """A descriptor of one long row of fp32 numbers, in tiles of n."""
    return _descriptor(rows, [1], [n], swizzle=0)


def sum_descriptor(dq: Tensor):
    """A descriptor of dQ's sum (B, Hq, Tq, D), fp32 and contiguous, in tiles of 64 × 64."""
    return _descriptor(dq, list(dq.stride()), [1, 1, ROWS, 64], swizzle=128)


def tiles_descriptor(x: Tensor, shape: list[int], strides: list[int], block: list[int]):
    """A descriptor of x's memory as a tensor of another shape and strides, in tiles for the tensor cores."""
    from llmsys.attention.hopper.gluon import TensorDescriptor

    return TensorDescriptor(x, shape, strides, block, _layout(128, 8 * x.element_size(), len(block)))


def for_copy_engine(x: Tensor) -> Tensor:
    """x (B, H, T, D) itself if the copy engine can read it as it lies, or else a copy."""
    strides = [stride * x.element_size() for size, stride in zip(x.shape[:3], x.stride()[:3], strict=True) if size > 1]
    good = x.stride(3) == 1 and all(stride > 0 and stride % ALIGNED == 0 for stride in strides)
    return x if good and x.data_ptr() % ALIGNED == 0 else x.clone(memory_format=torch.contiguous_format)


def _descriptor(x: Tensor, strides: list[int], block: list[int], *, swizzle: int):
    from llmsys.attention.hopper.gluon import TensorDescriptor  # Triton: not before now

    return TensorDescriptor(x, list(x.shape), strides, block, _layout(swizzle, 8 * x.element_size(), len(block)))


@cache
def _layout(swizzle: int, bits: int, rank: int):
    from llmsys.attention.hopper.gluon import gl

    return gl.NVMMASharedLayout(swizzle_byte_width=swizzle, element_bitwidth=bits, rank=rank)
