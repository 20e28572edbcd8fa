"""Names from before: what old notebooks, `mine/` modules and other programs import is found, and is the same thing."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from llmsys.course import manifest
from llmsys.course.workspace import start
from llmsys.course.workspace.notebook import cells_by_id, read_notebook, write_notebook
from llmsys.course.workspace.update import update
from llmsys.hardware.tier import triton_installed

ROOT = Path(__file__).parents[2]
MOVED = sorted(path for path in (ROOT / "llmsys/moved").rglob("*.py") if path.name != "__init__.py")

# Every import of the library in lessons 00 to 06 as they were before the modules moved, and in programs of that time.
IMPORTS = """
from llmsys import viz
from llmsys.attention import STAGES
from llmsys.attention import STAGES, naive_attention
from llmsys.attention import STAGES, naive_attention, tiled
from llmsys.attention import cost, naive, sdpa_attention
from llmsys.attention import flash_attention
from llmsys.attention import hopper_kernels
from llmsys.attention import naive_attention
from llmsys.attention import naive_attention, tiled_attention
from llmsys.attention import online
from llmsys.attention import sdpa_attention
from llmsys.attention.backward import backward_stored as library_stored, backward_tiled as library_tiled, differentiable
from llmsys.attention.cost import naive_cost, tiled_bytes as library_bytes
from llmsys.attention.cost import tiled_bytes
from llmsys.attention.flash import flash_attention, launch
from llmsys.attention.flash_backward import backward as flash_backward
from llmsys.attention.flash_backward_kernels import flash_dkdv_kernel
from llmsys.attention.flash_kernels import flash_forward_kernel
from llmsys.attention.flash_tiles import TileConfig
from llmsys.attention.hopper import launch
from llmsys.attention.hopper_consumer import softmax, start_scores
from llmsys.attention.hopper_consumer import step as library_step
from llmsys.attention.hopper_gluon import gl, gluon, warpgroup_mma, warpgroup_mma_wait
from llmsys.attention.hopper_schedule import hopper_schedule, hopper_tiles
from llmsys.attention.hopper_simulate import kernel_here, simulate
from llmsys.attention.naive import attention_with
from llmsys.attention.one_head import attend_one_head, one_head_kernel
from llmsys.attention.online import merge
from llmsys.attention.online import merge as library_merge
from llmsys.attention.online import safe_softmax
from llmsys.attention.row_softmax import softmax_kernel as theirs
from llmsys.bench import interleaved, recorded
from llmsys.bench.hopper_orders_kernels import kernel_with
from llmsys.course import check, diagnose, hint, measured, mine, predict
from llmsys.course import check, hint, measured, mine, predict
from llmsys.course import manifest
from llmsys.course.checking import Check
from llmsys.course.checking import Result, get_check, run_check
from llmsys.course.grade import grade_notebook
from llmsys.course.leaderboard import byte_leaderboard
from llmsys.course.manifest import lessons
from llmsys.course.notebook import read_notebook, write_notebook
from llmsys.course.runner import LocalRunner, resolve
from llmsys.hardware import roofline
from llmsys.hardware import sanitizer
from llmsys.hardware.compiler import CompileError, compile_kernels
from llmsys.hardware.devices import DEVICES
from llmsys.hardware.devices import DEVICES, this_machine
from llmsys.hardware.launches import Recorder
from llmsys.hardware.mbarrier import Arrive, Barrier, Copy, Deadlock, Expect, Read, Ring, play
from llmsys.hardware.mbarrier import Arrive, Copy, Expect, Read
from llmsys.hardware.mbarrier import Wait as WaitFor
from llmsys.hardware.mbarrier import consumer, producer
from llmsys.hardware.memory import DIRECT
from llmsys.hardware.memory import H100_SRAM, HBM, KIB
from llmsys.hardware.memory import HBM
from llmsys.hardware.meters import largest_allocation, work
from llmsys.hardware.meters import reads_of
from llmsys.hardware.meters import saved_for_backward, work
from llmsys.hardware.meters import work
from llmsys.hardware.sanitizer import watch
from llmsys.hardware.sm import Load, Output, Pass, Scores, Softmax, Turn, Wait
from llmsys.hardware.sm import ORDERS, Load, Output, Pass, Scores, Softmax, Turn, Wait, run
from llmsys.hardware.sm import Race
from llmsys.hardware.sm import attention_costs
from llmsys.hardware.sm import overlapped_order
from llmsys.hardware.tier import load_triton
from llmsys.hardware.tier import load_triton, tier
from llmsys.hardware.tier import load_triton, tier, triton_device
from llmsys.models import Llama, LlamaConfig, Tokenizer, load_model, save_model
from llmsys.models import Llama, LlamaConfig, generate
from llmsys.models import Llama, LlamaConfig, generate, load_model, save_model
from llmsys.models import Llama, LlamaConfig, load_model
from llmsys.models import Llama, LlamaConfig, load_model, save_model
from llmsys.models import NoCache, load_model
from llmsys.models import TextStream, Tokenizer
from llmsys.models import Tokenizer
from llmsys.models import generate, load_model
from llmsys.models import greedy
from llmsys.models import load_model
from llmsys.models.gguf import NAMES
from llmsys.models.weights import parts_of
from llmsys.precision.fp8 import dequantize_blocks
from llmsys.precision.fp8 import quantize_blocks as library_quantize
from llmsys.training import Batches
from llmsys.training import Corpus
from llmsys.training import Corpus, TrainConfig, train
"""

# What a `mine/` module of that time begins with, where an answer leans on names of other cells.
OF_MINE = """
import llmsys.attention.hopper_kernels as hopper_kernels
import llmsys.attention.online as online
from llmsys.attention.flash import launch
from llmsys.course.checking import check, hint
from llmsys.course.leaderboard import Board, byte_leaderboard
from llmsys.models.backends import Backend, Batch, ContiguousCache, NoCache, as_backend
"""

# What those lessons draw, each as `viz.NAME`.
PICTURES = """
attention_growth attention_speed backward_overview backward_stepper bandwidth_plot bytes_by_tile causal_tiles course_map
exp_overflow flash_overview fp8_error hopper_overview kernel_explorer memory_wall_overview merge_tree_stepper
naive_traffic next_token_stepper online_softmax_overview online_softmax_stepper ridge_plot ring_stepper roofline_chart
roofline_explorer sm_timeline softmax_passes tile_walker tiled_overview
"""

PROGRAM = """
import json, sys
failed = {}
for line in json.loads(sys.stdin.read()):
    try:
        exec(line, {})
    except Exception as error:
        failed[line] = f"{type(error).__name__}: {error}"
