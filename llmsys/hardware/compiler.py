"""Compile a Triton kernel for a GPU that need not be here, and read what came out.

Triton compiles for a target, and a target is only a name. So a laptop without a GPU can compile for Hopper, and read
the registers a thread holds, the bytes that did not fit into them and go through memory (spills), the shared memory of
a program, whether the tensor cores' instruction is used, and how many programs an SM can hold:

    compiled = compile_kernel(
        "llmsys.attention.row_softmax:softmax_kernel",
        signature={"x_ptr": "*fp16", "y_ptr": "*fp16", "x_row_stride": "i32", "y_row_stride": "i32", "n_cols": "i32"},
        constants={"BLOCK": 1024},
    )
    compiled.registers, compiled.spill_bytes, compiled.shared_bytes, compiled.occupancy().programs

A kernel is given as "package.module:name", as a function (one defined in a notebook, too), or as a `Source`, its text.
The compiler runs in a process of its own (`llmsys.hardware.compiler_process`), because a process that interprets
kernels cannot compile them; `compile_kernels` sends many kernels through one process. Results are kept in the user's
cache folder, under a hash of all that went in.
"""

import contextlib
import gzip
import hashlib
import importlib.metadata
import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from llmsys.hardware.calibration import default_path
from llmsys.hardware.compiler_process import CompileError
from llmsys.hardware.kernel_source import Constant, Source, source_of, texts_of
from llmsys.hardware.occupancy import Occupancy, occupancy, sm_of
from llmsys.hardware.tier import load_triton, triton_installed

__all__ = ["Build", "CompileError", "Compiled", "Source", "compile_kernel", "compile_kernels"]

SECONDS_A_KERNEL = 120  # the limit; most take a second or two, tiles that need many times the registers far longer
VERSION = 1  # of the format in which results are kept on disk


@dataclass(frozen=True)
class Build:
    """One kernel to compile, in one configuration.

    kernel       "package.module:name", a kernel, or a `Source`
    signature    the type of each argument that is not a constant: "*fp16" is a pointer, "i32" and "fp32" are numbers.
                 ":16" after an integer's type promises that it is a multiple of 16, which Triton finds out by itself at
                 a launch. Pointers are always taken to be multiples of 16 bytes: torch's tensors begin at such
                 addresses, though a view of one need not.
    constants    the value of each `tl.constexpr` that has no default, and of any other argument that is 1 or None at
                 the launch
    num_warps    warps of a program, a power of two
    num_stages   tiles that Triton keeps in flight in a loop
    target       the GPU's compute capability: "sm_90" is Hopper
    """

    kernel: "str | Callable | Source"
    signature: Mapping[str, str]
    constants: Mapping[str, Constant] = field(default_factory=dict)
    num_warps: int = 4
    num_stages: int = 3
    target: str = "sm_90"

    def __post_init__(self):
        sm_of(self.target)
        for name, value in self.constants.items():
            if not isinstance(value, Constant):
                raise ValueError(f"constants[{name!r}] must be a number, a string or None, got {type(value).__name__}")
        if self.num_warps < 1 or self.num_warps & (self.num_warps - 1):
            raise ValueError(f"num_warps must be a power of two, got {self.num_warps}")


@dataclass(frozen=True)
class Compiled:
    """What the compiler made of a kernel: what it needs, and its code."""

    name: str
    target: str
    num_warps: int  # warps of a program; more than were asked for where warps are specialised
    num_stages: int
    registers: int  # registers of a thread, 32 bits each
    spill_stores: int  # bytes a thread writes to memory because they do not fit into its registers
    spill_loads: int  # bytes that it reads back
    shared_bytes: int  # shared memory of a program
    warnings: tuple[str, ...]  # what the assembler says will be slow
    ptx: str  # the assembly language that Triton generated
    ttgir: str  # Triton's own intermediate form, with layouts and roles of warps

    @property
    def spill_bytes(self) -> int:
        """Bytes a thread stores and loads because its registers do not suffice."""
        return self.spill_stores + self.spill_loads

    @property
    def wgmma(self) -> bool:
        """Whether the kernel has Hopper's instruction that multiplies matrices with four warps at once."""
        return "wgmma.mma_async" in self.ptx

    def occupancy(self) -> Occupancy:
        """How many programs an SM of the target holds, and what stops one more."""
        return occupancy(
            registers=self.registers, shared_bytes=self.shared_bytes, num_warps=self.num_warps, target=self.target
        )

    def __str__(self) -> str:
        fits = self.occupancy()
        return (
            f"{self.name} for {self.target}: {self.registers} registers a thread, {self.spill_bytes} bytes of spills, "
            f"{self.shared_bytes:,} bytes of shared memory; {fits.programs} programs an SM, limited by {fits.limit}"
        )


def compile_kernel(
    kernel: str | Callable | Source,
    *,
    signature: Mapping[str, str],
    constants: Mapping[str, Constant] | None = None,
    num_warps: int = 4,
    num_stages: int = 3,
    target: str = "sm_90",
    cache: str | os.PathLike | None = None,
) -> Compiled:
    """Compile a kernel for a target; the arguments are `Build`'s. `cache` is a folder, by default the user's.

    Raises
    ------
    ImportError
        Triton is not installed; the message says what to do on this platform.
    ValueError
        The signature or a constant cannot be, or the kernel's text is not to be had.
    CompileError
        The kernel does not compile; the message shows its line.
    """
    build = Build(kernel, signature, constants or {}, num_warps, num_stages, target)
    (result,) = compile_kernels([build], cache=cache)
    if isinstance(result, CompileError):
        raise result
    return result


