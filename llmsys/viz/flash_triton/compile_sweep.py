"""Compiles the flash kernel for Hopper in every way that the kernel explorer shows. Needs Triton, and no GPU.

python -m llmsys.viz.flash_triton.compile_sweep        # compiles what is not in the cache, writes kernel_sweep.json
"""

import sys
from collections.abc import Callable, Iterable

import torch

from llmsys.attention.flash.forward import TileConfig, launch
from llmsys.attention.flash.kernels import flash_forward_kernel
from llmsys.hardware.compiler import CompileError, compile_kernels
from llmsys.hardware.launches import Recorder
from llmsys.viz.flash_triton.kernel_sweep import FILE, TARGET, Configuration, Result, configurations, write


def compile_all(
    wanted: Iterable[Configuration], report: Callable[[int], None] = lambda done: None
) -> dict[Configuration, Result]:
    """Compile the flash kernel, causal and in bf16, in these configurations. Raises CompileError if one fails."""
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


def main() -> None:
    """Compile every configuration, say how far it is, and make the results the committed ones."""
    wanted = configurations()
    found = compile_all(wanted, lambda done: print(f"\r{done} of {len(wanted)}", end="", file=sys.stderr, flush=True))
    write(found)
    print(f"\n{FILE}", file=sys.stderr)


if __name__ == "__main__":
    main()