print(json.dumps(failed))
"""


def failures(statements, cwd=ROOT):
    """Run statements, each by itself, in one process like a notebook's. Returns those that raise, and what."""
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], input=json.dumps(statements), cwd=cwd, env=environment,
        capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def under_both_names() -> list[str]:
    """For each moved module, that the old name and the new one are one module, which has kept its name."""
    statements = []
    for path in MOVED:
        old = f"llmsys.{path.parent.name}.{path.stem}"
        (new,) = re.findall(r'^"""Moved: this is (?:the package )?`([\w.]+)` now\."""$', path.read_text(), re.MULTILINE)
        same = f"{old} is {new} is sys.modules[{old!r}] and {new}.__name__ == {new!r}"
        statements.append(f"import sys, {old}, {new}; assert {same}")
    return statements


@pytest.fixture(scope="module")
def failed():
    """What fails of all these, in one process: to import torch takes longer than the rest."""
    if not triton_installed():
        pytest.skip("some of these import kernels")
    pictures = [f"from llmsys.viz import {name}; assert callable({name})" for name in PICTURES.split()]
    return failures([*IMPORTS.split("\n"), *OF_MINE.split("\n"), *pictures, *under_both_names()])


def test_whatever_was_imported_before_is_found(failed):
    assert {line: error for line, error in failed.items() if line not in under_both_names()} == {}


def test_a_moved_module_is_the_one_that_it_names_under_both_names(failed):
    assert {line: error for line, error in failed.items() if line in under_both_names()} == {}
    assert len(MOVED) > 30


