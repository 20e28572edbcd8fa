"""Shortcuts by other ways than calling what is forbidden: each kind is refused, and said.

What is asked for is to double a tensor, and the library's own doubling is forbidden. One process holds those that do
their mischief when they are called, each call says which is meant; those that prepare it in a cell, or are a kernel,
have a process each.
"""

import sys
from contextlib import contextmanager

import pytest

from llmsys.course.authoring.self_test import exercise_cell
from llmsys.course.checking.checks import get_check, run_check
from llmsys.course.grading import jail
from llmsys.course.grading.remote import RemoteRunner
from llmsys.course.grading.sandbox import Sandbox
from llmsys.course.manifest import lesson, solutions_dir
from llmsys.hardware.tier import load_triton, triton_installed

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="what is refused differs elsewhere")

LIBRARY = "def doubled(x):\n    return 2 * x\n"
CHECKS = """
from doubling import doubled
from llmsys.course.checking.checks import exercise_check


def check(answer):
    with answer.property("doubles whatever comes"):
        for n in (1, 7):
            x = answer.randn(n)
            answer.matches(2 * x, x)


for name in ("double", "processes"):
    exercise_check(f"92.{name}", reference=doubled)(check)
"""

CALLED = """
import ctypes, gc, inspect, os, queue, signal, socket, subprocess, sys, threading, types
import _thread, torch
import doubling
from doubling import doubled

asked, answered = queue.Queue(), queue.Queue()

def serve():
    while True:
        answered.put(doubled(asked.get()))

threading.Thread(target=serve, daemon=True).start()

def forks(x):
    pid = os.fork()
    if pid == 0:
        os._exit(0)
    return 2 * x

def asks_a_program(x):
    subprocess.run(["true"])
    return 2 * x

def ends_the_grader(x):
    os.kill(os.getppid(), signal.SIGTERM)
    return 2 * x

def by_a_program(x):
    try:
        os.system("true")
    except Exception:
        pass
    return 2 * x

def reads_a_solution(x):
    import llmsys.attention.online
    open(llmsys.attention.online.__file__).read()
    return 2 * x

def by_its_source(x):
    space = {}
    import llmsys.attention.online as online
    exec(inspect.getsource(online), space)
    return 2 * x

def by_its_code(x):
    return types.FunctionType(doubled.__code__.replace(co_name="mine"), {})(x)

def by_another_import(x):
    del sys.modules["doubling"]
    import doubling as again
    return again.doubled(x)

def through_a_frame(x):
    sys._getframe(1).f_locals["shortcuts"].called.clear()
    return 2 * x

def through_an_errors_frame(x):
    try:
        1 / 0
    except ZeroDivisionError as error:
        error.__traceback__.tb_frame.f_back.f_back
    return 2 * x

def through_the_collector(x):
    [each for each in gc.get_objects() if type(each).__name__ == "watch"]
    return 2 * x

def through_memory(x):
    ctypes.string_at(id(x), 8)
    return 2 * x

def asks_the_network(x):
    try:
        socket.create_connection(("192.0.2.1", 80), timeout=0.01)
    except OSError:
        pass
    return 2 * x

def behind_threadings_back(x):
    found, done = [], threading.Event()
    threading._start_new_thread(lambda: (found.append(doubled(x)), done.set()), ())
    done.wait(5)
    return found[0]

def by_a_thread_of_before(x):
    asked.put(x)
    return answered.get()

def by_an_allowed_function(x):
    class Fake:
        _initialized = _started = threading.Event()
        def __getattr__(self, name):
            return lambda *a: None
    threading.setprofile(lambda *a: None)
    try:
        threading.Thread._bootstrap_inner(Fake())
    except Exception:
        pass
    return doubled(x)

def by_the_watchs_own_end(x):
    from llmsys.course.checking.watch import watch
    try:
        watch(("a:b",)).__exit__()
    except Exception:
        pass
    return doubled(x)

def double(x, how):
    return globals()[how](x)
"""


@pytest.fixture(scope="module")
def course(tmp_path_factory):
    """A module that is the library, and one of checks."""
    root = tmp_path_factory.mktemp("library")
    (root / "doubling.py").write_text(LIBRARY, encoding="utf-8")
    (root / "checks_of_92.py").write_text(CHECKS, encoding="utf-8")
    sys.path.insert(0, str(root))
    import checks_of_92  # noqa: F401

    yield root
    sys.path.remove(str(root))


@contextmanager
def opened(course, cell, *, id="92.double", function="double", isolate=False, **more):
    """A process that has run this cell: its runner, and what came of the cell."""
    with Sandbox([course], isolate=isolate) as sandbox:
        runner = RemoteRunner(sandbox, time_limit=60)
        module = "checks_of_92" if id.startswith("92") else ""
        job = {"id": id, "function": function, "setup": (), "cells": ((id, cell),), "module": module, **more}
        yield runner, runner.open(job)


@pytest.fixture(scope="module")
def called(course):
    with opened(course, CALLED) as (runner, found):
        assert not found.problem, found
        yield runner


