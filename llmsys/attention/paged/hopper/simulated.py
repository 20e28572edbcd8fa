"""The paged decode kernel on a laptop: its own text, on the simulated processor of `llmsys.attention.hopper.simulated`.

    from llmsys.attention.paged.hopper.simulated import simulate_decode
    o, lse = simulate_decode(q, key_pages, value_pages, **step, seed=3)

Numbers, deadlocks and races are found as there. Programs are simulated one after another, so the last of those that
share a head is always the one that adds up its parts.
"""

import math
import random
from collections.abc import Callable

import torch
from torch import Tensor

from llmsys.attention.hopper.fresh_modules import fresh_modules
from llmsys.attention.hopper.simulated import gluon
from llmsys.attention.hopper.simulated.gluon import Descriptor, Pointer, Shared
from llmsys.attention.hopper.simulated.processor import Processor
from llmsys.attention.paged.arguments import check_pages, check_step
from llmsys.attention.paged.hopper.decode import DecodeTiles, decode_arguments, decode_tiles

PACKAGE = "llmsys.attention.paged.hopper"
MODULES = (
    "llmsys.attention.hopper.ring",
    *(f"{PACKAGE}.{name}" for name in ("line", "ring", "parts", "consumer", "kernel")),
)
"""The modules of the kernel, each after those that it imports."""


def simulate_decode(
    q: Tensor, key_pages: Tensor, value_pages: Tensor, *, query_start_loc: Tensor, seq_lens: Tensor,
    block_table: Tensor, max_query_len: int = 1, max_seq_len: int = 0, scale: float | None = None,
    tree_mask: None = None, seed: int = 0, programs: int = 3, tiles: DecodeTiles | None = None,
    kernel: Callable | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """o and lse as the paged decode kernel computes them, on the CPU: `programs` SMs, one after another.

    The arguments are those of `paged_attention`, in float16 or bfloat16; `seed` is that of the draws that decide who is
    next; `kernel` is what `decode_kernel_here` has returned. Raises Deadlock, Race, or what the kernel raises.
    """
    scale = check_pages(q, key_pages, value_pages, scale=scale)
    check_step(q, query_start_loc, seq_lens, block_table, tree_mask)
    N, Hq, D = q.shape
    o, lse = torch.full((N, Hq, D), math.nan, dtype=q.dtype), torch.full((N, Hq), math.nan)
    counters = torch.zeros(programs, dtype=torch.int32)
    kernel = kernel or decode_kernel_here()
    positional, named = decode_arguments(
        q, key_pages, value_pages, o, lse, query_start_loc, seq_lens, block_table, scale, programs, counters,
        tiles or decode_tiles(D, Hq, *key_pages.shape[2:0:-1]), describe=_describe,
    )  # fmt: skip
    positional = [Pointer(x.flatten() if x is block_table else x.view(-1)) if torch.is_tensor(x) else x
                  for x in positional]  # fmt: skip
    for program in range(programs):
        Processor(program, programs, random.Random(f"{seed} {program}"))
        kernel(*positional, **named)
    if counters.any():
        raise AssertionError(f"counters must be 0 after a launch, got {counters.tolist()}")
    return o, lse


def decode_kernel_here(**changes: Callable) -> Callable:
    """The kernel as plain Python. `changes` replace functions of its modules by name."""
    return fresh_modules(*MODULES, gluon=gluon, functions={"unit_of": _unit_of} | changes).paged_decode_kernel


def _describe(x: Tensor, shape: list[int], strides: list[int], block: list[int]) -> Descriptor:
    return Descriptor(x.as_strided(shape, strides), block)


def _unit_of(tiles: Shared, slot, j, c: int, UNIT: int) -> Shared:
    return Shared(tiles.data[int(slot), int(j) * UNIT : (int(j) + 1) * UNIT, c * 64 : (c + 1) * 64])
