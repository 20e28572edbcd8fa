"""The built wheel, with nothing but the terminal's two packages: it starts a course and examines the machine."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = (".py", ".toml", ".json", ".svg", ".css", ".html", ".js")
pytestmark = pytest.mark.slow


def run(*command, cwd):
    environment = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "VIRTUAL_ENV", "LLMSYS_WORKSPACE")}
    done = subprocess.run([str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


@pytest.fixture(scope="module")
def empty(tmp_path_factory):
    """A fresh virtual environment with the wheel of this tree in it; returns (its bin folder, a folder to work in)."""
    folder = tmp_path_factory.mktemp("wheel")
    code, out = run(
        sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder / "dist", ROOT, cwd=folder
    )
    assert code == 0, out
    # Without a pip of its own, which takes longer to install than all the rest: this environment's installs into it.
    code, out = run(sys.executable, "-m", "venv", "--without-pip", folder / "env", cwd=folder)
    assert code == 0, out
    wheel = next((folder / "dist").glob("llmsys-*.whl"))
    pip = [sys.executable, "-m", "pip", "--python", folder / "env/bin/python", "--disable-pip-version-check", "-q"]
    code, out = run(*pip, "install", "--no-deps", wheel, cwd=folder)
    assert code == 0, out
    code, out = run(*pip, "install", "-c", ROOT / "constraints.txt", "typer", "rich", cwd=folder)
    assert code == 0, out
    return folder / "env/bin", folder


def test_start_lays_the_lessons_out(empty):
    bin, folder = empty
    code, out = run(bin / "llmsys", "start", "course", cwd=folder)
    assert code == 0, out
    laid = sorted(path.name for path in (folder / "course").glob("*.ipynb"))
    assert laid == sorted(path.name for path in (ROOT / "lessons").glob("*.ipynb")) and laid
    code, out = run(bin / "llmsys", "status", cwd=folder / "course")
    assert code == 0 and "Online softmax" in out, out


def test_the_doctor_says_what_is_missing_and_how_to_get_it(empty):
    bin, folder = empty
    code, out = run(bin / "llmsys", "doctor", cwd=folder)
    assert code != 0, "a machine without torch runs no lesson"
    assert "torch" in out and "pip install" in out and "Traceback" not in out


def test_every_file_that_the_library_reads_is_in_the_wheel(empty):
    bin, folder = empty
    code, out = run(
        bin / "python", "-c", "import importlib.resources as r; print(r.files('llmsys') / 'x')", cwd=folder
    )
    installed = Path(out.strip()).parent
    tracked = {
        path.relative_to(ROOT / "llmsys")
        for path in (ROOT / "llmsys").rglob("*")
        if path.is_file() and path.suffix in FILES and "_lessons" not in path.parts
    }
    assert {path for path in tracked if not (installed / path).exists()} == set()
