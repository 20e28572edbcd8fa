"""What a step is made of: bars are a record's parts, and add up to the step, whoever could tell them apart."""

import pytest

from llmsys.bench.record import Record
from llmsys.viz.continuous_batching import step_parts
from llmsys.viz.kit.style import LIGHT

MS = {"all on": (3.0, 1.0, 0.5), "all off": (3.0, 2.0, 5.0), "without ahead": (3.0, 1.0, 2.0)}


def record(batches=("full batch", "one request"), model="Qwen3-0.6B", **changes):
    rows = []
    for n, batch in enumerate(batches):
        for name, (attention, other, idle) in MS.items():
            rows.append({"sweep": "step", "name": name, "model": model, "batch": batch, "sequences": (256, 1)[n],
                         "ms": attention + other + idle, "attention_ms": attention, "other_ms": other, "idle_ms": idle,
                         "roofline_ms": 2.0} | changes)  # fmt: skip
            speed = {"tokens_per_s": 1000.0 / (attention + other + idle), "roofline_tokens_per_s": 600.0}
            speed["roofline_tokens_per_s"] -= 100.0 * (name == "all on")
            rows.append({"sweep": ("throughput", "one")[n], "name": name, "model": model} | speed)
    return Record("serving", "NVIDIA H200", {}, "2026-01-01", rows)


def bars(axes):
    """Height -> (left, width) of each bar there, from left to right."""
    found = {}
    for patch in axes.patches:
        place = round(patch.get_y() + patch.get_height() / 2)
        found.setdefault(place, []).append((patch.get_x(), patch.get_width()))
    return found


def test_bars_are_the_parts_of_each_way_from_all_off_down_to_all_on():
    left, right, *_ = step_parts(record()).figure.axes
    assert [label.get_text() for label in left.get_yticklabels()] == ["all on", "without ahead", "all off"]
    assert bars(left)[2] == [(0, 3), (3, 2), (5, 5)] and bars(left)[0] == [(0, 3), (3, 1), (4, 0.5)]
    assert [bars(right)[y][0][1] for y in range(3)] == pytest.approx([1000 / 4.5, 1000 / 6, 100])
    assert [line.get_xdata()[0] for axes in (left, right) for line in axes.get_lines()] == [2.0, 500.0]


def test_what_is_idle_has_a_pattern_and_not_a_colour_alone():
    left = step_parts(record()).figure.axes[0]
    hatched = [patch for patch in left.patches if patch.get_hatch()]
    assert len(hatched) == len(MS) and LIGHT["rule"] not in {patch.get_facecolor() for patch in hatched}


def test_what_nobody_could_tell_apart_is_one_part_and_the_bar_is_as_long():
    picture = step_parts(record(other_ms=None, idle_ms=None))
    left = picture.figure.axes[0]
    assert bars(left)[2] == [(0, 3), (3, 7)] and "other kernels, and nothing 7" in picture.alt
    whole = step_parts(record(attention_ms=None, other_ms=None, idle_ms=None)).figure.axes[0]
    assert bars(whole)[2] == [(0, 10)]


def test_it_says_in_words_what_it_shows(words):
    picture = step_parts(record())
    assert (
        "256 requests, reading alone takes 2 ms: all off 10 ms (attention 3, other kernels 2, nothing 5); 100 tokens"
        in (picture.alt)
    )
    assert "One request, reading alone" in picture.alt and "of Qwen3-0.6B is made of on H200" in picture.alt
    assert "256 requests: ms of a step" in words(picture) and "without ahead" in words(picture)


def test_a_way_without_a_workload_is_drawn_as_not_measured(words):
    one = record()
    one.rows[:] = [row for row in one.rows if (row["sweep"], row["name"]) != ("one", "without ahead")]
    assert "not measured" in words(step_parts(one))


def test_a_batch_that_was_not_measured_has_no_row_of_panels():
    assert len(step_parts(record(("full batch",))).figure.axes) == 2


def test_a_model_is_chosen_by_its_name_and_one_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="no steps of SmolLM2-135M; it has Qwen3-0.6B: take recorded"):
        step_parts(record(), model="SmolLM2-135M")
    with pytest.raises(ValueError, match="no steps of any model: take"):
        step_parts([])
    rows = record().rows + record(model="other").rows
    assert "of other is made" in step_parts(rows, model="other").alt and "of Qwen3-0.6B" in step_parts(rows).alt
