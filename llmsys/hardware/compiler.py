"""What the compiler makes of a kernel, for a GPU that need not be here.

Triton compiles for a target, and a target is a name. So a laptop without a GPU can compile for Hopper, and read what
came out: the registers a thread holds, the bytes that did not fit into them and go through memory (spills), the shared
memory of a program, whether the tensor cores' instruction is there, and how many programs an SM can hold.

    compiled = compile_kernel(
        "llmsys.attention.row_softmax_kernels:softmax_kernel",
        signature={"x_ptr": "*fp16", "y_ptr": "*fp16", "cols": "i32:16"},
        constants={"BLOCK": 1024},
    )
    compiled.registers, compiled.spill_bytes, compiled.shared_bytes, compiled.occupancy().programs

A kernel is "package.module:name", a function (one defined in a notebook, too), or a `Source`, its text. The compiler
runs in a process of its own, because a process that interprets kernels cannot compile them; many kernels go through one
process with `compile_kernels`. What came out is kept in the user's cache folder, under a hash of all that went in.

Triton's compiler is touched in this file and nowhere else (Triton 3.6 to 3.7).
"""

import contextlib
import gzip
import hashlib
import importlib.metadata
import importlib.util
import io
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path

from llmsys.hardware.kernel_source import Constant, Source, source_of, texts_of
from llmsys.hardware.occupancy import Occupancy, occupancy, sm_of

SECONDS_A_KERNEL = 120  # a kernel takes about one; tiles that fill all registers many times over take far longer
VERSION = 1  # of what is kept on disk


@dataclass(frozen=True)
class Build:
    """One kernel to compile, in one configuration.

    kernel       "package.module:name", a kernel, or a `Source`
    signature    the type of each argument that is not a constant: "*fp16" a pointer, "i32", "fp32". With ":16" an
                 integer is known to be a multiple of 16, which Triton finds out by itself at a launch. A pointer always
                 is: torch's tensors begin at such addresses, though a view of one need not.
    constants    the value of each `tl.constexpr`, except those with a default; and of any other argument that is 1 or
                 None at the launch
    target       "sm_90" is Hopper
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
    """What the compiler made of a kernel."""

    name: str
    target: str
    num_warps: int  # of a program; more than were asked for where warps are specialised
    num_stages: int
    registers: int  # a thread
    spill_stores: int  # bytes a thread writes to memory because they do not fit into its registers
    spill_loads: int  # bytes that it reads back
    shared_bytes: int  # a program
    warnings: tuple[str, ...]  # what the assembler says will be slow
    ptx: str
    ttgir: str

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


class CompileError(RuntimeError):
    """A kernel that does not compile. Where, if that is known, is in `source`, the `line`-th of its function's lines,
    which are counted from its `def`."""

    def __init__(self, message: str, line: int | None = None, source: str = ""):
        super().__init__(message)
        self.line, self.source = line, source


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
) -> list[Compiled | CompileError]:
    """Compile many kernels, in one process. One that does not compile gives its CompileError, which is not raised.

    Results are kept one by one, so that an interrupted run is not lost. `report` is called with the number of kernels
    that are done, whenever another one is.
    """
    _check_triton()
    requests = [_request(build) for build in builds]
    folder = Path(cache) if cache is not None else _cache_folder()
    paths = [folder / f"{hashlib.sha256(json.dumps(request).encode()).hexdigest()}.json.gz" for request in requests]
    results: list[Compiled | CompileError | None] = [_read(path) for path in paths]
    while missing := [i for i, result in enumerate(results) if result is None]:
        for done, result in enumerate(_in_a_process([requests[i] for i in missing])):
            results[missing[done]] = result
            if isinstance(result, Compiled):
                _write(paths[missing[done]], result)
            report(len(results) - len(missing) + done + 1)
    return results


# What goes in


def _request(build: Build) -> dict:
    """All that a result depends on, as JSON."""
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


# The process that compiles

_BEGIN = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from llmsys.hardware.compiler import _compile_requests; _compile_requests(sys.argv[2])"
)


def _in_a_process(requests: list[dict]) -> Iterator[Compiled | CompileError]:
    """The results of the first of these, as they come: after one that takes the compiler down with it, no more do."""
    with tempfile.TemporaryDirectory(prefix="llmsys-compiler-") as scratch:
        asked, said = Path(scratch, "requests.json"), Path(scratch, "stderr")
        asked.write_text(json.dumps(requests), encoding="utf-8")
        environment = os.environ | {
            "TRITON_INTERPRET": "0",
            "TRITON_CACHE_DIR": scratch,  # nothing is taken from there: the assembler speaks only when it runs
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
                    limit = threading.Timer(SECONDS_A_KERNEL, process.kill)
                    limit.start()
                    line = process.stdout.readline()
                    limit.cancel()
                    if not line.endswith("\n"):
                        how = f"ended with {process.wait()}, or was ended after {SECONDS_A_KERNEL} seconds"
                        last = said.read_text(encoding="utf-8", errors="replace").strip()[-2000:]
                        yield CompileError(f"{request['name']}: Triton's compiler {how}. Its last words:\n{last}")
                        return
                    yield _result(json.loads(line))
            finally:
                process.kill()  # whoever stops listening does not leave it running


def _result(reply: dict) -> Compiled | CompileError:
    if "error" in reply:
        return CompileError(reply["error"], reply.get("line"), reply.get("source", ""))
    return Compiled(**reply | {"warnings": tuple(reply["warnings"])})


def _compile_requests(path: str) -> None:
    """The process's own part: a line on stdout for each request of the file. All that is printed goes to stderr."""
    requests = json.loads(Path(path).read_text(encoding="utf-8"))
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for request in requests:
        try:
            reply = _compile(request)
        except CompileError as error:
            reply = {"error": str(error), "line": error.line, "source": error.source}
        answers.write(json.dumps(reply) + "\n")
        answers.flush()


