"""The learner's process, one an exercise, which the grader starts: `python -m llmsys.course.grading.worker PID IN OUT`.

It says that it is ready, is told which cells to run, runs them, and from then on calls the learner's function with
whatever arguments arrive (`llmsys.course.checking.wire`, over two pipes that carry nothing else), until the pipe is
closed:

    -> {"id", "function", "setup", "cells", "module", "processes", "memory_limit", "cpu_limit"}
                                                    <- {"cell": name}, before each of them
                                                    <- {"serial": 0, "problem", "notes"}
    -> {"serial": n, "args", "kwargs"}              <- {"serial": n, "run"}
    -> {"serial": m, "compile": [[args, kwargs], …]}    <- {"serial": m, "said"}
    -> {"serial": l, "sealed": True}                <- {"serial": l, "said"}

The learner's code owns this process: it can print, patch torch and builtins, end the process, or write to the pipe.
What counts is the value of a call, which the grader compares in its own process; it is made plain by
`llmsys.course.checking.runner`, with exact types. What else is in a `Run` (meters, the sanitizer, forbidden calls) is
observed here. So what judges here is bound before the first cell runs, and out of its reach
(`llmsys.course.grading.inside.seal`); what has no business in an answer is seen as it happens (`guard`); and in the end
the grader asks whether torch and the course are as they were. Serial numbers are drawn, so that no reply can be written
beforehand. All this is Python against Python: who forges a report all the same could conceal a shortcut or a wasteful
buffer, and never make a wrong value right.

No template process is forked: torch's thread pools, an allocator's locks and Triton's interpreter would have to survive
that in every version, and one learner's code could reach the template of all the others. A fresh process costs three
seconds of imports; the grader starts it before it is needed.
"""

import gc
import math
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from importlib import import_module

from llmsys.course.checking import wire
from llmsys.course.checking.checks import get_check
from llmsys.course.checking.runner import LocalRunner, Raised, Run, resolve
from llmsys.course.grading.inside import cells, kernel_filter, seal
from llmsys.course.grading.inside.cells import run_cell as _run_cell
from llmsys.course.grading.inside.guard import Guard, left_behind
from llmsys.hardware.tier import load_triton

FILE_LIMIT = 64 << 20  # bytes that a file written here may have


def main(grader: int, requests: int, replies: int) -> None:
    for fd in (requests, replies):
        os.set_inheritable(fd, False)  # the learner's own subprocesses do not hold the pipe open
    kernel_filter.die_with_parent()
    wire.write(replies, {"ready": True})
    messages = wire.read(requests, strides=True)
    job = next(messages, None)
    if job is None:  # not needed after all
        return
    judge = Judge(job, grader)
    wire.write(replies, {"serial": 0, **judge.open(job, lambda name: wire.write(replies, {"cell": name}))})
    for message in messages:
        if "compile" in message:
            said = tuple(each and asdict(each) for each in judge.compile(message["compile"]))
            wire.write(replies, {"serial": message["serial"], "said": said})
        elif "sealed" in message:
            wire.write(replies, {"serial": message["serial"], "said": tuple(judge.objections())})
        else:
            run = judge.call(message["args"], message["kwargs"])
            try:
                reply = wire.pack({"serial": message["serial"], "run": run.to_plain()})
            except wire.ProtocolError as error:  # too large
                run = Run(refused=f"the result: {error}", offences=run.offences, called=run.called)
                reply = wire.pack({"serial": message["serial"], "run": run.to_plain()})
            wire.send(replies, reply)


class Judge:
    """All that judges in this process, made before the first cell runs."""

    def __init__(self, job: dict, grader: int):
        if job["module"]:
            import_module(job["module"])
        check = get_check(job["id"])
        if check.kernel:
            load_triton()  # its library is mapped before memory is limited
        self._make = _maker(resolve(check.adapt), check.all_forbidden, check.kernel, resolve(check.build))
        self._make(lambda: None).run((), {})  # whatever a call imports is there, before it is sealed
        module = sys.modules["__main__"] = cells.notebook_module()  # as in a notebook
        self.variables, self._runner = vars(module), None
        self.guard = Guard(self.variables, processes=job["processes"])
        _limit_resources(job["memory_limit"], job["cpu_limit"])
        if grader:  # in a jail there is none to be reached
            kernel_filter.protect(grader)
        self.guard.install()
        gc.disable()
        self.seal = seal.Seal(seal.hide((job["module"],) if job["module"] else ()))
        gc.freeze()  # what is here stays, and need not be looked through at every collection
        gc.enable()

    def open(self, job: dict, report: Callable[[str], None]) -> dict:
        """Run the cells, each of which `report` is told, and take the learner's function: {"problem", "notes"}."""
        notes: list[str] = []
        problem = self._run_cells(job, notes, report)
        if not problem:
            problem = "; ".join(self.objections())
        if not problem and job["function"] not in self.variables:
            problem = f"the cell does not define {job['function']}"
        if not problem:
            try:
                self._runner = self._make(self.variables[job["function"]])
            except BaseException as error:
                problem = cells.in_words(cells.raised(error, ""))
        return {"problem": problem, "notes": tuple(notes)}

    def _run_cells(self, job: dict, notes: list[str], report: Callable[[str], None]) -> str:
        def run(name: str, source: str) -> str:
            report(name)
            with self.guard.during_cells():
                return _run_cell(name, source, self.variables)

        for name, source, original in job["setup"]:
            problem = run(name, source)
            if problem and original is not None:
                notes.append(f"the setup cell was edited and {problem}; the original was run instead")
                problem = run(f"{name} as it was", original)
            if problem:
                return f"the setup cell {problem}"
        for name, source in job["cells"]:
            if problem := run(name, source):
                return f"the cell {problem}"
        return ""

    def call(self, args: tuple, kwargs: dict) -> Run:
        before = len(self.guard.offences)
        try:
            with self.guard.during_a_call():
                run = self._runner.run(args, kwargs)
        except BaseException as error:  # what the learner's code has patched may break the runner, too
            run = Run(error=cells.raised(error, ""))
        return replace(run, offences=self.guard.since(before))

    def compile(self, calls: list) -> list[Raised | None]:
        try:
            return self._runner.compile([(args, kwargs) for args, kwargs in calls])
        except BaseException:  # as above; the kernel's text is loaded in yet another process
            return []

    def objections(self) -> list[str]:
        """What is to be said against it in the end, after all calls."""
        return [*self.guard.since(0), *left_behind(), *self._broken()]

    def _broken(self) -> list[str]:
        broken = self.seal.broken()
        return [seal.in_words(broken)] if broken else []


def _maker(adapt, forbids: tuple, kernel: bool, build) -> Callable[[object], LocalRunner]:
    """Makes the runner of an answer, from what was there before it."""
    runner = LocalRunner

    def make(answer: object) -> LocalRunner:
        return runner(answer, adapt=adapt, forbids=forbids, kernel=kernel, build=build)

    return make


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


if __name__ == "__main__":
    main(*map(int, sys.argv[1:4]))
