"""Lesson 02's figures say what is so: torch's own exponentials, counted passes, recorded figures."""

import math
from xml.etree import ElementTree

import pytest
import torch

from llmsys.attention import online
from llmsys.viz import bandwidth_plot, exp_overflow, online_softmax_overview, softmax_passes

ROWS = [
    {"name": name, "rows": 8, "cols": cols, "dtype": dtype, "ms": 1.0, "gbps": gbps * cols**0.01, "ratio": 0.5}
    for dtype in ("float32", "bfloat16")
    for name, gbps in (("copy", 3000), ("torch.softmax", 1500), ("llmsys (Triton)", 2500), ("some other", 777))
    for cols in (256, 512, 1000, 1024)
] + [
    {"name": name, "rows": 8, "cols": 1 << 20, "dtype": "float32", "ms": 1.0, "gbps": gbps, "ratio": 0.5}
    for name, gbps in (("two passes", 2000.0), ("three passes", 1600.0), ("copy", 3000.0))
]


def words(picture):
    return "".join(ElementTree.fromstring(picture.html()).itertext())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_the_exponential_ends_where_the_picture_says(dtype):
    name = str(dtype).removeprefix("torch.")
    alt = exp_overflow([dtype]).alt
    low, high = (float(alt.split(f"{part} x = ")[1].split()[0].strip(".;")) for part in ("from", "to"))
    # The exponential of the format's own neighbours of those x, to the precision in which they are printed
    step = 0.02 + 2 * torch.finfo(dtype).eps * abs(torch.tensor([low, high]))
    inside = torch.tensor([low + step[0], high - step[1]]).double().exp().to(dtype)
    outside = torch.tensor([low - step[0], high + step[1]]).double().exp().to(dtype)
    assert (inside > 0).all() and inside.isfinite().all(), name
    assert outside[0] == 0 and outside[1] == math.inf, name


def test_the_overflow_picture_shows_its_numbers():
    picture = exp_overflow()
    assert "11.09" in words(picture) and "88.72" in words(picture)
    assert "float16 holds e^x" in picture.alt


def test_passes_are_drawn_as_counted():
    picture = softmax_passes({"safe softmax": 3.0, "online softmax": 2.0})
    text = words(picture)
    assert [text.count(f"read {k}") for k in (1, 2, 3, 4)] == [2, 2, 1, 0]
    assert text.count("write") == 2 and text.count("saved") == 1
    assert "4 transfers an element → 3: 25% less" in text
    assert "safe softmax reads the row 3 times, writes it once: 4 transfers" in picture.alt
    other = softmax_passes({"mine": 4.5, "online": 2})
    assert "mine reads the row 4.5 times" in other.alt and words(other).count("saved") == 3
    assert "50% more" in words(softmax_passes({"a": 1, "b": 2}))
    assert "→" not in words(softmax_passes({"alone": 2}))


@pytest.mark.parametrize("passes", [{}, {"mine": -1.0}])
def test_passes_that_cannot_be_are_refused(passes):
    with pytest.raises(ValueError, match="passes must name"):
        softmax_passes(passes)


def test_the_overview_shows_the_librarys_numbers(monkeypatch):
    picture = online_softmax_overview()
    assert "Two passes over memory instead of three" in picture.alt
    monkeypatch.setattr(online, "merge", lambda a, b: online.Partial(a.m.maximum(b.m), a.l + b.l))
    assert online_softmax_overview().svg != picture.svg


def test_the_bandwidths_are_the_recorded_ones():
    picture = bandwidth_plot(ROWS)
    lines, bars = picture.figure.axes
    drawn = {line.get_label(): list(line.get_ydata()) for line in lines.get_lines()}
    for name in ("copy", "torch.softmax", "llmsys (Triton)", "some other"):
        expected = [r["gbps"] for r in ROWS if r["name"] == name and r["dtype"] == "float32" and r["cols"] < 1 << 20]
        assert drawn[name] == expected
    assert [bar.get_height() for bar in bars.patches] == [1600, 2000]
    assert "1.25 ×" in words(picture)
    assert "two passes reach 2,000 GB/s and three passes 1,600: 1.25 times as fast" in picture.alt


def test_a_record_says_where_it_was_measured():
    class Record:
        rows, device = ROWS, "NVIDIA H100"

    picture = bandwidth_plot(Record, dtype="bfloat16")
    assert "NVIDIA H100, bfloat16" in words(picture) and "Softmax on NVIDIA H100" in picture.alt
    assert len(picture.figure.axes) == 1  # no long rows in bfloat16


def test_what_was_measured_here_stands_beside_it_on_its_own_scale():
    here = [{"name": "torch.softmax", "rows": 1, "cols": c, "dtype": "float32", "gbps": 5.0} for c in (256, 512)]
    picture = bandwidth_plot(ROWS, here)
    assert len(picture.figure.axes) == 3 and picture.figure.axes[2].get_ylim()[1] < 10
    assert "Measured here: torch.softmax 5 to 5 GB/s" in picture.alt


def test_a_dtype_that_was_not_recorded_is_refused():
    with pytest.raises(ValueError, match="'float16'; there are: bfloat16, float32"):
        bandwidth_plot(ROWS, dtype="float16")


def test_the_committed_record_can_be_drawn():
    from llmsys.bench import recorded

    assert "H100" in bandwidth_plot(recorded("softmax")).alt
