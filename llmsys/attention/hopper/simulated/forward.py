"""The hopper kernel on a laptop: its own text, run by warps and engines that take turns at random.

    from llmsys.attention.hopper.simulated.forward import simulate
    o, lse = simulate(q, k, v, causal=True, seed=3)

Triton's interpreter runs a program from its beginning to its end, so a producer would wait for its consumers for ever.
`processor` lets warps take turns instead, and the simulated `gluon` makes their copies and products, early or late.
Three mistakes are found and named:

    Deadlock        nobody can go on; the message says who waits for what
    Race            a copy is started into a tile that a product still reads; a result is used before it was waited for;
                    the copy engine reads what threads have stored without a fence between
    wrong numbers   a tile that was not waited for is full of NaN

It does not know layouts, registers and spills (`llmsys.hardware.compiler` does), what the assembler makes of the order
of instructions, and time.
"""

import math
import random
from collections.abc import Callable
from types import FunctionType

import torch
from torch import Tensor

from llmsys.attention.contract import check_arguments
from llmsys.attention.flash.tiles import LOG2_E
from llmsys.attention.hopper.fresh_modules import FORWARD, fresh_modules
from llmsys.attention.hopper.schedule import ROWS, HopperTiles, hopper_schedule, hopper_tiles
from llmsys.attention.hopper.simulated import gluon
from llmsys.attention.hopper.simulated.gluon import Descriptor, Pointer
from llmsys.attention.hopper.simulated.processor import Processor
from llmsys.hardware.kernel_source import underlying


def simulate(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool = False, scale: float | None = None, seed: int = 0,
    tiles: HopperTiles | None = None, programs: int = 2, kernel: Callable | None = None,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """o and lse as the hopper kernel computes them, on the CPU: `programs` SMs, one after another.

    Parameters
    ----------
    q, k, v
        (B, Hq, Tq, D), (B, Hkv, Tk, D) and (B, Hkv, Tk, D) in float16 or bfloat16, none of them empty.
    seed
        Of the draws that decide who is next.
    tiles
        How the kernel is cut; by default as on a GPU.
    kernel
        What `kernel_here` has returned, by default this package's kernel.

    Raises Deadlock, Race, or what the kernel raises.
    """
    scale = check_arguments(q, k, v, scale=scale)
    B, Hq, Tq, D = q.shape
    Hkv, Tk = k.shape[1:3]
    tiles = tiles or hopper_tiles(D, Tq, causal)
    kernel = kernel or kernel_here()
    programs = min(programs, B * Hq * -(-Tq // tiles.block_m))
    schedule = hopper_schedule(B, Hq, Hkv, Tq, Tk, D, causal, tiles, programs).flatten()
    o, lse = torch.full_like(q, math.nan), torch.full((B * Hq * Tq,), math.nan)
    for program in range(programs):
        Processor(program, programs, random.Random(f"{seed} {program}"))
        kernel(
            Descriptor(q, ROWS), Descriptor(k, tiles.block_n), Descriptor(v, tiles.block_n), Descriptor(o, ROWS),
            Pointer(lse), Pointer(schedule), Hq, Hq // Hkv, Tq, Tk, scale * LOG2_E,
            CAUSAL=causal, CONSUMERS=tiles.consumers, SLOTS=tiles.slots, CONSUMER_REGISTERS=0, PRODUCER_REGISTERS=0,
        )  # fmt: skip
    return o, lse.view(B, Hq, Tq)


def kernel_here(**changes: Callable) -> Callable:
    """The hopper kernel as plain Python. `changes` replace functions of its modules by name, to see what happens.

    One that was decorated with gluon.jit becomes the Python function under the decorator, which finds the names of the
    module that it gets into.
    """
    module = fresh_modules(*FORWARD, gluon=gluon, functions=changes, prepare=_as_python)
    return module.hopper_forward_kernel


def _as_python(function: Callable, names: dict) -> Callable:
    """The function without its decorator, over these names; one without a decorator as it is."""
    plain = underlying(function)
    if plain is function:
        return function
    return FunctionType(plain.__code__, names | {"__name__": plain.__module__}, plain.__name__, plain.__defaults__)
