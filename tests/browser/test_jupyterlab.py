"""A learner's hour with lesson 02, in a real browser: a wrong answer, a right one, a widget; light and dark."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from llmsys.course import manifest
from llmsys.course.authoring.self_test import exercise_cell
from llmsys.course.workspace.notebook import read_notebook, role, write_notebook
from tests.browser.lab import Lab, missing
from tests.browser.server import ROOT, THEMES
from tests.support.size import FULL

pytestmark = pytest.mark.slow
LESSON = manifest.lesson("02")
WRONG = """import torch


def merge(a, b):
    (m_a, l_a), (m_b, l_b) = a, b
    return torch.maximum(m_a, m_b), l_a + l_b
"""


@pytest.fixture
def work(tmp_path):
    """A fresh workspace, on a machine that has a browser."""
    if lacking := missing():
        if os.environ.get("CI") == "true":
            pytest.fail(f"CI must run this test: {lacking}")
        pytest.skip(lacking)
    llmsys("start", tmp_path / "work", cwd=tmp_path)
    return tmp_path / "work"


def llmsys(*arguments, cwd: Path) -> str:
    """What the command prints. It must succeed."""
    command = [sys.executable, "-c", "from llmsys.course.cli import main; main()", *map(str, arguments)]
    environment = {name: value for name, value in os.environ.items() if name != "LLMSYS_WORKSPACE"}
    environment["PYTHONPATH"] = str(ROOT)
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=True).stdout


def test_a_learner_goes_through_lesson_02(work, tmp_path):
    right = exercise_cell((ROOT / "solutions" / f"{LESSON.name}.py").read_text(encoding="utf-8"), "02.merge")
    if not FULL:
        leave_out_what_only_takes_time(work / LESSON.notebook)
    cells = read_notebook(work / LESSON.notebook)["cells"]
    widget = next(cell["id"] for cell in cells if role(cell) == "widget")

    with Lab(work, scratch=tmp_path) as lab:
        lab.open(LESSON.notebook)  # no question about a kernel, no news, no dialog
        lab.run_all()
        assert lab.errors() == []
        verdict = lab.cell_output("02-merge-check")
        assert "not written yet" in verdict.inner_text()

        answer(lab, WRONG)
        assert "You added the two sums without rescaling them." in verdict.inner_text()
        assert "Hint 1 of 3" not in verdict.inner_text()
        answer(lab, WRONG.replace("l_a + l_b", "l_a"))
        assert "Hint 1 of 3" in verdict.inner_text()
        assert "0 passed" in llmsys("status", cwd=work)

        answer(lab, right)
        assert "02.merge passed" in verdict.inner_text() and "✗" not in verdict.inner_text()
        assert re.search(r"02 +Online softmax +· ✓ · · +3 of 12", llmsys("status", cwd=work))
        assert "def merge" in (work / "mine" / "lesson_02.py").read_text()

        stepper = lab.cell_output(widget)
        for theme in THEMES:
            lab.set_theme(theme)
            frame = stepper.locator("svg").first.inner_html()
            stepper.get_by_role("button", name=re.compile("next", re.IGNORECASE)).first.click()
            lab.wait_until(lambda before=frame: stepper.locator("svg").first.inner_html() != before)
            assert lab.hard_to_read() == []
            lab.screenshot(tmp_path / f"widget-{theme}.png", cell=widget)
            lab.screenshot(tmp_path / f"verdict-{theme}.png", cell="02-merge-check")
        assert lab.errors() == []
        assert lab.console_errors == []


def leave_out_what_only_takes_time(path: Path) -> None:
    """Take out the cells that time something or run the model: nbval runs them, and they show text alone."""
    notebook = read_notebook(path)
    cells = notebook["cells"]
    notebook["cells"] = [cell for cell in cells if role(cell) != "engine" and "interleaved(" not in cell["source"]]
    assert 2 <= len(cells) - len(notebook["cells"]) <= 4
    write_notebook(path, notebook)


def answer(lab: Lab, source: str) -> None:
    """Type an answer to 02.merge, and have it checked."""
    lab.edit_cell("02-merge", source)
    lab.run_cell("02-merge")
    lab.run_cell("02-merge-check")
