"""The grader has a kernel compiled as well: in the learner's process, from its text."""

import pytest
import torch

from llmsys.course.authoring.self_test import exercise_cell
from llmsys.course.checking.checks import get_check, run_check
from llmsys.course.checking.runner import Raised
from llmsys.course.grading import remote
from llmsys.course.grading.remote import RemoteRunner
from llmsys.course.grading.sandbox import Sandbox
from llmsys.course.manifest import lesson, solutions_dir
from llmsys.hardware.tier import load_triton, triton_installed

if not triton_installed():
    pytest.skip("needs Triton", allow_module_level=True)
load_triton()  # first, so that misconceptions that are kernels are interpreted
ID = "02.softmax_kernel"


def graded(cell: str):
    job = {"id": ID, "function": "softmax_kernel", "setup": (), "cells": ((ID, cell),), "module": ""}
    with Sandbox() as sandbox:
        runner = RemoteRunner(sandbox)
        opened = runner.open(job)
        assert not opened.problem, opened
        return run_check(get_check(ID), runner, name_mistakes=False)


@pytest.fixture(scope="module")
def solution() -> str:
    return exercise_cell((solutions_dir() / f"{lesson('02').name}.py").read_text(encoding="utf-8"), ID)


def test_a_kernel_that_a_gpu_can_run_passes(solution):
    assert graded(solution)


def test_a_kernel_that_only_the_interpreter_runs_is_rejected_with_its_line(solution):
    first = "        cols = start + tl.arange(0, BLOCK)\n"
    cell = solution.replace(first, f"        if start >= n_cols:\n            break\n{first}", 1)
    result = graded(cell)
    assert not result and result.failure.kind == "compile"
    line = cell.splitlines().index("            break") + 1
    assert f"unsupported AST node type: Break\nline {line} of the cell: break" in result.failure.message


class Says:
    """A sandbox whose worker gives this reply."""

    def __init__(self, reply):
        self.reply, self.closed, self.printed = reply, False, ""

    def talk(self, request, seconds):
        from llmsys.course.checking import wire

        yield wire.pack(self.reply)

    def close(self):
        self.closed = True


@pytest.mark.parametrize(
    "reply",
    [
        {"serial": 2, "said": ()},
        {"serial": 1, "said": [None]},
        {"serial": 1, "said": ("no",)},
        {"serial": 1, "said": ({"type": "E", "message": "", "line": "3", "source": ""},)},
        {"serial": 1, "run": {}},
        {"serial": 1, "said": (torch.ones(1),)},
    ],
    ids=str,
)
def test_a_forged_report_of_the_compiler_is_no_report(reply):
    sandbox = Says(reply)
    assert RemoteRunner(sandbox).compile([((), {})]) == [] and sandbox.closed


def test_the_compilers_words_arrive_without_control_characters():
    said = {"type": "CompileError", "message": "no\x1b[31m red", "line": 3, "source": "break\x07"}
    found = RemoteRunner(Says({"serial": 1, "said": (None, said)})).compile([((), {}), ((), {})])
    assert found == [None, Raised("CompileError", "no red", 3, "break")]
    assert remote.COMPILE_LIMIT > 60
