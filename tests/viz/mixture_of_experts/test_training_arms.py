"""The chart of four ways to train: marks are the runs' losses, lines the means of what they record."""

import pytest

from llmsys.bench.record import Record
from llmsys.viz.mixture_of_experts import training_arms
from llmsys.viz.mixture_of_experts.training_arms import busiest_over_time, runs_of, sorted_loads


def run(name, seed, loss, busiest=((4.0, 2.0), (2.0, 2.0)), loads=((6, 0, 1, 1), (2, 2, 2, 2))):
    return {
        "name": name, "seed": seed, "model": "27M", "steps": 700, "window": 350, "loss": loss,
        "losses": [4.0 + seed, loss],
        "busiest": [list(each) for each in busiest], "loads": [list(each) for each in loads],
    }  # fmt: skip


@pytest.fixture
def record():
    rows = [run(name, seed, 2.0 + n / 10 + seed / 100) for n, name in enumerate(("none", "sequence", "batch", "bias"))
            for seed in range(3)]  # fmt: skip
    return Record("moe_training", "NVIDIA H200", {}, "2026-01-01", rows)


def test_each_seed_has_a_mark_and_each_arm_a_mean(record):
    losses = training_arms(record).figure.axes[1]
    marks = [(round(line.get_xdata()[0]), sorted(line.get_ydata())) for line in losses.get_lines()]
    assert marks == [(n, [pytest.approx(2.0 + n / 10 + seed / 100) for seed in range(3)]) for n in range(4)]
    means = [each.get_segments()[0][0][1] for each in losses.collections]
    assert means == [pytest.approx(2.01 + n / 10) for n in range(4)]


def test_curves_are_means_of_seeds_between_the_lowest_and_the_highest(record):
    training = training_arms(record).figure.axes[0]
    assert [list(line.get_ydata()) for line in training.get_lines()] == [
        pytest.approx([5.0, 2.01 + n / 10]) for n in range(4)
    ]
    band = training.collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == (2.0, 6.0)


def test_lines_are_means_over_layers_and_seeds():
    runs = [
        run("none", 0, 2.0),
        run("none", 1, 2.0, busiest=((2.0, 4.0), (2.0, 6.0)), loads=((1, 1, 6, 0), (8, 0, 0, 0))),
    ]
    assert busiest_over_time(runs) == ([350, 700], [3.0, 3.0])
    assert sorted_loads(runs) == pytest.approx([(3 + 1 + 3 + 4) / 4, (0.5 + 1 + 0.5) / 4, (0.5 + 1 + 0.5) / 4, 0.25])


def test_it_says_in_words_what_it_shows(record):
    alt = training_arms(record).alt
    assert "27M, 700 steps, trained in four ways" in alt
    assert "bias: held-out loss 2.31, from 2.3 to 2.32 over seeds; at the end the busiest expert has 2 times" in alt


def test_a_record_without_one_of_the_arms_is_refused(record):
    with pytest.raises(ValueError, match="has none of batch"):
        runs_of([row for row in record.rows if row["name"] != "batch"])