def test_importing_a_package_loads_neither_moved_modules_nor_kernels():
    """Triton must not be loaded before it is decided whether kernels are interpreted."""
    moved = [path.stem for path in MOVED]
    statement = (
        "import sys, llmsys.attention, llmsys.cache, llmsys.course, llmsys.course.checking, llmsys.models\n"
        "from llmsys.course.checking import run_check\n"
        "loaded = [name for name in sys.modules if name.startswith('llmsys')]\n"
        f"assert not {{name.rpartition('.')[2] for name in loaded if 'moved' in name}}, loaded\n"
        f"old = {{f'llmsys.{{p}}.{{m}}' for p in ('attention', 'course', 'models', 'serving') for m in {moved}}}\n"
        "assert not old & set(loaded), old & set(loaded)\n"
        "assert not [name for name in loaded if 'kernels' in name], loaded\n"
    )
    assert failures([statement]) == {}


# A workspace that the old version laid

RENAMED = {  # today's lines of lesson 06, and what they were
    "from llmsys.attention.hopper import kernels": "from llmsys.attention import hopper_kernels",
    "from llmsys.attention.hopper.consumer import": "from llmsys.attention.hopper_consumer import",
    "from llmsys.attention.hopper.gluon import": "from llmsys.attention.hopper_gluon import",
    "from llmsys.attention.hopper.schedule import": "from llmsys.attention.hopper_schedule import",
    "from llmsys.attention.hopper.simulated.forward import": "from llmsys.attention.hopper_simulate import",
}
ANSWER = """
from llmsys.attention.hopper_consumer import softmax, start_scores
from llmsys.attention.hopper_gluon import gl, gluon, warpgroup_mma, warpgroup_mma_wait


@gluon.jit
def step(q):
    pass
"""


def lay_lesson(folder: Path, *, old: bool) -> Path:
    """Lesson 06 alone, with the import lines of the old version or of today's."""
    lesson = manifest.lesson("06")
    notebook = read_notebook(ROOT / "lessons" / lesson.notebook)
    for cell in notebook["cells"]:
        for today, before in RENAMED.items():
            given, wanted = (today, before) if old else (before, today)
            cell["source"] = re.sub(rf"^{re.escape(given)}", wanted, cell["source"], flags=re.MULTILINE)
    write_notebook(folder / lesson.notebook, notebook)
    return folder


def cells_that_import(path: Path, starts: list[str]) -> dict[str, str]:
    """The sources of a notebook's cells in which a line starts like one of these, by cell id."""
    cells = cells_by_id(read_notebook(path)).items()
    return {id: cell["source"] for id, cell in cells if any(f"\n{start}" in f"\n{cell['source']}" for start in starts)}


@pytest.mark.skipif(not triton_installed(), reason="its answers are kernels")
def test_a_workspace_of_the_old_version_is_updated_and_what_it_imports_is_found(tmp_path, monkeypatch):
    lesson = manifest.lesson("06")
    monkeypatch.setattr(manifest, "lessons", lambda: (lesson,))
    monkeypatch.delenv("LLMSYS_WORKSPACE", raising=False)
    monkeypatch.setattr(manifest, "lessons_dir", lambda: lay_lesson(tmp_path / "old", old=True))
    work = tmp_path / "work"
    start(work)
    path = work / lesson.notebook
    before = cells_that_import(path, list(RENAMED.values()))
    assert len(before) >= 2, "several cells of the old lesson import what has moved"
    edited, *unedited = before
    notebook = read_notebook(path)
    cells_by_id(notebook)[edited]["source"] += "\nprint('mine')"
    write_notebook(path, notebook)
    (work / "mine/lesson_06_kernels.py").write_text(ANSWER, encoding="utf-8")

    monkeypatch.setattr(manifest, "lessons_dir", lambda: lay_lesson(tmp_path / "new", old=False))
    (changed,) = [each for each in update(work) if each.name == lesson.notebook]
    assert changed.action == "updated" and changed.merge.conflicts == [edited]
    assert set(changed.merge.changed) == set(unedited)
    assert cells_that_import(path, list(RENAMED.values())) == {edited: before[edited] + "\nprint('mine')"}
    sources = [cell["source"] for cell in read_notebook(path)["cells"]]
    imports = [line for text in sources for line in text.splitlines() if re.match(r"(from|import) llmsys", line)]
    assert any(line.startswith(tuple(RENAMED.values())) for line in imports)
    answer = "from mine import step; from mine.lesson_06_kernels import softmax; assert step.__name__ == 'step'"
    assert failures([*imports, answer], cwd=work) == {}
