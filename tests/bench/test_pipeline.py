"""The pipeline benchmark: what it gives the simulator is what the actions took, and who fails costs one row."""

import io
import random

import pytest
from rich.console import Console

from llmsys.bench import pipeline
from llmsys.bench.pipeline import PEERS
from llmsys.bench.record import new_record
from llmsys.parallel.pipeline import Costs, costs_of, make_schedule, simulate
from llmsys.parallel.ranks import RanksFailed
from tests.support.size import SEED


@pytest.mark.parametrize("name", [*PEERS, "dualpipe-v"])
def test_a_runs_costs_simulated_again_are_the_run(name):
    draw = random.Random(f"{SEED} {name}")
    schedule = make_schedule(name, 2, 6)
    costs = Costs(**{kind: [draw.uniform(1, 3) for _ in range(schedule.num_stages)] for kind in "FIW"})
    run = simulate(schedule, costs)
    again = simulate(schedule, costs_of(run, schedule.num_stages))
    for row, expected in zip(again.events, run.events, strict=True):
        assert [event.action for event in row] == [event.action for event in expected]
    if name != "dualpipe-v":  # a pair's time goes by its forward's stage alone, in the mean over its backwards'
        assert again.makespan == pytest.approx(run.makespan)
        assert again.bubble_share == pytest.approx(run.bubble_share)


def test_where_torchs_runtime_fails_ours_is_measured_alone_and_every_row_is_given_as_it_comes(monkeypatch, capsys):
    def run(function, ranks, name, size, with_torch, **options):
        if name == "zb-v" or (name == "interleaved" and with_torch):
            raise RanksFailed(f"rank 0 did not end: {name}\nand so on", "hung", 0, {}, [])
        return [{"name": name, "tokens_s": 1.0, "torch_tokens_s": 2.0 if with_torch else None}]

    monkeypatch.setattr(pipeline, "run", run)
    seen = []
    record = pipeline.measure(quick=True, so_far=lambda record: seen.append([row["name"] for row in record.rows]))
    assert [(row["name"], row["torch_tokens_s"]) for row in record.rows] == [
        ("1f1b", 2.0), ("interleaved", None), ("zb-h1", 2.0)
    ]  # fmt: skip
    assert seen == [["1f1b"], ["1f1b", "interleaved"], ["1f1b", "interleaved", "zb-h1"], seen[2]]
    reasons = {what: why for what, why in record.missing.items() if what != "two GPUs"}
    assert reasons == {
        "interleaved, with torch.distributed.pipelining in turn": "rank 0 did not end: interleaved",
        "zb-v, with torch.distributed.pipelining in turn": "rank 0 did not end: zb-v",
        "zb-v": "rank 0 did not end: zb-v",
    }
    assert "and so on" in capsys.readouterr().err


def test_a_row_without_torchs_figures_is_in_the_table():
    row = {"name": "1f1b", "tokens_s": 1234.0, "torch_tokens_s": None, "ratio": None, "bubble": 0.1,
           "bubble_simulated": 0.09}  # fmt: skip
    console = Console(width=140, file=io.StringIO())
    console.print(pipeline.table(new_record("pipeline", [row], {})))
    assert "1,234" in console.file.getvalue() and "–" in console.file.getvalue()
