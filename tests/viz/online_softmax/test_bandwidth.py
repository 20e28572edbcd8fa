"""Bandwidths of softmaxes: lines and bars are the recorded figures."""

import pytest

from llmsys.bench import recorded
from llmsys.viz.online_softmax import bandwidth

ROWS = [
    {"name": name, "rows": 8, "cols": cols, "dtype": dtype, "ms": 1.0, "gbps": gbps * cols**0.01, "ratio": 0.5}
    for dtype in ("float32", "bfloat16")
    for name, gbps in (("copy", 3000), ("torch.softmax", 1500), ("llmsys (Triton)", 2500), ("some other", 777))
    for cols in (256, 512, 1000, 1024)
] + [
    {"name": name, "rows": 8, "cols": 1 << 20, "dtype": "float32", "ms": 1.0, "gbps": gbps, "ratio": 0.5}
    for name, gbps in (("two passes", 2000.0), ("three passes", 1600.0), ("copy", 3000.0))
]


def test_the_bandwidths_are_the_recorded_ones(words):
    picture = bandwidth(ROWS)
    lines, bars = picture.figure.axes
    drawn = {line.get_label(): list(line.get_ydata()) for line in lines.get_lines()}
    for name in ("copy", "torch.softmax", "llmsys (Triton)", "some other"):
        expected = [r["gbps"] for r in ROWS if r["name"] == name and r["dtype"] == "float32" and r["cols"] < 1 << 20]
        assert drawn[name] == expected
    assert [bar.get_height() for bar in bars.patches] == [1600, 2000]
    assert "1.25 ×" in words(picture)
    assert "two passes reach 2,000 GB/s and three passes 1,600: 1.25 times as fast" in picture.alt


def test_a_record_says_where_it_was_measured(words):
    class Record:
        rows, device = ROWS, "NVIDIA H100"

    picture = bandwidth(Record, dtype="bfloat16")
    assert "NVIDIA H100, bfloat16" in words(picture) and "Softmax on NVIDIA H100" in picture.alt
    assert len(picture.figure.axes) == 1  # no long rows in bfloat16


def test_what_was_measured_here_stands_beside_it_on_its_own_scale():
    here = [{"name": "torch.softmax", "rows": 1, "cols": c, "dtype": "float32", "gbps": 5.0} for c in (256, 512)]
    picture = bandwidth(ROWS, here)
    assert len(picture.figure.axes) == 3 and picture.figure.axes[2].get_ylim()[1] < 10
    assert "Measured here: torch.softmax 5 to 5 GB/s" in picture.alt


def test_a_dtype_that_was_not_recorded_is_refused():
    with pytest.raises(ValueError, match="'float16'; there are: bfloat16, float32"):
        bandwidth(ROWS, dtype="float16")


def test_the_committed_record_can_be_drawn():
    assert "H100" in bandwidth(recorded("softmax")).alt
