"""A notebook's cells, run as Jupyter runs them, where there is no Jupyter.

Most cells are plain Python, and are compiled as such. What is none (`%time`, `!ls`, `torch.exp?`) is handed to
IPython's own transformer, and a cell may ask for the shell itself, with `get_ipython()`: then there is one, over the
cell's variables. It is loaded for those cells alone. Two things it does not do here: it runs no shell commands, and it
installs nothing; a grader's machine is not the learner's.

A cell may `await`, as it may in a notebook.
"""

import ast
import asyncio
import inspect
import linecache
import sys
from types import CodeType, ModuleType

from llmsys.course.checking.runner import Raised

LEFT_OUT = {
    "line": ("pip", "conda", "mamba", "micromamba", "uv", "pixi", "sx", "system"),
    "cell": ("bash", "sh", "script", "sx", "system"),
}
"""Magics that run commands, or change the environment."""


def notebook_module() -> ModuleType:
    """A new `__main__`, with what a notebook's variables hold from the beginning."""
    module = ModuleType("__main__")
    vars(module)["display"] = lambda *objects, **options: None
    offer_shell(vars(module))
    return module


def offer_shell(namespace: dict) -> None:
    """Put `get_ipython` into the namespace: the shell is made when it is first called."""
    made = []

    def get_ipython():
        if not made:
            made.append(_shell(namespace))
        return made[0]

    namespace["get_ipython"] = get_ipython


def run_cell(name: str, source: str, namespace: dict) -> str:
    """Run one cell. Returns what went wrong, in words; "" where nothing did."""
    filename = f"<{name}>"
    remember(filename, source)
    try:
        code = _compile(source, filename, namespace)
        if code.co_flags & inspect.CO_COROUTINE:
            asyncio.run(_awaited(code, namespace))
        else:
            exec(code, namespace)
    except BaseException as error:
        return in_words(raised(error, filename))
    return ""


def remember(filename: str, source: str) -> None:
    """Let a cell's lines be looked up: Triton compiles from source, and an error should show where it is."""
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)


def raised(error: BaseException, filename: str) -> Raised:
    """The error and the last line in that cell that led to it. Believes nothing of the learner's own exceptions."""
    try:
        message, name = str(error)[:1000], type(error).__name__
    except BaseException:
        message, name = "", "an exception that cannot be shown"
    line = error.lineno if isinstance(error, SyntaxError) and error.filename == filename else None
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code.co_filename == filename:
            line = trace.tb_lineno
        trace = trace.tb_next
    source = linecache.getline(filename, line).strip() if line else ""
    return Raised(name, message, line, source)


def in_words(error: Raised) -> str:
    """What to say of an error in a cell."""
    message = f": {error.message}" if error.message else ""
    place = f"\nline {error.line} of the cell: {error.source}" if error.line else ""
    remedy = ""
    if error.type == "NameError":
        remedy = "\n(the grader runs the setup cells and this exercise's cell alone: put into it what it needs)"
    return f"raised {error.type}{message}{place}{remedy}"


async def _awaited(code: CodeType, namespace: dict) -> None:
    await eval(code, namespace)


def _compile(source: str, filename: str, namespace: dict) -> CodeType:
    try:
        return _python(source, filename)
    except SyntaxError:
        text = _transformed(source)
        if text is None or text.rstrip("\n") == source.rstrip("\n"):
            raise
        if "get_ipython" not in namespace:
            offer_shell(namespace)
        remember(filename, text)
        return _python(text, filename)


def _python(source: str, filename: str) -> CodeType:
    return compile(source, filename, "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)


def _transformed(source: str) -> str | None:
    """The cell as IPython hands it to Python; None where it makes nothing of it either."""
    try:
        from IPython.core.inputtransformer2 import TransformerManager

        return TransformerManager().transform_cell(source)
    except Exception:
        return None


def _shell(namespace: dict):
    """IPython's shell over these variables: without a history, a prompt, shell commands and installers."""
    from IPython.core.interactiveshell import InteractiveShell
    from IPython.utils.text import SList
    from traitlets.config import Config

    class Shell(InteractiveShell):
        def enable_gui(self, gui=None):
            """There is no window here."""

        def system(self, command):
            print(f"(the grader runs no shell commands: {command})")

        system_raw = system_piped = system

        def getoutput(self, command, split=True, depth=0):
            self.system(command)
            return SList() if split else ""

    main = sys.modules.get("__main__")
    module = main if main is not None and vars(main) is namespace else ModuleType("__main__")  # it insists on one
    shell = Shell(config=Config({"HistoryManager": {"enabled": False}}), user_module=module, user_ns=namespace)
    for kind, names in LEFT_OUT.items():
        for name in names:
            shell.register_magic_function(_left_out, kind, name)
    namespace["display"] = lambda *objects, **options: None
    return shell


def _left_out(line: str, cell: str = "") -> None:
    print(f"(the grader runs no shell commands, and installs nothing: {line})")
