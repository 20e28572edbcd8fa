"""How a graph begins: what the host does not know, or has not sent, is put together on the device, in one launch.

    tokens, table = begin(rows, row, tokens, columns, entries)

    the rows' table[row, column] = entry        a block that is new to its request; column −1: none
    tokens[i] = newest[row[i]] where it is −1   place-holders; 0 where that is −1, too, for nobody wants what follows
    table[i] = the rows' table[row[i]]          the step's block tables, side by side

In plain PyTorch it is eight small operations, each of which takes the device longer to start than to do.
"""

from functools import lru_cache

import torch
from torch import Tensor

from llmsys.hardware.tier import interpreting, triton_installed
from llmsys.serving.runner.rows import Rows

BLOCK = 1024
"""Entries of a table's row that a program copies, a power of two."""


def begin(
    rows: Rows, row: Tensor, tokens: Tensor, columns: Tensor, entries: Tensor, *, kernel: object = None
) -> tuple[Tensor, Tensor]:
    """The tokens (B,) and block tables (B, M) of a step, int32.

    Parameters
    ----------
    row
        (B,) int64. Rows other than 0 are there once at most.
    tokens, columns, entries
        (B,) int32.
    kernel
        In place of the library's.
    """
    if kernel is None and (not row.is_cuda or not triton_installed() or interpreting()):
        return _begin(rows, row, tokens, columns, entries)
    kernel = _kernel() if kernel is None else kernel
    B, M = row.shape[0], rows.width
    filled, table = tokens.new_empty(B), tokens.new_empty(B, M)
    grid = (B, -(-M // BLOCK))
    with torch.cuda.device_of(row):
        kernel[grid](
            rows.on_device, rows.newest, row, tokens, columns, entries, filled, table, M, BLOCK=BLOCK, num_warps=4
        )
    return filled, table


def _begin(rows: Rows, row: Tensor, tokens: Tensor, columns: Tensor, entries: Tensor) -> tuple[Tensor, Tensor]:
    """The same in plain PyTorch. Where there is no entry, the first cell of row 0 is written, −1 as it is."""
    cells = (row * rows.width + columns).where(columns >= 0, 0)
    rows.on_device.view(-1).index_copy_(0, cells, entries.where(columns >= 0, -1))
    newest = rows.newest.index_select(0, row).clamp(min=0)
    return tokens.where(tokens >= 0, newest), rows.on_device.index_select(0, row)


@lru_cache
def _kernel() -> object:
    from llmsys.serving.runner.begin_kernel import begin_kernel  # Triton: not before now

    return begin_kernel
