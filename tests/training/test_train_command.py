"""`llmsys train`: what it says, what it leaves behind, and how it is interrupted."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from typer.testing import CliRunner

from llmsys.course import cli
from llmsys.course.cli import use
from llmsys.models import load_model, save_model
from llmsys.models.checkpoints import save
from llmsys.parallel.ranks import close
from llmsys.training.progress import Progress
from llmsys.viz.kit import Picture

ROOT = Path(__file__).parents[2]
SETTINGS = "--files 6 --steps 4 --batch 2 --context 32 --save-every 2 --evaluate-every 2 --dtype float32".split()


@pytest.fixture
def folder(tiny, tmp_path, monkeypatch):
    """A current directory with a tiny model in it, and a cache folder of its own."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    save_model(tiny, tmp_path / "model")
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(cli.app, ["train", *map(str, arguments)], prog_name="llmsys")


def state(path):
    return json.loads((path / "training" / "state.json").read_text())


def test_it_trains_and_says_how_to_use_the_result(folder):
    done = run("out", "--model", "model", *SETTINGS, "--attention", "tiled", "--seed", 3, "--learning-rate", 0.01)
    assert done.exit_code == 0, done.output
    first, last = re.fullmatch(
        r"held-out loss: (\S+) at first, (\S+) after 4 steps\n"
        r"the loss of every step, as a picture: out/losses.svg\n"
        r"to talk to it: llmsys generate \"…\" --model out/step-000004\n",
        done.stdout,
    ).groups()
    assert float(last) < float(first) and "4/4" in done.stderr
    kept = state(folder / "out" / "step-000004")
    assert kept["config"]["seed"] == 3 and kept["corpus"] == kept["corpus"] | {"name": "SymPy 1.14.0", "files": 6}
    assert sorted(path.name for path in (folder / "out").iterdir()) == [
        "losses.svg", "step-000002", "step-000004",
    ]  # fmt: skip
    picture = ElementTree.parse(folder / "out" / "losses.svg").getroot()
    assert "in 4 steps" in picture.get("aria-label") and f"{float(last):.4g}" in picture.get("aria-label")
    generate = ["generate", "def", "--model", "out/step-000004", "--max-new-tokens", "3"]
    assert CliRunner().invoke(cli.app, generate).exit_code == 0


def test_resume_takes_the_runs_own_settings(folder):
    assert run("out", "--model", "model", *SETTINGS).exit_code == 0
    whole = load_model(folder / "out" / "step-000004")
    for file in sorted((folder / "out" / "step-000004").rglob("*"), reverse=True):
        file.rmdir() if file.is_dir() else file.unlink()
    (folder / "out" / "step-000004").rmdir()
    done = run("out", "--resume")
    assert done.exit_code == 0, done.output
    again = load_model(folder / "out" / "step-000004")
    assert all((one == other).all() for one, other in zip(whole.parameters(), again.parameters(), strict=True))

    for arguments, says in (
        (["--resume", "--steps", "9"], "steps must stay what it was"),
        (["--resume", "--files", "9"], "the checkpoint says which model and which files"),
        ([*SETTINGS, "--model", "model"], "holds a run already, up to step-000004"),
    ):
        done = run("out", *arguments)
        assert done.exit_code == 2 and says in " ".join(done.stderr.split()) and "Traceback" not in done.stderr


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["--resume"], "out: holds no checkpoint to resume from"),
        (["--attention", "tilled"], "Did you mean 'tiled'"),
        (["--model", "nowhere"], "nowhere: no such file"),
        (["--model", "model", "--files", "6", "--context", "65"], "context must be at most the model's 64"),
        (["--dtype", "int8"], "dtype must be one of float32, bfloat16"),
        (["--steps", "3", "--warmup", "4"], "warmup must be from 0 to steps = 3, got 4"),
        (["--attention", "contiguous"], "attention must be a stage to train on, and 'contiguous' is a cache"),
        (["--learning-rate", "nan"], "learning_rate must be a positive number, got nan"),
        (["--model", "model", "--files", "6", "--context", "32", "--batch", "9" * 20], "take a smaller batch"),
    ],
)
def test_what_cannot_be_is_one_line(folder, arguments, says):
    done = run("out", *arguments)
    assert done.exit_code == 2 and says in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert not (folder / "out").exists()