def compile_kernels(
    builds: Iterable[Build],
    *,
    cache: str | os.PathLike | None = None,
    report: Callable[[int], None] = lambda done: None,
    seconds: float | None = None,
) -> list[Compiled | CompileError]:
    """Compile many kernels in one process; the results have the order of `builds`.

    A kernel that does not compile gives a CompileError among the results, which is not raised. Results are kept one by
    one, so that an interrupted run is not lost. `cache` is a folder, by default the user's. `report(n)` is called each
    time a kernel is done, n of them by then. `seconds` is how long one may take, by default SECONDS_A_KERNEL. Raises
    ImportError and ValueError as `compile_kernel` does.
    """
    _check_triton()
    requests = [_request(build) for build in builds]
    folder = Path(cache) if cache is not None else _cache_folder()
    paths = [folder / f"{hashlib.sha256(json.dumps(request).encode()).hexdigest()}.json.gz" for request in requests]
    results: list[Compiled | CompileError | None] = [_read(path) for path in paths]
    while missing := [i for i, result in enumerate(results) if result is None]:
        for done, result in enumerate(_in_a_process([requests[i] for i in missing], seconds or SECONDS_A_KERNEL)):
            results[missing[done]] = result
            if isinstance(result, Compiled):
                _write(paths[missing[done]], result)
            report(len(results) - len(missing) + done + 1)
    return results


# What a result depends on


def _request(build: Build) -> dict:
    """All that a result depends on, as JSON can hold it: what the other process is given, and the key of the cache."""
    request = {
        "version": VERSION,
        "triton": importlib.metadata.version("triton"),
        "assembler": os.environ.get("TRITON_PTXAS_PATH", ""),
        "signature": dict(build.signature),
        "constants": dict(build.constants),
        "num_warps": build.num_warps,
        "num_stages": build.num_stages,
        "target": build.target,
    }
    kernel = build.kernel
    if isinstance(kernel, str):
        module, _, name = kernel.partition(":")
        if not (module and name):
            raise ValueError(f"kernel must be 'package.module:name', a kernel or a Source, got {kernel!r}")
        return request | {"module": module, "name": name, "text": texts_of(module)}
    source = kernel if isinstance(kernel, Source) else source_of(kernel)
    return request | {"module": None, "name": source.name, "text": source.text}


# Talking to the process that compiles

_BEGIN = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from llmsys.hardware.compiler_process import answer_requests; answer_requests(sys.argv[2])"
)


def _in_a_process(requests: list[dict], seconds: float) -> Iterator[Compiled | CompileError]:
    """Start a process and yield the requests' results as they come.

    A kernel that makes the process crash or hang gets a CompileError, and is the last to get a result: the caller
    starts again with those that are left.
    """
    with tempfile.TemporaryDirectory(prefix="llmsys-compiler-") as scratch:
        asked, said = Path(scratch, "requests.json"), Path(scratch, "stderr")
        asked.write_text(json.dumps(requests), encoding="utf-8")
        environment = os.environ | {
            "TRITON_INTERPRET": "0",
            "TRITON_CACHE_DIR": scratch,
            # Nothing is taken from there, for the assembler speaks only when it runs: of two builds that differ in
            # something that Triton does not see, the second one would be silent.
            "TRITON_ALWAYS_COMPILE": "1",
            "TRITON_DUMP_PTXAS_LOG": "1",
        }
        with (
            said.open("w") as stderr,
            subprocess.Popen(
                [sys.executable, "-c", _BEGIN, json.dumps(sys.path), asked],
                stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=stderr, encoding="utf-8", env=environment,
            ) as process,
        ):  # fmt: skip
            try:
                for request in requests:
                    limit = threading.Timer(seconds, process.kill)
                    limit.start()
                    line = process.stdout.readline()
                    limit.cancel()
                    if not line.endswith("\n"):
                        how = f"ended with {process.wait()}, or was ended after {seconds:g} seconds"
                        last = said.read_text(encoding="utf-8", errors="replace").strip()[-2000:]
                        yield CompileError(f"{request['name']}: Triton's compiler {how}. Its last words:\n{last}")
                        return
                    yield _result(json.loads(line))
            finally:
                process.kill()  # also where the caller stops listening


def _result(reply: dict) -> Compiled | CompileError:
    """A result from its JSON form: what the other process answers, and what the cache holds."""
    if "error" in reply:
        return CompileError(reply["error"], reply.get("line"), reply.get("source", ""))
    return Compiled(**reply | {"warnings": tuple(reply["warnings"])})


# The cache


def _cache_folder() -> Path:
    return default_path().parent / "compiled"


def _read(path: Path) -> Compiled | None:
    try:
        return _result(json.loads(gzip.decompress(path.read_bytes())))
    except (OSError, EOFError, ValueError, TypeError, KeyError):  # no file, or not a whole one: it is only a cache
        return None


def _write(path: Path, compiled: Compiled) -> None:
    with contextlib.suppress(OSError):  # a home that cannot be written: compiled again next time
        path.parent.mkdir(parents=True, exist_ok=True)
        beside = path.with_name(f"{path.name}.{os.getpid()}")
        beside.write_bytes(gzip.compress(json.dumps(asdict(compiled)).encode(), mtime=0))
        beside.replace(path)  # in one step: two notebooks may do this at the same time


def _check_triton() -> None:
    if not triton_installed():
        load_triton()  # says how to get it
