"""How a decode step in a graph begins and ends: what the host need not say is put together on the device.

    step                                what is in the graph's buffer: of each sequence its row, seed, how many tokens
                                        are computed, the newest token, a new block
    begun = begin(rows, step, page)     all that the model, the attention and the draw want to be told
    …
    end(rows, step, drawn)              the tokens are kept, and the step in the buffer is the next one

**A step in the buffer is followed by itself.** As it ends, one token more is computed, the newest token is whichever
was drawn, and there is no new block. So where the next step has the same sequences, as nearly always, the host sends
nothing, or a block now and then; and it has no positions, slots, lengths or random numbers to compute.

Each is a single launch; in plain PyTorch they are two dozen small operations, each of which takes the device longer to
start than to do.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
from torch import Tensor

from llmsys.hardware.tier import interpreting, triton_installed
from llmsys.serving.runner.rows import Rows

BLOCK = 1024
"""Entries of a table's row that a program copies, a power of two."""


class Buffered(NamedTuple):
    """A decode step of B sequences as it is sent. Row 0 is nobody's: it fills up, with 0 computed and token 0."""

    row: Tensor  #       (B,) int64; those other than 0 once at most
    seed: Tensor  #      (B,) int64, the bits of 64 without a sign
    computed: Tensor  #  (B,) int32
    tokens: Tensor  #    (B,) int32; −1: a place-holder
    columns: Tensor  #   (B,) int32, where in the row's table there is a new block; −1: none is new
    entries: Tensor  #   (B,) int32, that block


class Begun(NamedTuple):
    """The same as it is computed, (B,) each."""

    tokens: Tensor  #     int32; for a place-holder the row's newest, or 0 where that is −1: nobody wants what follows
    positions: Tensor  #  int32
    slots: Tensor  #      int32; −1 for what fills up
    seq_lens: Tensor  #   int32; 0 for what fills up
    u: Tensor  #          fp64, `uniform` of the seed and the drawn token's place
    table: Tensor  #      (B, M) int32


class Kernels(NamedTuple):
    """Those of `begin_kernel`, or others with their arguments."""

    begin: object
    end: object


def begin(rows: Rows, step: Buffered, page: int, *, kernels: Kernels | None = None) -> Begun:
    """The step, for blocks of `page` tokens. New blocks are written to the rows. `kernels`: for the library's."""
    if kernels is None and not _triton_can(step.row):
        return _begin(rows, step, page)
    kernels = _kernels() if kernels is None else kernels
    B, M = step.row.shape[0], rows.width
    numbers = [step.tokens.new_empty(B) for _ in range(4)]
    begun = Begun(*numbers, step.row.new_empty(B, dtype=torch.float64), step.tokens.new_empty(B, M))
    with torch.cuda.device_of(step.row):
        kernels.begin[(B, -(-M // BLOCK))](
            rows.on_device, rows.newest, *step, *begun, M, PAGE=page, BLOCK=BLOCK, num_warps=4
        )
    return begun


def end(rows: Rows, step: Buffered, drawn: Tensor, *, kernels: Kernels | None = None) -> None:
    """Keeps `drawn` (B,) int32 as the rows' newest tokens, and turns the step in the buffer into the one after it."""
    if kernels is None and not _triton_can(step.row):
        return _end(rows, step, drawn)
    kernels = _kernels() if kernels is None else kernels
    with torch.cuda.device_of(step.row):
        kernels.end[(step.row.shape[0],)](
            rows.newest, step.row, step.computed, step.tokens, step.columns, drawn, num_warps=1
        )


def _begin(rows: Rows, step: Buffered, page: int) -> Begun:
    row, computed, here = step.row, step.computed, step.row > 0
    new = step.columns >= 0
    # Where there is no new block, the first cell of row 0 is written, −1 as it is.
    rows.on_device.view(-1).index_copy_(0, (row * rows.width + step.columns).where(new, 0), step.entries.where(new, -1))
    table = rows.on_device.index_select(0, row)
    block = table.gather(1, (computed // page).long()[:, None])[:, 0]
    tokens = step.tokens.where(step.tokens >= 0, rows.newest.index_select(0, row).clamp(min=0))
    slots = (block * page + computed % page).where(here, -1)
    seq_lens = (computed + 1).where(here, 0)
    return Begun(tokens, computed.clone(), slots, seq_lens, _uniform(step.seed, computed + 1), table)


def _end(rows: Rows, step: Buffered, drawn: Tensor) -> None:
    here = step.row > 0
    rows.newest.index_copy_(0, step.row, drawn.where(here, 0))
    step.computed.add_(here)
    step.tokens.masked_fill_(here, -1)
    step.columns.fill_(-1)


def _uniform(seed: Tensor, place: Tensor) -> Tensor:
    """`llmsys.serving.sampling.sampler.uniform`, in whole numbers with a sign: their bits are the same."""
    bits = _mixed(_mixed(seed + _STEP) + (place.long() + 1) * _STEP)
    return _shifted(bits, 12).double() * 2.0**-52


def _mixed(x: Tensor) -> Tensor:
    x = (x ^ _shifted(x, 30)) * _signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shifted(x, 27)) * _signed(0x94D049BB133111EB)
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, by: int) -> Tensor:
    return (x >> by) & ((1 << 64 - by) - 1)


def _signed(bits: int) -> int:
    return bits - 2**64 if bits >= 2**63 else bits


_STEP = _signed(0x9E3779B97F4A7C15)


def _triton_can(tensor: Tensor) -> bool:
    return tensor.is_cuda and triton_installed() and not interpreting()


@lru_cache
def _kernels() -> Kernels:
    from llmsys.serving.runner.begin_kernel import begin_kernel, end_kernel  # Triton: not before now

    return Kernels(begin_kernel, end_kernel)
