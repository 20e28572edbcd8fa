"""A kernel that passes on a GPU is looked at again where its memory is watched."""

import contextlib
import linecache
from unittest import mock

import pytest

from llmsys.course.authoring.self_test import exercise_cell, load
from llmsys.course.checking.checks import Result, get_check
from llmsys.course.grading import interpreted, remote, sandbox
from llmsys.course.grading.worker import _run_cell
from llmsys.course.manifest import exercise
from llmsys.hardware import tier

if not tier.triton_installed():
    pytest.skip("needs Triton", allow_module_level=True)


@pytest.fixture
def solution():
    from llmsys.course.manifest import lesson, solutions_dir

    source = (solutions_dir() / f"{lesson('02').name}.py").read_text(encoding="utf-8")
    return exercise_cell(source, "02.softmax_kernel")


@pytest.fixture
def compiled(monkeypatch):
    """This process takes itself for one that compiles, as on a GPU machine."""
    monkeypatch.setattr(tier, "interpreting", lambda: False)


class InThisProcess:
    """What a worker does with a job, without a process of its own: kernels are interpreted here, too."""

    def __init__(self, sandbox):
        self.runner = None

    def open(self, job):
        namespace = {}
        problem = "".join(_run_cell(name, source, namespace) for name, source in job["cells"])
        self.runner = None if problem else get_check(job["id"]).local_runner(namespace[job["function"]])
        return remote.Opened(problem, ())

    def run(self, args, kwargs):
        with mock.patch.object(tier, "interpreting", lambda: True):  # a worker always does
            return self.runner.run(args, kwargs)


@pytest.fixture
def in_this_process(monkeypatch):
    monkeypatch.setattr(remote, "RemoteRunner", InThisProcess)
    monkeypatch.setattr(sandbox, "Sandbox", contextlib.nullcontext)


EXERCISE = exercise("02.softmax_kernel")
PASSED = Result("02.softmax_kernel", True, ())


def confirm(cell):
    kernel = load(cell, EXERCISE)
    return interpreted.confirm(get_check("02.softmax_kernel"), kernel, PASSED)


def test_a_right_kernel_keeps_its_pass(solution, compiled, in_this_process):
    assert confirm(solution) is PASSED


def test_a_kernel_that_the_interpreter_cannot_run_keeps_its_pass(solution, compiled, in_this_process):
    first = "row = tl.program_id(0)\n"
    assert first in solution
    kernel = load(solution.replace(first, f"{first}    raise OSError\n"), EXERCISE)
    assert interpreted.confirm(get_check("02.softmax_kernel"), kernel, PASSED) is PASSED


def test_a_kernel_that_touches_memory_outside_its_tensors_is_rejected(solution, compiled, in_this_process):
    stray = solution.replace("/ l, mask=cols < n_cols)", "/ l)")
    assert stray != solution
    result = confirm(stray)
    assert not result and result.failure.kind == "memory" and "outside" in result.failure.message


def test_a_kernel_that_reads_too_much_is_rejected(solution, compiled):
    """In a worker, as on a GPU machine."""
    before = "    for start in range(0, n_cols, BLOCK):  # pass 2: y\n"
    third = "    for start in range(0, n_cols, BLOCK):\n        tl.store(y_row, tl.load(x_row + start))\n"
    assert before in solution
    result = confirm(solution.replace(before, third + before))
    assert not result and result.failure.kind == "traffic" and "bytes" in result.failure.message


def test_a_kernel_without_source_keeps_its_pass(solution, compiled, monkeypatch):
    kernel = load(solution, EXERCISE)
    monkeypatch.setattr(linecache, "getlines", lambda *_: [])
    assert interpreted.confirm(get_check("02.softmax_kernel"), kernel, PASSED) is PASSED


def test_nothing_is_run_again_where_kernels_are_interpreted_anyway(solution):
    if tier.interpreting():
        assert confirm(solution) is PASSED
