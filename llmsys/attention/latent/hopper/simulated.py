"""The MLA decode kernel on a laptop: its own text, on the simulated processor of `llmsys.attention.hopper.simulated`.

    from llmsys.attention.latent.hopper.simulated import simulate_latent_decode
    o, lse = simulate_latent_decode(q, pages, **step, scale=scale, seed=3)

Numbers, deadlocks and races are found as there. Programs are simulated one after another. `merge_kernel`, which is
Triton's, runs in its interpreter.
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
from llmsys.attention.latent.decode import launch_merge, scratch_for
from llmsys.attention.latent.hopper.decode import LATENT, ROWS, decode_arguments, members_for

PACKAGE = "llmsys.attention.latent.hopper"
MODULES = (
    "llmsys.attention.hopper.ring",
    "llmsys.attention.paged.hopper.line",
    "llmsys.attention.paged.hopper.ring",
    *(f"{PACKAGE}.{name}" for name in ("line", "ring", "consumers", "kernel")),
)
"""The modules of the kernel, each after those that it imports."""


def simulate_latent_decode(
    q: Tensor, pages: Tensor, *, query_start_loc: Tensor, seq_lens: Tensor, block_table: Tensor, scale: float,
    max_query_len: int = 1, seed: int = 0, teams: int = 3, kernel: Callable | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """o and lse as `latent_decode` computes them on Hopper, here on the CPU, by so many teams of programs.

    The arguments are those of `latent_decode`, in float16; `seed` is that of the draws that decide who is next;
    `kernel` is what `latent_kernel_here` has returned. Raises Deadlock, Race, or what the kernel raises.
    """
    N, Hq, _ = q.shape
    members = members_for(Hq, max_query_len)
    programs = teams * members
    results = torch.full((N, Hq, LATENT), math.nan, dtype=q.dtype), torch.full((N, Hq), math.nan)
    scratch = scratch_for(q, programs, ROWS, LATENT)
    for x in scratch:
        x.fill_(-1 if x.dtype == torch.int32 else math.nan)
    positional, named = decode_arguments(
        q, pages, *results, *scratch, query_start_loc, seq_lens, block_table, scale, members,
        describe=_describe,
    )  # fmt: skip
    positional = [Pointer(x.flatten() if x is block_table else x.view(-1)) if torch.is_tensor(x) else x
                  for x in positional]  # fmt: skip
    kernel = kernel or latent_kernel_here()
    for program in range(programs):
        Processor(program, programs, random.Random(f"{seed} {program}"))
        kernel(*positional, **named)
    launch_merge(*results, *scratch, query_start_loc, members)
    return results


def latent_kernel_here(**changes: Callable) -> Callable:
    """The kernel as plain Python. `changes` replace functions of its modules by name."""
    return fresh_modules(*MODULES, gluon=gluon, functions={"unit_of": _unit_of} | changes).latent_decode_kernel


def _describe(x: Tensor, shape: list[int], strides: list[int], block: list[int]) -> Descriptor:
    return Descriptor(x.as_strided(shape, strides), block)


def _unit_of(tiles: Shared, slot, j, c: int, UNIT: int) -> Shared:
    return Shared(tiles.data[int(slot), int(j) * UNIT : (int(j) + 1) * UNIT, c * 64 : (c + 1) * 64])
