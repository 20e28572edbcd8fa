"""The flash kernel, compiled for Hopper in every way that the kernel explorer shows.

    python -m llmsys.viz.flash_triton.kernel_sweep        # compiles what is not in the cache, and writes kernel_sweep.json

About two hundred configurations take ten minutes on two cores, and no GPU: that is why their numbers are kept in a
file beside this one. Tests compile some of them again, so that the file cannot grow old unnoticed.
"""

import json
import sys
from collections.abc import Callable, Iterable
from dataclasses import astuple, dataclass, fields
from functools import cache
from itertools import product
from pathlib import Path

import torch

from llmsys.hardware.occupancy import Occupancy, occupancy

HEADS, ROWS, KEYS, WARPS, STAGES = (64, 128, 256), (32, 64, 128), (32, 64, 128), (4, 8), (1, 2, 3, 4)
TARGET = "sm_90"
FILE = Path(__file__).with_suffix(".json")


@dataclass(frozen=True)
class Configuration:
    """How the kernel is cut: head size, rows of queries and keys of a tile, warps of a program, tiles in flight."""

    head: int
    rows: int
    keys: int
    warps: int
    stages: int


@dataclass(frozen=True)
class Result:
    """What the compiler made of one configuration; registers and spilled bytes are a thread's."""

    registers: int
    spill_bytes: int
    shared_bytes: int
    wgmma: bool  # Hopper's matrix instruction
    serialized: bool  # the assembler found no registers to let several of these run at a time

    def occupancy(self, warps: int) -> Occupancy:
        """What fits on an SM of programs with so many warps."""
        return occupancy(registers=self.registers, shared_bytes=self.shared_bytes, num_warps=warps, target=TARGET)


def configurations() -> list[Configuration]:
    """All that the explorer shows."""
    return [Configuration(*each) for each in product(HEADS, ROWS, KEYS, WARPS, STAGES)]


def compile_all(
    wanted: Iterable[Configuration], report: Callable[[int], None] = lambda done: None
) -> dict[Configuration, Result]:
    """Compile the flash kernel, causal and in bf16, in these configurations. Raises CompileError if one fails."""
    from llmsys.attention.flash.forward import TileConfig, launch
    from llmsys.attention.flash.kernels import flash_forward_kernel
    from llmsys.hardware.compiler import CompileError, compile_kernels
    from llmsys.hardware.launches import Recorder

    recorder, wanted = Recorder(flash_forward_kernel, target=TARGET), list(wanted)
    for each in wanted:
        x = torch.empty(1, 16, 4096, each.head, dtype=torch.bfloat16, device="meta")
        tiles = TileConfig(each.rows, each.keys, each.warps, each.stages)
        launch(x, x, x, True, each.head**-0.5, "ieee", tiles, recorder)
    found = {}
    for each, compiled in zip(wanted, compile_kernels(recorder.builds, report=report), strict=True):
        if isinstance(compiled, CompileError):
            raise CompileError(f"{each}: {compiled}") from compiled
        serialized = any("serialized" in warning for warning in compiled.warnings)
        numbers = compiled.registers, compiled.spill_bytes, compiled.shared_bytes
        found[each] = Result(*numbers, compiled.wgmma, serialized)
    return found


@cache
def recorded() -> dict[Configuration, Result]:
    """The committed results."""
    kept = json.loads(FILE.read_text(encoding="utf-8"))
    cut = len(fields(Configuration))
    return {Configuration(*row[:cut]): Result(*row[cut:]) for row in kept["rows"]}


def recorded_with() -> str:
    """The version of Triton that the committed results are of."""
    return json.loads(FILE.read_text(encoding="utf-8"))["triton"]


def write(found: dict[Configuration, Result]) -> None:
    """Make these the committed results; a row a line."""
    from importlib.metadata import version

    names = [field.name for each in (Configuration, Result) for field in fields(each)]
    head = {"kernel": "flash_forward_kernel, causal, bf16", "target": TARGET, "triton": version("triton")}
    rows = ",\n".join(f"  {json.dumps([*astuple(each), *astuple(result)])}" for each, result in found.items())
    text = json.dumps(head | {"columns": names}, indent=1).removesuffix("\n}")
    FILE.write_text(f'{text},\n "rows": [\n{rows}\n ]\n}}\n', encoding="utf-8")


def main() -> None:
    wanted = configurations()
    found = compile_all(wanted, lambda done: print(f"\r{done} of {len(wanted)}", end="", file=sys.stderr, flush=True))
    write(found)
    print(f"\n{FILE}", file=sys.stderr)


if __name__ == "__main__":
    main()
