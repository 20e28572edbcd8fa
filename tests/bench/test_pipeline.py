"""The pipeline benchmark: what it gives the simulator is what the actions took, and who fails costs one row."""

import io
import random
from unittest.mock import patch

import pytest
import torch
from rich.console import Console

from llmsys.bench import pipeline
from llmsys.bench.pipeline import PEERS
from llmsys.bench.record import new_record
from llmsys.models import Llama
from llmsys.parallel.execute import Cut
from llmsys.parallel.pipeline import Costs, costs_of, make_schedule, simulate
from llmsys.parallel.ranks import RanksFailed, close, run
from tests.support.size import SEED


@pytest.fixture(scope="module", autouse=True)
def no_rank_is_left():
    yield
    close()


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


def what_torch_is_given(name):
    """On a rank: of what torch's runtime gets in a step, the shapes, and whether its rows lie one after the other."""
    size, given = pipeline._size(quick=True), []

    class Peer:
        def step(self, *tokens, target=None, **options):
            given.extend(each for each in (*tokens, target) if each is not None)

    model, schedule = Llama(size.model), make_schedule(name, 2, size.microbatches)
    cut = Cut.by_cost(size.model, schedule.num_stages, size.T)
    batch = torch.zeros(size.microbatches * size.B, size.T + 1, dtype=torch.long)
    with patch.object(pipeline, "_peer", lambda *_: Peer()), patch.object(pipeline, "_check_equal"):
        pipeline._torch_step(name, model, schedule, cut, batch, {}, size)
    return [(tuple(each.shape), each.is_contiguous()) for each in given]


@pytest.mark.parametrize("name, ranks_given", [("1f1b", [1, 1]), ("zb-v", [2, 0])])
def test_torchs_runtime_is_given_contiguous_tensors_which_some_versions_insist_on(name, ranks_given):
    assert run(what_torch_is_given, 2, name, backend="gloo") == [n * [((8, 16), True)] for n in ranks_given]


def test_where_torchs_runtime_fails_ours_is_measured_alone_and_every_row_is_given_as_it_comes(monkeypatch, capsys):
    def runs(function, ranks, name, size, with_torch, **options):
        if name == "zb-v" or (name == "interleaved" and with_torch):
            raise RanksFailed(f"rank 0 did not end: {name}\nand so on", "hung", 0, {}, [])
        return [{"name": name, "tokens_s": 1.0, "torch_tokens_s": 2.0 if with_torch else None}]

    monkeypatch.setattr(pipeline, "run", runs)
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
