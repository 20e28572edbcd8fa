"""An SM filling up: how many programs of the flash kernel fit, for each way to cut its tiles, and what stops one more.

All numbers are the compiler's own, for Hopper (`kernel_sweep`); what fits is worked out by
`llmsys.hardware.occupancy`. A step is a tile size: rows of queries × keys. Head size, warps and tiles in flight are
chosen above.
"""

from collections.abc import Sequence

from llmsys.hardware.occupancy import RESERVED_SHARED, registers_of_warp, sm_of
from llmsys.viz.flash_triton.kernel_explorer_frame import Resource, Step, draw
from llmsys.viz.flash_triton.kernel_sweep import (
    HEADS,
    KEYS,
    ROWS,
    STAGES,
    TARGET,
    WARPS,
    Configuration,
    Result,
    recorded,
)
from llmsys.viz.kit.controls import Choice
from llmsys.viz.kit.stepper import Stepper


def explorer_of(results: dict[Configuration, Result], *, head: int = 64, warps: int = 4, stages: int = 3) -> Stepper:
    """Step through the tile sizes of such results; `kernel_explorer` shows the committed ones."""

    def options(values: Sequence[int], unit: str) -> dict[str, int]:
        return {f"{value}{unit}": value for value in values}

    return Stepper(
        lambda head, warps, stages: steps(results, head, warps, stages),
        draw,
        title="One SM of an H100, filled with programs of the flash kernel",
        describe=describe,
        controls=[
            Choice("head", "Head size", options(HEADS, ""), start=head),
            Choice("warps", "Warps a program", options(WARPS, ""), start=warps),
            Choice("stages", "Stages", options(STAGES, ""), start=stages),
        ],
        static=most_telling,
        keep_place=True,
    )


def kernel_explorer(*, head: int = 64, warps: int = 4, stages: int = 3) -> Stepper:
    """Step through the tile sizes of the flash kernel: 32, 64 or 128 queries × 32, 64 or 128 keys, compiled for Hopper
    (causal, bf16) with heads of 64, 128 or 256, 4 or 8 warps, and 1 to 4 stages, which are tiles of K and V in flight.

    Raises ValueError for a value that was not compiled.
    """
    return explorer_of(recorded(), head=head, warps=warps, stages=stages)


def steps(results: dict[Configuration, Result], head: int, warps: int, stages: int) -> list[Step]:
    """All tile sizes, the smaller first."""
    cuts = [Configuration(head, rows, keys, warps, stages) for rows in ROWS for keys in KEYS]
    map_ = {(cut.rows, cut.keys): (results[cut], results[cut].occupancy(warps).programs) for cut in cuts}
    found = []
    for cut in cuts:
        result, fits = results[cut], results[cut].occupancy(warps)
        found.append(Step(cut, result, fits, _resources(result, warps), map_))
    return found


def most_telling(frames: Sequence[Step]) -> int:
    """The largest tile that runs without spills; if there is none, the first."""
    good = [i for i, step in enumerate(frames) if step.fits.programs and not step.result.spill_bytes]
    return max(good, key=lambda i: frames[i].at.rows * frames[i].at.keys, default=0)


def describe(step: Step) -> str:
    """The caption of a step."""
    at, result, fits = step.at, step.result, step.fits
    tile = f"{at.rows} queries × {at.keys} keys"
    if not fits.programs:
        if "shared memory" in step.limits:
            most = sm_of(TARGET).shared_bytes_per_program // 1024
            said = f"needs {result.shared_bytes / 1024:.0f} KiB of shared memory, and a program may have {most}"
        else:
            said = "needs more registers than an SM has"
        return f"{tile}: the kernel compiles, but no GPU of this kind can run it. It {said}."
    many = "1 program fits" if fits.programs == 1 else f"{fits.programs} programs fit"
    said = f"{tile}: {many} on an SM, and {_and(step.limits)} {_stop(step.limits)} one more."
    if result.spill_bytes:
        full = result.registers == sm_of(TARGET).registers_per_thread
        why = "has no register for all it needs" if full else f"is kept to {result.registers} registers"
        said += f" A thread {why}, and moves {result.spill_bytes:,} bytes to memory and back."
    if not result.wgmma:
        said += " The tile is too small for wgmma: the tensor cores are fed by Ampere's instruction."
    return said


def _resources(result: Result, warps: int) -> tuple[Resource, ...]:
    sm = sm_of(TARGET)
    return (
        Resource("shared memory", "KiB", result.shared_bytes + RESERVED_SHARED, sm.shared_bytes, RESERVED_SHARED),
        Resource("registers", "", registers_of_warp(result.registers) * warps, sm.registers),
        Resource("warps", "", warps, sm.warps),
        Resource("programs", "", 1, sm.programs),
    )


def _and(names: Sequence[str]) -> str:
    named = [{"warps": "the number of warps", "programs": "the number of programs"}.get(name, name) for name in names]
    return " and ".join([", ".join(named[:-1]), named[-1]] if len(named) > 1 else named)


def _stop(names: Sequence[str]) -> str:
    return "stop" if len(names) > 1 or names[0] == "registers" else "stops"