def _compile(request: dict) -> dict:
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource
    from triton.compiler.errors import CompilationError
    from triton.experimental.gluon._runtime import GluonASTSource, GluonJITFunction

    kernel = _kernel(request)
    arguments = _arguments(kernel, request)
    signature = {name: type for name, (type, _) in arguments.items()}
    constants = {name: value for name, (type, value) in arguments.items() if type == "constexpr"}
    known = {
        (i,): [["tt.divisibility", 16]]
        for i, (name, (type, _)) in enumerate(arguments.items())
        if type[0] == "*" or (type != "constexpr" and request["signature"][name].endswith(":16"))
    }
    make = GluonASTSource if isinstance(kernel, GluonJITFunction) else ASTSource
    target = GPUTarget("cuda", int(request["target"].removeprefix("sm_")), 32)
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            compiled = triton.compile(
                make(kernel, signature, constants, known), target=target,
                options={"num_warps": request["num_warps"], "num_stages": request["num_stages"]},
            )  # fmt: skip
    except CompilationError as error:
        raise _explained(kernel, error) from None
    except Exception as error:  # Triton's passes and its assembler raise what they like
        raise CompileError(f"{request['name']} does not compile: {error or type(error).__name__}") from None
    ptx, log = compiled.asm["ptx"], said.getvalue()
    threads = re.search(r"\.(?:req|max)ntid\s+(\d+)", ptx)
    return {
        "name": request["name"],
        "target": request["target"],
        "num_warps": int(threads[1]) // 32 if threads else request["num_warps"],
        "num_stages": request["num_stages"],
        "registers": max(_numbers(r"Used (\d+) registers", log)),
        "spill_stores": sum(_numbers(r"(\d+) bytes spill stores", log)),
        "spill_loads": sum(_numbers(r"(\d+) bytes spill loads", log)),
        "shared_bytes": compiled.metadata.shared,
        "warnings": re.findall(r"(?:Potential Performance Loss|warning\s*): *(.*)", log),
        "ptx": ptx,
        "ttgir": compiled.asm["ttgir"],
    }


def _numbers(pattern: str, log: str) -> list[int]:
    return [int(each) for each in re.findall(pattern, log)]


def _kernel(request: dict):
    """Triton's function, imported from its module, or from its text in a file."""
    from triton.runtime.jit import JITFunction

    name, module = request["name"], request["module"]
    try:
        if module:
            kernel = getattr(importlib.import_module(module), name)
        else:
            path = Path(tempfile.mkdtemp(dir=os.environ["TRITON_CACHE_DIR"])) / f"{name}.py"
            path.write_text(request["text"], encoding="utf-8")  # a file, because Triton asks Python for the text
            spec = importlib.util.spec_from_file_location(name, path)
            loaded = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(loaded)
            kernel = getattr(loaded, name)
    except Exception as error:  # whatever the kernel's module does when it is imported
        where = f"the module {module}" if module else "its text"
        raise CompileError(f"{name} cannot be had from {where}: {type(error).__name__}: {error}") from None
    while not isinstance(kernel, JITFunction):
        if not hasattr(kernel, "fn"):
            raise CompileError(f"{name} is no Triton kernel: @triton.jit is missing above it")
        kernel = kernel.fn
    return kernel


def _arguments(kernel, request: dict) -> dict[str, tuple[str, Constant]]:
    """name -> (type, value) of each argument, in order; a constant's type is "constexpr"."""
    signature, constants, found = dict(request["signature"]), dict(request["constants"]), {}
    for parameter in kernel.params:
        name = parameter.name
        if name in constants:
            found[name] = "constexpr", constants.pop(name)
            signature.pop(name, None)
        elif name in signature and not parameter.is_constexpr:
            found[name] = signature.pop(name).removesuffix(":16"), None
        elif parameter.has_default:
            found[name] = "constexpr", parameter.default
        elif parameter.is_constexpr:
            raise CompileError(f"constants must have {name}, which is a tl.constexpr of {request['name']}")
        else:
            raise CompileError(f"signature must have {name}, an argument of {request['name']}, or constants its value")
    if unknown := [*signature, *constants]:
        raise CompileError(
            f"{request['name']} has no argument {', '.join(unknown)}; it has {', '.join(kernel.arg_names)}"
        )
    return found


def _explained(kernel, error) -> CompileError:
    """Triton's error, with the line where it happened: that of the innermost function that was being compiled."""
    inner = error
    while hasattr(inner.__cause__, "node"):
        inner = inner.__cause__
    number, text = getattr(inner.node, "lineno", None), inner.src or ""
    line = text.splitlines()[number - 1].strip() if number else ""
    function = re.search(r"def (\w+)", text)
    what = inner.error_message or inner.__cause__ or type(inner).__name__
    at = f"\n    line {number} of {function[1] if function else kernel.__name__}: {line}" if line else ""
    return CompileError(f"{kernel.__name__} does not compile: {what}{at}", number, line)


# What is kept


def _cache_folder() -> Path:
    from llmsys.hardware.calibration import default_path

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
        beside.replace(path)  # at once: two notebooks may do this at the same time


def _check_triton() -> None:
    from llmsys.hardware.tier import load_triton, triton_installed  # which brings torch: not into the other process

    if not triton_installed():
        load_triton()  # says how to get it
