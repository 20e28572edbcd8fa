"""Recording launches: what a launcher would launch, to be compiled instead of run.

Launchers of this library take `kernel=`. One that is given a `Recorder` does all that it does before a launch (it
chooses tiles, allocates results, computes strides), and launches nothing. The recorder then knows the kernel's
arguments, so that the kernel can be compiled for them, for a GPU that is not here:

    recorder = Recorder(my_kernel, target="sm_90")
    q = torch.empty(1, 16, 4096, 64, dtype=torch.float16, device="meta")  # a shape without memory is enough
    launch(q, q, q, …, kernel=recorder)
    recorder.compiled().registers

Arguments get the types that Triton gives them at a launch: an integer that is a multiple of 16 is marked as one, and 1
and None are constants (https://triton-lang.org/main/python-api/generated/triton.jit.html; `specialize`).
"""

import inspect
from collections.abc import Callable

import torch

from llmsys.hardware.compiler import Build, Compiled, compile_kernel
from llmsys.hardware.kernel_source import underlying

TYPES = {
    torch.bool: "i1", torch.uint8: "u8", torch.int8: "i8", torch.int16: "i16", torch.int32: "i32", torch.int64: "i64",
    torch.float16: "fp16", torch.bfloat16: "bf16", torch.float32: "fp32", torch.float64: "fp64",
    torch.float8_e4m3fn: "fp8e4nv", torch.float8_e5m2: "fp8e5",
}  # fmt: skip
"""Triton's names of torch's types."""


class Recorder:
    """Takes the place of a kernel in a launcher. `builds` has a `Build` for each launch, and `grids` its grid."""

    def __init__(self, kernel: Callable, *, target: str = "sm_90"):
        self.kernel, self.target = kernel, target
        self.builds: list[Build] = []
        self.grids: list[tuple[int, ...]] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        # launch_pdl says when the kernel may begin, and nothing about what is compiled.
        def record(*args, num_warps: int = 4, num_stages: int = 3, launch_pdl: bool = False, **kwargs) -> None:
            self.builds.append(build_of(self.kernel, args, kwargs, num_warps, num_stages, self.target))
            self.grids.append(grid)

        return record

    def compiled(self) -> Compiled:
        """The kernel of the only launch, compiled. Raises ValueError where there was another number of launches."""
        if len(self.builds) != 1:
            raise ValueError(
                f"the launcher must launch the kernel once to ask for it so; it did {len(self.builds)} times"
            )
        (build,) = self.builds
        return compile_kernel(
            build.kernel, signature=build.signature, constants=build.constants, num_warps=build.num_warps,
            num_stages=build.num_stages, target=build.target,
        )  # fmt: skip


def build_of(kernel: Callable, args: tuple, kwargs: dict, num_warps: int, num_stages: int, target: str) -> Build:
    """What Triton would compile for `kernel[grid](*args, num_warps=…, num_stages=…, **kwargs)`.

    Raises TypeError, as Python does, for arguments that are not the kernel's; ValueError for one that no kernel takes.
    """
    parameters = inspect.signature(underlying(kernel))
    given = parameters.bind(*args, **kwargs)
    signature, constants = {}, {}
    for name, value in given.arguments.items():
        if "constexpr" in str(parameters.parameters[name].annotation) or value is None or _is_one(value):
            constants[name] = value
        else:
            signature[name] = _type(name, value)
    return Build(kernel, signature, constants, num_warps, num_stages, target)


def _is_one(value) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value == 1


def _type(name: str, value) -> str:
    if isinstance(value, torch.Tensor):
        return f"*{TYPES[value.dtype]}"
    if isinstance(value, bool):
        return "u1"
    if isinstance(value, int):
        return ("i32" if -(2**31) <= value < 2**31 else "i64") + ":16" * (value % 16 == 0)
    if isinstance(value, float):
        return "fp32"
    raise ValueError(f"{name} must be a tensor, a number or None for a kernel, got {type(value).__name__}")