def test_a_place_where_nothing_can_be_written_is_one_line(folder, monkeypatch):
    options = ["--model", "model", *SETTINGS]
    (folder / "file").write_text("")
    for out in ("file", "file/out"):
        done = run(out, *options)
        assert done.exit_code == 2
        assert done.stderr == f"{out}: no folder, for file is a file; give another one\n"
    real = save.save_file

    def full(*arguments, **more):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(save, "save_file", full)
    done = run("out", *options)
    assert done.exit_code == 2 and "Traceback" not in done.output
    assert "out/step-000002: the checkpoint could not be written ([Errno 28] No space left on device)" in done.stderr
    monkeypatch.setattr(save, "save_file", real)
    monkeypatch.setattr(Picture, "save", full)
    done = run("out", *options)
    assert done.exit_code == 0 and "--model out/step-000004" in done.stdout
    assert "the picture of the losses could not be written ([Errno 28]" in done.stderr


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried …\nmore"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried …"),
    ],
)
def test_a_batch_that_does_not_fit_is_one_line(folder, monkeypatch, error):
    def fails(*arguments):
        raise error

    monkeypatch.setattr(use, "_train", fails)
    done = run("out")
    assert done.exit_code == 2 and done.stderr.endswith("take a smaller --batch or --context\n")


@pytest.mark.parametrize("bug", [RuntimeError("shapes cannot be multiplied"), KeyError("x")])
def test_a_bug_keeps_its_traceback(folder, monkeypatch, bug):
    def fails(*arguments):
        raise bug

    monkeypatch.setattr(use, "_train", fails)
    assert run("out").exception is bug


def test_a_damaged_checkpoint_is_one_line_with_a_remedy(folder):
    assert run("out", "--model", "model", *SETTINGS).exit_code == 0
    damaged = folder / "out" / "step-000004"
    for file in ("training/state.json", "training/adamw.safetensors", "model.safetensors", "config.json"):
        whole = (damaged / file).read_bytes()
        (damaged / file).write_bytes(whole[:-9])
        done = run("out", "--resume")
        assert done.exit_code == 2 and "Traceback" not in done.output, done.output
        assert "out/step-000004" in done.stderr and "move out/step-000004 away" in done.stderr
        (damaged / file).write_bytes(whole)
    damaged.rename(folder / "elsewhere")
    assert run("out", "--resume").exit_code == 0


def check_stopped(folder, out):
    """What it says when it was interrupted, and the checkpoint it left."""
    step = int(re.search(r"stopped after step (\d+) of 100000; to go on: llmsys train out --resume", out)[1])
    (kept,) = (folder / "out").glob("step-*")
    assert kept.name == f"step-{step:06d}" and state(kept)["step"] == len(state(kept)["steps"]) == step
    return step


WHOLE = ["--model", "model", *SETTINGS, "--accumulate", "4"]
STAGES = [*WHOLE, "--stages", "2"]


@pytest.mark.skipif(os.name == "nt", reason="ranks need Linux or macOS")
def test_in_stages_it_is_the_same_run(folder):
    done = run("out", *STAGES, "--schedule", "zb-v")
    assert done.exit_code == 0, done.output
    assert "step 4 of 4 · loss" in done.output and "--model out/step-000004" in done.stdout
    assert run("whole", *WHOLE).exit_code == 0
    split, whole = (state(folder / name / "step-000004") for name in ("out", "whole"))
    assert split["config"] == whole["config"] and split["corpus"] == whole["corpus"]
    losses = [[step["loss"] for step in each["steps"]] for each in (split, whole)]
    torch.testing.assert_close(*losses, rtol=0, atol=1e-5)

    shutil.rmtree(folder / "out" / "step-000004")
    done = run("out", "--resume", "--stages", "2", "--schedule", "1f1b")
    assert done.exit_code == 0, done.output
    again = [step["loss"] for step in state(folder / "out" / "step-000004")["steps"]]
    torch.testing.assert_close(again, losses[0], rtol=0, atol=1e-5)
    close()


