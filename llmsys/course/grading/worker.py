"""The learner's process, started by the grader, one an exercise: `python -m llmsys.course.grading.worker IN OUT`.

It says that it is ready, is told which cells to run, runs them, and from then on calls the learner's function with
whatever arguments arrive (`llmsys.course.checking.wire`, over two pipes that carry nothing else), until the pipe is
closed:

    -> {"id", "function", "setup", "cells", "module", "memory_limit", "cpu_limit"}
                                                                            <- {"serial": 0, "problem", "notes"}
    -> {"serial": 1, "args", "kwargs"}                                      <- {"serial": 1, "run"}
    -> {"serial": 2, "compile": [[args, kwargs], …]}                        <- {"serial": 2, "said"}

The learner's code owns this process: it can print, patch torch and builtins, end the process, or write to the pipe.
What counts is the value of a call, which the grader compares in its own process; it is made plain by
`llmsys.course.checking.runner`, with exact types, and packed by functions that were bound before the learner's code
ran. What else is in a `Run` (meters, the sanitizer, forbidden calls) is observed here and nowhere else, so a forged
report could conceal a shortcut or a wasteful buffer; it can never make a wrong value right.

No template process is forked: torch's thread pools, an allocator's locks and Triton's interpreter would have to survive
that in every version, and one learner's code could reach the template of all the others. A fresh process costs three
seconds of imports; the grader starts it before it is needed.
"""

import linecache
import math
import os
import re
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict
from importlib import import_module
from types import ModuleType

from llmsys.course.checking import wire
from llmsys.course.checking.checks import get_check
from llmsys.course.checking.runner import LocalRunner, Raised, Run
from llmsys.course.checking.watch import watch
from llmsys.hardware.tier import load_triton

FILE_LIMIT = 64 << 20  # bytes that a file written here may have


def main(requests: int, replies: int) -> None:
    for fd in (requests, replies):
        os.set_inheritable(fd, False)  # the learner's own subprocesses do not hold the pipe open
    sys.addaudithook(_keep_the_watch)
    wire.write(replies, {"ready": True})
    messages = wire.read(requests, strides=True)
    job = next(messages, None)
    if job is None:  # not needed after all
        return
    runner, reply = _open(job)
    wire.write(replies, {"serial": 0, **reply})
    for message in messages:
        if "compile" in message:
            said = tuple(each and asdict(each) for each in _compile_calls(runner, message["compile"]))
            wire.write(replies, {"serial": message["serial"], "said": said})
            continue
        run = _call(runner, message["args"], message["kwargs"])
        try:
            wire.write(replies, {"serial": message["serial"], "run": run.to_plain()})
        except wire.ProtocolError as error:  # too large: nothing has been written yet
            wire.write(replies, {"serial": message["serial"], "run": Run(refused=f"the result: {error}").to_plain()})


def _compile_calls(runner: LocalRunner, calls: list) -> list[Raised | None]:
    try:
        return runner.compile([(args, kwargs) for args, kwargs in calls])
    except BaseException:  # as above; the kernel's text is loaded in yet another process
        return []


def _call(runner: LocalRunner, args: tuple, kwargs: dict) -> Run:
    try:
        return runner.run(args, kwargs)
    except BaseException as error:  # what the learner's code has patched may break the runner, too
        return Run(error=_raised(error, ""))


# Opening: limits, cells, the function


def _open(job: dict) -> tuple[LocalRunner | None, dict]:
    """Run the cells. Returns the runner, or what is wrong: {"problem": "…", "notes": (…)}."""
    if job["module"]:
        import_module(job["module"])
    check = get_check(job["id"])
    if check.kernel:
        load_triton()  # its library is mapped before memory is limited
    _limit_resources(job["memory_limit"], job["cpu_limit"])
    module = sys.modules["__main__"] = ModuleType("__main__")  # as in a notebook
    namespace = vars(module)
    namespace["display"] = lambda *objects, **options: None
    notes: list[str] = []
    for name, source, original in job["setup"]:
        problem = _run_cell(name, source, namespace)
        if problem and original is not None:
            notes.append(f"the setup cell was edited and {problem}; the original was run instead")
            problem = _run_cell(f"{name} as it was", original, namespace)
        if problem:
            return None, {"problem": f"the setup cell {problem}", "notes": tuple(notes)}
    for name, source in job["cells"]:
        if problem := _run_cell(name, source, namespace):
            return None, {"problem": f"the cell {problem}", "notes": tuple(notes)}
    function = job["function"]
    if function not in namespace:
        return None, {"problem": f"the cell does not define {function}", "notes": tuple(notes)}
    try:
        runner = check.local_runner(namespace[function])
    except BaseException as error:
        return None, {"problem": _says(_raised(error, "")), "notes": tuple(notes)}
    return runner, {"problem": "", "notes": tuple(notes)}


def _run_cell(name: str, source: str, namespace: dict) -> str:
    """Run one cell. Returns what went wrong, in words; "" where nothing did."""
    filename = f"<{name}>"
    # Its lines can be looked up: Triton compiles from source, and an error should show where it is.
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    try:
        exec(_compile(source, filename), namespace)
    except BaseException as error:
        return _says(_raised(error, filename))
    return ""


def _compile(source: str, filename: str):
    try:
        return compile(source, filename, "exec", dont_inherit=True)
    except SyntaxError:
        # Lines of Jupyter's own (%matplotlib, !pip, ?help) are no Python, and nothing that is graded needs them.
        python = re.sub(r"^([ \t]*)[%!?].*$", r"\1pass", source, flags=re.MULTILINE)
        return compile(python, filename, "exec", dont_inherit=True)


def _raised(error: BaseException, filename: str) -> Raised:
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


def _says(raised: Raised) -> str:
    message = f": {raised.message}" if raised.message else ""
    place = f"\nline {raised.line} of the cell: {raised.source}" if raised.line else ""
    remedy = ""
    if raised.type == "NameError":
        remedy = "\n(the grader runs the setup cells and this exercise's cell alone: put into it what it needs)"
    return f"raised {raised.type}{message}{place}{remedy}"


# The process


def _limit_resources(memory: int, cpu: int) -> None:
    """Limit what this process may take from here on. (The grader watches the clock; the limit of CPU seconds is for a
    process that escapes it. The number of processes is not limited, for that limit is shared by all of a user's.)"""
    import resource

    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_FSIZE, FILE_LIMIT)
    _lower(resource.RLIMIT_CPU, math.ceil(time.process_time()) + cpu)
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            mapped = int(file.read().split()[0]) * resource.getpagesize()
    except OSError:  # macOS has neither this file nor a limit that it enforces
        return
    _lower(resource.RLIMIT_AS, mapped + memory)


def _lower(kind: int, value: int) -> None:
    import resource

    hard = resource.getrlimit(kind)[1]
    bound = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (bound, bound))


def _code(function: Callable):
    return function.__code__


# Who may change the profile function by which forbidden calls are seen: the watch, and the start of a thread.
_MAY_SET_PROFILE = {
    _code(watch.__enter__),
    _code(watch.__exit__),
    _code(watch._put_back),
    _code(threading.Thread._bootstrap_inner),
}


def _keep_the_watch(event: str, _, _own=_MAY_SET_PROFILE, _frame=sys._getframe) -> None:
    if event == "sys.setprofile" and _frame(1).f_code not in _own:
        raise RuntimeError("sys.setprofile is in use: the grader watches with it what is called")


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
