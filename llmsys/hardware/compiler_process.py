"""The process that compiles: it reads requests from a file and writes an answer to each as a line on stdout.

`llmsys.hardware.compiler` starts it and says what goes in and what comes out. It is a process of its own because Triton
decides once, when it is first imported, whether kernels are interpreted or compiled. A request is a dict of what
`compiler._request` lists; an answer has the fields of `compiler.Compiled`, or "error", "line" and "source".

Triton's compiler is touched in this file and nowhere else (Triton 3.6 to 3.9). It does not import torch, which would
take longer than compiling a small kernel.
"""

import contextlib
import importlib
import importlib.util
import io
import json
import os
import re
import tempfile
from pathlib import Path

from llmsys.hardware.kernel_source import Constant


class CompileError(RuntimeError):
    """A kernel does not compile.

    source    the line of the kernel where the compiler stopped; "" if that is not known
    line      its number, counted from the `def` of its function, which is 1; None if that is not known
    """

    def __init__(self, message: str, line: int | None = None, source: str = ""):
        super().__init__(message)
        self.line, self.source = line, source


def answer_requests(path: str) -> None:
    """Compile the requests of a JSON file, one after another, and write a line of JSON on stdout for each.

    Equal requests are compiled once. What Triton and the kernels' modules print goes to stderr.
    """
    requests = json.loads(Path(path).read_text(encoding="utf-8"))
    replies: dict[str, dict] = {}
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    for request in requests:
        key = json.dumps(request, sort_keys=True)
        if key not in replies:
            try:
                replies[key] = _compile(request)
            except CompileError as error:
                replies[key] = {"error": str(error), "line": error.line, "source": error.source}
        answers.write(json.dumps(replies[key]) + "\n")
        answers.flush()


def _compile(request: dict) -> dict:
    """The answer to a request. Raises CompileError."""
    import triton  # here, so that the process that only asks can import CompileError without loading Triton
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
    """The numbers that the pattern's group matches in the assembler's log, in order."""
    return [int(each) for each in re.findall(pattern, log)]


def _kernel(request: dict):
    """The kernel as Triton's JITFunction: imported from the request's module, or made from the request's text."""
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
    """Argument's name -> (type, value), in the kernel's order. A constant has the type "constexpr", others no value."""
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
    """Triton's error as a CompileError that shows the line: that of the innermost function that was being compiled."""
    inner = error
    while hasattr(inner.__cause__, "node"):
        inner = inner.__cause__
    number, text = getattr(inner.node, "lineno", None), inner.src or ""
    line = text.splitlines()[number - 1].strip() if number else ""
    function = re.search(r"def (\w+)", text)
    what = inner.error_message or inner.__cause__ or type(inner).__name__
    at = f"\n    line {number} of {function[1] if function else kernel.__name__}: {line}" if line else ""
    return CompileError(f"{kernel.__name__} does not compile: {what}{at}", number, line)