def test_a_schedule_without_stages_is_refused(folder):
    done = run("out", *WHOLE, "--schedule", "zb-v")
    assert done.exit_code == 2 and "--stages" in done.stderr and not (folder / "out").exists()


@pytest.mark.parametrize(
    "arguments, says",
    [
        (["--schedule", "zb-w"], "name must be one of gpipe, 1f1b"),
        (["--schedule", "zb-v", "--stages", "3"], "stages must be even, as zb-v has two on each rank; got 3"),
        (["--schedule", "dualpipe", "--accumulate", "3"], "num_microbatches must be at least twice the 2 ranks"),
        (["--stages", "4"], "num_stages must be at most the 2 layers"),
        (["--context", "65"], "context must be at most the model's 64"),
    ],
)
@pytest.mark.skipif(os.name == "nt", reason="ranks need Linux or macOS")
def test_stages_that_cannot_be_are_one_line(folder, arguments, says):
    done = run("out", *STAGES, *arguments)
    assert done.exit_code == 2 and says in done.stderr and len(done.stderr.strip().splitlines()) == 1
    assert not (folder / "out").exists()


@pytest.mark.skipif(os.name == "nt", reason="ranks need Linux or macOS")
def test_asked_to_end_the_ranks_finish_the_step_and_can_go_on(folder):
    """The signal comes when the first checkpoint is there, and this process waits for its ranks."""
    many = ["--steps", 100000, "--save-every", 1, "--evaluate-every", 100000, "--warmup", 1]
    over = threading.Event()

    def ask():
        while not over.wait(0.05):
            if (folder / "out" / "step-000001").exists():
                os.kill(os.getpid(), signal.SIGTERM)
                return

    asking = threading.Thread(target=ask)
    asking.start()
    try:
        done = run("out", *STAGES, *many)
    finally:
        over.set()
        asking.join()
        close()
    assert done.exit_code == 0, done.output
    assert "stopping after this step" in done.stderr
    step = int(re.search(r"stopped after step (\d+) of 100000; to go on: llmsys train out --resume", done.stdout)[1])
    assert state(folder / "out" / f"step-{step:06d}")["step"] == step


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="ranks need Linux or macOS")
def test_under_torchrun_each_process_is_a_rank(folder):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "llmsys"]
    done = subprocess.run(
        [*command, "train", "out", *STAGES], env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("--model out/step-000004") == 1 and done.stderr.count("step 4 of 4 · loss") == 1
    done = subprocess.run(
        [*command, "train", "other", *STAGES, "--stages", "1"],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=600,
    )  # fmt: skip
    assert done.returncode != 0 and "torchrun must start 1 processes for 1 stages of 1f1b" in done.stderr


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no such signals")
def test_asked_to_end_it_finishes_the_step_and_can_go_on(folder, monkeypatch):
    """In this process, where starting costs nothing: the signal comes while the third step is shown."""
    real = Progress.update

    def update(bar, step, *more):
        real(bar, step, *more)
        if step == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(Progress, "update", update)
    many = ["--steps", 100000, "--save-every", 100000, "--warmup", 1]
    before = signal.getsignal(signal.SIGTERM)
    done = run("out", "--model", "model", *SETTINGS, *many)
    assert done.exit_code == 0, done.output
    assert "stopping after this step" in done.stderr
    assert check_stopped(folder, done.stdout) == 3
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no such signals")
def test_interrupted_in_a_terminal_it_finishes_the_step_and_can_go_on(folder):
    many = [*SETTINGS, "--steps", "100000", "--save-every", "100000", "--evaluate-every", "1"]
    many += ["--warmup", "1"]
    program = subprocess.Popen(
        [sys.executable, "-m", "llmsys", "train", "out", "--model", "model", *many],
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TERM": "xterm", "FORCE_COLOR": "1"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    said = ""
    while "held out" not in said:  # it has done its first step
        piece = program.stderr.read(20)
        assert piece, said
        said += piece
    program.send_signal(signal.SIGINT)
    out, err = program.communicate(timeout=60)
    assert program.returncode == 0, said + err
    assert "stopping after this step" in said + err
    check_stopped(folder, out)
