"""The chart of grouped products: marks are the record's figures."""

import pytest

from llmsys.bench.record import Record
from llmsys.viz.mixture_of_experts import grouped_speed
from llmsys.viz.mixture_of_experts.grouped_speed import products_of, ratios_of

LAYER = "8,192 tokens of 2048, 8 of 64 experts of 1408"


def row(name, what, load, tflops, ratio, shape="64 experts, 65,536 rows, 2048 → 1408"):
    return {"name": name, "what": what, "shape": shape, "load": load, "tflops": tflops, "ratio": ratio}


@pytest.fixture
def record():
    rows = [
        row("torch._grouped_mm", "product", "even", 500.0, 1.0),
        row("llmsys", "product", "even", 550.0, 1.1),
        row("torch._grouped_mm", "product", "skewed", 400.0, 1.0),
        row("llmsys", "product", "skewed", 480.0, 1.2),
        row("llmsys", "product", "decode", 20.0, 1.5, "128 experts, 512 rows, 2048 → 1536"),
        row("torch._grouped_mm", "layer forward and backward", "even", 250.0, 1.0, LAYER),
        row("llmsys", "layer forward and backward", "even", 350.0, 1.4, LAYER),
        row("llmsys", "layer forward", "even", 300.0, 0.9, LAYER),
        row("loop", "layer forward", "even", 3.0, 0.01, LAYER),
        row("loop", "layer forward", "skewed", 2.0, 0.01, LAYER),
        row("llmsys", "layer forward", "decode", 7.0, None, LAYER),
    ]
    return Record("moe", "NVIDIA H200", {}, "2026-01-01", rows)


def test_marks_are_the_records_figures(record):
    speed, ratio = grouped_speed(record).figure.axes
    marks = {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in speed.get_lines()}
    marks = {name: at for name, at in marks.items() if name in ("llmsys", "torch._grouped_mm", "loop")}
    assert marks == {
        "llmsys": [(550, 0), (480, 1), (300, 2), (350, 4)],
        "torch._grouped_mm": [(500, 0), (400, 1), (250, 4)],
        "loop": [(3, 2), (2, 3)],
    }
    assert [label.get_text().split("\n")[0] for label in speed.get_yticklabels()] == [
        "even", "skewed", "a layer: even", "a layer: skewed", "with its backward: even",
    ]  # fmt: skip
    times = {line.get_label(): list(line.get_xdata()) for line in ratio.get_lines()}
    assert times["even"] == [1.1, 1.4, 0.9] and times["skewed"] == [1.2] and times["decode"] == [1.5]
    assert ratio.get_xlim()[0] <= 0.7 and ratios_of(record)["layer forward"] == {"even": [0.9]}


def test_it_says_in_words_what_it_shows(record):
    alt = grouped_speed(record).alt
    assert "skewed: torch._grouped_mm 400 and llmsys 480 TFLOP/s" in alt and "product 1.2" in alt
    assert "layers on NVIDIA H200" in alt and "layer forward and backward 1.4; layer forward 0.9" in alt
    assert f"layer forward, {LAYER}, even: llmsys 300 and loop 3 TFLOP/s" in alt and "llmsys 7" not in alt


def test_products_alone_are_drawn_as_well(record):
    picture = grouped_speed(Record("moe", record.device, {}, record.date, record.rows[:4]))
    assert len(picture.figure.axes[0].get_yticklabels()) == 2 and "layers" not in picture.alt


def test_a_record_without_products_is_refused(record):
    with pytest.raises(ValueError, match="must have products on a GPU"):
        products_of(record.rows[4:])
