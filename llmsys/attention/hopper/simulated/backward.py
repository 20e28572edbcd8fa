"""The hopper backward kernel on a laptop, run as `simulated/forward` runs the forward kernel.

    from llmsys.attention.hopper.simulated.backward import simulate_backward
    dq, dk, dv = simulate_backward(q, k, v, o, lse, do, causal=True, seed=3)

What `backward_rows` does before and after that kernel is done by PyTorch here. With `deterministic=True` one program
has all tiles: SMs are simulated one after another, so they cannot wait for each other's turn.
"""

import math
import random
from collections.abc import Callable

import torch
from torch import Tensor

from llmsys.attention.contract import check_arguments
from llmsys.attention.flash.tiles import LOG2_E
from llmsys.attention.hopper.backward import KEYS, TILES, HopperBackwardTiles, backward_schedule
from llmsys.attention.hopper.fresh_modules import BACKWARD, fresh_modules
from llmsys.attention.hopper.schedule import ROWS
from llmsys.attention.hopper.simulated import gluon
from llmsys.attention.hopper.simulated.gluon import Descriptor, Pointer
from llmsys.attention.hopper.simulated.processor import Processor, Race


def simulate_backward(
    q: Tensor, k: Tensor, v: Tensor, o: Tensor, lse: Tensor, do: Tensor, dlse: Tensor | None = None, *,
    causal: bool = False, scale: float | None = None, deterministic: bool = False, seed: int = 0,
    tiles: HopperBackwardTiles | None = None, programs: int = 2, kernel: Callable | None = None,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """dq, dk and dv as the hopper backward kernel computes them, on the CPU: `programs` SMs, one after another.

    q, k, v, o, lse, do and dlse are those of `llmsys.attention.hopper.backward.backward`, in float16 or bfloat16, none
    of them empty; `seed` is that of the draws that decide who is next; `kernel` is what `backward_kernel_here` has
    returned, by default this package's kernel.

    Raises Deadlock, Race, or what the kernel raises.
    """
    scale = check_arguments(q, k, v, scale=scale)
    B, Hq, Tq, D = q.shape
    Hkv, Tk = k.shape[1:3]
    tiles = tiles or TILES[D]
    kernel = kernel or backward_kernel_here()
    programs = 1 if deterministic else min(programs, B * Hkv * -(-Tk // KEYS))
    schedule = backward_schedule(B, Hq, Hkv, Tq, Tk, causal, tiles, programs, deterministic).flatten()
    counters = torch.zeros(B * Hq * -(-Tq // tiles.block_m), dtype=torch.int32)
    rows = rows_of(o, lse, do, dlse, tiles.block_m)
    dq = torch.zeros(q.shape)
    dk, dv = torch.full_like(k, math.nan), torch.full_like(v, math.nan)
    for program in range(programs):
        Processor(program, programs, random.Random(f"{seed} {program}"))
        kernel(
            Descriptor(q, tiles.block_m), Descriptor(k, KEYS), Descriptor(v, KEYS), Descriptor(do, tiles.block_m),
            Descriptor(rows, [2 * tiles.block_m]), Descriptor(dq, [1, 1, ROWS, 64]),
            Descriptor(dk, ROWS), Descriptor(dv, ROWS),
            Pointer(schedule), Pointer(counters), Hq, Hq // Hkv, Tq, Tk, scale, scale * LOG2_E,
            CAUSAL=causal, IN_TURN=deterministic, SLOTS=tiles.slots, CONSUMER_REGISTERS=0, OTHER_REGISTERS=0,
        )  # fmt: skip
    return (dq * scale).to(q.dtype), dk, dv


def rows_of(o: Tensor, lse: Tensor, do: Tensor, dlse: Tensor | None, block_m: int) -> Tensor:
    """What `hopper_rows_kernel` makes, flat: for each tile of queries the lse in base two, then delta."""
    B, Hq, Tq, _ = o.shape
    delta = (o.float() * do.float()).sum(-1) - (0 if dlse is None else dlse)
    beyond = -Tq % block_m
    lse = torch.nn.functional.pad(torch.where(lse == -math.inf, math.inf, lse * LOG2_E), (0, beyond), value=math.inf)
    delta = torch.nn.functional.pad(delta, (0, beyond))
    return torch.stack([x.view(B, Hq, -1, block_m) for x in (lse, delta)], 3).flatten()


def backward_kernel_here(**changes: Callable) -> Callable:
    """The hopper backward kernel as plain Python. `changes` replace functions of its modules by name."""
    module = fresh_modules(*BACKWARD, gluon=gluon, functions=_IN_PLACE_OF_ASSEMBLY | changes)
    return module.hopper_backward_kernel


def _wait_for_count(counter: Pointer, count: int) -> None:
    there = int(counter.memory[int(counter.at)])
    if there != count:
        raise Race(f"a share of dQ is number {count} by its turn, and {there} have been added")


def _count_on(counter: Pointer) -> None:
    gluon.tma.store_wait(0)
    counter.memory[int(counter.at)] += 1


_IN_PLACE_OF_ASSEMBLY = {"wait_for_count": _wait_for_count, "count_on": _count_on}
"""Functions of `backward_turns` that are assembly on a GPU, in Python."""
