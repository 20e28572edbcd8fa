"""`llmsys plan serving`: a table and a picture; what cannot be asked is refused in a line, before anything is done."""

import json

import pytest
from typer.testing import CliRunner

from llmsys.course.cli import app

FEW = ("--trace", "azure-code", "--requests", "50", "--gpus", "2", "--parallel", "1")


def run(*arguments):
    return CliRunner().invoke(app, ["plan", "serving", *arguments])


@pytest.mark.parametrize("ending", ["svg", "png"])
def test_a_table_and_a_picture(tmp_path, ending):
    path = tmp_path / f"plan.{ending}"
    done = run(*FEW, "--tpot", "0.01", "--plot", str(path))
    assert done.exit_code == 0, done.output
    assert "1 prefill, 1 decode" in done.stdout and "2 colocated, steps of 256" in done.stdout
    assert "measured 2026-" in done.stdout and "requests a second," in done.stdout
    assert path.stat().st_size > 5000 and f"drawn: {path}" in done.stdout


def test_what_is_modelled_is_said_to_be():
    done = run(*FEW[:-2], "--parallel", "1,2", "--model", "Llama-3-8B", "--requests", "50")
    assert done.exit_code == 0 and "modelled, not measured: Llama-3-8B" in done.stdout
    assert "engines of several GPUs (*)" in done.stdout


def test_a_traces_own_prefixes_are_replayed(tmp_path):
    path = tmp_path / "trace.jsonl"
    rows = [{"timestamp": 100 * n, "input_length": 1024, "output_length": 5, "hash_ids": [0, n + 1]} for n in range(60)]
    path.write_text("\n".join(map(json.dumps, rows)))
    done = run("--trace", str(path), *FEW[2:], "--route", "prefix-aware")
    assert done.exit_code == 0, done.output


def test_what_a_rate_is_worth_is_said():
    one = ("--gpus", "1", "--parallel", "1")
    short = run(*one, "--requests", "50")
    assert "too short a run: 50 requests come in" in short.stdout and "Give --requests " in short.stdout
    unlimited = run(*one, "--requests", "50", "--ttft", "1e9", "--tpot", "1e9")
    assert "higher rates than 200 for each GPU are not tried" in unlimited.stdout
    assert "higher rates" not in short.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--model", "GPT-5"], "--model must be one of Mistral-7B"),
        (["--model", "DeepSeek-V3"], "--model must be one of Mistral-7B"),
        (["--model", "Qwen2.5-72B", "--parallel", "1"], "gpus must be more for Qwen2.5-72B"),
        (["--trace", "azure"], "--trace must be one of azure-code"),
        (["--trace", "gone.csv"], "there is no file gone.csv; `llmsys data` fetches"),
        (["--parallel", "two"], "must be numbers of GPUs, like 1,2,4"),
        (["--parallel", "8", "--gpus", "4"], "must have a number up to --gpus 4"),
        (["--parallel", "3", "--gpus", "3"], "gpus must divide the 32 query heads"),
        (["--device", "TPU"], "--device TPU: no record of 'goodput'"),
        (["--record", "gone.json"], "--record: there is no file gone.json"),
        (["--plot", "taken.svg"], "taken.svg cannot be written: give another path"),
        (
            ["--model", "Llama-3.1-405B", "--gpus", "8", "--parallel", "8", "--requests", "50"],
            "no engine does, if it only computes prompts, or only decodes",
        ),
        (["--route", "nearest"], "route must be one of random"),
        (["--plot", "plan.pdf"], "must end in .svg or .png"),
        (["--plot", "nowhere/plan.svg"], "there is no folder"),
        ([*FEW, "--tpot", "0.001"], "no plan serves 90% of these requests within --ttft 0.5 and --tpot 0.001"),
    ],
)
def test_what_cannot_be_asked_is_refused(arguments, says, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "taken.svg").mkdir()
    done = run(*arguments)
    assert done.exit_code == 2 and says in " ".join(done.output.replace("│", " ").split()), done.output