class As:
    """A runner that says which of them is meant."""

    def __init__(self, runner, how):
        self.runner, self.how = runner, how

    def run(self, args, kwargs):
        return self.runner.run(args, {**kwargs, "how": self.how})


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ("forks", "it started a process"),
        ("asks_a_program", "it started a process"),
        ("by_a_program", "it started a process"),
        ("ends_the_grader", "it sent a signal to another process"),
        ("reads_a_solution", "it read online.py, a file of the course"),
        ("by_its_source", "it read online.py, a file of the course"),
        ("by_its_code", "it looked into what is not its own (__code__)"),
        ("by_another_import", "doubling.doubled was called"),
        ("through_a_frame", "it looks for what watches it"),
        ("through_an_errors_frame", "it looked into what is not its own (tb_frame)"),
        ("through_the_collector", "it looks for what watches it"),
        ("through_memory", "it looks for what watches it"),
        ("asks_the_network", "it asked for the network"),
        ("behind_threadings_back", "doubling.doubled was called"),
        ("by_a_thread_of_before", "doubling.doubled was called"),
        ("by_the_watchs_own_end", "doubling.doubled was called"),
        ("by_an_allowed_function", "doubling.doubled was called"),  # the last one: it spoils what comes after
    ],
)
def test_a_shortcut_is_refused_and_said(called, how, says):
    result = run_check(get_check("92.double"), As(called, how), seed=3)
    assert not result and result.failure.kind in ("offence", "forbidden"), result
    assert says in result.failure.message, result.failure.message


RIGHT = "def double(x):\n    return x + x\n"


@pytest.mark.parametrize(
    ("prepares", "says"),
    [
        ("import torch\ntorch._C.DisableTorchFunction().__enter__()\n", "a mode of torch's switched on"),
        ("import subprocess\nkept = subprocess.Popen(['sleep', '50'])\n", "is still running: wait for it"),
        ("import os\nif os.fork() == 0 and os.fork() == 0:\n    import time; time.sleep(50)\n", "is still running"),
        ("import torch\ntorch.Tensor.__add__ = torch.Tensor.__mul__\n", "it changed what judges it: torch.Tensor"),
        (
            "import llmsys.hardware.tier as t\nt.interpreting = lambda: False\n",
            "it changed what judges it: llmsys.hardware.tier.interpreting must stay",
        ),
    ],
    ids=["a mode", "a process", "a grandchild", "torch", "the library"],
)
def test_what_a_cell_prepares_is_found_before_the_first_call(course, prepares, says):
    with opened(course, prepares + RIGHT) as (_, found):
        assert says in found.problem, found


def test_an_exercise_that_asks_for_processes_may_have_some(course):
    cell = "import subprocess\ndef double(x):\n    subprocess.run(['true'])\n    return x + x\n"
    with opened(course, cell, processes=True) as (runner, found):
        assert not found.problem and run_check(get_check("92.double"), runner)
        assert runner.objections() == ()


# Kernels: what the interpreter runs is Python, which can do anything

KERNELS = {
    "its object is another": (
        "\nsoftmax_kernel.run = lambda x, y, *a, grid, warmup=False, **k: y.copy_(x.double().exp() / "
        "x.double().exp().sum(-1, keepdim=True))\n",
        None,  # what was put into the object is not there: the kernel itself is judged, and is right
    ),
    "what the interpreter made of it is another": (
        "\ndef mine(*a, **k):\n    raise RuntimeError('not the kernel')\n"
        "type(softmax_kernel).rewritten_fn[softmax_kernel.fn] = mine\n",
        None,
    ),
    "its class is another": (
        "\nclass Other(type(softmax_kernel)):\n    pass\nOther.__module__ = 'triton.runtime.interpreter'\n"
        "softmax_kernel = Other(softmax_kernel.fn)\n",
        "it is a Other, and no kernel",
    ),
}


@pytest.fixture(scope="module")
def kernel():
    if not triton_installed():
        pytest.skip("needs Triton")
    load_triton()
    source = (solutions_dir() / f"{lesson('02').name}.py").read_text(encoding="utf-8")
    return exercise_cell(source, "02.softmax_kernel")


@pytest.mark.parametrize("name", KERNELS)
def test_a_kernel_is_what_triton_makes_of_its_text(course, kernel, name):
    more, says = KERNELS[name]
    with opened(course, kernel + more, id="02.softmax_kernel", function="softmax_kernel") as (runner, found):
        assert not found.problem, found
        result = run_check(get_check("02.softmax_kernel"), runner, name_mistakes=False, compile_kernels=False)
    if says is None:
        assert result, result
    else:
        assert not result and says in result.failure.message, result


@pytest.mark.skipif(not jail.available(), reason=f"no jail here: {jail.why_not()}")
def test_in_a_jail_nothing_is_there_but_its_own(course, tmp_path):
    (tmp_path / "neighbour.txt").write_text("an answer")
    cell = f"""
import os, pathlib, socket

def double(x):
    problems = []
    for path in ("/etc/made", "/usr/made", {str(course / "made")!r}):
        try:
            pathlib.Path(path).touch()
            problems.append(path)
        except OSError:
            pass
    pathlib.Path("own").touch()
    if len([each for each in os.listdir("/proc") if each.isdigit()]) > 3:
        problems.append("processes")
    if os.listdir("/dev/shm") or pathlib.Path({str(tmp_path / "neighbour.txt")!r}).exists():
        problems.append("neighbours")
    if [name for _, name in socket.if_nameindex() if name != "lo"]:
        problems.append("network")
    assert not problems, problems
    return x + x
"""
    with opened(course, cell, isolate=True) as (runner, found):
        assert not found.problem, found
        result = run_check(get_check("92.double"), runner)
        assert result, result
        assert runner.objections() == ()
