"""The flash kernel, compiled for Hopper in every way that the kernel explorer shows.

About two hundred configurations take ten minutes on two cores, and no GPU: that is why their numbers are kept in
kernel_sweep.json, beside this file. `llmsys.viz.flash_triton.compile_sweep` makes it; tests compile some of them again,
so that it cannot grow old unnoticed.
"""

import json
from dataclasses import astuple, dataclass, fields
from functools import cache
from importlib.metadata import version
from itertools import product
from pathlib import Path

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
        """How many programs of so many warps fit on an SM, and what stops one more."""
        return occupancy(registers=self.registers, shared_bytes=self.shared_bytes, num_warps=warps, target=TARGET)


def configurations() -> list[Configuration]:
    """Every configuration that the explorer shows."""
    return [Configuration(*each) for each in product(HEADS, ROWS, KEYS, WARPS, STAGES)]


@cache
def recorded() -> dict[Configuration, Result]:
    """The committed results."""
    kept = json.loads(FILE.read_text(encoding="utf-8"))
    cut = len(fields(Configuration))
    return {Configuration(*row[:cut]): Result(*row[cut:]) for row in kept["rows"]}


def recorded_with() -> str:
    """The version of Triton that the committed results are of."""
    return json.loads(FILE.read_text(encoding="utf-8"))["triton"]


def write(found: dict[Configuration, Result], file: Path = FILE) -> None:
    """Write results into a file, a line for each; without a path they become the committed ones."""
    names = [field.name for each in (Configuration, Result) for field in fields(each)]
    head = {"kernel": "flash_forward_kernel, causal, bf16", "target": TARGET, "triton": version("triton")}
    rows = ",\n".join(f"  {json.dumps([*astuple(each), *astuple(result)])}" for each, result in found.items())
    text = json.dumps(head | {"columns": names}, indent=1).removesuffix("\n}")
    file.write_text(f'{text},\n "rows": [\n{rows}\n ]\n}}\n', encoding="utf-8")
