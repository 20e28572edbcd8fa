"""The chart of grouped products: marks are the record's figures."""

import pytest

from llmsys.bench.record import Record
from llmsys.viz.mixture_of_experts import grouped_speed
from llmsys.viz.mixture_of_experts.grouped_speed import products_of, ratios_of


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
        row("llmsys", "layer forward", "even", 300.0, 0.9, "8,192 tokens"),
        row("loop", "layer forward", "even", 3.0, 0.01, "8,192 tokens"),
    ]
    return Record("moe", "NVIDIA H200", {}, "2026-01-01", rows)


def test_marks_are_the_records_figures(record):
    speed, ratio = grouped_speed(record).figure.axes
    marks = {line.get_label(): list(zip(*line.get_data(), strict=True)) for line in speed.get_lines()}
    assert marks == {"llmsys": [(550, 0), (480, 1)], "torch._grouped_mm": [(500, 0), (400, 1)]}
    times = {line.get_label(): list(line.get_xdata()) for line in ratio.get_lines()}
    assert times["even"] == [1.1, 0.9] and times["skewed"] == [1.2] and times["decode"] == [1.5]
    assert ratio.get_xlim()[0] <= 0.7 and ratios_of(record)["layer forward"] == {"even": [0.9]}


def test_it_says_in_words_what_it_shows(record):
    alt = grouped_speed(record).alt
    assert "skewed: torch._grouped_mm 400 and llmsys 480 TFLOP/s" in alt and "product 1.2; layer forward 0.9" in alt


def test_a_record_without_products_is_refused(record):
    with pytest.raises(ValueError, match="must have products on a GPU"):
        products_of(record.rows[4:])
