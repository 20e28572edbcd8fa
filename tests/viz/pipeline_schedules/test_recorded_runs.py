"""Recorded runs are drawn as they were, with the figures of their rows."""

from types import SimpleNamespace

import pytest

from llmsys.parallel import pipeline
from llmsys.parallel.pipeline import Costs, simulate
from llmsys.viz.pipeline_schedules.recorded_runs import recorded_runs, timeline_of
from llmsys.viz.pipeline_schedules.timelines import timelines

COSTS = Costs(F=10.25, I=12.5, W=8.125)
NAMES = ["1f1b", "interleaved", "zb-h1", "zb-v", "dualpipe-v", "dualpipe"]


def row(name, ranks=2):
    """What the benchmark writes of a run."""
    run = simulate(pipeline.make_schedule(name, ranks, 8), COSTS)
    events = [[each.rank, str(each.action), each.start, each.end] for row in run.events for each in row]
    return {"name": name, "tokens_s": 81_234.5, "ratio": 1.034, "bubble": 0.0712, "bubble_simulated": 0.0683,
            "events": events}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_the_run_is_read_as_it_was(name):
    assert timeline_of(row(name)).events == simulate(pipeline.make_schedule(name, 2, 8), COSTS).events


def test_what_is_kept_is_in_shares_of_a_rank_for_every_schedule():
    kept = {name: timeline_of(row(name)).peaks for name in NAMES}
    assert kept["1f1b"] == (2, 1) and kept["zb-h1"] == (2, 2) and kept["zb-v"] == (2, 2)
    assert kept["interleaved"] == (2.5, 1.5) and kept["dualpipe"] == (3, 3)  # P + 1, of stages as large as a rank's


def test_all_of_a_record_can_be_read(assert_legible, words):
    picture = recorded_runs(SimpleNamespace(rows=[row(name) for name in NAMES]))
    assert_legible(picture.svg)
    for name in ("1F1B", "Interleaved 1F1B", "ZB-H1", "ZB-V"):
        assert name in picture.alt
    assert "81,234 tokens/s, 1.034 × torch's; idle 7.1%, simulated 6.8%" in words(picture)


def test_where_torchs_was_not_measured_nothing_is_said_of_it(words):
    picture = recorded_runs(SimpleNamespace(rows=[row("1f1b") | {"ratio": None}]))
    assert "81,234 tokens/s; idle 7.1%, simulated 6.8%" in words(picture)


def test_a_record_without_rows_and_notes_for_others_are_refused():
    with pytest.raises(ValueError, match="record must have rows, one a schedule"):
        recorded_runs(SimpleNamespace(rows=[]))
    run = simulate(pipeline.gpipe(2, 2))
    with pytest.raises(ValueError, match="notes must be one for each of the 2 timelines, got 1"):
        timelines(run, run, notes=["alone"])
